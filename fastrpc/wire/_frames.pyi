"""Any frames, one behind the other, in one buffer.

Knows bytes only. Nothing here is thread-safe: the caller holds a lock.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

_Buffer: TypeAlias = bytes | bytearray | memoryview

class FrameBuffer:
    """Frames to be sent, byte for byte as py-amqp writes them.

    A method that raises leaves the buffer as it was. As long as a ``view`` is held every
    change raises ``BufferError``.
    """

    def __new__(cls) -> FrameBuffer: ...
    def __len__(self) -> int:
        """Bytes."""

    def view(self) -> memoryview:
        """All of it, read-only and not copied. Release it before the next change."""

    def clear(self) -> None:
        """Forget all frames."""

    def truncate(self, size: int) -> None:
        """Forget what is behind the first ``size`` bytes."""

    def frame(self, type: int, channel: int, payload: _Buffer) -> None:
        """A frame of any type."""

    def method(self, channel: int, signature: tuple[int, int], args: _Buffer) -> None:
        """A method frame; ``args`` are encoded, see ``amqp.serialization.dumps``."""

    def header(self, channel: int, class_id: int, properties: Mapping[str, Any], size: int) -> None:
        """The content header of a body of ``size`` bytes.

        ``properties`` are those of an ``amqp.Message``. Raises what py-amqp raises for a value that
        cannot be encoded, see ``fastrpc.wire._table``.
        """

    def publish(
        self,
        channel: int,
        exchange: str | bytes | None,
        routing_key: str | bytes | None,
        mandatory: bool,
        immediate: bool,
        properties: Mapping[str, Any],
        size: int,
    ) -> None:
        """``basic.publish`` and the content header of a body of ``size`` bytes.

        Raises as ``header``; ``struct.error`` for an exchange or routing key of over 255 bytes.
        """

    def body(self, channel: int, data: _Buffer, frame_max: int) -> None:
        """``data`` in as many body frames as it takes; none if it is empty."""

    def ack(self, channel: int, delivery_tag: int, multiple: bool = False) -> None:
        """``basic.ack``."""
