"""Do gevent and eventlet workers wait after each task, as Celery 5.7 makes them?

They read two connections in turn: the one for tasks, and the one that they send events over. The
broker sends nothing over the second one, so Celery waits there for 0.1 s after each task.
"""

from __future__ import annotations

import re
from typing import Any

from .findings import Checks, Verdict, ok, warn
from .subject import Subject
from .texts import version_in
from .workers import ask_fastrpc

__all__ = ["GREEN_WORKER_CHECKS"]

GREEN_WORKER_CHECKS = Checks()
#: The first version of Celery that waits.
FIRST_THAT_WAITS = (5, 7)


@GREEN_WORKER_CHECKS.add("worker loops", needs="workers")
def find_waiting_workers(subject: Subject) -> Verdict | None:
    """Does Celery wait for 0.1 s after each task of a gevent or eventlet worker?"""
    if not subject.workers:
        return None
    stats = subject.inspect(subject.workers).stats() or {}
    green = [worker for worker in subject.workers if is_green(stats.get(worker, {}))]
    if not green:
        return None
    suspects = [worker for worker in green if has_heartbeats(stats[worker])]
    versions = ask_versions(subject, suspects)
    answers = ask_fastrpc(subject, suspects)
    waiting = [w for w in suspects if waits(versions.get(w, ""), answers.get(w, {}))]
    if waiting:
        return warn(
            f"Celery waits for 0.1 s after each task in {', '.join(waiting)}: about 10 tasks/s",
            "Call fastrpc.install() in the worker, or start it with --without-heartbeat and "
            "--without-gossip, and without -E.",
        )
    return ok(f"no wait after each task in {', '.join(green)}")


def is_green(stats: dict[str, Any]) -> bool:
    """Whether a worker's answer to ``stats`` names the pool gevent or eventlet."""
    return bool(re.search(r"celery\.concurrency\.(gevent|eventlet):", str(stats.get("pool"))))


def has_heartbeats(stats: dict[str, Any]) -> bool:
    """Whether a worker's answer to ``stats`` names an interval for the broker's heartbeats."""
    broker = stats.get("broker")
    return isinstance(broker, dict) and bool(broker.get("heartbeat"))


def ask_versions(subject: Subject, workers: list[str]) -> dict[str, str]:
    """Worker -> its version of Celery, which also a worker without fastrpc reports."""
    if not workers:
        return {}
    reports = subject.inspect(workers).report() or {}
    found = {w: re.search(r"celery:(\S+)", said.get("ok", "")) for w, said in reports.items()}
    return {worker: match[1] for worker, match in found.items() if match}


def waits(celery: str, answer: dict[str, Any]) -> bool:
    """Whether a worker with heartbeats waits: by its version, and its answer to ``fastrpc_stats``.

    The answer is empty for a worker without fastrpc. It cannot say whether it sends events, but
    most workers do.
    """
    return (
        version_in(celery) >= FIRST_THAT_WAITS
        and not str(answer.get("transport")).startswith("fastrpc.")
        and bool(answer.get("events", True))
    )
