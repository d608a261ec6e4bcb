"""AMQP 0-9-1 as bytes, right and wrong: what the tests write by hand. (``c/amqp_bytes.h`` in C.)"""

from __future__ import annotations

from struct import pack

__all__ = ["frame", "shortstr"]


def frame(kind: int, channel: int, payload: bytes = b"") -> bytes:
    """A frame of type ``kind``: 1 method, 2 header, 3 body, 8 heartbeat."""
    return pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def shortstr(text: bytes) -> bytes:
    return pack("B", len(text)) + text
