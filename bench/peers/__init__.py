"""Other libraries that do the same work over the same RabbitMQ: who they are, and what they need.

Each has a module of its own, with its client process and the app of its workers. None is needed:
the benchmarks leave out those that are not installed.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LIBRABBITMQ", "PEERS", "Peer"]

#: Where `make bench-deps` puts librabbitmq: kombu takes a librabbitmq that it can import for every
#: amqp:// URL, so no other process may see it.
LIBRABBITMQ = Path(__file__).parents[2] / ".make" / "librabbitmq"


@dataclass(frozen=True)
class Peer:
    """One of the other libraries."""

    #: What `python -m` runs as its client process.
    module: str
    #: The modules that must be importable.
    needs: tuple[str, ...]
    #: Pool of Celery's -> the command of the worker that is equal to it, and its processes.
    workers: dict[str, tuple[list[str], int]] = field(default_factory=dict)
    #: A folder of its own on the path of its client process.
    folder: Path | None = None

    def missing(self) -> str:
        """Why it cannot take part, or an empty text."""
        if self.folder is not None:
            absent = [name for name in self.needs if not list(self.folder.glob(f"{name}*"))]
            return f"{self.folder} has no {', '.join(absent)}: make bench-deps" if absent else ""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"no module {', '.join(absent)}: pip install 'fastrpc[bench]'" if absent else ""


def _dramatiq(processes: int, threads: int) -> tuple[list[str], int]:
    command = [sys.executable, "-m", "dramatiq", "bench.peers.dramatiq_:worker"]
    return [*command, "--processes", str(processes), "--threads", str(threads)], processes


def _taskiq(factory: str, processes: int, *options: str) -> tuple[list[str], int]:
    command = [sys.executable, "-m", "taskiq", "worker", f"bench.peers.taskiq_:{factory}"]
    # From INFO on it writes a line for each task.
    options = ("--workers", str(processes), "--log-level", "WARNING", *options)
    return [*command, *options], processes


PEERS = {
    "dramatiq": Peer(
        "bench.peers.dramatiq_",
        ("dramatiq", "pika", "redis"),
        {"solo": _dramatiq(1, 1), "threads": _dramatiq(1, 2), "prefork": _dramatiq(2, 1)},
    ),
    "taskiq": Peer(
        "bench.peers.taskiq_",
        ("taskiq", "taskiq_aio_pika", "taskiq_redis"),
        {
            "solo": _taskiq("worker", 1),
            "threads": _taskiq("threaded_worker", 1, "--max-threadpool-threads", "2"),
            "prefork": _taskiq("worker", 2),
        },
    ),
    "librabbitmq": Peer(
        "bench.peers.librabbitmq_", ("librabbitmq", "_librabbitmq"), folder=LIBRABBITMQ
    ),
}
