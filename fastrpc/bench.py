"""Compares stock Celery with fastrpc on the user's own broker, in queues of its own.

Each of the two has a worker process with the solo pool and a client process. The processes are
started afresh, so that stock is stock even where the user's app calls ``install()``. The rounds
take turns, and every result is compared with what was asked for.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import celery
import kombu

import fastrpc

__all__ = ["MEASUREMENTS", "Outcome", "broker_settings", "measure", "plot"]

STOCK, FAST = "stock", "fastrpc"
#: Seconds that one round may take, and that a worker may take to start.
ROUND_TIMEOUT = 300.0
START_TIMEOUT = 60.0
#: Seconds after which the broker drops a queue that a killed benchmark has left.
QUEUE_EXPIRES = 600
#: The settings of an app that say how its broker is reached.
BROKER_SETTINGS = (
    "broker_url",
    "broker_read_url",
    "broker_write_url",
    "broker_use_ssl",
    "broker_login_method",
    "broker_transport_options",
)
ONE_BY_ONE = 100


@dataclass
class Outcome:
    """The rates of one measurement, operations a second, by contestant."""

    name: str
    rates: dict[str, list[float]] = field(default_factory=lambda: {STOCK: [], FAST: []})

    def median(self, who: str) -> float:
        return statistics.median(self.rates[who])

    @property
    def ratio(self) -> float:
        """How many times as fast as stock."""
        return self.median(FAST) / self.median(STOCK)

    def as_dict(self) -> dict[str, Any]:
        """The outcome as JSON."""
        medians = {who: round(self.median(who), 1) for who in self.rates}
        return {"name": self.name, **medians, "ratio": round(self.ratio, 2), "rounds": self.rates}


def broker_settings(app: Any, url: str | None = None) -> dict[str, Any]:
    """What a benchmark must know of an app, or of a URL, to reach the same broker."""
    if url:
        return {"broker_url": url}
    found = {name: app.conf.get(name) for name in BROKER_SETTINGS}
    return {name: value for name, value in found.items() if value}


# -- in the processes of a contestant


def make_app(who: str, settings: dict[str, Any], queue: str) -> Any:
    """The app of a contestant, in its client and in its worker."""
    if who == FAST:
        fastrpc.install()
    app = celery.Celery("fastrpc-bench", backend="rpc://")
    app.conf.update(
        settings,
        task_default_queue=queue,
        task_queues=[kombu.Queue(queue, routing_key=queue, expires=QUEUE_EXPIRES)],
        task_default_exchange="",
        task_default_routing_key=queue,
        broker_connection_retry_on_startup=False,
        # With few, Celery's event loop may sleep before it acknowledges tasks as short as these.
        worker_prefetch_multiplier=64,
        worker_hijack_root_logger=False,
        # The user's own remote control must not find this worker.
        worker_enable_remote_control=False,
    )
    app.task(name="fastrpc.bench.add")(add)
    return app


def add(x: int, y: int) -> int:
    """The task."""
    return x + y


def work(who: str, settings: dict[str, Any], queue: str, log: str) -> None:
    """Run a worker until it is terminated; what it prints goes to the file ``log``."""
    with open(log, "ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    app = make_app(who, settings, queue)
    options = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
    app.Worker(pool="solo", hostname=f"{queue}@bench", quiet=True, **options).start()


def serve(who: str, settings: dict[str, Any], queue: str, pipe: Any) -> None:
    """Run the rounds that the parent asks for: (name of the measurement, number of tasks)."""
    app = make_app(who, settings, queue)
    try:
        while (asked := pipe.recv()) is not None:
            name, count = asked
            try:
                pipe.send(MEASUREMENTS[name](app, count))
            except Exception as exc:
                pipe.send(f"{type(exc).__name__}: {exc}")
        app.close()
    except (EOFError, KeyboardInterrupt):
        pass  # the parent has ended


def numbers(count: int) -> list[tuple[int, int]]:
    return [(n, 1) for n in range(count)]


def check(values: list[Any], count: int) -> None:
    if values != [n + 1 for n in range(count)]:
        raise RuntimeError("the results are not those of the tasks")


def send_one_by_one(app: Any, count: int) -> float:
    """Seconds for one ``apply_async`` of many; the results are fetched after the measurement."""
    add = app.tasks["fastrpc.bench.add"]
    started = time.perf_counter()
    results = [add.apply_async(args) for args in numbers(count)]
    took = time.perf_counter() - started
    check(app.ResultSet(results, app=app).get(timeout=ROUND_TIMEOUT), count)
    return took / count


def send_and_get(app: Any, count: int) -> float:
    """Seconds for one task of many, there and back."""
    add = app.tasks["fastrpc.bench.add"]
    started = time.perf_counter()
    results = [add.apply_async(args) for args in numbers(count)]
    check(app.ResultSet(results, app=app).get(timeout=ROUND_TIMEOUT), count)
    return (time.perf_counter() - started) / count


def send_many_and_get(app: Any, count: int) -> float:
    """The same with ``apply_many``, which stock Celery does not have."""
    if not is_installed(app):
        return send_and_get(app, count)
    add = app.tasks["fastrpc.bench.add"]
    started = time.perf_counter()
    results = fastrpc.apply_many(add, numbers(count))
    check(results.get(timeout=ROUND_TIMEOUT), count)
    return (time.perf_counter() - started) / count


def call_and_wait(app: Any, count: int) -> float:
    """Seconds for one task that is waited for before the next is sent."""
    add = app.tasks["fastrpc.bench.add"]
    count = min(count, ONE_BY_ONE)
    started = time.perf_counter()
    values = [add.apply_async(args).get(timeout=ROUND_TIMEOUT) for args in numbers(count)]
    took = time.perf_counter() - started
    check(values, count)
    return took / count


def is_installed(app: Any) -> bool:
    return type(app.backend).__module__.startswith("fastrpc.")


#: What the table calls it -> the measurement, in a client process.
MEASUREMENTS: dict[str, Callable[[Any, int], float]] = {
    "apply_async": send_one_by_one,
    "tasks there and back": send_and_get,
    "the same, with apply_many": send_many_and_get,
    "one task at a time": call_and_wait,
}


# -- in the user's process


class Contestant:
    """The two processes of one contestant."""

    def __init__(self, who: str, settings: dict[str, Any]) -> None:
        self.who = who
        self.queue = queue = f"fastrpc-bench-{who}-{uuid4()}"
        # Fresh processes: a fork would have what is installed here.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (who, settings, queue)
        self.folder = tempfile.TemporaryDirectory(prefix="fastrpc-bench-")
        self.log = Path(self.folder.name, "worker.log")
        self.worker = context.Process(target=work, args=(*arguments, str(self.log)), daemon=True)
        self.client = context.Process(target=serve, args=(*arguments, theirs), daemon=True)
        self.worker.start()
        self.client.start()
        theirs.close()

    def run(self, name: str, count: int, timeout: float = ROUND_TIMEOUT) -> float:
        """Seconds for one operation.

        Raises:
            RuntimeError: the round failed; the text says why.
        """
        self.pipe.send((name, count))
        if not self.pipe.poll(timeout):
            raise RuntimeError(f"{self.who}: no results within {timeout:g} s{self._last_words()}")
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.who}: its client has ended") from None
        if isinstance(answer, str):
            raise RuntimeError(f"{self.who}: {answer}")
        return float(answer)

    def _last_words(self) -> str:
        """What the worker has said, where it has ended."""
        if self.worker.is_alive():
            return ""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"; its worker has ended: {lines[-1]}" if lines else "; its worker has ended"

    def close(self) -> None:
        """End both processes."""
        # Its tasks are done. A worker that is asked to end does so when its event loop next wakes:
        # up to ten seconds later, because this one has no timers.
        self.worker.kill()
        with suppress(OSError):  # it has ended already
            self.pipe.send(None)
        self.client.join(15)
        if self.client.is_alive():
            self.client.kill()
        for process in (self.worker, self.client):
            process.join(5)
        self.folder.cleanup()


@contextmanager
def connected(settings: dict[str, Any]) -> Iterator[Any]:
    """A connection to the broker.

    Raises:
        RuntimeError: there is none.
    """
    app = celery.Celery("fastrpc-bench", set_as_current=False)
    app.conf.update(settings)
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=0)
        except Exception as exc:
            raise RuntimeError(f"no connection to {connection.as_uri()}: {exc}") from exc
        yield connection


@contextmanager
def contestants(settings: dict[str, Any]) -> Iterator[list[Contestant]]:
    """Stock and fastrpc, ready; at the end their queues are deleted."""
    with ExitStack() as stack:
        with connected(settings):
            pass  # whoever cannot connect is told so before anything starts
        both = []
        for who in (STOCK, FAST):
            both.append(Contestant(who, settings))
            stack.callback(both[-1].close)
        try:
            for each in both:
                each.run("tasks there and back", 20, START_TIMEOUT)  # connects and warms up
            yield both
        finally:
            stack.close()
            with connected(settings) as connection:
                for each in both:
                    kombu.Queue(each.queue)(connection.default_channel).delete()


def measure(
    settings: dict[str, Any],
    tasks: int,
    rounds: int,
    on_step: Callable[[str], object] = lambda text: None,
) -> list[Outcome]:
    """Run all measurements; ``on_step`` is told of each of them, rounds x 2 times.

    Raises:
        RuntimeError: the broker cannot be reached, a worker does not start, or a round fails.
    """
    outcomes = [Outcome(name) for name in MEASUREMENTS]
    with contestants(settings) as both:
        for outcome in outcomes:
            for number in range(rounds):
                for each in both:
                    on_step(f"{outcome.name}, {each.who}, round {number + 1} of {rounds}")
                    outcome.rates[each.who].append(1 / each.run(outcome.name, tasks))
    return outcomes


def plot(outcomes: list[Outcome], path: str) -> None:
    """Draw the medians as bars into a file; its suffix says the format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for number, (who, colour) in enumerate(((STOCK, "#9aa0a6"), (FAST, "#2e7d32"))):
        places = [row + (number - 0.5) * 0.38 for row in range(len(outcomes))]
        rates = [outcome.median(who) for outcome in outcomes]
        bars = axes.barh(places, rates, 0.36, label=who, color=colour)
        axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=3)
    axes.set_yticks(range(len(outcomes)), [outcome.name for outcome in outcomes])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("per second")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path)
