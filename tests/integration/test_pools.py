"""Thousands of tasks through each of the worker's pools, all with the right result."""

from __future__ import annotations

import pytest

from tests.support.backends import FAST
from tests.support.worker import Worker

WAIT = 100
POOLS = ["solo", "threads", "prefork"]
GREEN_POOLS = ["gevent", "eventlet"]


def run(app, count: int) -> None:
    """Send, wait for all at once, and compare each result with the expected one."""
    add = app.tasks["tests.add"]
    with app.producer_or_acquire() as producer:
        sent = [add.apply_async((n, 1), producer=producer) for n in range(count)]
    assert app.ResultSet(sent, app=app).get(timeout=WAIT) == [n + 1 for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_ten_thousand_tasks_come_back_right(pair, pool, make_worker, make_client):
    # With stock in the pair a few show as much, and take as long.
    count = 10_000 if pair == (FAST, FAST) else 300
    run(make_client(pair[0], make_worker(pair[1], pool)), count)


@pytest.mark.parametrize("pool", GREEN_POOLS)
def test_tasks_come_back_right_from_greenlets(pair, pool, make_worker, make_client):
    # Celery's own worker takes ten a second from the broker there, whatever the backend.
    worker = make_worker(pair[1], pool, concurrency=10)
    run(make_client(pair[0], worker), 20)


@pytest.mark.parametrize("pool", [*POOLS, *GREEN_POOLS])
def test_errors_and_progress_come_back_from_every_pool(pair, pool, make_worker, make_client):
    options = {"concurrency": 10} if pool in GREEN_POOLS else {}
    app = make_client(pair[0], make_worker(pair[1], pool, **options))
    seen: list[dict] = []
    assert app.tasks["tests.progress"].delay(3).get(timeout=30, on_message=seen.append) == 3
    assert [m["status"] for m in seen] == ["PROGRESS"] * 3 + ["SUCCESS"]
    with pytest.raises(ValueError, match="from the pool"):
        app.tasks["tests.fail"].delay("from the pool").get(timeout=30)


def test_a_worker_is_cut_short_and_the_next_one_answers(pair, broker, make_client):
    """kill -9: the next worker runs its unacknowledged tasks again."""
    conf = {"task_acks_late": True, "worker_prefetch_multiplier": 1}
    queues = ("fastrpc-tests-killed",)
    with Worker(broker.url, pair[1], pool="solo", queues=queues, conf=conf) as worker:
        app = make_client(pair[0], worker)
        first = app.tasks["tests.echo"].delay("first")
        assert first.get(timeout=30) == "first"
        worker.kill()
    second = app.tasks["tests.echo"].delay("second")
    with Worker(broker.url, pair[1], pool="solo", queues=queues, conf=conf):
        assert second.get(timeout=30) == "second"
