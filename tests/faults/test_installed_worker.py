"""A worker over our transport whose connection to the broker is cut."""

from __future__ import annotations

import os
import random
import time

import pytest

from tests.support.apps import make_app
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until
from tests.support.worker import Worker

WAIT = 30


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork", "gevent", "eventlet"])
def test_it_works_on_after_its_connection_was_cut(broker, pool):
    """Before it gets tasks, and at a random moment while it runs them.

    Not so on stock, whose worker may wait for ever then: see docs/promises.md.
    """
    if pool in ("gevent", "eventlet"):
        pytest.importorskip(pool)
    rng = random.Random(5)
    queue = f"fastrpc-faults-installed-{pool}-{os.getpid()}"
    app = make_app(broker.url, "fastrpc://", queue)
    echo = app.tasks["tests.echo"]
    with (
        Proxy(broker.host, broker.port) as proxy,
        Worker(
            broker.url_for(proxy.port), "rpc://", pool=pool, queues=(queue,), install=True
        ) as worker,
    ):
        for n in range(3):
            assert echo.apply_async((n,)).get(timeout=WAIT) == n
            proxy.cut(rst=bool(n % 2))
            many = [echo.apply_async((k,)) for k in range(50)]
            assert [r.get(timeout=WAIT) for r in many] == list(range(50)), worker.log
            many = [echo.apply_async((k,)) for k in range(50)]
            time.sleep(rng.uniform(0, 0.05))
            proxy.cut(rst=bool(n % 2))
            assert [r.get(timeout=WAIT) for r in many] == list(range(50)), worker.log


def test_its_queue_is_deleted_while_it_consumes(broker):
    """The broker cancels its consumer; it connects again and makes the queue, as on stock."""
    queue = f"fastrpc-faults-installed-cancelled-{os.getpid()}"
    app = make_app(broker.url, "fastrpc://", queue)
    echo = app.tasks["tests.echo"]
    with Worker(broker.url, "rpc://", pool="solo", queues=(queue,), install=True) as worker:
        assert echo.apply_async((1,)).get(timeout=WAIT) == 1
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(queue)
        wait_until(lambda: "ConsumerCancelled" in worker.log, WAIT, "the consumer is cancelled")
        wait_until(lambda: queue in broker.queues(), WAIT, "the queue is made")
        assert echo.apply_async((2,)).get(timeout=WAIT) == 2
