"""Sends results through the app's producer pool, for every kombu transport but AMQP."""

from __future__ import annotations

from typing import Any

from ..options import Options
from ..stats import SentStats
from .message import Message

__all__ = ["KombuPublisher"]


class KombuPublisher:
    """Publishes each result through kombu, and retries under the retry policy."""

    #: ``publish`` waits; nothing is kept.
    unconfirmed = 0

    def __init__(
        self, app: Any, exchange: Any, delivery_mode: int, options: Options, stats: SentStats
    ) -> None:
        self.app = app
        self.exchange = exchange
        self.delivery_mode = delivery_mode
        self.retry_policy = options.retry_policy.as_dict()
        self.stats = stats

    def publish(self, message: Message) -> None:
        """Send one result; return when kombu has published it.

        Raises:
            kombu.exceptions.OperationalError: the retries are used up.
        """
        with self.app.amqp.producer_pool.acquire(block=True) as producer:
            producer.publish(
                message.body,
                exchange=self.exchange,
                routing_key=message.routing_key,
                correlation_id=message.correlation_id,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                retry=True,
                retry_policy=self.retry_policy,
                delivery_mode=self.delivery_mode,
            )
        self.stats.published += 1

    def drain(self, timeout: float) -> bool:
        """Nothing to wait for."""
        return True

    def close(self, timeout: float) -> None:
        """Nothing to close: the pool belongs to the app."""

    def after_fork(self) -> None:
        """Nothing to reset: the pool belongs to the app."""
