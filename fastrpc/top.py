"""What workers and queues do just now: asked again and again, with rates between two answers."""

from __future__ import annotations

import base64
import json
import re
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from kombu.exceptions import ContentDisallowed

__all__ = ["Management", "QueueRow", "Sampler", "WorkerRow"]

#: Reply queues are named by a UUID, with a suffix where a task waits for what it has sent.
REPLY_QUEUE = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}\b")


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

    @property
    def counts_no_results(self) -> bool:
        """Whether results are sent by other processes than the one that answers."""
        return str(self.answer.get("pool")).endswith("prefork:TaskPool")

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
class Management:
    """RabbitMQ's management plugin, which alone can list queues.

    Args:
        url: ``http://user:password@host:15672``.
        vhost: The virtual host of the queues.
    """

    url: str
    vhost: str = "/"
    timeout: float = 5.0

    def reply_queues(self) -> list[QueueRow]:
        """All reply queues, the fullest first. The broker updates the numbers every five seconds.

        Raises:
            OSError: no answer, or not with these credentials.
        """
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        columns = "columns=name,messages,consumers,messages_details.rate"
        request = urllib.request.Request(
            f"{parts.scheme}://{host}/api/queues/{quote(self.vhost, safe='')}?{columns}"
        )
        user = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            queues = json.load(answer)
        rows = [
            QueueRow(
                queue["name"],
                queue.get("messages", 0),
                queue.get("consumers", 0),
                (queue.get("messages_details") or {}).get("rate"),
            )
            for queue in queues
            if REPLY_QUEUE.match(queue["name"])
        ]
        return sorted(rows, key=lambda row: -(row.messages or 0))


@dataclass
class Sampler:
    """Asks the workers and queues of an app.

    Args:
        app: The Celery app.
        queues: Names of more queues, for example reply queues.
        timeout: Seconds to wait for the answers of the workers.
        management: Lists the reply queues.
    """

    app: Any
    queues: tuple[str, ...] = ()
    timeout: float = 1.0
    management: Management | None = None
    #: What the last sample found, and when.
    workers: dict[str, WorkerRow] = field(default_factory=dict)
    depths: dict[str, QueueRow] = field(default_factory=dict)
    reply_queues: list[QueueRow] = field(default_factory=list)
    at: float = 0.0
    #: Why not all answers of the workers could be read; None if all were.
    refused: str | None = None
    connection: Any = None

    def sample(self) -> None:
        """Ask once; ``workers``, ``depths`` and ``reply_queues`` hold the answers."""
        now = time.monotonic()
        seconds = now - self.at if self.at else 0.0
        self.depths = {
            name: self._look_at_queue(name, seconds)
            for name in (*self.app.amqp.queues, *self.queues)
        }
        if self.management is not None:
            self.reply_queues = self.management.reply_queues()
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
            "reply_queues": [row.as_dict() for row in self.reply_queues],
            "refused": self.refused,
        }

    def close(self) -> None:
        """Hang up."""
        if self.connection is not None:
            self.connection.release()
            self.connection = None

    def _ask_workers(self) -> dict[str, dict[str, Any]]:
        answers: list[dict[str, dict[str, Any]]] = []
        self.refused = None
        try:
            self.app.control.broadcast(
                "fastrpc_stats", reply=True, timeout=self.timeout, callback=answers.append
            )
        except ContentDisallowed as exc:  # kombu then reads no further answer
            self.refused = str(exc)
        return {
            name: answer if "pid" in answer else {}  # a worker without the command says an error
            for reply in answers
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
