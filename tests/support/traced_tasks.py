"""Sends tasks with a tracing tool at work, and says what the tool wrote into their headers.

``python -m tests.support.traced_tasks TOOL HOW URL``: TOOL is ``sentry`` or ``opentelemetry``, HOW
one of ``sent_tasks.HOW``. Prints one JSON list: for each task its headers that are the tool's.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import kombu

import fastrpc
from tests.support.apps import make_app
from tests.support.waiting import wait_until

WAIT = 20


@contextlib.contextmanager
def sentry() -> Iterator[None]:
    import sentry_sdk
    from sentry_sdk.integrations.celery import CeleryIntegration

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        traces_sample_rate=1.0,
        default_integrations=False,
        integrations=[CeleryIntegration()],
        transport=lambda envelope: None,
    )
    with sentry_sdk.start_transaction(name="caller"):
        yield


@contextlib.contextmanager
def opentelemetry() -> Iterator[None]:
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())
    CeleryInstrumentor().instrument()
    with trace.get_tracer("tests").start_as_current_span("caller"):
        yield


def main(tool: str, how: str, url: str) -> None:
    if how != "stock":
        fastrpc.install()
    queue = f"fastrpc-traced-{tool}-{how}"
    app = make_app(url, "rpc://", queue)
    add = app.tasks["tests.add"]
    with {"sentry": sentry, "opentelemetry": opentelemetry}[tool]():
        if how == "many":
            fastrpc.apply_many(add, [(n, n) for n in range(3)])
        else:
            with fastrpc.batch(app) if how == "batch" else contextlib.nullcontext():
                for n in range(3):
                    add.apply_async((n, n))
    with kombu.Connection(url) as connection:
        channel = connection.default_channel
        wait_until(
            lambda: channel.queue_declare(queue, passive=True).message_count == 3, WAIT, "all came"
        )
        headers = [channel.basic_get(queue, no_ack=True).headers for _ in range(3)]
        channel.queue_delete(queue)
    print(json.dumps([found(each) for each in headers]), flush=True)


def found(headers: dict[str, Any]) -> dict[str, Any]:
    """The headers of tracing tools."""
    names = ("sentry-trace", "traceparent", "baggage", "sentry-task-enqueued-time")
    return {name: headers[name] for name in names if name in headers}


if __name__ == "__main__":
    main(*sys.argv[1:])
