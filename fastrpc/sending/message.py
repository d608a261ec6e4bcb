"""What is sent."""

from typing import NamedTuple, Protocol

__all__ = ["Message", "Packed"]


class Message(NamedTuple):
    """A result on its way."""

    routing_key: str
    correlation_id: str
    body: bytes
    content_type: str
    content_encoding: str


class Packed(Protocol):
    """Any other message, encoded by whoever sends it."""

    correlation_id: str
    #: What its size is taken from.
    body: bytes

    def frames(self, channel: int) -> bytes:
        """All of its frames, on that channel."""
