"""Chords over the broker: equal to what the redis backend makes of the same canvas."""

from __future__ import annotations

import re

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from tests.support.reference import WAIT, value_of
from tests.support.waiting import wait_until

FAST = "fastrpc://?chords=1"


@pytest.fixture(scope="module", params=["fast", "redis"])
def backend(request):
    if request.param == "fast":
        return FAST
    return request.getfixturevalue("redis_server").url


@pytest.fixture(scope="module", params=["solo", "threads", "prefork"])
def worker(request, backend, make_worker):
    return make_worker(backend, request.param, concurrency=4)


@pytest.fixture(scope="module")
def app(backend, worker, make_client):
    return make_client(backend, worker)


@pytest.fixture(scope="module")
def sig(app):
    """sig("add", 1, 2) is the signature of tests.add."""
    return lambda name, *args, **kwargs: app.tasks[f"tests.{name}"].s(*args, **kwargs)


def test_a_body_gets_the_results_of_the_header(sig):
    assert value_of(chord([sig("add", n, n) for n in range(10)])(sig("total"))) == 90


def test_results_are_in_the_order_of_the_header(sig):
    header = [sig("sleep", delay) for delay in (0.3, 0, 0.2, 0.1)]
    assert value_of(chord(header)(sig("collect"))) == [[0.3, 0, 0.2, 0.1]]


def test_a_group_chained_into_a_task(sig):
    canvas = group(sig("add", n, 1) for n in range(5)) | sig("total")
    assert value_of(canvas.apply_async()) == 15


def test_a_chord_of_one(sig):
    assert value_of(chord([sig("add", 1, 1)])(sig("collect"))) == [[2]]


def test_an_empty_header(sig):
    assert value_of(chord([])(sig("collect"))) == [[]]


def test_a_generator(sig):
    assert value_of(chord(sig("add", n, n) for n in range(20))(sig("total"))) == 380


def test_the_parts_are_the_callers_too(sig):
    result = chord([sig("add", n, n) for n in range(3)])(sig("total"))
    assert value_of(result) == 6
    assert value_of(result.parent) == [0, 2, 4]


def test_a_part_that_fails(sig):
    result = chord([sig("add", 1, 1), sig("fail", "of a part"), sig("add", 2, 2)])(sig("total"))
    # Otherwise get() raises the error of the part, where it comes first.
    error = value_of(result, propagate=False)
    assert isinstance(error, ChordError)
    assert re.fullmatch(r"Dependency [\w-]+ raised ValueError\('of a part'\)", str(error))
    assert result.state == "FAILURE"


def test_many_chords_at_once(sig):
    results = [chord([sig("add", n, m) for m in range(5)])(sig("total")) for n in range(30)]
    assert [value_of(result) for result in results] == [5 * n + 10 for n in range(30)]


@pytest.mark.parametrize("pool", ["solo", "prefork", "gevent", "eventlet"])
def test_with_our_transport_under_the_tasks_too(pool, make_worker, make_client):
    """Nested, failing and grouped: the worker's own sends go over fastrpc.install()."""
    if pool in ("gevent", "eventlet"):
        pytest.importorskip(pool)
    worker = make_worker(FAST, pool, install=True, concurrency=2)
    tasks = make_client(FAST, worker).tasks
    echo, total, collect = (tasks[f"tests.{name}"] for name in ("echo", "total", "collect"))
    inner = chord([echo.s(1), echo.s(2)], total.s())
    body = group(collect.s(), total.s()) | collect.s()
    assert chord([inner, echo.s(3)], body).apply_async().get(timeout=WAIT) == [[[[3, 3]], 6]]
    failing = chord([echo.s(1), tasks["tests.fail"].s("x")], total.s()).apply_async()
    assert isinstance(failing.get(timeout=WAIT, propagate=False), ChordError)


@pytest.mark.parametrize("members", [1, 2])
def test_a_chain_that_fails_before_the_group_at_its_end(make_worker, make_client, members):
    """With redis:// as the backend such a chord never ends."""
    tasks = make_client(FAST, make_worker(FAST, "solo")).tasks
    echo, fail = tasks["tests.echo"], tasks["tests.fail"]
    end = group(tasks["tests.add"].s(n, n) for n in range(members))
    header = [chain(echo.s(1), fail.s(), group(end, echo.s())), echo.s(2)]
    error = chord(header)(tasks["tests.collect"].s()).get(timeout=WAIT, propagate=False)
    assert isinstance(error, ChordError)
    assert "ValueError" in str(error)


def test_no_task_polls_and_no_queue_stays(make_worker, make_client, broker):
    worker = make_worker(FAST, "solo", loglevel="INFO")
    tasks = make_client(FAST, worker).tasks
    header = [tasks["tests.add"].s(n, n) for n in range(10)]
    assert chord(header)(tasks["tests.total"].s()).get(timeout=WAIT) == 90
    assert "tests.add" in worker.log
    assert "chord_unlock" not in worker.log
    wait_until(
        lambda: not [name for name in broker.queues() if name.startswith("fastrpc.chord.")],
        WAIT,
        "the queues of the chords are gone",
    )
