"""What the fault tests share: clients, senders of results, and things to count.

A sender stands for a worker: an app of its own whose backend stores results for the caller's
reply queue, without a task having been run. It says exactly what was sent, and when.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import pack
from typing import Any

import psutil
from amqp.basic_message import Message
from celery import Celery, states
from celery.app.task import Context

from tests.amqp_bytes import frame
from tests.integration.tasks import make_app

ROOT = Path(__file__).parents[2]
FAST = "fastrpc://"

#: How much later than its own timeout a get() may raise TimeoutError.
LATE = 0.25


#: What a peer may send that is not AMQP 0-9-1, or not at that point.
NOT_AMQP = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "another version": b"AMQP\x00\x01\x00\x00",
    "a huge frame": pack(">BHI", 1, 1, 1 << 31),
    "a body without a header": frame(3, 1, b"x"),
    "an unknown method": frame(1, 1, pack(">HH", 99, 99)),
    "an unknown method of the connection": frame(1, 0, pack(">HH", 10, 99)),
    "an unknown channel": frame(1, 99, pack(">HHB", 20, 11, 0)),
    "basic.ack cut short": frame(1, 1, pack(">HHB", 60, 80, 9)),
    "connection.close cut short": frame(1, 0, pack(">HH", 10, 50)),
    "a name that is not text": frame(1, 1, pack(">HHB", 60, 30, 2) + b"\xff\xff\x00"),
}

_numbers = itertools.count(1)


def new_ids(count: int) -> list[str]:
    """Task ids that no other test uses."""
    start = next(_numbers)
    return [f"{os.getpid():x}-{start:x}-{n:06x}-{'0' * 16}" for n in range(count)]


def client(url: str, queue: str = "fastrpc-faults-nobody", **conf: Any) -> Celery:
    """An app whose results come over fastrpc://; `conf` are Celery settings."""
    options = conf.pop("options", {})
    app = make_app(
        url,
        FAST,
        queue,
        **{"result_backend_transport_options": options, "result_expires": 60, **conf},
    )
    # Made here: threads that ask for it for the first time at once get one each (see the xfail
    # in test_threads.py).
    _ = app.backend
    return app


def expect(app: Celery, count: int) -> list[Any]:
    """What apply_async() leaves behind, but for the task: a reply queue, and who waits."""
    results = []
    with app.producer_or_acquire() as producer:
        for task_id in new_ids(count):
            app.backend.on_task_call(producer, task_id)
            results.append(app.AsyncResult(task_id))
    return results


def answer(
    sender: Celery, oid: str, results: Iterable[Any], value: Any = None, state: str = states.SUCCESS
) -> None:
    """Send a result for each, as a worker does: its own number, or `value`."""
    store = sender.backend.store_result
    for n, result in enumerate(results):
        task_id = result if isinstance(result, str) else result.id
        request = Context(id=task_id, reply_to=oid, correlation_id=task_id)
        store(task_id, n if value is None else value, state, request=request)


def settle() -> None:
    """Give the broker the time to write down a new queue, so that it survives a `kill -9`.

    RabbitMQ answers queue.declare at once and writes within two seconds; if it is killed before
    that the queue is gone, with all that was confirmed in it.
    """
    time.sleep(2.5)


def await_confirms(sender: Celery, timeout: float = 30) -> None:
    await_true(lambda: sender.backend.stats()["unconfirmed"] == 0, timeout, "all is confirmed")


def await_true(condition: Callable[[], Any], timeout: float, what: str) -> Any:
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what}: not within {timeout:g} s")
        time.sleep(0.01)
    return value


def run_threads(count: int, target: Callable[[int], Any], timeout: float = 60) -> list[Any]:
    """`target(n)` in `count` threads at the same time; what each returned, or the first error."""
    outcomes: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(n: int) -> None:
        try:
            start.wait(timeout)
            outcomes[n] = target(n)
        except BaseException as exc:
            outcomes[n] = exc

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    hung = sum(thread.is_alive() for thread in threads)
    assert not hung, f"{hung} of {count} threads hang after {timeout:g} s"
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


class Background:
    """A thread whose outcome is asked for: `with Background(f) as job: ...; job.result(5)`."""

    def __init__(self, target: Callable[[], Any]) -> None:
        self._target = target
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._target()
        except BaseException as exc:
            self._error = exc

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def result(self, timeout: float = 30) -> Any:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"it hangs after {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._outcome


def publish(app: Celery, oid: str, body: bytes, **properties: Any) -> None:
    """Put any message on the reply queue `oid`, over py-amqp alone."""
    properties.setdefault("content_type", "application/json")
    properties.setdefault("content_encoding", "utf-8")
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.confirm_select()
        with deep_recursion():
            channel.basic_publish_confirm(Message(body, **properties), routing_key=oid)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """Other clients write tables that are nested deeper than Python would."""
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(usual)


@contextmanager
def stopwatch(at_most: float, what: str):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took <= at_most, f"{what} took {took:.2f} s, {at_most:g} s are allowed"


class _MallocInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


def memory() -> int:
    """Bytes in use: what was allocated and not freed, where the C library tells.

    The resident size also holds what is free again, and varies by megabytes with nothing lost.
    """
    gc.collect()
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return psutil.Process().memory_info().rss
    mallinfo.restype = _MallocInfo
    info = mallinfo()
    return info.uordblks + info.hblkhd + 64 * sys.getallocatedblocks()


def growth(work: Callable[[], Any]) -> int:
    """Bytes that `work` leaves in use, each time it is done.

    The lesser of two: what leaks does so both times; a table of the interpreter, or of another
    library, that happens to double meanwhile (ten megabytes in a long run of tests) does not.
    """
    sizes = [memory()]
    for _ in range(2):
        work()
        sizes.append(memory())
    return min(after - before for before, after in itertools.pairwise(sizes))


def open_files() -> int:
    return psutil.Process().num_fds()


def run_child(*args: str, timeout: float = 60, env: dict[str, str] | None = None) -> str:
    """Run a module of the tests in a process of its own; what it printed, if all went well."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


class Records(logging.Handler):
    """Everything that was logged, by anybody."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def text(self) -> str:
        formatter = logging.Formatter()
        return "\n".join(formatter.format(record) for record in self.records)

    def count(self, words: str) -> int:
        return sum(words in record.getMessage() for record in self.records)
