"""``Task.replace()``: the caller of the task that was replaced gets the answer."""

from __future__ import annotations

import pytest
from celery import chain, group

from tests.support.backends import FAST, STOCK

WAIT = 20


@pytest.fixture(params=["prefork", "solo", "threads"])
def worker(request, make_worker):
    return make_worker(FAST, request.param)


@pytest.fixture(params=[STOCK, FAST])
def app(request, worker, make_client):
    return make_client(request.param, worker)


def test_by_a_task(task):
    assert task("replaced_by").delay(task("add").s(3, 4)).get(timeout=WAIT) == 7


def test_by_a_chain(task):
    by = chain(task("add").s(1, 2), task("add").s(3), task("add").s(4))
    assert task("replaced_by").delay(by).get(timeout=WAIT) == 10


def test_by_a_task_that_is_replaced_too(task):
    inner = task("replaced_by").s(task("add").s(1, 2))
    assert task("replaced_by").delay(inner).get(timeout=WAIT) == 3


def test_in_the_middle_of_a_chain(task):
    canvas = chain(
        task("add").s(1, 1), task("add").s(1), task("replaced_by").si(task("echo").s(5))
    ) | task("add").s(10)
    assert canvas.apply_async().get(timeout=WAIT) == 15


def test_by_a_task_that_fails(task):
    with pytest.raises(ValueError, match="instead"):
        task("replaced_by").delay(task("fail").s("instead")).get(timeout=WAIT)


def test_within_allow_join_result(task):
    """The worker must not read the caller's queue, and take its results away."""
    results = [task("replaced_within_a_join").delay(n, 1) for n in range(5)]
    assert [result.get(timeout=WAIT) for result in results] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("client", [STOCK, FAST])
@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_by_a_group(make_worker, make_client, pool, client):
    """Alone, and at the end of a chain: chords are on in the worker, which applies the chord."""
    app = make_client(client, make_worker(f"{FAST}?chords=1", pool))
    add, replaced = app.tasks["tests.add"], app.tasks["tests.replaced_by"]
    by = group(add.s(1, 2), add.s(3, 4))
    assert replaced.delay(by).get(timeout=WAIT) == [3, 7]
    by = chain(add.s(1, 2), group(add.s(3), add.s(4)))
    assert replaced.delay(by).get(timeout=WAIT) == [6, 7]


def test_with_install_alone(make_worker, make_client):
    worker = make_worker(STOCK, "solo", install=True)
    app = make_client(STOCK, worker)
    add, replaced = app.tasks["tests.add"], app.tasks["tests.replaced_by"]
    assert replaced.delay(add.s(3, 4)).get(timeout=WAIT) == 7
