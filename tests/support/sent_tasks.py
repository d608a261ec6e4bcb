"""The messages that a raw consumer receives of tasks, for each way to send them.

``python -m tests.support.sent_tasks HOW URL`` sends each of ``CALLS`` three times and prints
the messages as JSON. HOW is ``stock``, or after fastrpc.install() ``single`` for apply_async,
``batch`` for apply_async in a batch, ``many`` for apply_many().
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from celery import chain, group, signals
from celery.canvas import Signature
from kombu import Connection, Exchange, Queue
from kombu.common import Broadcast
from kombu.transport import pyamqp

import fastrpc
from fastrpc.tasks.many import Model
from fastrpc.tasks.producer import Producer
from tests.support.apps import make_app
from tests.support.waiting import wait_until

__all__ = ["CALLS", "HOW"]

HOW = ("stock", "single", "batch", "many")
LATER = datetime(2090, 5, 17, 12, 30, tzinfo=timezone.utc)
WAIT = 20
QUEUE = "fastrpc-sent"
OTHER = "fastrpc-sent-other"
QUEUES = (QUEUE, OTHER, OTHER + "-t")


#: Name -> options of apply_async, settings.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "headers": ({"headers": {"a": [1, {"b": None}], "time": LATER}}, {}),
    "priority": ({"priority": 7}, {}),
    "no priority": ({"priority": None}, {}),
    "queue": ({"queue": OTHER}, {}),
    "queue object": ({"queue": Queue(OTHER, Exchange(OTHER), routing_key=OTHER)}, {}),
    "topic": (
        {"queue": Queue(OTHER + "-t", Exchange(OTHER + "-t", "topic"), routing_key="a.b")},
        {},
    ),
    "exchange": ({"exchange": "amq.direct", "routing_key": QUEUE}, {}),
    "routes": ({}, {"task_routes": {"tests.*": {"queue": OTHER, "priority": 3}}}),
    "router": (
        {},
        {
            "task_routes": (
                lambda name, args, kwargs, options, task=None, **kw: (
                    {"queue": OTHER} if args[0] == 1 else None
                ),
            )
        },
    ),
    "pickle": ({"serializer": "pickle"}, {"accept_content": ["pickle"]}),
    "yaml": ({"serializer": "yaml"}, {"accept_content": ["yaml"]}),
    "gzip": ({"compression": "gzip"}, {}),
    "compressed": ({}, {"task_compression": "zlib"}),
    "expires": ({"expires": 60}, {}),
    "expires at": ({"expires": datetime.now(timezone.utc) + timedelta(hours=1)}, {}),
    "countdown": ({"countdown": 5}, {}),
    "eta": ({"eta": LATER}, {}),
    "link": ({"link": [Signature("tests.add", (1,))]}, {}),
    "link_error": ({"link_error": [Signature("tests.on_error")]}, {}),
    "limits": ({"time_limit": 30, "soft_time_limit": 20}, {}),
    "shadow": ({"shadow": "another name"}, {}),
    "ignored": ({"ignore_result": True}, {}),
    "transient": ({"delivery_mode": "transient"}, {}),
    "transient by default": ({}, {"task_default_delivery_mode": 1}),
    "retries": ({"retries": 2}, {}),
    "stamps": ({"stamped_headers": ["stamp"], "stamp": "one"}, {}),
    "reply_to": ({"reply_to": "somewhere"}, {}),
    "group": ({"group_id": "g", "group_index": 4, "root_id": "r", "parent_id": "p"}, {}),
    "protocol 1": ({}, {"task_protocol": 1}),
    "event": ({}, {"task_send_sent_event": True}),
    "no retry": ({"retry": False}, {}),
    "retry policy": ({"retry_policy": {"max_retries": 1}}, {}),
    "mandatory": ({"mandatory": True}, {}),
    "quorum": (
        {"queue": Queue(OTHER + "-q", queue_arguments={"x-queue-type": "quorum"})},
        {},
    ),
    "no persistence of replies": ({}, {"result_persistent": False}),
    "inherits": ({"add_to_parent": False}, {}),
}
VALUES: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "values": [
        (("it's", "größer", "\n\x00"), {"k'": [1.5, None, True, float("1e300"), -(2**70)]}),
        (({"a": {"b": {"c": {"d": 1}}}}, [], (), {}), {}),
        (([1, [2, [3, [4, [5]]]]],), {}),
    ],
    "long": [(("x" * 5000,), {}), ((list(range(2000)),), {}), (("a b " * 255,), {"k": "y" * 1023})],
    "types": [((Decimal("1.5"), LATER, LATER.date()), {}), ((1,), {"x": 2**63}), ((b"bytes",), {})],
    "none": [((), {}), ((), {}), ((), {})],
    "large": [(("größer" * 50_000,), {})] * 3,
    "list of args": [([1, 2], {}), ([3], {}), ([], {"a": 1})],
}
PLAIN = [((1, "a"), {}), ((2,), {"b": [None]}), ((3,), {})]
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"20[2-8]\d-\d\d-\d\dT\d\d:\d\d:\d\d[.\d]*")
ORIGIN = re.compile(r"gen\d+@")


def send(how: str, app: Any, calls: list[Any], options: dict[str, Any]) -> None:
    task = app.tasks["tests.about_me"]
    if how == "many":
        fastrpc.apply_many(task, [c[0] for c in calls], [c[1] for c in calls], **options)
        return
    with fastrpc.batch(app) if how == "batch" else contextlib.nullcontext():
        for args, kwargs in calls:
            task.apply_async(args, kwargs, **options)


def send_canvas(how: str, app: Any) -> None:
    add = app.tasks["tests.add"]
    signatures = [
        add.s(1, 2).set(priority=2),
        chain(add.s(1, 2), add.s(3), add.s(4)),
        group(add.s(n, n) for n in range(3)),
        add.s(1, 2).on_error(app.tasks["tests.on_error"].s()),
    ]
    if how == "many":
        fastrpc.apply_many(signatures)
        return
    with fastrpc.batch(app) if how == "batch" else contextlib.nullcontext():
        for signature in signatures:
            signature.apply_async()
        app.send_task("tests.unknown", (1,), {"a": 2})


class Consumer:
    """Takes raw messages out of the queues, over stock's transport."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url, transport=pyamqp.Transport)
        self.channel = self.connection.default_channel
        for name in QUEUES:
            self.channel.queue_declare(name, durable=True, auto_delete=False)
        self.channel.queue_declare(
            OTHER + "-q", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )
        self.channel.queue_bind(QUEUE, "amq.direct", QUEUE)
        self.channel.exchange_declare(QUEUE + "-all", "fanout", durable=True, auto_delete=False)
        self.channel.queue_bind(OTHER, QUEUE + "-all")
        self.channel.exchange_declare("celeryev", "topic", durable=True, auto_delete=False)
        self.channel.queue_declare(QUEUE + "-events", auto_delete=False)
        self.channel.queue_bind(QUEUE + "-events", "celeryev", "task.sent")

    def take(self, count: int = 3) -> list[Any]:
        """Take this many messages, or those that arrive within a while, queue by queue."""
        found: list[Any] = []
        wait_until(lambda: found.extend(self._take()) or len(found) >= count, WAIT, "all have come")
        return sorted(found, key=lambda message: message[0])

    def _take(self) -> list[Any]:
        found = []
        for name in (*QUEUES, OTHER + "-q", QUEUE + "-events"):
            while (raw := self.channel.basic_get(name, no_ack=True)) is not None:
                message = self.channel.message_to_python(raw)
                message.accept = {message.content_type}
                body = message.payload
                if name.endswith("events"):
                    body = [
                        {k: v for k, v in body.items() if k not in ("timestamp", "clock", "pid")}
                    ]
                if "expiration" in message.properties:
                    message.properties["expiration"] = round(
                        int(message.properties["expiration"]), -5
                    )
                info = message.delivery_info
                where = [name, info["exchange"], info["routing_key"]]
                kind = [message.content_type, message.content_encoding]
                found.append([*where, message.properties, message.headers, *kind, body])
        return found


def describe(messages: list[Any]) -> list[Any]:
    """The message without the parts that differ from run to run."""
    text = json.dumps(messages, sort_keys=True, default=repr)
    ids: dict[str, str] = {}
    text = UUID.sub(lambda match: ids.setdefault(match[0], f"id{len(ids)}"), text)
    return json.loads(ORIGIN.sub("gen@", TIME.sub("TIME", text)))


def count_fast_paths() -> Counter[str]:
    """Count how often the fast paths are taken from now on."""
    counts: Counter[str] = Counter()

    def counted(cls: type, name: str) -> None:
        method = getattr(cls, name)

        def call(*args: Any) -> Any:
            counts[cls.__name__] += 1
            return method(*args)

        setattr(cls, name, call)

    counted(Model, "send")
    counted(Producer, "_publish_on")
    return counts


def main(how: str, url: str) -> None:
    """Print the messages; ``fast`` says which cases took which fast path."""
    if how != "stock":
        fastrpc.install()
    consumer = Consumer(url)
    sent: dict[str, Any] = {"fast": {}}
    counts = count_fast_paths()
    cases = {name: (PLAIN, *case) for name, case in CALLS.items()}
    cases.update({name: (calls, {}, {}) for name, calls in VALUES.items()})
    cases["picklable"] = (
        [(({1, 2}, b"\xff"), {}), ((frozenset(),), {}), ((1j,), {})],
        {"serializer": "pickle"},
        {"accept_content": ["pickle"]},
    )
    for name, (calls, options, conf) in cases.items():
        app = make_app(url, "rpc://", QUEUE, **conf)
        counts.clear()
        send(how, app, calls, options)
        sent["fast"][name] = dict(counts)
        sent[name] = describe(consumer.take(6 if name == "event" else 3))
        app.close()

    app = make_app(url, "rpc://", QUEUE, task_queues=[Broadcast(QUEUE + "-all"), Queue(QUEUE)])
    send(how, app, PLAIN, {"queue": QUEUE + "-all"})
    sent["broadcast"] = describe(consumer.take())
    app.close()

    seen: list[Any] = []

    def before(sender: Any, body: Any, headers: Any, **kwargs: Any) -> None:
        headers["traced"] = body[0][0]
        seen.append(["before", sorted(kwargs), kwargs["exchange"], kwargs["routing_key"]])

    def after(sender: Any, body: Any, headers: Any, **kwargs: Any) -> None:
        seen.append(["after", sorted(kwargs), kwargs["exchange"], kwargs["routing_key"]])

    app = make_app(url, "rpc://", QUEUE)
    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    counts.clear()
    send(how, app, PLAIN, {})
    sent["fast"]["signals"] = dict(counts)
    signals.before_task_publish.disconnect(before)
    signals.after_task_publish.disconnect(after)
    sent["signals"] = [*describe(consumer.take()), *seen]

    send_canvas(how, app)
    if how == "many":
        app.send_task("tests.unknown", (1,), {"a": 2})
    sent["canvas"] = describe(consumer.take(7))
    app.close()
    print(json.dumps(sent), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
