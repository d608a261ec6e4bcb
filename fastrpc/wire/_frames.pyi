"""Frames of any type, written one after another into one buffer.

Knows bytes only. Nothing here is thread-safe: the caller holds a lock.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

_Buffer: TypeAlias = bytes | bytearray | memoryview

class FrameBuffer:
    """Frames to be sent, byte for byte as py-amqp writes them.

    A method that raises does not change the buffer. As long as a ``view`` is held, every change
    raises ``BufferError``.
    """

    def __new__(cls) -> FrameBuffer: ...
    def __len__(self) -> int:
        """Bytes."""

    def view(self) -> memoryview:
        """The whole buffer, read-only and not copied. Release the view before the next change."""

    def clear(self) -> None:
        """Forget all frames."""

    def truncate(self, size: int) -> None:
        """Forget everything after the first ``size`` bytes."""

    def frame(self, type: int, channel: int, payload: _Buffer) -> None:
        """Append a frame of any type."""

    def method(self, channel: int, signature: tuple[int, int], args: _Buffer) -> None:
        """Append a method frame; ``args`` are encoded already (``amqp.serialization.dumps``)."""

    def header(
        self, channel: int, class_id: int, properties: Mapping[str, Any] | bytes, size: int
    ) -> None:
        """Append the content header of a body of ``size`` bytes.

        ``properties`` are those of an ``amqp.Message``, or bytes that are encoded already. A value
        that cannot be encoded raises the same exception as in py-amqp, see
        ``fastrpc.wire._table``.
        """

    def publish(
        self,
        channel: int,
        exchange: str | bytes | None,
        routing_key: str | bytes | None,
        mandatory: bool,
        immediate: bool,
        properties: Mapping[str, Any] | bytes,
        size: int,
    ) -> None:
        """Append ``basic.publish`` and the content header of a body of ``size`` bytes.

        Raises the exceptions of ``header``, and ``struct.error`` if the exchange or the routing key
        is longer than 255 bytes.
        """

    def body(self, channel: int, data: _Buffer, frame_max: int) -> None:
        """Append ``data`` in as many body frames as it needs; none if it is empty."""

    def set_channel(self, channel: int) -> None:
        """Move all frames to another channel."""

    def ack(self, channel: int, delivery_tag: int, multiple: bool = False) -> None:
        """Append ``basic.ack``."""
