"""Reading AMQP 0-9-1 frames from a socket.

Knows bytes only: no Celery, no kombu, no py-amqp. Nothing here is thread-safe: the caller holds a
lock.
"""

from collections.abc import Callable
from typing import Any, Final

NEED_MORE: Final[int]
"""``FrameReader.next()``: no complete event is buffered (0)."""
FRAME: Final[int]
"""``FrameReader.next()``: the event is a frame that is not part of a ``basic.deliver`` (1)."""
DELIVERY: Final[int]
"""``FrameReader.next()``: the event is a whole ``basic.deliver`` (2)."""

class FrameReader:
    """A cursor over the bytes that a broker sends: frames, and whole deliveries.

    ::

        reader.recv(sock.recv_into)
        while kind := reader.next():
            if kind == DELIVERY:
                handle(reader.correlation_id, reader.body)
            else:
                frame_handler((reader.frame_type, reader.channel, reader.payload))

    No object is made for a delivery; its parts are attributes of the reader. They are valid until
    the next call of ``next()``, ``recv()`` or ``feed()``; after that they raise ``RuntimeError``.
    An attribute that the current event does not have raises it too. The values are copies and may
    be kept.

    After a ``ProtocolError`` or a ``MemoryError`` the reader is dead: every call raises it again.
    """

    def __new__(cls, frame_max: int = 131072, max_body: int = 536870912) -> FrameReader:
        """``frame_max`` is the negotiated value; 0 means 131072. A larger frame is a protocol
        error. A body of more than ``max_body`` bytes is skipped, see ``body_dropped``."""

    def recv(self, recv_into: Callable[[memoryview], int]) -> int:
        """Call ``recv_into`` once with the free room (64 KiB or more); return the bytes received.

        0 bytes raise ``OSError``. An exception of ``recv_into`` is passed on, and the reader stays
        usable. The memoryview is released afterwards; if ``recv_into`` kept a slice of it, the
        reader is dead and ``BufferError`` is raised.

        Call ``next()`` until it returns ``NEED_MORE`` before this, or the buffer grows.
        Until this returns, every other method raises ``RuntimeError``.
        """

    def recv_now(self, fd: int) -> int:
        """Receive what the socket ``fd`` has, without waiting; return the bytes received, or 0.

        Raises ``OSError`` at the end of the stream, or if the system's ``recv()`` fails.
        """

    def feed(self, data: bytes) -> None:
        """Append bytes that were received elsewhere."""

    def next(self) -> int:
        """Go to the next event: ``NEED_MORE``, ``FRAME`` or ``DELIVERY``.

        Raises ``fastrpc.errors.ProtocolError`` with the reason.
        """

    @property
    def receiving(self) -> bool:
        """Whether a ``recv()`` is still running: the reader cannot be used meanwhile."""

    @property
    def buffered(self) -> bool:
        """Whether there are bytes that ``next()`` has not consumed.

        They may be less than an event; only ``next()`` finds out.
        """

    @property
    def frame_max(self) -> int:
        """The largest accepted frame, its 8 bytes of overhead included. Set it when negotiated."""

    @frame_max.setter
    def frame_max(self, value: int) -> None: ...

    # Of a frame or a delivery.
    @property
    def channel(self) -> int: ...
    @property
    def frame_type(self) -> int:
        """1 method, 2 content header, 3 body, 8 heartbeat; 1 for a delivery."""

    # Of a frame.
    @property
    def payload(self) -> bytes:
        """Without frame head and end octet."""

    # Of a delivery. A property that the sender left out is None.
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
        """The size of a body that was skipped as larger than ``max_body``; else 0.

        ``body`` is then empty.
        """

    @property
    def delivery_args(self) -> tuple[str, int, bool, str, str]:
        """The arguments of py-amqp's handler of ``basic.deliver``: consumer tag, delivery tag,
        redelivered, exchange and routing key."""

    @property
    def properties(self) -> dict[str, Any]:
        """All properties, decoded, as ``amqp.Message.properties`` has them.

        Raises ``TableError`` if they are malformed, and the other exceptions of
        ``fastrpc.wire._table.loads_properties``.
        """

    @property
    def method_args(self) -> bytes:
        """Payload of the method frame as py-amqp's frame handler gets it, with its two ids."""

    @property
    def header(self) -> bytes:
        """Payload of the content header frame, as ``amqp.Message.inbound_header`` takes it."""
