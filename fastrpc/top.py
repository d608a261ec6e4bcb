"""What workers and queues do just now: asked again and again, with rates between two answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

__all__ = ["QueueRow", "Sampler", "WorkerRow"]


@dataclass
class WorkerRow:
    """One worker. Rates are per second since the sample before; None in the first."""

    name: str
    answer: dict[str, Any]
    tasks_rate: float | None = None
    results_rate: float | None = None

    @property
    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.answer.get("stats") or {}
        return found

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        rates = {"tasks_rate": self.tasks_rate, "results_rate": self.results_rate}
        return {"worker": self.name, **rates, **self.answer}


@dataclass
class QueueRow:
    """One queue; ``messages`` is None if it does not exist. ``growth`` is in messages a second."""

    name: str
    messages: int | None = None
    consumers: int = 0
    growth: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON."""
        return vars(self)


@dataclass
class Sampler:
    """Asks the workers and queues of an app.

    Args:
        app: The Celery app.
        queues: Names of more queues, for example reply queues.
        timeout: Seconds to wait for the answers of the workers.
    """

    app: Any
    queues: tuple[str, ...] = ()
    timeout: float = 1.0
    #: What the last sample found, and when.
    workers: dict[str, WorkerRow] = field(default_factory=dict)
    depths: dict[str, QueueRow] = field(default_factory=dict)
    at: float = 0.0
    connection: Any = None

    def sample(self) -> None:
        """Ask once; ``workers`` and ``depths`` hold the answers."""
        now = time.monotonic()
        seconds = now - self.at if self.at else 0.0
        self.depths = {
            name: self._look_at_queue(name, seconds)
            for name in (*self.app.amqp.queues, *self.queues)
        }
        self.workers = {
            name: self._compare(WorkerRow(name, answer), seconds)
            for name, answer in sorted(self._ask_workers().items())
        }
        self.at = now

    def as_dict(self) -> dict[str, Any]:
        """The last sample as JSON."""
        return {
            "workers": [row.as_dict() for row in self.workers.values()],
            "queues": [row.as_dict() for row in self.depths.values()],
        }

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.release()
            self.connection = None

    def _ask_workers(self) -> dict[str, dict[str, Any]]:
        answers = self.app.control.broadcast("fastrpc_stats", reply=True, timeout=self.timeout)
        return {
            name: answer if "pid" in answer else {}  # a worker without the command says an error
            for reply in answers or ()
            for name, answer in reply.items()
        }

    def _compare(self, row: WorkerRow, seconds: float) -> WorkerRow:
        before = self.workers.get(row.name)
        if before and seconds and before.answer.get("pid") == row.answer.get("pid"):
            row.tasks_rate = rate(before.answer.get("tasks"), row.answer.get("tasks"), seconds)
            row.results_rate = rate(
                before.stats.get("published"), row.stats.get("published"), seconds
            )
        return row

    def _look_at_queue(self, name: str, seconds: float) -> QueueRow:
        if self.connection is None:
            self.connection = self.app.connection_for_write()
            self.connection.ensure_connection(max_retries=1)
        row = QueueRow(name)
        with self.connection.channel() as channel:
            try:
                found = channel.queue_declare(queue=name, passive=True)
            except self.connection.channel_errors:
                return row
        row.messages, row.consumers = found.message_count, found.consumer_count
        before = self.depths.get(name)
        if before and seconds:
            row.growth = rate(before.messages, row.messages, seconds)
        return row


def rate(before: int | None, now: int | None, seconds: float) -> float | None:
    """The difference of two counts for each second; None where one is missing."""
    return None if before is None or now is None else (now - before) / seconds
