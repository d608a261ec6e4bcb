"""The message on the reply queue is the one that stock rpc:// sends, to the last property.

`GOLDEN` says what stock sends, so that a new Celery that changes it is noticed; every other
backend is then compared with stock itself.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import kombu
import pytest
from celery import states
from celery.app.task import Context
from celery.utils.saferepr import saferepr

from tests.support.backends import BACKENDS, STOCK
from tests.support.tasks import CustomError
from tests.support.waiting import wait_until

TASK_ID = "8d5c1f0c-6b4e-4a36-8d0e-0123456789ab"

GOLDEN = {
    "properties": {
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "correlation_id": TASK_ID,
        "delivery_mode": 1,
        "priority": 0,
        "application_headers": {},
    },
    "exchange": "",
    "meta": {
        "task_id": TASK_ID,
        "status": "SUCCESS",
        "result": {"answer": 42},
        "traceback": None,
        "children": [],
        "date_done": "<isoformat>",
    },
}


@pytest.fixture
def reply_queue(broker):
    """A queue for the test, and a plain kombu connection to read it."""
    name = f"fastrpc-tests-wire-{uuid.uuid4()}"
    with kombu.Connection(broker.url) as connection:
        queue = kombu.Queue(name, kombu.Exchange(""), name, durable=True, expires=60)
        bound = queue(connection.default_channel)
        bound.declare()
        yield bound
        bound.delete()


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    return request.param


def take(queue: kombu.Queue) -> dict[str, Any]:
    """The next message of the queue, as it arrived."""
    message = wait_until(
        lambda: queue.get(no_ack=True, accept=["json", "pickle", "yaml", "msgpack"]),
        20,
        "a message on the reply queue",
    )
    seen = {
        "properties": dict(message.properties),
        "exchange": message.delivery_info["exchange"],
        "routing_key": message.delivery_info["routing_key"] == queue.name,
        "meta": message.decode(),
        "body_is": type(message.body).__name__,
    }
    seen["properties"].setdefault("content_type", message.content_type)
    seen["properties"].setdefault("content_encoding", message.content_encoding)
    done = seen["meta"].get("date_done")
    if isinstance(done, str) and datetime.datetime.fromisoformat(done):
        seen["meta"]["date_done"] = "<isoformat>"
    return seen


def sent_by(app, queue, result, state=states.SUCCESS, traceback=None, **request) -> dict:
    """The message that the app's backend sends for this result and request."""
    request = {
        "id": TASK_ID,
        "reply_to": queue.name,
        "correlation_id": TASK_ID,
        "children": [],
        **request,
    }
    returned = app.backend.store_result(
        request["id"], result, state, traceback=traceback, request=Context(request)
    )
    assert returned is result
    return take(queue)


FULL_REQUEST = {
    "task": "tests.add",
    "args": [1, "two", None],
    "kwargs": {"three": 3},
    "hostname": "w1@host",
    "retries": 2,
    "delivery_info": {"routing_key": "the-queue", "exchange": "", "priority": 5},
    "group": "the-group",
    "parent_id": "the-parent",
    "root_id": "the-root",
    "stamped_headers": ["customer"],
    "stamps": {"customer": ["acme"]},
}

#: name -> (settings, arguments of sent_by)
CASES: dict[str, tuple[dict, dict]] = {
    "success": ({}, {"result": {"answer": 42}}),
    "none": ({}, {"result": None}),
    "text": ({}, {"result": "naïve ☃ 𝄞 \u2028 </script>"}),
    "numbers": ({}, {"result": [0, -1, 2**63, -(2**63), 10**40, 1.5, 1e300, -0.0]}),
    "tuple": ({}, {"result": (1, (2,))}),
    "number-keys": ({}, {"result": {"1": "a", "b": {"c": None}}}),
    "datetime": ({}, {"result": datetime.datetime(2024, 2, 29, 1, 2, 3, 4)}),
    "uuid-and-bytes": ({}, {"result": [uuid.UUID(int=5), b"\xff\x00"]}),
    "big": ({}, {"result": "z" * 300_000}),
    "started": ({}, {"result": {"pid": 1, "hostname": "h"}, "state": states.STARTED}),
    "progress": ({}, {"result": {"step": 1}, "state": "PROGRESS"}),
    "retry": ({}, {"result": ValueError("again"), "state": states.RETRY, "traceback": "tb"}),
    "failure": ({}, {"result": ValueError("no"), "state": states.FAILURE, "traceback": "tb"}),
    "custom-failure": ({}, {"result": CustomError("a", 1), "state": states.FAILURE}),
    "odd-failure": ({}, {"result": CustomError(object), "state": states.FAILURE}),
    "revoked": ({}, {"result": Exception("revoked"), "state": states.REVOKED}),
    "correlation-id": ({}, {"result": 1, "correlation_id": "something-else"}),
    "no-correlation-id": ({}, {"result": 1, "correlation_id": None}),
    "full-request": ({}, {"result": 1, **FULL_REQUEST}),
    "extended": ({"result_extended": True}, {"result": 1, **FULL_REQUEST}),
    "extended-reprs": (
        {"result_extended": True},
        {
            "result": 1,
            **FULL_REQUEST,
            "argsrepr": saferepr((1, "two")),
            "kwargsrepr": saferepr({"three": 3}),
        },
    ),
    "extended-failure": (
        {"result_extended": True},
        {"result": KeyError("k"), "state": states.FAILURE, **FULL_REQUEST},
    ),
    "extended-odd-args": (
        {"result_extended": True},
        {"result": 1, **FULL_REQUEST, "args": [uuid.UUID(int=7), b"x"], "kwargs": None},
    ),
    "persistent": ({"result_persistent": True}, {"result": 1}),
    "not-persistent": ({"result_persistent": False}, {"result": 1}),
    "compression": ({"result_compression": "gzip"}, {"result": "z" * 5000}),
    "pickle": (
        {"result_serializer": "pickle", "accept_content": ["pickle"]},
        {"result": {1, 2}, **FULL_REQUEST},
    ),
    "yaml": ({"result_serializer": "yaml", "accept_content": ["yaml"]}, {"result": ["é", 1]}),
    "msgpack": (
        {"result_serializer": "msgpack", "accept_content": ["msgpack"]},
        {"result": ["é", 1, None]},
    ),
    "expires": ({"result_expires": 60}, {"result": 1}),
    "local-time": ({"enable_utc": False, "timezone": "Europe/Paris"}, {"result": 1}),
}


def test_stock_sends_what_we_think_it_sends(make_client, reply_queue):
    seen = sent_by(make_client(STOCK), reply_queue, {"answer": 42})
    assert seen.pop("routing_key")
    seen.pop("body_is")
    assert seen == GOLDEN


@pytest.mark.filterwarnings("ignore:.*cannot store compressed payloads")
@pytest.mark.parametrize("case", CASES)
def test_a_result_looks_on_the_wire_as_stock_sends_it(backend, case, make_client, reply_queue):
    conf, sent = CASES[case]
    stock = sent_by(make_client(STOCK, **conf), reply_queue, **sent)
    ours = sent_by(make_client(backend, **conf), reply_queue, **sent)
    assert ours == stock
    assert stock["routing_key"]
    # The setting that a case tests must have an effect on the wire.
    if "result_extended" in conf:
        assert {"name", "args", "kwargs", "worker", "retries", "queue"} <= stock["meta"].keys()
        assert stock["meta"]["group_id"] == "the-group"
        assert stock["meta"]["parent_id"] == "the-parent"
    if conf.get("result_persistent"):
        assert stock["properties"]["delivery_mode"] == 2


def test_the_order_of_the_keys_is_stocks_too(backend, make_client, reply_queue):
    stock = sent_by(make_client(STOCK), reply_queue, 1, **FULL_REQUEST)
    ours = sent_by(make_client(backend), reply_queue, 1, **FULL_REQUEST)
    assert list(ours["meta"]) == list(stock["meta"])


def test_two_results_of_one_task_keep_their_order(backend, make_client, reply_queue):
    app = make_client(backend)
    request = Context({"reply_to": reply_queue.name, "correlation_id": TASK_ID})
    for step in range(20):
        app.backend.store_result(TASK_ID, step, "PROGRESS", request=request)
    assert [take(reply_queue)["meta"]["result"] for _ in range(20)] == list(range(20))


def test_without_a_reply_queue_nothing_is_sent(backend, make_client, reply_queue):
    app = make_client(backend)
    app.backend.store_result(TASK_ID, "unheard", states.SUCCESS, request=Context({"id": TASK_ID}))
    assert sent_by(app, reply_queue, "heard")["meta"]["result"] == "heard"
    assert reply_queue.get(no_ack=True) is None


def test_without_a_request_the_error_names_the_task(backend, make_client):
    with pytest.raises(RuntimeError, match=TASK_ID):
        make_client(backend).backend.store_result(TASK_ID, 1, states.SUCCESS)


def test_a_reply_queue_that_is_gone_is_no_error_for_the_worker(backend, make_client, reply_queue):
    app = make_client(backend)
    request = Context({"reply_to": "fastrpc-tests-gone", "correlation_id": TASK_ID})
    assert app.backend.store_result(TASK_ID, 1, states.SUCCESS, request=request) == 1
    assert sent_by(app, reply_queue, "after")["meta"]["result"] == "after"


@pytest.mark.parametrize("extended", [False, True], ids=["plain", "extended"])
@pytest.mark.parametrize("name", ["add", "fail", "spawn", "flaky", "ignored"])
def test_a_real_worker_sends_what_a_stock_worker_sends(
    backend, name, extended, make_worker, make_client, reply_queue
):
    """End to end: the worker's request data is the same too."""
    args = {"add": (1, 2), "fail": ("no",), "spawn": ([1],), "flaky": (1,), "ignored": (1,)}[name]
    conf = {"result_extended": True} if extended else {}
    seen = {}
    for url in (STOCK, backend):
        worker = make_worker(url, "solo", conf=conf)
        app = make_client(STOCK, worker, **conf)
        task = app.tasks[f"tests.{name}"]
        task.apply_async(args, reply_to=reply_queue.name, ignore_result=False)
        seen[url] = _without_ids(take(reply_queue), worker)
        if name == "flaky":
            seen[url] = [seen[url], _without_ids(take(reply_queue), worker)]
    assert seen[STOCK] == seen[backend]


def _without_ids(seen: dict, worker) -> dict:
    """Reduce ids, names and lines that differ between runs to their types or numbers."""
    meta = seen["meta"]
    assert meta["task_id"] == seen["properties"].pop("correlation_id")
    # A retried task is its own parent.
    for key in ("task_id", "root_id", "parent_id", "traceback"):
        meta[key] = type(meta.get(key)).__name__
    meta["children"] = len(meta["children"])
    if meta["status"] == "SUCCESS" and isinstance(meta["result"], list):
        meta["result"] = len(meta["result"])
    if "worker" in meta:
        assert meta.pop("worker") == worker.name
        assert meta.pop("queue") == worker.queue
    return seen
