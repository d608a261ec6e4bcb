"""Connections without a server: the test decides what arrives, and when."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

from fastrpc.wire._reader import DELIVERY, FrameReader

__all__ = ["FakeAMQP", "FakeChannel", "FakeConnection"]


class FakeChannel:
    """A channel that records what is written on it, and answers nothing."""

    def __init__(self, channel_id: int) -> None:
        self.channel_id = channel_id
        #: Methods that were sent, each with its arguments.
        self.written: list[tuple[Any, ...]] = []
        #: Raised, once, by the next write.
        self.fails: BaseException | None = None
        #: As kombu's, which remembers what it has declared.
        self.connection = SimpleNamespace(client=SimpleNamespace(declared_entities=set()))
        self._pending: dict[Any, Any] = {}
        self.refusals = 0

    def _write(self, *method: Any) -> None:
        error, self.fails = self.fails, None
        if error is not None:
            raise error
        self.written.append(method)

    def basic_qos(self, *args: Any) -> None:
        self._write("qos", *args)

    def basic_consume(self, queue: str, **options: Any) -> None:
        self.on_cancel = options["on_cancel"]
        self._write("consume", queue)

    def basic_ack(self, tag: int, multiple: bool) -> None:
        self._write("ack", tag, multiple)

    def send_method(self, method: tuple[int, int], *args: Any) -> None:
        self._write("method", method, *args)

    def close(self) -> None:
        self._write("close")

    @property
    def acknowledged(self) -> list[int]:
        """The delivery tag of each ``basic.ack``, which acknowledges all deliveries up to it."""
        acks = [method for method in self.written if method[0] == "ack"]
        assert all(multiple for _, _, multiple in acks)
        return [tag for _, tag, _ in acks]


class FakeAMQP:
    """py-amqp's connection, as far as an intake uses it.

    Args:
        max_body: The largest body that is kept.
        keeps: Whether each delivery is read while an answer of the broker is awaited, so that it
            is passed to ``on_delivery``.
    """

    def __init__(self, max_body: int = 100_000, keeps: bool = False) -> None:
        self.reader = FrameReader(max_body=max_body)
        self.keeps = keeps
        self.sock = None
        self.heartbeat = 0
        self.answer_timeout: float | None = 10.0
        self.bytes_recv = 0
        self.heartbeat_ticks = 0
        self.abandoned = False
        #: What the next calls of ``fill`` find: bytes, or an exception to raise.
        self.arriving: deque[bytes | BaseException] = deque()
        #: Events other than deliveries: (frame type, channel, payload).
        self.dispatched: list[tuple[int, int, bytes]] = []
        self.on_delivery: Any = None

    def readable(self, busy_wait: float = 0) -> bool:
        return bool(self.arriving)

    def fill(self, timeout: float | None = None) -> None:
        if not self.arriving:
            raise TimeoutError
        data = self.arriving.popleft()
        if isinstance(data, BaseException):
            raise data
        self.reader.feed(data)
        while self.keeps and (kind := self.reader.next()):
            self.dispatch(kind)

    def dispatch(self, kind: int) -> None:
        reader = self.reader
        if kind == DELIVERY:
            self.on_delivery()
        else:
            self.dispatched.append((reader.frame_type, reader.channel, reader.payload))

    def serve(self, frame: tuple[int, int, bytes]) -> None:
        self.dispatched.append(frame)

    def heartbeat_tick(self) -> None:
        self.heartbeat_ticks += 1

    def abandon(self) -> None:
        self.abandoned = True


class FakeConnection:
    """A kombu connection over :class:`FakeAMQP`."""

    connection_errors = (ConnectionError,)
    channel_errors = ()
    alt = ()
    connect_timeout = None

    def __init__(self, amqp: FakeAMQP) -> None:
        self.connection = amqp
        self.default_channel = FakeChannel(1)
        self.channels = [self.default_channel]
        #: How it was closed.
        self.ends: list[str] = []
        #: Raised by ``ensure_connection``.
        self.refuses: BaseException | None = None

    def ensure_connection(self, max_retries: int) -> None:
        if self.refuses is not None:
            raise self.refuses

    def channel(self) -> FakeChannel:
        self.channels.append(FakeChannel(len(self.channels) + 1))
        return self.channels[-1]

    def close(self) -> None:
        self.ends.append("close")

    def collect(self, timeout: float) -> None:
        self.ends.append("collect")
