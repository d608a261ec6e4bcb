"""Packing ``basic.publish`` and ``basic.ack`` into frames.

Knows bytes only. Nothing here is thread-safe: the caller holds a lock.
"""

class PublishEncoder:
    """Packs ``basic.publish``, content header and body frames, byte for byte as py-amqp does.

    The constructor's arguments are encoded once. A property that is None is left out; an empty
    string is sent. A ``ValueError`` names the argument that does not fit.
    """

    def __new__(
        cls,
        channel: int,
        exchange: str,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: bytes | None = None,
        delivery_mode: int | None = None,
        priority: int | None = None,
        mandatory: bool = False,
        frame_max: int = 131072,
    ) -> PublishEncoder:
        """``headers`` is an encoded table: ``amqp.serialization.dumps("F", [{}])``."""

    def encode(
        self, routing_key: str | bytes, correlation_id: str | bytes | None, body: bytes
    ) -> memoryview:
        """All frames of one message, read-only.

        Release the view once it is written: until then the next message needs memory of its own.
        """

def encode_ack(channel: int, delivery_tag: int, multiple: bool = False) -> bytes:
    """The frame of a ``basic.ack``."""
