"""FrameReader against py-amqp's own reader as the oracle, and errors that only Python can make."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from struct import pack, unpack_from
from types import SimpleNamespace

import amqp
import pytest
from amqp.exceptions import UnexpectedFrame
from amqp.method_framing import frame_handler
from amqp.serialization import loads
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrpc.errors import FastRPCError, ProtocolError
from fastrpc.wire._poll import hung_up, readable
from fastrpc.wire._reader import DELIVERY, FRAME, NEED_MORE, FrameReader
from tests.support.amqp_bytes import frame, shortstr

SMALL = 4096
CHUNK = SMALL - 8

ANY = ("channel", "frame_type")
OF_FRAME = ("payload",)
OF_DELIVERY = (
    "consumer_tag",
    "delivery_tag",
    "redelivered",
    "exchange",
    "routing_key",
    "content_type",
    "content_encoding",
    "headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "body",
    "method_args",
    "header",
)


def deliver_payload(tag: int = 1, redelivered: int = 0) -> bytes:
    return (
        pack(">HH", 60, 60)
        + shortstr(b"ctag")
        + pack(">QB", tag, redelivered)
        + shortstr(b"ex")
        + shortstr(b"key")
    )


def content(
    method: bytes, body: bytes, channel: int = 1, chunk: int = CHUNK, **props
) -> list[bytes]:
    header = pack(">HHQ", 60, 0, len(body)) + amqp.Message(**props)._serialize_properties()
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    return [
        frame(1, channel, method),
        frame(2, channel, header),
        *(frame(3, channel, p) for p in parts),
    ]


def delivery(body: bytes = b"hello", **kwargs) -> bytes:
    return b"".join(content(deliver_payload(), body, **kwargs))


def reader_at(data: bytes, **kwargs) -> FrameReader:
    reader = FrameReader(**kwargs)
    reader.feed(data)
    return reader


# ---------------------------------------------------------------- py-amqp as the oracle

shortstrs = st.text(max_size=40).filter(lambda s: len(s.encode()) <= 255)
tables = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.one_of(st.integers(-(2**31) + 1, 2**31 - 1), st.text(max_size=20), st.booleans(), st.none()),
    max_size=4,
)
properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": shortstrs,
        "content_encoding": shortstrs,
        "application_headers": tables,
        "delivery_mode": st.integers(0, 255),
        "priority": st.integers(0, 255),
        "correlation_id": shortstrs,
        "reply_to": shortstrs,
        "expiration": shortstrs,
        "message_id": shortstrs,
        "timestamp": st.integers(0, 2**63 - 1),
        "type": shortstrs,
        "user_id": shortstrs,
        "app_id": shortstrs,
        "cluster_id": shortstrs,
    },
)
sizes = st.one_of(
    st.integers(0, 30),
    st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1]),
    st.integers(0, 20000),
)


@st.composite
def deliver_methods(draw) -> bytes:
    names = [draw(shortstrs).encode() for _ in range(3)]
    tag, redelivered = draw(st.integers(0, 2**64 - 1)), draw(st.integers(0, 1))
    head = pack(">HH", 60, 60) + shortstr(names[0]) + pack(">QB", tag, redelivered)
    return head + shortstr(names[1]) + shortstr(names[2])


@st.composite
def messages(draw, channel: int) -> list[bytes]:
    kind = draw(st.sampled_from(["deliver", "deliver", "deliver", "return", "get-ok", "method"]))
    if kind == "method":
        return [frame(1, channel, pack(">HH", 60, 80) + draw(st.binary(max_size=20)))]
    method = {
        "deliver": draw(deliver_methods()),
        "return": pack(">HH", 60, 50) + b"args",
        "get-ok": pack(">HH", 60, 71) + b"args",
    }[kind]
    body = draw(st.binary(min_size=1, max_size=7)) * draw(sizes)
    body = body[: draw(sizes)]
    chunk = draw(st.one_of(st.just(CHUNK), st.integers(max(1, len(body) // 12), CHUNK)))
    return content(method, body, channel, chunk, **draw(properties))


@st.composite
def conversations(draw) -> list[bytes]:
    """Frames in an order in which a broker may send them."""
    queues = []
    for channel in draw(st.lists(st.sampled_from([1, 2, 3, 258, 65535]), max_size=4, unique=True)):
        queues.append([f for _ in range(draw(st.integers(1, 3))) for f in draw(messages(channel))])
    frames = []
    rng = draw(st.randoms(use_true_random=False))
    together = draw(st.booleans())
    while queues:
        queue = rng.choice(queues)
        for _ in range(3 if together else 1):
            if queue:
                frames.append(queue.pop(0))
        if not queue:
            queues.remove(queue)
        if rng.random() < 0.15:
            frames.append(frame(8, 0))
    return frames


def as_seen(channel, method_sig, buf, msg):
    if msg is None:
        return (channel, method_sig, buf)
    return (channel, method_sig, buf, msg.frame_args, msg.body_size, msg.properties, msg.body)


def oracle(frames: list[bytes]) -> list:
    seen: list = []
    handle = frame_handler(SimpleNamespace(bytes_recv=0), lambda *a: seen.append(as_seen(*a)))
    for raw in frames:
        kind, channel = unpack_from(">BH", raw)
        handle((kind, channel, raw[7:-1]))
    return seen


def is_delivery_frame(raw: bytes, open_channels: dict) -> bool:
    kind, channel = unpack_from(">BH", raw)
    if kind == 1:
        open_channels[channel] = raw[7:11] == pack(">HH", 60, 60)
    return kind != 8 and open_channels.get(channel, False)


def read(reader: FrameReader, seen: list, raw: list, handle) -> None:
    while kind := reader.next():
        if kind == FRAME:
            raw.append(frame(reader.frame_type, reader.channel, reader.payload))
            handle((reader.frame_type, reader.channel, reader.payload))
            continue
        assert kind == DELIVERY
        msg = amqp.Message(frame_method=(60, 60), frame_args=reader.method_args)
        end = msg.inbound_header(reader.header)
        assert end == 12  # inbound_header says where the properties start
        msg.body = reader.body or ""
        assert reader.body is reader.body
        args = unpack_from(">HH", reader.method_args)
        check_against(msg, reader)
        seen.append(as_seen(reader.channel, args, msg.frame_args, msg))


def check_against(msg: amqp.Message, reader: FrameReader) -> None:
    """Compare each attribute with what py-amqp reads from the raw frames."""
    values, _ = loads("sLbss", msg.frame_args, 4)
    assert values == [
        reader.consumer_tag.decode(),
        reader.delivery_tag,
        reader.redelivered,
        reader.exchange.decode(),
        reader.routing_key.decode(),
    ]
    props = msg.properties
    for name in ("content_type", "content_encoding", "correlation_id"):
        value = getattr(reader, name)
        assert props.get(name) == (None if value is None else value.decode())
    assert props.get("delivery_mode") == reader.delivery_mode
    assert props.get("priority") == reader.priority
    if reader.headers is None:
        assert "application_headers" not in props
    else:
        table, end = loads("F", reader.headers, 0)
        assert table == [props["application_headers"]]
        assert end == len(reader.headers)


@given(conversations(), st.lists(st.integers(0, 60000), max_size=12), st.booleans())
@settings(max_examples=150, deadline=None)
def test_same_as_py_amqp(frames: list[bytes], cuts: list[int], through_recv: bool) -> None:
    wire = b"".join(frames)
    points = sorted({min(c, len(wire)) for c in cuts} | {len(wire)})
    reader = FrameReader(frame_max=SMALL)
    seen: list = []
    raw: list[bytes] = []
    handle = frame_handler(SimpleNamespace(bytes_recv=0), lambda *a: seen.append(as_seen(*a)))
    at = 0
    for point in points:
        if through_recv and point > at:

            def recv_into(view, part=wire[at:point]):
                view[: len(part)] = part
                return len(part)

            assert reader.recv(recv_into) == point - at
        else:
            reader.feed(wire[at:point])
        at = point
        read(reader, seen, raw, handle)
    assert seen == oracle(frames)
    channels: dict = {}
    assert raw == [f for f in frames if not is_delivery_frame(f, channels)]
    assert not reader.buffered


@given(st.binary(max_size=300), st.integers(0, 300))
@settings(max_examples=200, deadline=None)
def test_any_bytes_end_in_need_more_or_protocol_error(noise: bytes, at: int) -> None:
    wire = bytearray(delivery() * 3)
    wire[at : at + len(noise)] = noise
    reader = reader_at(bytes(wire))
    said = []
    for _ in range(200):
        try:
            reader.next()
        except ProtocolError as exc:
            said.append(str(exc))
    assert len(set(said)) <= 1
    assert "" not in said
    if said:
        assert len(said) > 100  # final


# ---------------------------------------------------------------- the cursor


def test_attributes_of_a_delivery() -> None:
    reader = reader_at(delivery(content_type="application/json", correlation_id="id"))
    assert reader.next() == DELIVERY
    assert (reader.channel, reader.frame_type) == (1, 1)
    assert reader.redelivered is False
    assert reader.content_type == b"application/json"
    assert reader.correlation_id == b"id"
    assert (reader.content_encoding, reader.headers) == (None, None)
    assert (reader.delivery_mode, reader.priority) == (None, None)
    assert reader.method_args == deliver_payload()
    assert reader.body == b"hello"


@pytest.mark.parametrize("name", ANY + OF_FRAME + OF_DELIVERY)
@pytest.mark.parametrize("body", [b"hello", b"x" * 10000])
def test_attributes_expire(name: str, body: bytes) -> None:
    wire = frame(8, 0) if name in OF_FRAME else delivery(body)
    kind = FRAME if name in OF_FRAME else DELIVERY
    for expire in (
        lambda r: r.feed(b""),
        lambda r: r.feed(b"x"),
        lambda r: r.next(),
        lambda r: r.recv(lambda view: 1),
    ):
        reader = FrameReader()
        with pytest.raises(RuntimeError, match="no current event"):
            getattr(reader, name)
        reader.feed(wire)
        assert reader.next() == kind
        getattr(reader, name)
        expire(reader)
        with pytest.raises(RuntimeError, match="no current event"):
            getattr(reader, name)


def test_attributes_of_the_other_kind() -> None:
    reader = reader_at(frame(8, 0) + delivery())
    assert reader.next() == FRAME
    for name in OF_DELIVERY:
        with pytest.raises(RuntimeError, match="is a frame, not a delivery"):
            getattr(reader, name)
    assert reader.next() == DELIVERY
    with pytest.raises(RuntimeError, match="is a delivery, not a frame"):
        _ = reader.payload


@pytest.mark.parametrize("chunk", [1000, CHUNK])
def test_body_outlives_the_reader(chunk: int) -> None:
    body = os.urandom(3000)
    reader = reader_at(delivery(body, chunk=chunk) * 2)
    bodies = []
    while reader.next():
        bodies.append(reader.body)
    del reader
    assert bodies == [body, body]
    assert hash(bodies[0]) == hash(body)


def test_buffered() -> None:
    reader = FrameReader()
    assert reader.buffered is False
    wire = delivery()
    reader.feed(wire + wire[:3])
    assert reader.buffered is True
    assert reader.next() == DELIVERY
    assert reader.buffered is True
    assert reader.next() == NEED_MORE
    assert reader.buffered is True
    reader.feed(wire[3:])
    assert reader.next() == DELIVERY
    assert reader.buffered is False


def test_protocol_error_is_final_and_says_why() -> None:
    reader = reader_at(frame(8, 0) + frame(4, 0))
    assert reader.next() == FRAME
    for call in (
        reader.next,
        reader.next,
        lambda: reader.feed(b"x"),
        lambda: reader.recv(lambda view: pytest.fail("asked the socket")),
    ):
        with pytest.raises(ProtocolError, match=r"^unknown frame type 4$"):
            call()
    # Otherwise the reading thread would not treat the connection as lost.
    assert issubclass(ProtocolError, FastRPCError)
    assert issubclass(ProtocolError, UnexpectedFrame)
    with pytest.raises(RuntimeError):
        _ = reader.payload


def test_frame_max() -> None:
    wire = frame(1, 0, b"x" * CHUNK)
    reader = FrameReader()
    assert reader.frame_max == 131072
    reader.frame_max = SMALL
    reader.feed(wire)
    assert reader.next() == FRAME
    reader.feed(frame(1, 0, b"x" * (CHUNK + 1)))
    with pytest.raises(ProtocolError, match="frame_max 4096 allows 4088"):
        reader.next()
    assert FrameReader(frame_max=0).frame_max == 131072
    for bad in (4095, -1, 2**32):
        with pytest.raises(ValueError, match="frame_max"):
            FrameReader(frame_max=bad)
        with pytest.raises(ValueError, match="frame_max"):
            reader.frame_max = bad


def test_max_body() -> None:
    assert reader_at(delivery(b"x" * 10), max_body=10).next() == DELIVERY
    reader = reader_at(delivery(b"x" * 11) + delivery(b"small"), max_body=10)
    assert reader.next() == DELIVERY
    assert (reader.body, reader.body_dropped) == (b"", 11)
    assert reader.next() == DELIVERY
    assert (reader.body, reader.body_dropped) == (b"small", 0)
    with pytest.raises(OverflowError):
        FrameReader(max_body=-1)


# ---------------------------------------------------------------- recv


def test_recv_from_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = delivery() * 300
        theirs.sendall(wire)
        theirs.shutdown(socket.SHUT_WR)
        reader = FrameReader()
        count = calls = 0
        while count < 300:
            reader.recv(ours.recv_into)
            calls += 1
            while reader.next() == DELIVERY:
                assert reader.body == b"hello"
                count += 1
        assert calls < 10
        with pytest.raises(OSError, match=r"^Server unexpectedly closed connection$"):
            reader.recv(ours.recv_into)


def test_recv_that_fails_leaves_the_reader_usable() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        wire = delivery()
        reader = reader_at(wire[:20])
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                reader.recv(ours.recv_into)
        theirs.sendall(wire[20:])
        assert reader.recv(ours.recv_into) == len(wire) - 20
        assert reader.next() == DELIVERY


def test_recv_now_takes_what_is_there_and_does_not_wait() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = delivery()
        reader = reader_at(wire[:20])
        assert reader.recv_now(ours.fileno()) == 0
        theirs.sendall(wire[20:])
        assert reader.recv_now(ours.fileno()) == len(wire) - 20
        assert reader.next() == DELIVERY
        assert reader.body == b"hello"
        theirs.close()
        with pytest.raises(OSError, match=r"^Server unexpectedly closed connection$"):
            reader.recv_now(ours.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        reader.recv_now(ours.fileno())


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_recv_checks_the_returned_count(bad: int) -> None:
    with pytest.raises(ValueError, match="recv_into returned"):
        FrameReader().recv(lambda view: bad)


def test_view_is_released() -> None:
    kept = []

    def recv_into(view):
        kept.append(view)
        view[:1] = b"\x08"
        return 1

    reader = FrameReader()
    reader.recv(recv_into)
    with pytest.raises(ValueError, match="released"):
        kept[0][0]
    reader.feed(frame(8, 0)[1:])
    assert reader.next() == FRAME


def test_kept_slice_kills_the_reader_and_not_the_process() -> None:
    kept = []

    def recv_into(view):
        kept.append(view[10:])
        return 5

    reader = reader_at(b"\x08")
    with pytest.raises(BufferError, match="kept a view"):
        reader.recv(recv_into)
    with pytest.raises(ProtocolError, match="taken away"):
        reader.next()
    del reader
    kept[0][:] = b"x" * len(kept[0])  # still memory
    kept.clear()


def test_nothing_is_done_while_receiving() -> None:
    reader = reader_at(delivery())

    def recv_into(view):
        for call in (reader.next, lambda: reader.feed(b"x"), lambda: reader.recv(recv_into)):
            with pytest.raises(RuntimeError, match="in use"):
                call()
        view[:1] = b"\x08"
        return 1

    reader.recv(recv_into)
    assert reader.next() == DELIVERY


# ---------------------------------------------------------------- memory


def test_large_body_is_held_once() -> None:
    size, chunk = 24 * 1024 * 1024, 131064
    parts = [
        *content(deliver_payload(), b"", chunk=chunk)[:1],
        frame(2, 1, pack(">HHQH", 60, 0, size, 0)),
    ]
    body_frame = frame(3, 1, b"x" * chunk)
    reader = FrameReader()
    for part in parts:
        reader.feed(part)
    tracemalloc.start()
    try:
        for _ in range(size // chunk):
            reader.feed(body_frame)
            assert reader.next() == NEED_MORE
        reader.feed(frame(3, 1, b"x" * (size % chunk)))
        assert reader.next() == DELIVERY
        assert len(reader.body) == size
        assert reader.body is reader.body
        _, peak = tracemalloc.get_traced_memory()
        assert peak < 1.5 * size
        assert reader.next() == NEED_MORE
        left, _ = tracemalloc.get_traced_memory()
        assert left < 2**20
    finally:
        tracemalloc.stop()


def test_out_of_memory_is_a_memory_error() -> None:
    """In a child whose address space ends before the body does."""
    script = """
import resource
from struct import pack
from fastrpc.wire._reader import FrameReader
frame = lambda kind, payload: pack(">BHI", kind, 1, len(payload)) + payload + b"\\xce"
method = pack(">HH", 60, 60) + b"\\0" + bytes(9) + b"\\0\\0"
reader = FrameReader(frame_max=2**24)
reader.feed(frame(1, method) + frame(2, pack(">HHQH", 60, 0, 2**29, 0)))
body = frame(3, b"x" * 2**22)
assert reader.next() == 0
with open("/proc/self/statm") as f:
    used = int(f.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
try:
    while True:
        reader.feed(body)
        reader.next()
except MemoryError as exc:
    assert str(exc) == "no memory for an incoming message", exc
try:
    reader.next()
except MemoryError:
    print("dead")
"""
    if not os.path.exists("/proc/self/statm") or "ASAN_OPTIONS" in os.environ:
        pytest.skip("needs /proc and an address space that can be limited")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "dead\n", done.stderr


# ---------------------------------------------------------------- readable


def test_readable() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            assert readable(ours.fileno()) is False
            theirs.send(b"x")
            assert readable(ours.fileno()) is True
            ours.recv(1)
            assert readable(ours.fileno()) is False
            theirs.shutdown(socket.SHUT_WR)
            assert readable(ours.fileno()) is True
        for closed in (-1, 1_000_000):
            for busy_wait in (0, 60):
                with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                    readable(closed, busy_wait)


def test_hung_up() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        assert hung_up(ours.fileno()) is False
        theirs.shutdown(socket.SHUT_WR)
        assert hung_up(ours.fileno()) is True  # though there is something to read yet
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        hung_up(-1)


def test_readable_may_poll_for_a_while() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.monotonic()
        assert readable(ours.fileno(), 0.05) is False
        assert time.monotonic() - began >= 0.05
        # Another thread of Python's runs meanwhile, and is what it waits for.
        sender = threading.Timer(0.05, theirs.send, [b"x"])
        sender.start()
        assert readable(ours.fileno(), 60) is True
        sender.join()
