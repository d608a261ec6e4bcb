"""A worker over our transport whose connection to the broker is cut."""

from __future__ import annotations

import os

import pytest

from tests.support.apps import make_app
from tests.support.proxy import Proxy
from tests.support.worker import Worker

WAIT = 30


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_it_works_on_after_its_connection_was_cut(broker, pool):
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
