"""Sends small results over one connection and large ones over another.

A large result that takes long to write does not hold up the small ones of its worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..options import Options
from ..stats import SentStats
from ..transport.transports import is_amqp
from .kombu_publisher import KombuPublisher
from .message import Message
from .publisher import AMQPPublisher

__all__ = ["Lanes", "make_publisher"]

#: A result of this many bytes or more takes the connection for large ones: over a slow path its
#: write takes long enough to hold up the others.
LARGE_LANE_BYTES = 256 * 1024

#: How long, in seconds, a large result waits for the confirm of a small one of the same task.
ORDER_PATIENCE = 1.0

#: Seconds between two checks for that confirm while the broker sends nothing.
ORDER_INTERVAL = 0.05


def make_publisher(
    app: Any,
    exchange: Any,
    delivery_mode: int,
    options: Options,
    stats: SentStats,
    substitute: Callable[[Message], Message | None],
) -> Lanes | KombuPublisher:
    """The publisher that fits the broker of ``app``; not yet connected.

    ``substitute`` makes the message that is sent in place of one that is too large for the broker,
    or returns None.
    """
    if is_amqp(app.connection_for_write()):
        return Lanes(app, delivery_mode, options, stats, substitute)
    return KombuPublisher(app, exchange, delivery_mode, options, stats)


class Lanes:
    """Two publishers, each with its own connection, which is opened at its first result.

    The results of one task leave in order: while one of them is not confirmed, the next ones take
    the same connection. Without confirms the order cannot be known, so all results take the first
    connection.
    """

    def __init__(
        self,
        app: Any,
        delivery_mode: int,
        options: Options,
        stats: SentStats,
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
        """Send one result, as ``AMQPPublisher.publish`` does."""
        is_large = self._confirms and len(message.body) >= LARGE_LANE_BYTES
        lane, other = (self.large, self.small) if is_large else (self.small, self.large)
        task = message.correlation_id
        if other.window.holds(task) and not (is_large and self._settles(task)):
            lane = other
        lane.publish(message)

    def _settles(self, correlation_id: str) -> bool:
        """Wait for the confirms of a task's small results; return whether they came in time.

        If they do not, the large result takes the small ones' connection, and holds up others.
        """
        small, end = self.small, time.monotonic() + ORDER_PATIENCE
        while small.window.holds(correlation_id):
            if small.is_mine or time.monotonic() >= end:
                return False
            small.look(ORDER_INTERVAL)
        return True

    def drain(self, timeout: float) -> bool:
        """Wait until everything is confirmed, at most ``timeout`` seconds; return whether it is."""
        end = time.monotonic() + timeout
        lanes = (self.small, self.large)
        return all([lane.drain(max(end - time.monotonic(), 0)) for lane in lanes])

    def close(self, timeout: float) -> None:
        """Wait until everything is confirmed, at most ``timeout`` seconds, and hang up."""
        end = time.monotonic() + timeout
        for lane in (self.small, self.large):
            lane.close(max(end - time.monotonic(), 0))

    def after_fork(self) -> None:
        """Start afresh in the child: the open connections belong to the parent."""
        for lane in (self.small, self.large):
            lane.after_fork()
