"""FrameWriter and FrameBuffer: the same bytes as py-amqp, and their state after a failure."""

from __future__ import annotations

import os
import struct
import tracemalloc
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace

import amqp
import pytest
from amqp import spec
from amqp.exceptions import FrameSyntaxError, RecoverableConnectionError
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrpc.transport.batch import BatchPublishError, PublishBatch
from fastrpc.transport.writer import AT_ONCE, FrameWriter
from fastrpc.wire._frames import FrameBuffer
from tests.support.steps import each_step

SMALL = 4096
CHUNK = SMALL - 8


class Wire:
    """A transport that keeps what is written, or fails."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.connected = True
        self.failure: BaseException | None = None

    def write(self, data) -> None:
        if self.failure is not None:
            raise self.failure
        self.writes.append(bytes(data))

    @property
    def data(self) -> bytes:
        return b"".join(self.writes)


def connection(frame_max: int = SMALL) -> SimpleNamespace:
    return SimpleNamespace(frame_max=frame_max, bytes_sent=0)


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def writer(wire) -> FrameWriter:
    return FrameWriter(connection(), wire)


def stock_publish(message, exchange, routing_key, mandatory, immediate, channel, frame_max):
    wire = Wire()
    write = frame_writer(connection(frame_max), wire)
    args = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
    write(1, channel, spec.Basic.Publish, args, message)
    return wire.data


texts = st.text(max_size=60)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    texts,
    st.binary(max_size=20),
    st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(3000, 1, 1)),
    st.decimals(-1000, 1000, places=2).map(Decimal),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
properties = st.fixed_dictionaries(
    {},
    optional={
        "content_type": texts,
        "content_encoding": st.sampled_from(["utf-8", "binary", ""]),
        "application_headers": st.dictionaries(st.text(max_size=20), values, max_size=6),
        "delivery_mode": st.integers(0, 255),
        "priority": st.one_of(st.none(), st.integers(0, 255)),
        "correlation_id": texts,
        "reply_to": texts,
        "expiration": st.integers(0, 10**9).map(str),
        "message_id": texts,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": texts,
        "user_id": texts,
        "app_id": texts,
        "cluster_id": texts,
    },
)
bodies = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=300).map(bytearray),
    st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * AT_ONCE, AT_ONCE + 1]).map(
        lambda size: os.urandom(16) * (size // 16) + b"x" * (size % 16)
    ),
)


@given(
    properties,
    bodies,
    texts,
    texts,
    st.booleans(),
    st.booleans(),
    st.integers(0, 65535),
    st.sampled_from([SMALL, SMALL + 1, 131072]),
)
@settings(max_examples=400, deadline=None)
def test_a_message_has_the_bytes_of_py_amqp(
    properties, body, exchange, key, mandatory, immediate, channel, frame_max
):
    arguments = (exchange, key, mandatory, immediate)
    wire, conn = Wire(), connection(frame_max)
    writer = FrameWriter(conn, wire)
    writer.publish(channel, *arguments, amqp.Message(body, **properties))
    expected = stock_publish(amqp.Message(body, **properties), *arguments, channel, frame_max)
    assert wire.data == expected
    assert conn.bytes_sent == 1
    # The way of a subclass that sends the method itself.
    wire.writes.clear()
    args = dumps("Bssbb", (0, *arguments))
    writer(1, channel, spec.Basic.Publish, args, amqp.Message(body, **properties))
    assert wire.data == expected


@pytest.mark.parametrize("encoding", [None, "utf-8", "latin-1"])
def test_text_is_encoded_as_py_amqp_does(writer, wire, encoding):
    ours, theirs = (
        amqp.Message("grüße", **({"content_encoding": encoding} if encoding else {}))
        for _ in range(2)
    )
    writer.publish(1, "", "q", False, False, ours)
    assert wire.data == stock_publish(theirs, "", "q", False, False, 1, SMALL)
    assert ours.properties == theirs.properties


class ShortInts(amqp.Message):
    """Its headers are of a type that py-amqp never writes."""

    def _serialize_properties(self) -> bytes:
        table = b"\x03keys" + struct.pack(">h", self.properties["priority"])
        return struct.pack(">HI", 1 << 13, len(table)) + table


def test_a_message_may_encode_its_properties_in_its_own_way(writer, wire):
    message = ShortInts(b"body", priority=7)
    expected = stock_publish(message, "", "q", False, False, 1, SMALL)
    writer.publish(1, "", "q", False, False, message)
    assert wire.data == expected
    wire.writes.clear()
    writer(1, 1, spec.Basic.Publish, dumps("Bssbb", (0, "", "q", False, False)), message)
    assert wire.data == expected
    wire.writes.clear()
    conn = SimpleNamespace(frame_max=SMALL, look_in=lambda: None, frame_writer=writer)
    batch = PublishBatch(SimpleNamespace(connection=conn, channel_id=1), 10)
    batch.publish(message, "", "q")
    batch.flush()
    assert wire.data == expected


@pytest.mark.parametrize(
    ("type_", "channel", "sig", "args"),
    [
        (1, 3, spec.Basic.Qos, dumps("lBb", (0, 10, False))),
        (1, 0, spec.Connection.CloseOk, ""),
        (8, 0, None, None),
    ],
    ids=["method", "without arguments", "heartbeat"],
)
def test_other_frames_have_the_bytes_of_py_amqp(writer, wire, type_, channel, sig, args):
    stock = Wire()
    frame_writer(connection(), stock)(type_, channel, sig, args, None)
    writer(type_, channel, sig, args, None)
    assert wire.writes == stock.writes


def test_an_acknowledgement_has_the_bytes_of_py_amqp(writer, wire):
    stock = Wire()
    write = frame_writer(connection(), stock)
    for tag, multiple in ((1, False), (2**40, True)):
        write(1, 7, spec.Basic.Ack, dumps("Lb", (tag, multiple)), None)
        writer.acknowledge(7, tag, multiple)
    assert wire.data == stock.data


def test_a_small_message_is_one_write(writer, wire):
    writer.publish(1, "", "q", False, False, amqp.Message(b"x" * (CHUNK + 1)))
    assert len(wire.writes) == 1


@pytest.mark.parametrize(
    ("properties", "key"),
    [
        ({"application_headers": {"a": 1, "b": object()}}, "q"),
        ({"application_headers": {"a": [object()]}}, "q"),
        ({"application_headers": {"a": 2**70}}, "q"),
        ({"application_headers": {"k" * 256: 1}}, "q"),
        ({"correlation_id": "x" * 256}, "q"),
        ({"priority": 256}, "q"),
        ({}, "q" * 256),
    ],
)
def test_what_cannot_be_encoded_leaves_nothing_behind(writer, wire, properties, key):
    with pytest.raises((FrameSyntaxError, struct.error)) as stock:
        stock_publish(amqp.Message(b"b", **properties), "", key, False, False, 1, SMALL)
    with pytest.raises(stock.type):
        writer.publish(1, "", key, False, False, amqp.Message(b"b", **properties))
    if key == "q":
        args = dumps("Bssbb", (0, "", key, False, False))
        with pytest.raises(stock.type):
            writer(1, 1, spec.Basic.Publish, args, amqp.Message(b"b", **properties))
    assert not wire.writes
    good = amqp.Message(b"good")
    writer.publish(1, "", "q", False, False, good)
    assert wire.data == stock_publish(good, "", "q", False, False, 1, SMALL)


@pytest.mark.parametrize("body", [17, None, object()])
def test_a_body_that_is_no_bytes_is_refused(writer, wire, body):
    with pytest.raises(TypeError):
        writer.publish(1, "", "q", False, False, amqp.Message(body))
    assert not wire.writes


@pytest.mark.parametrize("failure", [TimeoutError("timed out"), OSError(32, "gone"), KeyError()])
def test_after_a_failed_write_the_connection_is_lost(writer, wire, failure):
    message = amqp.Message(b"b")
    wire.failure = failure
    with pytest.raises(type(failure)):
        writer.publish(1, "", "q", False, False, message)
    assert not wire.connected
    wire.failure = None
    for again in (
        lambda: writer.publish(1, "", "q", False, False, message),
        lambda: writer.acknowledge(1, 1, False),
        lambda: writer(8, 0, None, None, None),
    ):
        with pytest.raises(BrokenPipeError):
            again()
    assert not wire.writes


@pytest.mark.parametrize("size", [1, 2 * AT_ONCE + 1], ids=["small", "in parts"])
def test_an_exception_thrown_in_leaves_no_half_message(size):
    """Ctrl-C at any step: the next message follows whole ones, or the connection is lost."""
    declaration = dumps("Bs", (0, "q"))
    interrupted, good = amqp.Message(b"i" * size), amqp.Message(b"good")
    declare, first, second = (
        b"".join(wire_of(lambda writer, send=send: send(writer)).writes)
        for send in (
            lambda writer: writer(1, 1, spec.Queue.Declare, declaration, None),
            lambda writer: writer.publish(1, "", "q", False, False, interrupted),
            lambda writer: writer.publish(1, "", "q", False, False, good),
        )
    )

    def prepare() -> FrameWriter:
        return FrameWriter(connection(), Wire())

    def call(writer: FrameWriter) -> None:
        writer.write_later(1, spec.Queue.Declare, declaration)
        writer.publish(1, "", "q", False, False, interrupted)

    def interrupt() -> None:
        raise KeyboardInterrupt

    outcomes = set()
    for where, writer, error in each_step(prepare, call, interrupt, ("transport/writer.py",)):
        assert isinstance(error, KeyboardInterrupt), where
        wire = writer._transport
        try:
            writer.publish(1, "", "q", False, False, good)
        except BrokenPipeError:
            outcomes.add("lost")
            assert not wire.connected, where
        else:
            outcomes.add("goes on")
            sent = wire.data.replace(declare, b"")
            assert sent in (second, first + second), where
            assert writer.published == {1: 1 + (sent != second)}, where
    # Python 3.13 looks nowhere between the start and the end of a single write.
    assert outcomes == {"lost", "goes on"} or (outcomes == {"goes on"} and size == 1)


def test_a_signal_handler_that_interrupts_a_write_does_not_wait_for_it(writer, wire):
    """As Celery's for a cold shutdown, which acknowledges tasks."""
    stock, refused = wire.write, []

    def interrupted(data) -> None:
        for write in (
            lambda: writer.acknowledge(1, 1, False),
            lambda: writer(1, 1, spec.Basic.Reject, b"", None),
            lambda: writer.publish(1, "", "q", False, False, amqp.Message(b"inner")),
            lambda: writer.send(FrameBuffer()),
            writer.flush,
        ):
            with pytest.raises(RecoverableConnectionError):
                write()
            refused.append(write)
        stock(data)

    wire.write = interrupted
    writer.publish(1, "", "q", False, False, amqp.Message(b"outer"))
    assert len(refused) == 5
    wire.write = stock
    writer.acknowledge(1, 1, False)
    assert b"outer" in wire.writes[0]
    assert len(wire.writes) == 2


def wire_of(send) -> Wire:
    wire = Wire()
    send(FrameWriter(connection(), wire))
    return wire


def test_a_large_body_is_not_copied():
    class Sink:
        connected = True

        def write(self, data) -> None:
            pass

    body = b"x" * (16 * 1024 * 1024)
    writer = FrameWriter(connection(131072), Sink())
    tracemalloc.start()
    try:
        writer.publish(1, "", "q", False, False, amqp.Message(body))
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


# -- what waits for the next write


def test_a_method_that_waits_leaves_with_the_next_write(wire, writer):
    writer.write_later(1, spec.Queue.Declare, b"first")
    assert wire.writes == []
    writer.publish(1, "", "q", False, False, amqp.Message("x"))
    [both] = wire.writes
    assert both.index(b"first") < both.index(struct.pack(">HH", *spec.Basic.Publish))
    writer.publish(1, "", "q", False, False, amqp.Message("x"))
    assert b"first" not in wire.writes[1]


def test_it_waits_once_however_often_it_is_asked_for(wire, writer):
    declare, other = b"declare", b"another"
    for _ in range(3):
        writer.write_later(1, spec.Queue.Declare, declare)
    writer.write_later(1, spec.Queue.Declare, other)
    writer.flush()
    assert wire.data.count(declare) == wire.data.count(other) == 1
    writer.write_later(1, spec.Queue.Declare, other)
    writer.flush()
    assert wire.data.count(other) == 2
    writer.flush()
    assert len(wire.writes) == 2


def test_it_stays_in_front_of_a_message_that_cannot_be_encoded(wire, writer):
    writer.write_later(1, spec.Queue.Declare, b"declare")
    with pytest.raises(FrameSyntaxError):
        writer.publish(1, "", "q", False, False, amqp.Message("x", application_headers={"a": wire}))
    assert wire.writes == []
    writer.flush()
    assert wire.data.count(b"declare") == 1


def test_frames_of_others_follow_it_and_stay_as_they_are(wire, writer):
    frames = FrameBuffer()
    frames.ack(1, 7)
    writer.write_later(1, spec.Queue.Declare, b"declare")
    writer.send(frames)
    writer.send(frames)
    with frames.view() as view:
        ack = bytes(view)
    assert wire.data.endswith(b"\xce" + ack + ack)
    assert wire.data.count(b"declare") == 1


@pytest.mark.parametrize("write", ["flush", "send"])
def test_after_a_failed_write_nothing_waits(wire, writer, write):
    frames = FrameBuffer()
    frames.ack(1, 7)
    writer.write_later(1, spec.Queue.Declare, b"declare")
    wire.failure = OSError("gone")
    with pytest.raises(OSError, match="gone"):
        writer.flush() if write == "flush" else writer.send(frames)
    wire.failure = None
    assert not wire.connected
    with pytest.raises(BrokenPipeError):
        writer.flush()
    assert wire.writes == []
    assert len(frames) == 21  # to be sent over another connection


class Parts(Wire):
    """Writes in parts, as TLS, and fails after the first one."""

    def write(self, data) -> None:
        while data:
            if self.writes:
                raise OSError(32, "gone")
            super().write(data[:10])
            data = data[10:]


def test_a_batch_whose_write_in_parts_failed_can_be_sent_again():
    """Though somebody keeps the exception, whose frames hold the rest."""
    frames, writer = FrameBuffer(), FrameWriter(connection(), Parts())
    frames.ack(1, 1)
    with pytest.raises(OSError, match="gone") as raised:
        writer.send(frames)
    frames.set_channel(2)
    assert len(frames) == 21
    assert raised.value.__traceback__ is not None


def test_a_batch_whose_write_in_parts_failed_says_so():
    opened = SimpleNamespace(look_in=lambda: None, frame_max=SMALL, bytes_sent=0)
    opened.frame_writer = FrameWriter(opened, Parts())
    channel = SimpleNamespace(connection=opened, channel_id=1)
    batch = PublishBatch(channel, 10)
    batch.publish(amqp.Message(b"b"), routing_key="q")
    with pytest.raises(BatchPublishError, match="1 messages of a batch are in doubt"):
        batch.flush()


# -- the buffer


def test_frames_stand_one_behind_the_other():
    frames = FrameBuffer()
    frames.method(1, spec.Basic.Qos, b"abc")
    first = bytes(frames.view())
    frames.ack(2, 3)
    assert bytes(frames.view()).startswith(first)
    assert len(frames) == len(first) + 21
    frames.truncate(len(first))
    assert bytes(frames.view()) == first
    frames.clear()
    assert bytes(frames.view()) == b""


def test_nothing_moves_while_somebody_looks():
    frames = FrameBuffer()
    frames.ack(1, 1)
    with frames.view() as view:
        seen = bytes(view)
        for change in (
            frames.clear,
            lambda: frames.truncate(0),
            lambda: frames.ack(1, 2),
            lambda: frames.method(1, (60, 10), b""),
            lambda: frames.frame(8, 0, b""),
            lambda: frames.header(1, 60, {}, 0),
            lambda: frames.publish(1, "", "", False, False, {}, 0),
            lambda: frames.body(1, b"x", SMALL),
            lambda: frames.set_channel(2),
        ):
            with pytest.raises(BufferError):
                change()
        assert bytes(view) == seen
    frames.clear()


def test_a_buffer_that_grew_large_is_freed():
    frames = FrameBuffer()
    frames.body(1, b"x" * 1_000_000, 131072)
    frames.clear()
    frames.ack(1, 1)
    assert len(frames) == 21
    with pytest.raises(ValueError, match="frame_max"):
        frames.body(1, b"x", 8)


def test_all_frames_move_to_another_channel():
    frames, want = FrameBuffer(), FrameBuffer()
    for buffer, channel in ((frames, 1), (want, 0x1234)):
        buffer.publish(channel, "x", "q", False, False, {"priority": 3}, 10_000)
        buffer.body(channel, b"\x01\x00\x01" * 3_333 + b"!", SMALL)
        buffer.ack(channel, 9)
    frames.set_channel(0x1234)
    assert bytes(frames.view()) == bytes(want.view())
    FrameBuffer().set_channel(3)


def test_some_messages_of_a_batch_are_retained():
    def batch_of(*bodies: bytes) -> PublishBatch:
        opened = SimpleNamespace(frame_max=SMALL)
        batch = PublishBatch(SimpleNamespace(connection=opened, channel_id=3), 100)
        for body in bodies:
            batch.publish(amqp.Message(body, correlation_id=body[:9]), routing_key="q")
        return batch

    bodies = [b"%d" % n * size for n, size in enumerate((1, 10_000, 0, CHUNK, 5, 1))]
    for places in ([], [0], [5], [1, 2, 4], [3], list(range(6))):
        batch = batch_of(*bodies)
        batch.retain(places)
        want = batch_of(*(bodies[place] for place in places))
        assert bytes(batch._frames.view()) == bytes(want._frames.view())
        assert batch.kept == want.kept
        batch.publish(amqp.Message(b"more"))
        batch.retain([len(places)])
        assert bytes(batch._frames.view()) == bytes(_only(batch_of(), b"more"))


def test_an_exception_thrown_in_leaves_no_message_that_is_not_counted():
    def prepare() -> PublishBatch:
        opened = SimpleNamespace(frame_max=SMALL)
        return PublishBatch(SimpleNamespace(connection=opened, channel_id=1), 100)

    def call(batch: PublishBatch) -> None:
        for n in range(2):
            batch.publish(amqp.Message(b"first", correlation_id=f"{n}"), routing_key="q")

    def interrupt() -> None:
        raise KeyboardInterrupt

    whole = prepare()
    call(whole)
    size = len(whole._frames) // 2
    for where, batch, _ in each_step(prepare, call, interrupt, ("transport/batch.py",)):
        assert len(batch._frames) == size * len(batch.kept), where
        assert batch._starts == [size * n for n in range(len(batch.kept))], where


def _only(batch: PublishBatch, body: bytes) -> memoryview:
    batch.publish(amqp.Message(body))
    return batch._frames.view()
