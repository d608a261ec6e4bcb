"""AMQP 0-9-1 as bytes, right and wrong: what the tests write by hand. (``c/amqp_bytes.h`` in C.)"""

from __future__ import annotations

from struct import pack

__all__ = ["NOT_AMQP", "QOS_OK", "delivery", "frame", "shortstr"]

#: Largest payload of a body frame that ``delivery`` writes.
BODY_FRAME = 100_000


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """A frame of type ``kind``: 1 method, 2 header, 3 body, 8 heartbeat."""
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def shortstr(text: bytes) -> bytes:
    return pack("B", len(text)) + text


def delivery(
    tag: int,
    body: bytes,
    correlation_id: bytes | None = None,
    content_type: bytes | None = b"application/json",
    content_encoding: bytes | None = b"utf-8",
    headers: bytes | None = None,
    consumer_tag: bytes = b"queue",
    channel: int = 1,
) -> bytes:
    """The frames of a ``basic.deliver``; ``headers`` is an encoded table with its length."""
    method = shortstr(consumer_tag) + pack(">QB", tag, 0) + shortstr(b"") + shortstr(consumer_tag)
    flags, properties = 0, b""
    for flag, value in ((15, content_type), (14, content_encoding), (13, headers)):
        if value is not None:
            flags |= 1 << flag
            properties += value if flag == 13 else shortstr(value)
    if correlation_id is not None:
        flags |= 1 << 10
        properties += shortstr(correlation_id)
    parts = [body[at : at + BODY_FRAME] for at in range(0, len(body), BODY_FRAME)]
    return b"".join(
        (
            frame(1, channel, pack(">HH", 60, 60) + method),
            frame(2, channel, pack(">HHQH", 60, 0, len(body), flags) + properties),
            *(frame(3, channel, part) for part in parts),
        )
    )


#: The answer to ``basic.qos`` on channel 1.
QOS_OK = frame(1, 1, pack(">HH", 60, 11))

#: What a peer may send that is not AMQP 0-9-1, or not at that point.
NOT_AMQP = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another version": b"AMQP\x00\x01\x00\x00",
    "a huge frame": pack(">BHI", 1, 1, 1 << 31),
    "a body without a header": frame(3, 1, b"x"),
    "an unknown method": frame(1, 1, pack(">HH", 99, 99)),
    "an unknown method of the connection": frame(1, 0, pack(">HH", 10, 99)),
    "an unknown channel": frame(1, 99, pack(">HHB", 20, 11, 0)),
    "basic.ack cut short": frame(1, 1, pack(">HHB", 60, 80, 9)),
    "connection.close cut short": frame(1, 0, pack(">HH", 10, 50)),
    "a name that is not text": frame(1, 1, pack(">HHB", 60, 30, 2) + b"\xff\xff\x00"),
}
