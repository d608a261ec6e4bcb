"""The tasks of the tests.

No task refers to a global app: the same functions serve every app that a test makes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery, chain, group
from celery.exceptions import Ignore
from celery.result import allow_join_result

_registry: list[tuple[Callable, dict[str, Any]]] = []


def task(**options: Any) -> Callable:
    """Register a function as a task of every app that add_tasks() is given."""

    def register(func: Callable) -> Callable:
        _registry.append((func, {"name": f"tests.{func.__name__}", **options}))
        return func

    return register


def add_tasks(app: Celery) -> None:
    """Give an app all of the tasks."""
    for func, options in _registry:
        app.task(**options)(func)


class CustomError(Exception):
    """An exception class of the application, with arguments."""


class UnpicklableError(Exception):
    """Cannot be pickled, nor rebuilt from its arguments."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.lock = open(os.devnull)  # noqa: SIM115


@task()
def add(x, y):
    return x + y


@task()
def echo(value=None):
    return value


@task()
def integer_keys():
    """A dict that msgpack encodes but refuses to decode."""
    return {1: "a"}


@task()
def sleep(seconds):
    time.sleep(seconds)
    return seconds


@task()
def note_and_wait(path, number, until=None):
    """Record that it runs, then wait until the file `until` exists."""
    with open(path, "a") as log:
        log.write(f"{number}\n")
    deadline = time.monotonic() + 60
    while until and not os.path.exists(until) and time.monotonic() < deadline:
        time.sleep(0.01)


@task()
def big(size):
    """A result of `size` characters."""
    return "x" * size


@task()
def fail(message="on purpose"):
    raise ValueError(message)


@task()
def fail_key(key):
    raise KeyError(key)


@task()
def fail_custom(*args):
    raise CustomError(*args)


@task()
def fail_unpicklable(code):
    raise UnpicklableError(code, reason="cannot be pickled")


@task()
def unserialisable():
    """A result that no serializer can encode: the task fails instead."""
    return object()


@task()
def on_error(request, exc, traceback):
    """An errback; its result is never read."""


@task(bind=True)
def progress(self, steps):
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step, "of": steps})
    return steps


@task(bind=True)
def progress_then_wait(self, steps, seconds):
    """Report progress, and stay in the last state for a while."""
    for step in range(steps):
        self.update_state(state="PROGRESS", meta={"step": step, "of": steps})
    time.sleep(seconds)
    return steps


@task(bind=True, max_retries=3)
def flaky(self, failures):
    """Succeeds after so many retries; returns how many there were."""
    if self.request.retries < failures:
        # The next try is sent before the RETRY of this one. Without a pause, another pool process
        # could finish it before the RETRY is sent.
        raise self.retry(exc=ConnectionError("try again"), countdown=0.3)
    return self.request.retries


@task(bind=True, max_retries=1)
def hopeless(self):
    """Retried once, then fails with its own exception."""
    raise self.retry(exc=ConnectionError("never"), countdown=0)


@task(ignore_result=True)
def ignored(value=None):
    return value


@task(bind=True)
def ignore_itself(self):
    self.update_state(state="LEFT", meta={"by": "itself"})
    raise Ignore


@task(track_started=True)
def started_then(value, seconds=0):
    time.sleep(seconds)
    return value


@task(bind=True)
def about_me(self, *args, **kwargs):
    """The worker's data about the request."""
    request = self.request
    return {
        "id": request.id,
        "reply_to": request.reply_to,
        "correlation_id": request.correlation_id,
        "group": request.group,
        "root_id": request.root_id,
        "parent_id": request.parent_id,
        "priority": (request.delivery_info or {}).get("priority"),
        "stamps": request.stamps,
        "args": list(args),
        "kwargs": kwargs,
    }


@task(bind=True, trail=True)
def spawn(self, numbers):
    """Sends a subtask per number and leaves them as its children."""
    add = self.app.tasks["tests.add"]
    return [add.apply_async((n, n)).id for n in numbers]


@task(bind=True, trail=True)
def spawn_group(self, numbers):
    add = self.app.tasks["tests.add"]
    return group(add.s(n, n) for n in numbers)().id


@task(bind=True, trail=True)
def spawn_chain(self, numbers):
    add = self.app.tasks["tests.add"]
    first, *rest = numbers
    last = chain(add.s(first, 0), *(add.s(n) for n in rest))()
    ids = []
    while last is not None:
        ids.append(last.id)
        last = last.parent
    return ids


@task(bind=True)
def join(self, numbers):
    """Sends subtasks and waits for their results, inside the worker."""
    add = self.app.tasks["tests.add"]
    with allow_join_result():
        leaf = self.request.delivery_info["routing_key"] + "-leaf"
        return group(add.s(n, n).set(queue=leaf) for n in numbers)().get(timeout=30)


@task(bind=True)
def join_one(self, value):
    """Sends one subtask to the queue for leaves and returns its result."""
    leaf = self.request.delivery_info["routing_key"] + "-leaf"
    with allow_join_result():
        return self.app.tasks["tests.echo"].apply_async((value,), queue=leaf).get(timeout=30)


@task(bind=True)
def join_late(self, value, seconds=0):
    """Sends one subtask, and calls allow_join_result only afterwards."""
    leaf = self.request.delivery_info["routing_key"] + "-leaf"
    sent = self.app.tasks["tests.started_then"].apply_async((value, seconds), queue=leaf)
    with allow_join_result():
        return sent.get(timeout=5)


@task(bind=True)
def join_pause(self, value, pause=0.3):
    """Sends a subtask that answers before it is waited for."""
    leaf = self.request.delivery_info["routing_key"] + "-leaf"
    sent = self.app.tasks["tests.echo"].apply_async((value,), queue=leaf)
    time.sleep(pause)
    return sent.get(timeout=5, disable_sync_subtasks=False)


@task(bind=True)
def join_in_threads(self, values):
    """Sends a subtask in each of its threads and waits for it there."""
    leaf = self.request.delivery_info["routing_key"] + "-leaf"
    echo = self.app.tasks["tests.echo"]

    def call(value):
        return echo.apply_async((value,), queue=leaf).get(timeout=5, disable_sync_subtasks=False)

    with ThreadPoolExecutor(len(values)) as pool:
        return list(pool.map(call, values))


@task(bind=True)
def fire_and_forget(self, count):
    """Sends subtasks and never asks for their results."""
    leaf = self.request.delivery_info["routing_key"] + "-leaf"
    for n in range(count):
        self.app.tasks["tests.echo"].apply_async((n,), queue=leaf)
    return self.app.thread_oid


@task(bind=True)
def replaced(self, x, y):
    # Left alone, Celery gives the new task the worker's own reply queue.
    instead = self.app.tasks["tests.add"].s(x, y).set(reply_to=self.request.reply_to)
    raise self.replace(instead)


@task(bind=True)
def replaced_by(self, canvas):
    """Gives way to a canvas, which comes as Celery writes it into a message."""
    return self.replace(self.app.signature(canvas))


@task(bind=True)
def replaced_within_a_join(self, x, y):
    """Where a task may wait for others, a send declares and reads this thread's reply queue."""
    with allow_join_result():
        return self.replace(self.app.tasks["tests.add"].s(x, y))


@task()
def total(numbers):
    """The body of many a chord."""
    return sum(numbers)


@task()
def collect(results, *more):
    """A body that returns what it was given."""
    return [results, *more]


@task(bind=True)
def note_errback(self, task_id, path):
    """An errback of the old kind: it gets the id of the task that failed."""
    with open(path, "a") as log:
        log.write(f"{task_id}\n")


@task(bind=True)
def grow_chord(self, numbers):
    """A header task that adds one more for each number."""
    for number in numbers:
        self.add_to_chord(self.app.tasks["tests.echo"].s(number))
    return len(numbers)


@task(acks_late=True)
def late_echo(value):
    """Acknowledged when it is over."""
    return value


@task(acks_late=True)
def noted_total(numbers, path):
    """A body that writes down that it ran."""
    with open(path, "a") as log:
        log.write("ran\n")
    return sum(numbers)


@task(acks_late=True)
def noted_parts(parts, path, name, fails=False):
    """A body that writes down its name and what it got, and returns that or fails."""
    with open(path, "a") as log:
        log.write(json.dumps([name, parts]) + "\n")
    if fails:
        raise ValueError(name)
    return parts
