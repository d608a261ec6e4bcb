"""AMQP 0-9-1 as bytes, right and wrong: what the tests write by hand. (``c/amqp_bytes.h`` in C.)"""

from __future__ import annotations

from struct import pack

__all__ = ["NOT_AMQP", "frame", "shortstr"]


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """A frame of type ``kind``: 1 method, 2 header, 3 body, 8 heartbeat."""
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def shortstr(text: bytes) -> bytes:
    return pack("B", len(text)) + text


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
