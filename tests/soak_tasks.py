"""Tasks, groups and chords of real workers while everything breaks.

    python -m tests.soak_tasks [seconds]

One process calls, over `fastrpc.install()` with confirms; a prefork and a solo worker answer, with
late acknowledgement. The connections of both sides are cut, the broker restarts or is killed, and
workers are stopped or killed while new ones begin. Each call that did not raise must get its right
result, its callbacks must be called once, and a body must get all parts of its chord, in order.

Prints one line of counts at the end; the exit status is 1 unless all failures are 0. These are no
failures (see docs/promises.md): a call that raises; a task that runs twice after its worker or a
connection was lost; a body that runs twice; a chord whose queue the broker, when it was killed, had
not yet written to disk (unwritten).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import celery.exceptions
from celery import chord, group
from celery.exceptions import ChordError
from kombu.exceptions import OperationalError

import fastrpc
from fastrpc import aio
from fastrpc.errors import NotAllSent
from tests.support import soaking
from tests.support.apps import make_app
from tests.support.broker import RabbitMQ
from tests.support.proxy import Proxy
from tests.support.soaking import MUCH_GROWTH, PATIENCE
from tests.support.waiting import wait_until
from tests.support.worker import Worker, close_all

QUEUE = "fastrpc-soak"
BACKEND = "rpc://"  # of fastrpc, after install()
CONF = {
    "broker_transport_options": {"confirm_publish": True},
    # Longer than a restart of the broker.
    "task_publish_retry_policy": {
        "max_retries": 200,
        "interval_start": 0,
        "interval_step": 0.1,
        "interval_max": 0.3,
    },
    "result_persistent": True,
    "result_expires": 600,
    "result_backend_transport_options": {
        "chords": True,
        "heartbeat": 4,
        "retry_policy": {"max_retries": 60},
    },
}
WORKER_CONF = {**CONF, "task_acks_late": True, "task_reject_on_worker_lost": True}
POOLS = ("prefork", "solo")
#: How long, in seconds, a worker may take to stop: billiard alone may need 30 for a child.
STOPS_WITHIN = 60
#: For how many seconds a `kill -9` of the broker may take a new queue along, see settle().
UNWRITTEN = 2.5
#: For how many seconds the queue of a chord may stay: an answer of the broker may take 30, and the
#: broker needs up to a minute to notice that a connection is dead.
GONE_WITHIN = 75
FAULTS = ("cuts", "restarts", "kills", "workers killed", "workers stopped")
FAILURES = (*soaking.FAILURES, "unheard", "raised", "died", "left")


class Kills:
    """When the broker was killed; `folder` is shared by the processes."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "kills"
        self.path.touch()

    def note(self) -> None:
        with self.path.open("a") as file:
            file.write(f"{time.time()}\n")

    def any(self, began: float, ended: float) -> bool:
        """Whether there was one in this time."""
        return any(began <= float(at) <= ended for at in self.path.read_text().split())


class Failure(NamedTuple):
    """What a call must raise: an exception of this class, with this text in it."""

    kind: type[Exception]
    text: str


class Call(NamedTuple):
    """A task that was sent, and what it must return or raise."""

    kind: str
    result: Any
    expected: Any
    #: When the call began and when it ended.
    began: float = 0.0
    ended: float = 0.0

    def is_right(self, value: Any) -> bool:
        if isinstance(self.expected, Failure):
            return isinstance(value, self.expected.kind) and self.expected.text in str(value)
        return value == self.expected


_numbers = itertools.count()


def new_values(count: int, length: int = 0) -> list[str]:
    """Values that no other call has."""
    start = next(_numbers)
    return [f"{start}-{n}-{count}{'x' * length}" for n in range(count)]


class Load(soaking.Load):
    """The process that calls: its threads send and wait until the time is up."""

    threads = 4
    patience = 2 * PATIENCE

    def __init__(self, url: str, seconds: float, seed: int, folder: Path) -> None:
        super().__init__(seconds, seed)
        fastrpc.install()
        self.app = make_app(url, BACKEND, QUEUE, **CONF)
        _ = self.app.backend  # before the threads ask for it
        self.echo, self.fail, self.body = (
            self.app.tasks[f"tests.{name}"] for name in ("echo", "fail", "noted_parts")
        )
        self.kills = Kills(folder)
        self.notes = folder / "notes"
        self.notes.touch()
        self.errors = (OperationalError, *self.app.connection_for_write().connection_errors)
        self.ways: list[Callable[[random.Random], list[Call]]] = [
            *(self.single, self.many, self.group, self.awaited),
            *(self.chord, self.chord, self.chord),
        ]

    def run(self) -> dict[str, Any]:
        memory = self.run_threads()
        self.check_bodies()
        growth = memory.bytes()
        stats = self.app.backend.stats()
        if growth > MUCH_GROWTH:
            print(f"grew by {growth}: {stats}", file=sys.stderr)
        self.app.backend.close()
        return {**self.counts, "growth": growth}

    def repeat(self, seed: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            try:
                self.round(rng)
            except Exception:
                traceback.print_exc()
                self.count(raised=1)

    def round(self, rng: random.Random) -> None:
        calls = self.call(rng)
        self.count(sent=len(calls))
        heard: Counter[str] = Counter()
        for call in calls:
            call.result.then(lambda result: heard.update([result.id]))
        deadline = time.monotonic() + PATIENCE
        ended = [call for call in rng.sample(calls, len(calls)) if self.wait(call, deadline)]
        self.count(unheard=self.unheard(ended, heard))
        self.count(duplicated=sum(times - 1 for times in heard.values()))

    def unheard(self, calls: list[Call], heard: Counter[str]) -> int:
        """How many callbacks are not called: another thread may be just about to call one."""

        def left() -> int:
            return sum(not heard[call.result.id] for call in calls)

        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not left(), 5, "all callbacks are called")
        return left()

    def call(self, rng: random.Random) -> list[Call]:
        """Send something; nothing if that raises."""
        try:
            return rng.choice(self.ways)(rng)
        except self.errors as exc:
            print(f"refused: {exc!r}", file=sys.stderr)
            self.count(refused=1)
            time.sleep(0.2)
            return []

    def wait(self, call: Call, deadline: float) -> bool:
        """Whether it has ended."""
        left = max(0.0, deadline - time.monotonic())
        try:
            value = call.result.get(timeout=left, propagate=False)
        except celery.exceptions.TimeoutError:
            self.is_missing(call, time.monotonic() - deadline)
            return False
        self.check(call, value)
        return True

    def check(self, call: Call, value: Any) -> None:
        if call.is_right(value):
            self.count(received=1)
            return
        print(f"wrong: {call} got {value!r}", file=sys.stderr)
        self.count(wrong=1)

    def is_missing(self, call: Call, late: float) -> None:
        stats = self.app.backend.stats()
        if call.kind == "chord" and self.kills.any(call.began, call.ended + UNWRITTEN):
            self.count(unwritten=1, sent=-1)
            print(f"its queue was not on disk: {call}, {stats}", file=sys.stderr)
            return
        print(f"lost: {call}, {late:.1f} s late, {stats}", file=sys.stderr)
        self.count(lost=1, hung=int(late > 1))

    # -- ways to call

    def single(self, rng: random.Random) -> list[Call]:
        return [
            Call("single", self.echo.apply_async((value,)), value)
            for value in new_values(rng.choice((1, 5)), rng.choice((0, 1_000, 20_000)))
        ]

    def many(self, rng: random.Random) -> list[Call]:
        values = new_values(rng.choice((10, 100)))
        try:
            results = fastrpc.apply_many(self.echo, [(value,) for value in values]).results
        except NotAllSent as exc:
            self.count(refused=1)
            results = exc.sent.results
        return [Call("many", *pair) for pair in zip(results, values, strict=False)]

    def group(self, rng: random.Random) -> list[Call]:
        values = new_values(rng.randrange(1, 30))
        results = group([self.echo.s(value) for value in values]).apply_async().results
        return [Call("group", *pair) for pair in zip(results, values, strict=True)]

    def awaited(self, rng: random.Random) -> list[Call]:
        [value] = new_values(1)
        return [asyncio.run(self.call_and_await(value))]

    async def call_and_await(self, value: str) -> Call:
        """Await the result of a call; it can be had once more afterwards."""
        call = Call("await", await aio.apply_async(self.echo, (value,)), value)
        with contextlib.suppress(celery.exceptions.TimeoutError):  # the wait that follows tells
            right = call.is_right(await aio.get(call.result, timeout=PATIENCE))
            self.count(awaited=int(right), wrong=int(not right))
        return call

    def chord(self, rng: random.Random) -> list[Call]:
        values = new_values(rng.randrange(1, 51))
        try:
            return self.chord_of(values, rng.random())
        except self.errors:
            self.count(chords_refused=1)
            raise

    def chord_of(self, values: list[str], what: float) -> list[Call]:
        name = values[0]
        header = [self.echo.s(value) for value in values]
        parts: list[Any] = list(values)
        expected: Any = values
        body_fails = what < 0.1
        if body_fails:
            expected = Failure(ValueError, name)
        elif what < 0.2:
            header[-1] = self.fail.s(name)
            parts[-1] = Failure(ValueError, name)
            expected = Failure(ChordError, name)
        began = time.time()
        result = chord(header)(self.body.s(str(self.notes), name, body_fails))
        self.count(chords=1)
        calls = zip(result.parent.results, parts, strict=True)
        whole = Call("chord", result, expected, began, time.time())
        return [whole, *(Call("part", *pair) for pair in calls)]

    # -- afterwards

    def check_bodies(self) -> None:
        """Each body that ran, also for the second time, got all parts of its chord."""
        runs: Counter[str] = Counter()
        for line in self.notes.read_text().splitlines():
            name, parts = json.loads(line)
            runs[name] += 1
            start, _, count = name.split("-")
            if parts != [f"{start}-{n}-{count}" for n in range(int(count))]:
                print(f"wrong: body {name} got {parts}", file=sys.stderr)
                self.count(wrong=1)
        self.count(bodies_again=sum(times - 1 for times in runs.values()))


def has_ended(worker: Worker) -> bool:
    return worker.process.poll() is not None


class Workers:
    """The workers: one of them has to go now and then, and another one takes its place."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.running = [self.new(pool) for pool in POOLS]
        self.gone: list[Worker] = []
        #: How many of those had ended by themselves.
        self.crashed = 0

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exc_info) -> None:
        close_all([*self.running, *self.gone])

    def new(self, pool: str) -> Worker:
        return Worker(self.url, BACKEND, pool=pool, queues=(QUEUE,), conf=WORKER_CONF, install=True)

    def replace(self, rng: random.Random) -> str:
        """Kill a worker, or ask it to stop, warm or cold."""
        worker = self.running.pop(rng.randrange(len(self.running)))
        self.gone.append(worker)
        self.crashed += has_ended(worker)
        how = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT))
        if how == signal.SIGKILL:
            worker.kill()
        else:
            worker.process.send_signal(how)
        self.running.append(self.new(worker.pool))
        return "workers killed" if how == signal.SIGKILL else "workers stopped"

    def died(self) -> int:
        """How many have ended by themselves."""
        return self.crashed + sum(map(has_ended, self.running))

    def hung(self) -> int:
        """How many do not stop."""
        try:
            wait_until(lambda: not self._stopping(), STOPS_WITHIN, "they have stopped", 0.1)
        except TimeoutError:
            print(f"they do not stop: {self._stopping()}", file=sys.stderr)
        return len(self._stopping())

    def _stopping(self) -> list[Worker]:
        return [worker for worker in self.gone if not has_ended(worker)]

    def print_logs(self) -> None:
        for worker in [*self.gone, *self.running]:
            print(f"-- {worker}", *worker.log.splitlines()[-200:], sep="\n", file=sys.stderr)


def queues_left(broker: RabbitMQ, allowed: int) -> int:
    """How many queues of chords stay, other than those of the chords that were not all sent."""

    def left() -> dict[str, int]:
        return {
            name: messages
            for name, messages in broker.queues().items()
            if name.startswith("fastrpc.chord.")
        }

    try:
        wait_until(lambda: len(left()) <= allowed, GONE_WITHIN, "the chords' queues are gone", 1)
    except TimeoutError:
        print(f"left: {left()}, {allowed} are allowed", file=sys.stderr)
        columns = ("name", "messages_ready", "messages_unacknowledged", "consumers")
        print(broker.ctl("list_queues", *columns), file=sys.stderr)
    return max(0, len(left()) - allowed)


def soak(seconds: float, seed: int, pauses: tuple[float, float] = (10, 25)) -> tuple[str, bool]:
    """The line of counts, and whether all is well."""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrpc-soak-")))
        broker = stack.enter_context(RabbitMQ(config=[soaking.NO_MESSAGE_STORE]))
        proxies = [stack.enter_context(Proxy(broker.host, broker.port)) for _ in range(2)]
        client_url, worker_url = (broker.url_for(proxy.port) for proxy in proxies)
        workers = stack.enter_context(Workers(worker_url))
        restart = partial(soaking.restart, rng, broker, Kills(folder).note)
        in_turn = itertools.cycle((partial(workers.replace, rng), restart))
        command = ["tests.soak_tasks", "--load", client_url, str(seconds), str(seed), str(folder)]
        end = time.monotonic() + seconds
        loads = stack.enter_context(soaking.Loads([command]))
        done = soaking.break_things(rng, proxies, end, lambda: next(in_turn)(), pauses)
        total, growth = loads.counts()
        # A broker that is killed while it deletes a queue brings it back. A process that has ended
        # by then cannot delete it again, and it stays until its expiry.
        total["left"] = queues_left(broker, total["chords_refused"] + done["kills"])
        total["died"] = workers.died()
        total["hung"] += workers.hung()
        well = soaking.verdict(total, growth, FAILURES)
        if not well:
            workers.print_logs()
    line = (
        f"soak of tasks: {soaking.listed(total, ('sent', 'received', *FAILURES))}, "
        f"memory growth {soaking.mebibytes(growth)} ({seconds:g} s, "
        f"{soaking.listed(done, FAULTS)}, "
        f"{soaking.listed(total, ('chords', 'unwritten', 'awaited', 'bodies_again'))}, "
        f"calls refused {total['refused']}, of chords {total['chords_refused']})"
    )
    return line, well


def load(url: str, seconds: str, seed: str, folder: str) -> dict[str, Any]:
    return Load(url, float(seconds), int(seed), Path(folder)).run()


if __name__ == "__main__":
    sys.exit(soaking.main(__doc__, soak, load))
