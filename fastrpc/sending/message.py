"""The messages that a publisher sends."""

from typing import NamedTuple, Protocol

__all__ = ["Message", "Packed"]


class Message(NamedTuple):
    """A result, ready to be sent."""

    routing_key: str
    correlation_id: str
    body: bytes
    content_type: str
    content_encoding: str


class Packed(Protocol):
    """Any other message, already encoded by its sender."""

    correlation_id: str
    #: Its length counts against the limit of the window in bytes.
    body: bytes

    def frames(self, channel: int) -> bytes:
        """All frames of the message, for that channel."""
