"""Tasks that send other tasks: those that wait for the results, and those that do not."""

from __future__ import annotations

import pytest
from celery import Celery

from tests.support.backends import BACKENDS, FAST
from tests.support.waiting import wait_until

POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture
def joining(make_worker, leaf_worker, make_client):
    """joining(backend, pool) -> a client of a worker whose tasks wait for those of another."""

    def make(backend: str, pool: str, **options) -> Celery:
        worker = make_worker(backend, pool, concurrency=1 if pool == "solo" else 4, **options)
        leaf_worker(worker)
        return make_client(backend, worker)

    return make


# Stock is right in the threads pool; its prefork children take each other's results.
@pytest.mark.parametrize(
    ("pool", "backend"), [*((pool, FAST) for pool in POOLS), ("threads", BACKENDS[0])]
)
def test_several_at_once_wait_for_a_subtask(joining, pool, backend):
    app = joining(backend, pool)
    sent = [app.tasks["tests.join_late"].delay(n, 0.3) for n in range(3)]
    assert [result.get(timeout=20) for result in sent] == [0, 1, 2]


@pytest.mark.parametrize("pool", POOLS)
def test_a_subtask_answers_before_it_is_waited_for(joining, pool):
    """Also in the first task of each child, of each thread: with a worker of its own."""
    app = joining(FAST, pool, env={"FASTRPC_TESTS": "first"})
    sent = [app.tasks["tests.join_pause"].delay(n) for n in range(9)]
    assert [result.get(timeout=30) for result in sent] == list(range(9))


@pytest.mark.parametrize("pool", POOLS)
def test_threads_inside_a_task_wait_for_subtasks(joining, pool):
    app = joining(FAST, pool)
    assert app.tasks["tests.join_in_threads"].delay([1, 2, 3]).get(timeout=20) == [1, 2, 3]


def test_what_is_never_asked_for_does_not_fill_the_broker(joining, private_broker):
    conf = {"result_backend_transport_options": {"max_unread": 50}}
    app = joining(FAST, "solo", conf=conf)
    queue = app.tasks["tests.fire_and_forget"].delay(300).get(timeout=20)
    wait_until(lambda: private_broker.queues().get(queue) == 50, 10, "the newest are kept")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_result_of_a_link_that_was_frozen_comes_to_the_caller(joining, backend):
    """Else it goes to the queue of the worker that sends the task of the link."""
    app = joining(backend, "solo")
    echo = app.tasks["tests.echo"]
    link = echo.s()
    linked = link.freeze()
    assert echo.apply_async((7,), link=link).get(timeout=20) == 7
    assert linked.get(timeout=20) == 7
