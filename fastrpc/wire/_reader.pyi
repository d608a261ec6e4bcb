"""Reading AMQP 0-9-1 frames out of a socket.

Knows bytes only: no Celery, no kombu, no py-amqp. Nothing here is thread-safe: the caller holds a
lock.
"""

from collections.abc import Callable
from typing import Any, Final

NEED_MORE: Final[int]
"""``FrameReader.next()``: nothing whole is buffered (0)."""
FRAME: Final[int]
"""``FrameReader.next()``: at a frame that is no part of a ``basic.deliver`` (1)."""
DELIVERY: Final[int]
"""``FrameReader.next()``: at a whole ``basic.deliver`` (2)."""

class FrameReader:
    """A cursor over what a broker sends: frames, and whole deliveries.

    ::

        reader.recv(sock.recv_into)
        while kind := reader.next():
            if kind == DELIVERY:
                handle(reader.correlation_id, reader.body)
            else:
                frame_handler((reader.frame_type, reader.channel, reader.payload))

    No object is made for a delivery; its parts are attributes of the reader. They are valid until
    the next call of ``next()``, ``recv()`` or ``feed()``, and raise ``RuntimeError`` from then on,
    as do those that the present event does not have. What they return are copies and may be kept.

    After a ``ProtocolError`` or a ``MemoryError`` the reader is dead: every call raises it again.
    """

    def __new__(cls, frame_max: int = 131072, max_body: int = 536870912) -> FrameReader:
        """``frame_max``: the negotiated one; 0 means 131072. A larger frame is a protocol error, as
        is a body of more than ``max_body`` bytes (at its content header, before it is received)."""

    def recv(self, recv_into: Callable[[memoryview], int]) -> int:
        """Call ``recv_into`` once with the free room (64 KiB or more); return how many bytes came.

        0 bytes raise ``OSError``; what ``recv_into`` raises passes through, and the reader stays
        usable. The memoryview is released afterwards; if ``recv_into`` kept a slice of it, the
        reader is dead and ``BufferError`` is raised.

        Before, call ``next()`` until it returns ``NEED_MORE``, or the buffer grows.
        Until this returns, every other method raises ``RuntimeError``.
        """

    def feed(self, data: bytes) -> None:
        """Append bytes that were received elsewhere."""

    def next(self) -> int:
        """Go to the next event: ``NEED_MORE``, ``FRAME`` or ``DELIVERY``.

        Raises ``fastrpc.errors.ProtocolError``, which says what was wrong.
        """

    @property
    def receiving(self) -> bool:
        """Whether a ``recv()`` has not returned yet: the reader cannot be used meanwhile."""

    @property
    def buffered(self) -> bool:
        """Whether there are bytes that ``next()`` has not consumed.

        They may be less than an event; only ``next()`` can tell.
        """

    @property
    def frame_max(self) -> int:
        """Largest frame that is accepted, with its 8 bytes of frame; can be set when negotiated."""

    @frame_max.setter
    def frame_max(self, value: int) -> None: ...

    # At a frame or a delivery.
    @property
    def channel(self) -> int: ...
    @property
    def frame_type(self) -> int:
        """1 method, 2 content header, 3 body, 8 heartbeat; 1 for a delivery."""

    # At a frame.
    @property
    def payload(self) -> bytes:
        """Without frame head and end octet."""

    # At a delivery. A property that the sender left out is None.
    @property
    def consumer_tag(self) -> bytes: ...
    @property
    def delivery_tag(self) -> int: ...
    @property
    def redelivered(self) -> bool: ...
    @property
    def exchange(self) -> bytes: ...
    @property
    def routing_key(self) -> bytes: ...
    @property
    def content_type(self) -> bytes | None: ...
    @property
    def content_encoding(self) -> bytes | None: ...
    @property
    def headers(self) -> bytes | None:
        """The encoded table, with the 4 bytes of its length.

        To decode: ``amqp.serialization.loads("F", headers, 0)``.
        """

    @property
    def delivery_mode(self) -> int | None: ...
    @property
    def priority(self) -> int | None: ...
    @property
    def correlation_id(self) -> bytes | None: ...
    @property
    def body(self) -> bytes:
        """The same object on each access."""

    @property
    def body_dropped(self) -> int:
        """Size of a body over ``max_body``, which was read over (``body`` is empty); else 0."""

    @property
    def delivery_args(self) -> tuple[str, int, bool, str, str]:
        """Consumer tag, delivery tag, redelivered, exchange and routing key, as py-amqp's handler
        of ``basic.deliver`` takes them."""

    @property
    def properties(self) -> dict[str, Any]:
        """All properties, decoded, as ``amqp.Message.properties`` has them.

        Raises ``TableError`` where they are malformed, and what
        ``fastrpc.wire._table.loads_properties`` raises.
        """

    @property
    def method_args(self) -> bytes:
        """Payload of the method frame as py-amqp's frame handler gets it, with its two ids."""

    @property
    def header(self) -> bytes:
        """Payload of the content header frame, as ``amqp.Message.inbound_header`` takes it."""
