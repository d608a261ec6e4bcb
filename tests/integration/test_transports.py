"""The same calls over every other kombu transport, with Celery's in-process test worker.

Client and worker share one app, one process, and therefore one backend object.
"""

from __future__ import annotations

import logging

import pytest
from celery import chain, group, states
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TimeoutError
from celery.result import allow_join_result

from tests.support.apps import make_app
from tests.support.backends import FAST, STOCK
from tests.support.tasks import CustomError

WAIT = 20


def connect_to(transport: str, request) -> tuple[str, dict]:
    """(broker URL, settings); starts a server if the transport needs one."""
    if transport == "redis":
        return request.getfixturevalue("redis_server").url, {}
    if transport == "amqp":
        return request.getfixturevalue("broker").url, {}
    return "memory://", {"broker_transport_options": {"polling_interval": 0.01}}


# Without kombu's filesystem transport: its reader may read a file before it is written, and then
# loses the message. Stock over amqp is in test_semantics.py.
@pytest.fixture(
    scope="module",
    params=[(STOCK, "memory"), (STOCK, "redis"), (FAST, "memory"), (FAST, "redis"), (FAST, "amqp")],
    ids="".join,
)
def app(request):
    backend, transport = request.param
    url, conf = connect_to(transport, request)
    queue = f"fastrpc-tests-in-process-{backend.partition(':')[0]}"
    app = make_app(url, backend, queue, **conf)
    level = logging.root.level
    # The reply to start_worker's own ping would need celery.ping in this app.
    with (
        start_worker(app, perform_ping_check=False, pool="solo", shutdown_timeout=20),
        allow_join_result(),
    ):
        yield app
    logging.root.setLevel(level)  # start_worker lets nothing below an error through


def test_a_result_comes_back(task):
    assert task("add").delay(2, 3).get(timeout=WAIT) == 5


def test_results_come_back_in_any_order(task):
    results = [task("echo").delay(n) for n in range(20)]
    assert [r.get(timeout=WAIT) for r in reversed(results)] == list(reversed(range(20)))


def test_a_result_is_found_by_its_id_alone(app, task):
    task_id = task("echo").delay("by id").id
    assert app.AsyncResult(task_id).get(timeout=WAIT) == "by id"


def test_exceptions_come_back(task):
    exc = task("fail_custom").delay("a", 1).get(timeout=WAIT, propagate=False)
    assert type(exc) is CustomError
    assert exc.args == ("a", 1)
    with pytest.raises(ValueError, match="broken"):
        task("fail").delay("broken").get(timeout=WAIT)


def test_progress_comes_before_the_end(task):
    seen: list[dict] = []
    result = task("progress").delay(3)
    assert result.get(timeout=WAIT, on_message=seen.append) == 3
    states_seen = [m["status"] for m in seen if m["task_id"] == result.id]
    assert states_seen == ["PROGRESS"] * 3 + ["SUCCESS"]


def test_a_retried_task_comes_back(task):
    assert task("flaky").delay(1).get(timeout=WAIT) == 1


def test_a_group_comes_back_in_order(task):
    result = group(task("add").s(n, n) for n in range(10))()
    assert result.get(timeout=WAIT) == [2 * n for n in range(10)]
    assert result.successful()


def test_iter_native_yields_every_member(task):
    result = group(task("echo").s(n) for n in range(10))()
    got = sorted(meta["result"] for _, meta in result.iter_native(timeout=WAIT))
    assert got == list(range(10))


def test_a_chain_comes_back(task):
    add = task("add")
    result = chain(add.s(1, 2), add.s(3))()
    assert result.get(timeout=WAIT) == 6
    assert result.parent.get(timeout=WAIT) == 3


def test_a_finished_result_knows_all_about_itself(task):
    result = task("echo").delay("v")
    result.get(timeout=WAIT)
    assert result.ready()
    assert result.successful()
    assert result.state == states.SUCCESS
    result.forget()
    assert result.state == states.PENDING


def test_an_unanswered_task_times_out(task):
    result = task("echo").apply_async(queue="fastrpc-tests-nobody", expires=60)
    assert result.state == states.PENDING
    with pytest.raises(TimeoutError):
        result.get(timeout=0.3)


def test_big_results_come_back_whole(task):
    assert task("big").delay(1_000_000).get(timeout=WAIT) == "x" * 1_000_000


def test_chords_are_refused(task):
    with pytest.raises(NotImplementedError, match="chord"):
        (group(task("add").s(1, 1), task("add").s(2, 2)) | task("echo").s()).delay()
