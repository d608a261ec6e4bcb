"""Results on their way to the broker.

``KombuPublisher`` sends through the app's producer pool, over any kombu transport.
"""

from __future__ import annotations

from typing import Any

from .options import Options

__all__ = ["KombuPublisher"]


class KombuPublisher:
    """One publish through kombu for each result, retried under the retry policy."""

    def __init__(self, app: Any, exchange: Any, delivery_mode: int, options: Options) -> None:
        self.app = app
        self.exchange = exchange
        self.delivery_mode = delivery_mode
        self.retry_policy = options.retry_policy.as_dict()

    def publish(
        self,
        routing_key: str,
        correlation_id: str,
        body: bytes | str,
        content_type: str,
        content_encoding: str,
        declare: Any = None,
    ) -> None:
        """Send one result; returns when it is on its way.

        Raises:
            kombu.exceptions.OperationalError: the retries are used up.
        """
        with self.app.amqp.producer_pool.acquire(block=True) as producer:
            producer.publish(
                body,
                exchange=self.exchange,
                routing_key=routing_key,
                correlation_id=correlation_id,
                content_type=content_type,
                content_encoding=content_encoding,
                retry=True,
                retry_policy=self.retry_policy,
                declare=declare,
                delivery_mode=self.delivery_mode,
            )
