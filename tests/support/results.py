"""Results without workers: AsyncResults that wait, and senders of results.

A sender stands for a worker: an app of its own whose backend stores results for the caller's
reply queue, although no task ran. So a test decides exactly what is sent, and when.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from amqp.basic_message import Message
from celery import Celery, states
from celery.app.task import Context

from tests.support import inside
from tests.support.waiting import wait_until

_numbers = itertools.count(1)


def new_ids(count: int) -> list[str]:
    """Task ids that no other test uses."""
    start = next(_numbers)
    return [f"{os.getpid():x}-{start:x}-{n:06x}-{'0' * 16}" for n in range(count)]


def expect(app: Celery, count: int) -> list[Any]:
    """Do what apply_async() does, without sending a task: make a reply queue and waiters."""
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


def call(app: Celery, sender: Celery, count: int) -> list[Any]:
    """Make `count` calls, answer them and wait for them; return their results."""
    results = expect(app, count)
    answer(sender, app.backend.oid, results)
    return [result.get(timeout=20) for result in results]


def answer_once_consumed(app: Celery, sender: Celery, queue: str, result: Any, value: Any) -> None:
    """Send a result when the reply queue exists, which a wait of the client has to declare."""

    def is_consumed() -> bool:
        intake = inside.intake(app)
        return intake is not None and queue in intake.consumed

    wait_until(is_consumed, 8, "the client consumes from its reply queue")
    answer(sender, queue, [result], value)


def await_confirms(sender: Celery, timeout: float = 30) -> None:
    wait_until(lambda: sender.backend.stats()["unconfirmed"] == 0, timeout, "all is confirmed")


def meta(task_id: str | None, result: Any = 1, status: str = states.SUCCESS, **more: Any) -> bytes:
    """The body of a result as a worker sends it; without a task id if that is None."""
    given = {"status": status, "result": result, "traceback": None, "children": [], **more}
    return json.dumps(given if task_id is None else {**given, "task_id": task_id}).encode()


def publish(app: Celery, oid: str, body: bytes, **properties: Any) -> None:
    """Put any message on the reply queue `oid`, over py-amqp alone."""
    properties.setdefault("content_type", "application/json")
    properties.setdefault("content_encoding", "utf-8")
    message = Message(body, **properties)
    if "application_headers" in properties:
        encode_properties(message)
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.confirm_select()
        channel.basic_publish_confirm(message, routing_key=oid)


def encode_properties(message: Message) -> None:
    """Encode them now: other clients write deeper tables than Python can by default.

    The recursion limit is that of all threads. Lowering it while another one decodes thousands of
    levels ends the process, on CPython 3.11, so this comes before anything is sent.
    """
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        encoded = message._serialize_properties()
    finally:
        sys.setrecursionlimit(usual)
    message._serialize_properties = lambda: encoded
