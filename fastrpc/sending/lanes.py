"""Small results over one connection, large ones over another: they do not hold each other up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..options import Options
from ..stats import Stats
from ..transport.transports import is_amqp
from .message import Message
from .publisher import AMQPPublisher, KombuPublisher

__all__ = ["Lanes", "make_publisher"]

#: Bytes from which a result is large.
LARGE = 256 * 1024

#: How long, in seconds, a large result waits for the confirm of a small one of the same task.
ORDER_PATIENCE = 1.0

#: Seconds between two looks for that confirm, if nothing is heard.
ORDER_INTERVAL = 0.05


def make_publisher(
    app: Any,
    exchange: Any,
    delivery_mode: int,
    options: Options,
    stats: Stats,
    substitute: Callable[[Message], Message | None],
) -> Lanes | KombuPublisher:
    """The way out that fits the broker of ``app``; not yet connected.

    ``substitute`` makes what is sent, if anything, in place of one too large for the broker.
    """
    if is_amqp(app.connection_for_write()):
        return Lanes(app, delivery_mode, options, stats, substitute)
    return KombuPublisher(app, exchange, delivery_mode, options, stats)


class Lanes:
    """Two publishers, each with its connection, which is opened when it is needed.

    The results of one task go out in order: while one is not confirmed the next ones follow it on
    the same connection. Without confirms nobody knows, and all take the first.
    """

    def __init__(
        self,
        app: Any,
        delivery_mode: int,
        options: Options,
        stats: Stats,
        substitute: Callable[[Message], Message | None],
    ) -> None:
        self.small, self.large = (
            AMQPPublisher(app, delivery_mode, options, stats, substitute) for _ in range(2)
        )
        self._confirms = options.publisher_confirms

    @property
    def unconfirmed(self) -> int:
        """Results that the broker has not confirmed yet."""
        return self.small.unconfirmed + self.large.unconfirmed

    def publish(self, message: Message) -> None:
        """Send one result, as ``AMQPPublisher.publish``."""
        is_large = self._confirms and len(message.body) >= LARGE
        lane, other = (self.large, self.small) if is_large else (self.small, self.large)
        task = message.correlation_id
        if other.unconfirmed and other.holds(task) and not (is_large and self._settles(task)):
            lane = other
        lane.publish(message)

    def _settles(self, correlation_id: str) -> bool:
        """Whether the small results of a task are confirmed soon. Else a large one goes after them,
        and holds up others."""
        small, end = self.small, time.monotonic() + ORDER_PATIENCE
        while small.holds(correlation_id):
            if small.is_mine or time.monotonic() >= end:
                return False
            small.look(ORDER_INTERVAL)
        return True

    def drain(self, timeout: float) -> bool:
        """Wait until everything is confirmed, ``timeout`` seconds at most; says whether it is."""
        end = time.monotonic() + timeout
        lanes = (self.small, self.large)
        return all([lane.drain(max(end - time.monotonic(), 0)) for lane in lanes])

    def close(self, timeout: float) -> None:
        """Wait until everything is confirmed, ``timeout`` seconds at most, and hang up."""
        end = time.monotonic() + timeout
        for lane in (self.small, self.large):
            lane.close(max(end - time.monotonic(), 0))

    def after_fork(self) -> None:
        """Begin anew in the child: what is open is the parent's."""
        for lane in (self.small, self.large):
            lane.after_fork()
