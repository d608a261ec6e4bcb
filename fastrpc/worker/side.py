"""The worker's side of one backend: everything that sends results."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..options import Options
from ..sending.lanes import make_publisher
from ..stats import SentStats
from .message import pack, too_large_failure
from .meta import MetaBuilder

__all__ = ["WorkerSide"]


class WorkerSide:
    """Owns all that sends a backend's results: the builder of metas, publisher and counters.

    Args:
        backend: The result backend; its serializer, exchange and delivery mode are used.
        options: The settings of the backend.
    """

    def __init__(self, backend: Any, options: Options) -> None:
        self.backend = backend
        self.stats = SentStats()
        self.metas = MetaBuilder(backend)
        self.publisher = make_publisher(
            backend.app,
            backend.exchange,
            backend.delivery_mode,
            options,
            self.stats,
            partial(too_large_failure, backend=backend),
        )

    def send(self, routing_key: str, correlation_id: str, meta: dict[str, Any]) -> None:
        """Send one result to the reply queue ``routing_key``.

        Raises:
            kombu.exceptions.EncodeError: the result cannot be serialized.
            kombu.exceptions.OperationalError: the retries of the retry policy are used up.
        """
        self.publisher.publish(pack(routing_key, correlation_id, meta, self.backend.serializer))

    def counters(self) -> dict[str, int]:
        """Counters since this process began; see docs/stats.md."""
        return {**self.stats.as_dict(), "unconfirmed": self.publisher.unconfirmed}

    def after_fork(self) -> None:
        """Start afresh in a forked child: the open connections belong to the parent."""
        self.stats.reset()
        self.publisher.after_fork()
