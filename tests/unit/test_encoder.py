"""PublishEncoder: byte for byte what py-amqp writes."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import amqp
import kombu
import kombu.transport.pyamqp
import pytest
from amqp.method_framing import frame_writer
from amqp.serialization import dumps
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastrpc.wire._encoder import PublishEncoder, encode_ack

SMALL = 4096
CHUNK = SMALL - 8


def py_amqp(
    channel: int,
    message: amqp.Message,
    exchange: str,
    routing_key: str,
    mandatory: bool,
    frame_max: int,
) -> bytes:
    """All bytes that Channel.basic_publish writes, in one write or in several."""
    written: list[bytes] = []
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    write = frame_writer(SimpleNamespace(frame_max=frame_max, bytes_sent=0), transport)
    args = dumps("Bssbb", (0, exchange, routing_key, mandatory, False))
    write(1, channel, (60, 40), args, message)
    return b"".join(written)


texts = st.text(alphabet=st.characters(), max_size=255).filter(
    lambda s: len(s.encode("utf-8", "surrogatepass")) <= 255
)
octets = st.one_of(st.none(), st.integers(0, 255))
bodies = st.one_of(
    st.binary(max_size=200),
    st.integers(CHUNK - 800, CHUNK + 10).map(lambda n: b"x" * n),
    st.sampled_from([CHUNK, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 300_000]).map(
        lambda n: bytes(range(256)) * (n // 256) + b"y" * (n % 256)
    ),
)
tables = st.one_of(
    st.none(),
    st.dictionaries(st.text(max_size=10), st.one_of(st.integers(0, 9), st.text(max_size=9))),
)


@given(
    channel=st.integers(0, 65535),
    exchange=texts,
    routing_key=texts,
    content_type=st.one_of(st.none(), texts),
    content_encoding=st.one_of(st.none(), texts),
    headers=tables,
    delivery_mode=octets,
    priority=octets,
    correlation_id=st.one_of(st.none(), texts),
    mandatory=st.booleans(),
    frame_max=st.sampled_from([SMALL, SMALL + 1, 131072]),
    body=bodies,
)
@example(1, "", "q", "application/json", "utf-8", {}, 2, 0, "id", False, SMALL, b"x" * CHUNK)
@settings(max_examples=300, deadline=None)
def test_same_bytes_as_py_amqp(
    channel,
    exchange,
    routing_key,
    content_type,
    content_encoding,
    headers,
    delivery_mode,
    priority,
    correlation_id,
    mandatory,
    frame_max,
    body,
) -> None:
    message = amqp.Message(
        body,
        content_type=content_type,
        content_encoding=content_encoding,
        application_headers=headers,
        delivery_mode=delivery_mode,
        priority=priority,
        correlation_id=correlation_id,
    )
    want = py_amqp(channel, message, exchange, routing_key, mandatory, frame_max)
    encoder = PublishEncoder(
        channel,
        exchange,
        content_type,
        content_encoding,
        None if headers is None else dumps("F", [headers]),
        delivery_mode,
        priority,
        mandatory,
        frame_max,
    )
    for _ in range(2):  # the second from a buffer that was used
        assert encoder.encode(routing_key, correlation_id, body) == want


@pytest.mark.parametrize("size", [10, 200_000])
def test_same_bytes_as_a_stock_result(size: int) -> None:
    """The bytes of ``rpc://``, from kombu's Producer down to the transport."""
    written: list[bytes] = []
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    write = frame_writer(SimpleNamespace(frame_max=131072, bytes_sent=0), transport)

    class Channel(kombu.transport.pyamqp.Channel):
        def __init__(self):
            self.channel_id = 3

        def basic_publish(self, msg, exchange="", routing_key="", mandatory=False, **kwargs):
            args = dumps("Bssbb", (0, exchange, routing_key, mandatory, False))
            write(1, self.channel_id, (60, 40), args, msg)

        def __del__(self):
            pass

    producer = kombu.Producer(Channel(), auto_declare=False)
    result = {"task_id": "some-id", "status": "SUCCESS", "result": "x" * size}
    producer.publish(
        result,
        exchange="",
        routing_key="reply-key",
        correlation_id="some-id",
        serializer="json",
        delivery_mode=2,
    )
    encoder = PublishEncoder(
        3, "", "application/json", "utf-8", dumps("F", [{}]), delivery_mode=2, priority=0
    )
    body = kombu.serialization.dumps(result, serializer="json")[2].encode()
    assert encoder.encode("reply-key", "some-id", body) == b"".join(written)


@given(st.integers(0, 65535), st.integers(0, 2**64 - 1), st.booleans())
def test_ack(channel: int, tag: int, multiple: bool) -> None:
    written: list[bytes] = []
    transport = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    write = frame_writer(SimpleNamespace(frame_max=131072, bytes_sent=0), transport)
    write(1, channel, (60, 80), dumps("Lb", (tag, multiple)), None)
    ack = encode_ack(channel, tag, multiple)
    assert [ack] == written
    assert len(ack) == 21
    assert encode_ack(channel, tag) == encode_ack(channel, tag, False)


def test_ids_may_be_bytes() -> None:
    encoder = PublishEncoder(1, "")
    assert encoder.encode(b"key", b"id", b"") == bytes(encoder.encode("key", "id", b""))
    assert bytes(encoder.encode("ä\ud800", "ß", b"")) == encoder.encode(
        "ä\ud800".encode("utf-8", "surrogatepass"), "ß".encode(), b""
    )


# ---------------------------------------------------------------- the buffer


def test_a_view_that_is_kept_keeps_its_bytes() -> None:
    encoder = PublishEncoder(1, "")
    first = encoder.encode("first", None, b"1" * 100)
    copy = bytes(first)
    second = encoder.encode("other", None, b"2" * 100)
    large = encoder.encode("other", None, b"3" * 1_000_000)
    del encoder
    assert first == copy
    assert bytes(second).count(b"2") == 100
    assert bytes(large).count(b"3") == 1_000_000


def test_view_is_read_only() -> None:
    view = PublishEncoder(1, "").encode("key", None, b"")
    assert view.readonly
    with pytest.raises(TypeError):
        view[0] = 0


def test_buffer_is_reused_and_a_large_one_is_not_kept() -> None:
    encoder = PublishEncoder(1, "")
    body = b"x" * 8_000_000
    tracemalloc.start()
    try:
        for _ in range(100):
            encoder.encode("key", "id", b"x" * 1000)
        small, peak = tracemalloc.get_traced_memory()
        assert peak < 20_000
        assert len(encoder.encode("key", "id", body)) > len(body)
        encoder.encode("key", "id", b"")
        after, peak = tracemalloc.get_traced_memory()
        assert len(body) < peak < 1.1 * len(body)
        assert after < small + 10_000
    finally:
        tracemalloc.stop()


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize("name", ["exchange", "content_type", "content_encoding"])
def test_short_strings_of_the_template(name: str) -> None:
    PublishEncoder(**{"channel": 1, "exchange": "", name: "x" * 255})
    with pytest.raises(ValueError, match=f"^{name} is 256 bytes long, a short string holds 255$"):
        PublishEncoder(**{"channel": 1, "exchange": "", name: "ä" * 128})


def test_short_strings_of_a_message() -> None:
    encoder = PublishEncoder(1, "")
    encoder.encode("x" * 255, "x" * 255, b"")
    with pytest.raises(ValueError, match=r"^routing_key is 256 bytes long"):
        encoder.encode("x" * 256, "id", b"")
    with pytest.raises(ValueError, match=r"^correlation_id is 256 bytes long"):
        encoder.encode("key", "ä" * 128, b"")
    with pytest.raises(TypeError):
        encoder.encode("key", "id", "text")
    with pytest.raises(TypeError):
        encoder.encode("key", 5, b"")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"frame_max": 100}, "frame_max is 100"),
        ({"delivery_mode": 256}, "delivery_mode is 256"),
        ({"priority": -1}, "priority is -1"),
        ({"headers": b""}, "headers is not an encoded table"),
        ({"headers": b"\0\0\0\1"}, "headers is not an encoded table"),
        ({"headers": dumps("F", [{"k": "x" * 200_000}])}, "does not fit into a frame"),
    ],
)
def test_bad_arguments(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PublishEncoder(1, "", **kwargs)


def test_headers_that_leave_no_room_for_the_correlation_id() -> None:
    table = dumps("F", [{"k": "x" * (CHUNK - 14 - 4 - 7)}])
    encoder = PublishEncoder(1, "", headers=table, frame_max=SMALL)
    encoder.encode("key", None, b"")
    with pytest.raises(ValueError, match="does not fit into a frame"):
        encoder.encode("key", "id", b"")
