"""Exceptions, garbage collection and callbacks interrupt clients and workers under load.

    python -m tests.storm [seconds] [--seed N] [--mix signals+garbage] [--tls] [--quorum]

A storm is a series of squalls. Each is a process with a client, senders and some of the
disturbances in MIXES; a real worker runs beside them, whose tasks are interrupted. After a squall
every result must be there, every thread must be able to wait, and nothing may be left behind.

The storm prints one line of counts at the end, one for each kind of failure; its exit status is 1
unless all are 0. For each failed squall it prints the command that repeats it. The seed decides
what is done and how often exceptions are thrown, but not where they hit: that depends on the
machine.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import hashlib  # noqa: F401  imported here, so that no exception strikes while it is
import json
import logging
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from celery import current_app, shared_task, states
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded, TimeoutError
from celery.result import allow_join_result
from celery.signals import worker_process_init

from fastrpc.errors import ResultDropped
from tests.support.apps import client
from tests.support.authority import Authority
from tests.support.broker import RabbitMQ
from tests.support.inside import leftovers
from tests.support.results import answer, expect, new_ids
from tests.support.threads import Background
from tests.support.throwing import SHORTEST, GaveUp, Target, Thrower, is_thrown, new_thrown
from tests.support.worker import Worker

ROOT = Path(__file__).parents[1]

#: Of the backend; handed on to all processes.
OPTIONS: dict[str, Any] = json.loads(os.environ.get("FASTRPC_STORM_OPTIONS", "{}"))

#: The disturbances of a squall. signals: a signal handler of the main thread raises. asyncs:
#: exceptions are thrown into the other threads. garbage: finalizers call fastrpc. callbacks: those
#: of then() raise, wait and poll. polls: a signal handler polls, also during a large decoding.
INGREDIENTS = ("signals", "asyncs", "garbage", "callbacks", "polls")
#: The first squalls of every storm; the mixes of the following ones are random.
MIXES = (
    INGREDIENTS,
    ("signals", "callbacks"),
    ("polls", "garbage"),
    ("asyncs", "garbage", "callbacks"),
)

#: All kinds of failure, in the order of the report.
FAILURES = {
    "lost": "results that did not arrive",
    "wrong": "results with another's value",
    "duplicated": "calls of then() callbacks beyond the first for a result",
    "unheard": "then() callbacks that were not called though nothing was thrown",
    "swallowed": "exceptions that struck a then() callback and did not come out of its thread",
    "errors": "calls that raised what they should not",
    "stuck": "threads that did not come to an end",
    "unable": "threads that cannot wait afterwards",
    "unreached": "results that could not be asked for, as nobody can wait",
    "unsent": "senders that cannot send afterwards",
    "unclosed": "backends that cannot be closed",
    "role": "clients whose reading role is taken though nobody reads",
    "locks": "locks that are held",
    "watched": "results that are still watched",
    "listening": "waits that still listen",
    "sleepers": "waits that are still to be woken",
    "waiting": "results that still wait in the table",
    "timers": "timers of an acknowledgement that stay pending",
    "unacknowledged": "clients that do not acknowledge what they were given",
    "unconfirmed": "results that nobody has confirmed",
    "spared": "workers in which no send was interrupted",
    "watchers": "threads that are counted on and do not run",
    "threads": "threads that stay",
    "imported": "modules of ours that were imported where an exception may strike",
    "crashed": "processes that died of a signal",
    "died": "processes that ended with an error",
    "hung": "processes that did not end",
}

#: How long one squall throws exceptions, and how long its threads may take to end, in seconds.
SQUALL = 3.0
PATIENCE = 12.0
#: How long an undisturbed wait may take, in seconds, on a busy machine.
PROMPT = 6.0
#: How much longer, in seconds, a process may take before it is killed.
BOUND = 75.0

THREADS = 3
SENDERS = 2
#: Average times between two throws into one thread, in seconds; each squall uses one of these.
PACES = (0.0003, 0.001, 0.003, 0.01)
#: The same for senders, less often: an interrupted send costs a new connection.
SENDER_PACE = 0.05
#: How many objects with finalizers exist at any time.
LITTER = 20
#: A list of this many dicts makes a body of more than 4 MiB, which kombu decodes.
LARGE = 42_000
#: How many unexpected exceptions a process shows.
SHOWN = 3


class CallbackError(Exception):
    """Raised by our then() callbacks."""


def value_of(task_id: str, size: int) -> Any:
    """The expected result of `task_id`: a string, or a list of dicts."""
    if size < LARGE:
        return task_id + "x" * size
    return [{"of": task_id, "n": n, "text": "x" * 50} for n in range(size)]


class Litter:
    """Cyclic garbage whose finalizer calls fastrpc, and makes the next one."""

    def __init__(self, squall: Squall) -> None:
        self.squall, self.me = squall, self

    def __del__(self) -> None:
        squall, target = getattr(self, "squall", None), Target.current()
        if squall is None or squall.calm.is_set():  # None: its constructor was interrupted
            return
        if target is not None:
            target.sheltered += 1
        try:
            Litter(squall)
            squall.counts["finalizers"] += 1
            squall.poll()
        finally:
            if target is not None:
                target.sheltered -= 1


class Squall:
    """One process: threads that wait, senders, and the exceptions thrown into them."""

    def __init__(self, url: str, seconds: float, seed: int, mix: frozenset[str]) -> None:
        self.rng = random.Random(seed)
        self.url, self.seconds, self.mix = url, seconds, mix
        self.throws = bool(mix & {"signals", "asyncs"})
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.begun, self.calm, self.main_ended = (threading.Event() for _ in range(3))
        self.app = client(url, options=OPTIONS)
        self.sender = client(url, options=OPTIONS)
        #: No exception is thrown into this one.
        self.calm_sender = client(url, options=OPTIONS)
        for app in (self.app, self.sender, self.calm_sender):
            import_now(app)
        self.imported = set(sys.modules)
        self.to_send: queue.SimpleQueue[tuple[str, str, int] | None] = queue.SimpleQueue()
        self.pace = self.rng.choice(PACES)
        self.thrower = Thrower(random.Random(self.rng.random()))
        #: Ids that others may poll, and those whose results nobody counts.
        self.recent: deque[str] = deque(new_ids(1), maxlen=64)
        self.spare: deque[tuple[str, str]] = deque([(name, "") for name in new_ids(1)], maxlen=64)
        #: The id of the result, each time that a then() callback is called.
        self.heard: list[str] = []
        self.listened: list[str] = []
        self.outstanding: dict[str, tuple[Any, int]] = {}
        self.shown = 0

    # -- the run -----------------------------------------------------------------------------

    def run(self) -> dict[str, int]:
        main = Target()
        threads = [self.start(self.wait_for_results) for _ in range(THREADS)]
        senders = [self.start(self.send_results) for _ in range(SENDERS)]
        if self.rng.random() < 0.5:  # else the storm strikes already while they connect
            self.fresh_call(self.sender)
        if "garbage" in self.mix:
            gc.collect()
            gc.freeze()  # a full collection is quick: it goes through ours only
            gc.set_threshold(self.rng.choice((20, 100)), 2, 2)
            for _ in range(LITTER):
                Litter(self)
        self.give_up_at = time.monotonic() + self.seconds + PATIENCE
        signal.signal(signal.SIGUSR2, self.on_give_up)
        signal.signal(signal.SIGALRM, self.on_alarm)
        threading.Thread(target=self.watch_main_thread, daemon=True).start()
        self.alarm()
        self.begun.set()
        self.thrower.start()
        threading.Timer(self.seconds, self.calm.set).start()
        try:
            self.wait_for_results(main, random.Random(self.rng.random()))
        except GaveUp:
            self.count(stuck=1)
        self.main_ended.set()
        self.thrower.stop()
        self.end(threads)
        for _ in senders:
            self.to_send.put(None)
        self.end(senders)
        self.count(swallowed=sum(target.swallowed for target in Target.all.values()))
        self.count(thrown=self.thrower.thrown)
        self.count(imported=len(late_imports(self.imported)))
        return self.judge()

    def start(self, target: Callable[[Target, random.Random], None]) -> threading.Thread:
        rng = random.Random(self.rng.random())
        exposed = "asyncs" in self.mix
        pace = self.pace if target == self.wait_for_results else SENDER_PACE

        def run() -> None:
            me = Target()
            if exposed:
                self.thrower.add(me, pace)
            try:
                self.begun.wait()
                target(me, rng)
            except GaveUp:
                self.count(stuck=1)
            except BaseException as exc:
                self.unexpected(exc)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def end(self, threads: list[threading.Thread]) -> None:
        """End all threads, by GaveUp if necessary, and count those that do not end even then."""
        join_all(threads, max(self.give_up_at, time.monotonic() + 1))
        late = [thread for thread in threads if thread.is_alive()]
        for thread in late:
            Target.all[thread.ident].give_up()  # type: ignore[index]
        if late:
            faulthandler.dump_traceback(all_threads=True)
        join_all(late, time.monotonic() + 2)
        self.count(stuck=sum(thread.is_alive() for thread in late))

    def judge(self) -> dict[str, int]:
        """Check that the storm has left nothing behind and that everything still works."""
        unable = failed([partial(self.fresh_call, self.calm_sender)] * THREADS)
        outstanding = list(self.outstanding.values())
        came: list[bool] = []
        failed([partial(self.take_what_came, outstanding, came)])
        missing = "unreached" if unable else "lost"
        self.count(unable=unable, received=sum(came), **{missing: len(outstanding) - sum(came)})
        self.count(unsent=failed([partial(answer, self.sender, "nobody", new_ids(1))]))
        heard = Counter(self.heard)
        self.count(duplicated=sum(heard.values()) - len(heard))
        if not self.throws:
            self.count(unheard=len(set(self.listened) - set(heard)))
        found: dict[str, int] = {}
        for app in (self.app, self.sender):
            found.update(settled(lambda app=app: leftovers(app)))
        self.count(**found)
        apps = (self.app, self.sender, self.calm_sender)
        self.count(unclosed=failed([app.backend.close for app in apps]))
        return dict(self.counts)

    def fresh_call(self, sender: Any) -> bool:
        """Whether the current thread can soon get the result of a new task."""
        [result] = expect(self.app, 1)
        answer(sender, self.app.backend.oid, [result], "fresh")
        end = time.monotonic() + PROMPT
        while time.monotonic() < end:
            # Of another result, for which nobody has waited until now.
            with contextlib.suppress(CallbackError, TimeoutError):
                return bool(result.get(timeout=PROMPT) == "fresh")
        return False

    def take_what_came(self, outstanding: list[tuple[Any, int]], came: list[bool]) -> None:
        """Count the arrived results that a thread has stopped waiting for."""
        end = time.monotonic() + PROMPT
        for result, size in outstanding:
            with contextlib.suppress(CallbackError, TimeoutError, ResultDropped):
                left = max(end - time.monotonic(), 0.01)
                came.append(result.get(timeout=left) == value_of(result.id, size))

    def count(self, **more: int) -> None:
        with self.lock:
            self.counts.update(more)

    def unexpected(self, exc: BaseException) -> None:
        self.count(errors=1)
        self.shown += 1
        if self.shown <= SHOWN:
            traceback.print_exception(exc)

    # -- the load ------------------------------------------------------------------------------

    def send_results(self, me: Target, rng: random.Random) -> None:
        store = self.sender.backend.store_result
        while (item := self.to_send.get()) is not None:
            oid, task_id, size = item
            request = Context(id=task_id, reply_to=oid, correlation_id=task_id)
            value = value_of(task_id, size)
            if rng.random() < 0.1:
                self.done(me.call(store, task_id, {"done": 0.5}, "PROGRESS", request=request))
            while not self.done(me.call(store, task_id, value, states.SUCCESS, request=request)):
                pass  # it may have been sent or not: again, and its caller hears of it once

    def wait_for_results(self, me: Target, rng: random.Random) -> None:
        while not self.calm.is_set():
            self.round(me, rng)
        self.count(unable=int(not self.fresh_call(self.calm_sender)))

    def round(self, me: Target, rng: random.Random) -> None:
        count = rng.choice((1, 1, 5, 40))
        results = expect(self.app, count)
        sizes = dict.fromkeys(results, rng.choice((10, 10, 10_000)))
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and "polls" in self.mix and rng.random() < 0.3:
            sizes[rng.choice(results)] = LARGE
        for result in results:
            self.outstanding[result.id] = result, sizes[result]
        if "callbacks" in self.mix:
            self.listen(rng.sample(results, max(1, count // 10)), results, rng)
        oid = self.app.backend.oid
        [spare] = new_ids(1)
        for task_id, size in [(spare, 10), *((result.id, sizes[result]) for result in results)]:
            self.to_send.put((oid, task_id, size))
        self.spare.append((spare, value_of(spare, 10)))
        self.recent.extend(result.id for result in rng.sample(results, min(8, count)))
        self.count(sent=count)
        way = rng.choice((self.get_each, self.get_at_once, self.spin, self.poll_then_get))
        way(me, results, rng)
        for result in results:
            self.take(me, result, sizes[result])

    def take(self, me: Target, result: Any, size: int) -> None:
        """Get the value of `result`, however often the wait is interrupted."""
        while not self.done(outcome := me.call(result.get)):
            pass
        value, error = outcome
        if error is not None:
            self.count(lost=1)
        else:
            right = value == value_of(result.id, size)
            self.count(received=int(right), wrong=int(not right))
        del self.outstanding[result.id]

    def done(self, outcome: tuple[Any, BaseException | None]) -> bool:
        """Whether a call need not be repeated; count an exception that it must not raise."""
        exc = outcome[1]
        if exc is None or isinstance(exc, ResultDropped):
            return True
        if is_thrown(exc):
            self.count(struck=1)
        elif not isinstance(exc, (CallbackError, TimeoutError)):
            self.unexpected(exc)
            time.sleep(0.01)
        return False

    def get_each(self, me: Target, results: list[Any], rng: random.Random) -> None:
        for result in rng.sample(results, len(results)):
            while not self.done(me.call(result.get, timeout=rng.choice((None, 0.001, 0.05, 1)))):
                pass

    def get_at_once(self, me: Target, results: list[Any], rng: random.Random) -> None:
        group = self.app.ResultSet(results, app=self.app)
        while not self.done(me.call(group.get, timeout=rng.choice((None, 0.05, 1)))):
            pass

    def spin(self, me: Target, results: list[Any], rng: random.Random) -> None:
        for result in results:
            while not self.done(me.call(result.get, timeout=0)):
                time.sleep(0)

    def poll_then_get(self, me: Target, results: list[Any], rng: random.Random) -> None:
        for result in results:
            ready = rng.choice((result.ready, lambda result=result: result.state == "SUCCESS"))
            while not (self.done(outcome := me.call(ready)) and outcome[0]):
                time.sleep(0.001)

    # -- callbacks -----------------------------------------------------------------------------

    def listen(self, results: list[Any], others: list[Any], rng: random.Random) -> None:
        for result in results:
            act = rng.choice((self.fail, self.wait_for_another, self.look_at_another))
            other = rng.choice(others)
            self.listened.append(result.id)
            result.then(lambda result, act=act, other=other: self.hear(result, act, other))

    def hear(self, result: Any, act: Callable[[Any], None], other: Any) -> None:
        self.heard.append(result.id)
        target = Target.current()
        try:
            act(other)
        except BaseException as exc:
            if target is not None:
                target.note(exc)
            raise

    def fail(self, other: Any) -> None:
        raise CallbackError

    def wait_for_another(self, other: Any) -> None:
        with contextlib.suppress(TimeoutError):
            other.get(timeout=0.2)

    def look_at_another(self, other: Any) -> None:
        twin = self.app.AsyncResult(other.id)
        twin.ready()
        _ = twin.state

    # -- disturbances --------------------------------------------------------------------------

    def alarm(self) -> None:
        """Let a signal interrupt the main thread once more."""
        if self.mix & {"signals", "polls"} and not self.calm.is_set():
            delay = self.rng.expovariate(1 / (self.pace if "signals" in self.mix else 0.003))
            signal.setitimer(signal.ITIMER_REAL, max(delay, SHORTEST))

    def on_alarm(self, signum: int, frame: Any) -> None:
        target = Target.current()
        assert target is not None
        if "polls" in self.mix and not ("signals" in self.mix and self.rng.random() < 0.5):
            target.sheltered += 1
            try:
                self.counts["polls"] += 1
                self.poll()
            finally:
                target.sheltered -= 1
                self.alarm()
            return
        self.alarm()
        if target.open and not self.calm.is_set():
            self.counts["thrown"] += 1
            raise new_thrown(self.rng)

    def watch_main_thread(self) -> None:
        time.sleep(self.give_up_at - time.monotonic())
        # Again and again: a finalizer swallows what is raised in it.
        while not self.main_ended.wait(1):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)  # type: ignore[arg-type]

    def on_give_up(self, signum: int, frame: Any) -> None:
        if not self.main_ended.is_set():
            faulthandler.dump_traceback(all_threads=True)
            raise GaveUp

    def poll(self) -> None:
        """What finalizers and signal handlers do; they must not block other threads."""
        rng, app = self.rng, self.app
        result = app.AsyncResult(rng.choice(self.recent))
        spare_id, value = rng.choice(self.spare)
        spare = app.AsyncResult(spare_id)
        try:
            what = rng.random()
            if what < 0.4:
                result.ready()
            elif what < 0.8:
                _ = result.state
            elif what < 0.95:
                if spare.get(timeout=0) != value:
                    self.counts["wrong"] += 1
            else:
                spare.forget()
        except RuntimeError as exc:
            # The one that is documented: whoever is interrupted reads, or decodes.
            if "in use" not in str(exc):
                self.unexpected(exc)
            self.counts["refused"] += 1
        except (TimeoutError, ResultDropped, CallbackError):
            pass
        except Exception as exc:
            if is_thrown(exc):
                raise
            self.unexpected(exc)
        finally:
            # Celery's get() registers it before the wait begins, which may be refused.
            spare.backend.remove_pending_result(spare)


def join_all(threads: list[threading.Thread], end: float) -> None:
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))


def failed(calls: list[Callable[[], Any]]) -> int:
    """How many of `calls`, made at the same time, return False or do not end soon."""
    end = time.monotonic() + 2 * PROMPT
    count = 0
    for job in [Background(call) for call in calls]:
        try:
            count += job.result(max(end - time.monotonic(), 0)) is False
        except BaseException as exc:
            print(f"afterwards: {exc!r}", file=sys.stderr)
            count += 1
    return count


def settled(look: Callable[[], dict[str, int]]) -> dict[str, int]:
    """What `look` finds and what does not disappear within seconds."""
    end = time.monotonic() + PROMPT
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def silence_logging() -> None:
    """Make logging take no lock: an interrupted thread would leave it locked.

    Every program with interrupted threads has this problem; it is not what this test looks for.
    """
    logging.disable(logging.CRITICAL)
    for logger in (logging.root, *map(logging.getLogger, logging.root.manager.loggerDict)):
        for level in range(0, logging.CRITICAL + 1, 10):
            logger.isEnabledFor(level)  # the first time it does


def block_librabbitmq() -> None:
    """Make kombu's import of librabbitmq fail at once.

    kombu tries it for each connection, and an interrupted import leaves its lock locked.
    """
    sys.modules.setdefault("librabbitmq", None)  # type: ignore[arg-type]


def import_now(app: Any) -> None:
    """Import what a process otherwise imports at its first call.

    An exception thrown into an import can leave CPython's import lock locked, and then every thread
    that imports something hangs. The worker has imported it before it forks.
    """
    _ = app.amqp
    app.backend.load()
    "localhost".encode("idna")  # the first connection does


def late_imports(before: set[str]) -> set[str]:
    """Modules of ours that were imported since, where an exception may strike."""
    late = {name for name in sys.modules.keys() - before if name.startswith("fastrpc.")}
    if late:
        print(f"imported in the storm: {', '.join(sorted(late))}", file=sys.stderr)
    return late


# -- the worker, and its callers -----------------------------------------------------------------


@shared_task(name="storm.echo")
def echo(value):
    return value


@shared_task(name="storm.limited", soft_time_limit=0.3)
def limited():
    """Waits for a result that never comes, until its soft time limit."""
    end = time.monotonic() + 20
    # Keep them all: a time limit raised in a destructor would be swallowed.
    results = []
    try:
        with allow_join_result():
            while time.monotonic() < end:
                results.append(current_app.AsyncResult(new_ids(1)[0]))
                with contextlib.suppress(TimeoutError):
                    results[-1].get(timeout=random.choice((0, 0.01)))
    except SoftTimeLimitExceeded:
        if results:
            # Celery's get() registers the result in one line and waits for it in the next. Between
            # them nothing of ours runs that could take it back.
            results[-1].forget()
        return "limited"
    return "not limited"


@shared_task(name="storm.look")
def look():
    """The leftovers in this pool process, and how often its sends were interrupted."""
    time.sleep(0.5)  # for the other process to take the other one
    return {"pid": os.getpid(), "thrown": _thrown, "left": settled(lambda: leftovers(current_app))}


_thrown = 0


@worker_process_init.connect
def expose_sends(**_kwargs: Any) -> None:
    """Let a signal handler raise now and then while a result is sent; then send it again."""
    if "FASTRPC_STORM" not in os.environ:
        return
    silence_logging()
    block_librabbitmq()
    faulthandler.register(signal.SIGUSR2, sys.__stderr__)  # Celery's has no descriptor
    target, rng = Target(), random.Random(os.getpid())
    backend = current_app.backend
    store = backend.store_result

    def on_alarm(signum: int, frame: Any) -> None:
        global _thrown
        if target.open:
            _thrown += 1
            raise new_thrown(rng)

    def store_result(*args: Any, **kwargs: Any) -> Any:
        while True:
            if rng.random() < 0.5:
                signal.setitimer(signal.ITIMER_REAL, max(rng.expovariate(5_000), SHORTEST))
            value, error = target.call(store, *args, **kwargs)
            signal.setitimer(signal.ITIMER_REAL, 0)
            if not is_thrown(error):
                break
        if error is not None:
            raise error
        return value

    signal.signal(signal.SIGALRM, on_alarm)
    backend.store_result = store_result


class WorkerSquall:
    """One process: a real prefork worker, and threads that call its tasks and wait for them."""

    def __init__(self, url: str, seconds: float, seed: int) -> None:
        self.url, self.seconds = url, seconds
        self.rng = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def run(self) -> dict[str, int]:
        name = f"fastrpc-storm-{os.getpid()}"
        with Worker(
            self.url,
            "fastrpc://",
            pool="prefork",
            concurrency=2,
            queues=(name,),
            conf={"imports": ["tests.storm"], "result_backend_transport_options": OPTIONS},
            env={"FASTRPC_STORM": "1"},
        ) as worker:
            self.app = client(self.url, name, options=OPTIONS)
            self.end = time.monotonic() + self.seconds
            seeds = [self.rng.random() for _ in range(THREADS)]
            jobs = [Background(partial(self.calls, seed)) for seed in seeds]
            join_all([job.thread for job in jobs], self.end + 2 * PATIENCE)
            self.counts["stuck"] += sum(job.running for job in jobs)
            self.look()
            if any(self.counts[name] for name in FAILURES):
                for process in psutil.Process(worker.pid).children():
                    process.send_signal(signal.SIGUSR2)  # it says where it is
                time.sleep(1)
                print(worker.log[-10_000:], file=sys.stderr)
            self.app.backend.close()
        return dict(self.counts)

    def calls(self, seed: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            calls = [self.call(rng) for _ in range(rng.choice((1, 20)))]
            self.count(sent=len(calls))
            end = time.monotonic() + PATIENCE
            for result, value in calls:
                try:
                    right = result.get(timeout=max(end - time.monotonic(), 0.01)) == value
                    self.count(received=int(right), wrong=int(not right))
                except SoftTimeLimitExceeded:
                    # It came before the task could catch it, so it is the task's outcome.
                    self.count(received=int(value == "limited"), wrong=int(value != "limited"))
                except TimeoutError:
                    self.count(lost=1)
                except Exception as exc:
                    print(f"a call of the worker: {exc!r}", file=sys.stderr)
                    self.count(errors=1)

    def call(self, rng: random.Random) -> tuple[Any, Any]:
        if rng.random() < 0.02:
            return self.app.send_task("storm.limited"), "limited"
        value = "x" * rng.choice((10, 10_000)) + str(rng.random())
        return self.app.send_task("storm.echo", (value,)), value

    def count(self, **more: int) -> None:
        with self.lock:
            self.counts.update(more)

    def look(self) -> None:
        seen: dict[int, dict[str, Any]] = {}
        end = time.monotonic() + PATIENCE
        while len(seen) < 2 and time.monotonic() < end:
            for result in [self.app.send_task("storm.look") for _ in range(2)]:
                with contextlib.suppress(TimeoutError):
                    said = result.get(timeout=PATIENCE)
                    seen[said["pid"]] = said
        self.counts["unable"] += 2 - len(seen)
        for said in seen.values():
            self.counts.update(said["left"])
            self.counts["thrown"] += said["thrown"]
        self.counts["spared"] += int(bool(seen) and not self.counts["thrown"])


# -- all of it -------------------------------------------------------------------------------------


def plan(seed: int) -> Iterator[tuple[int, Sequence[str]]]:
    """The seed and the mix of each squall."""
    rng = random.Random(seed)
    for mix in MIXES:
        yield rng.randrange(1 << 32), mix
    while True:
        mix = rng.sample(INGREDIENTS, rng.randint(1, len(INGREDIENTS)))
        yield rng.randrange(1 << 32), mix


def run_one(what: str, url: str, seconds: float, seed: int) -> Counter[str]:
    """Run one squall in a process of its own; return its counts."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.storm", "--one", what, url, str(seconds), str(seed)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    counts: Counter[str] = Counter()
    try:
        said = process.communicate(timeout=seconds + PATIENCE + BOUND)[0]
        if process.returncode < 0:
            counts["crashed"] += 1
        elif process.returncode:
            counts["died"] += 1
        else:
            counts.update(json.loads(said))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGUSR1)  # it says where
        time.sleep(1)
        counts["hung"] += 1
    finally:
        process.kill()
        process.wait()
    found = ", ".join(f"{name} {counts[name]}" for name in FAILURES if counts[name])
    if found:
        again = f"python -m tests.storm {seconds:g} --mix {what} --seed {seed}"
        print(f"storm: {found}; again: {again}", file=sys.stderr)
    return counts


def storm(seconds: float, seed: int, url: str) -> tuple[str, bool]:
    """Run the storm; return the line of counts, and whether all are 0."""
    total: Counter[str] = Counter()
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(1) as beside:
        # It takes some seconds to start and to end.
        worker = beside.submit(run_one, "worker", url, max(seconds - 8.0, SQUALL), seed)
        for n, (squall_seed, mix) in enumerate(plan(seed)):
            if n >= len(MIXES) and time.monotonic() + SQUALL > end:
                break
            total["squalls"] += 1
            total.update(run_one("+".join(mix), url, SQUALL, squall_seed))
        total.update(worker.result())
    return verdict(total, seconds, seed)


def verdict(total: Counter[str], seconds: float, seed: int) -> tuple[str, bool]:
    failures = ", ".join(f"{name} {total[name]}" for name in FAILURES)
    line = (
        f"storm: sent {total['sent']}, received {total['received']}, {failures} "
        f"({seconds:g} s, seed {seed}, {total['squalls']} squalls, {total['thrown']} thrown, "
        f"{total['struck']} struck, {total['polls']} polls of a handler, "
        f"{total['finalizers']} finalizers, {total['refused']} refused)"
    )
    well = total["sent"] == total["received"] > 0 and not any(total[name] for name in FAILURES)
    return line, well


def one(what: str, url: str, seconds: float, seed: int) -> dict[str, int]:
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    silence_logging()
    block_librabbitmq()
    if what == "worker":
        return WorkerSquall(url, seconds, seed).run()
    squall = Squall(url, seconds, seed, frozenset(what.split("+")))

    def unraisable(args: Any) -> None:
        if isinstance(args.exc_value, GaveUp):
            squall.count(stuck=1)
        elif not is_thrown(args.exc_value):
            squall.unexpected(args.exc_value)

    sys.unraisablehook = unraisable
    return squall.run()


@contextlib.contextmanager
def started_broker(tls: bool) -> Iterator[str]:
    """The URL of a broker; with ``tls`` an amqps:// one, whose authority all processes trust."""
    if not tls:
        with RabbitMQ() as broker:
            yield broker.url
        return
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority(Path(folder))
        files = {"cacertfile": authority.cafile, **authority.issue("server", "localhost")}
        with RabbitMQ(tls=files) as broker, patch.dict(os.environ, SSL_CERT_FILE=authority.cafile):
            yield broker.tls_url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--mix", help=f"one squall: worker, or some of {'+'.join(INGREDIENTS)}")
    parser.add_argument("--tls", action="store_true", help="over amqps://")
    parser.add_argument("--quorum", action="store_true", help="with quorum queues for results")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        what, url, seconds, seed = args.one
        print(json.dumps(one(what, url, float(seconds), int(seed))))
        return 0
    if args.mix and args.mix != "worker" and not {*args.mix.split("+")} <= {*INGREDIENTS}:
        parser.error(f"--mix {args.mix}: worker, or some of {'+'.join(INGREDIENTS)}")
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"storm: seed {seed}", file=sys.stderr)
    if args.quorum:
        os.environ["FASTRPC_STORM_OPTIONS"] = json.dumps({"queue_type": "quorum"})
    with started_broker(args.tls) as url:
        if args.mix:
            counts = run_one(args.mix, url, args.seconds, seed)
            line, well = verdict(counts, args.seconds, seed)
        else:
            line, well = storm(args.seconds, seed, url)
    print(line)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
