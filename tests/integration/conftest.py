"""Clients and workers over the session's broker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress

import kombu
import pytest
from celery import Celery, Task

from fastrpc.transport.transports import Transport
from tests.support.apps import make_app
from tests.support.backends import PAIRS, pair_id
from tests.support.worker import Worker, close_all


@pytest.fixture(scope="session")
def make_worker(broker):
    """make_worker(backend, pool, ...) -> a ready Worker; one for each set of arguments."""
    workers: dict[str, Worker] = {}

    def make(backend: str, pool: str = "prefork", **options) -> Worker:
        key = json.dumps([backend, pool, options], sort_keys=True)
        known = workers.get(key)
        if known is None or known.process.poll() is not None:
            name = f"fastrpc-tests-{backend.partition(':')[0]}-{pool}-{len(workers)}"
            known = workers[key] = Worker(
                broker.url, backend, pool=pool, queues=(name, *options.pop("more", ())), **options
            )
        return known

    yield make
    close_all(workers.values())


@pytest.fixture(scope="module")
def own_vhost(request, private_broker):
    """The URL of a virtual host that only the workers of this module use."""
    with private_broker.vhost(request.module.__name__) as url:
        yield url


@pytest.fixture(scope="session")
def leaf_worker(broker):
    """A second worker, for the subtasks that the tasks of the first wait for."""
    leaves: dict[str, Worker] = {}

    def make(root: Worker) -> Worker:
        if root.queue not in leaves:
            leaves[root.queue] = Worker(
                broker.url, root.backend, pool="solo", queues=(f"{root.queue}-leaf",)
            )
        return leaves[root.queue]

    yield make
    close_all(leaves.values())


@pytest.fixture(scope="session")
def make_client(broker) -> Callable[..., Celery]:
    """make_client(backend, worker, ...) -> an app whose tasks go to that worker."""
    clients: list[Celery] = []

    def make(backend: str, worker: Worker | None = None, **conf) -> Celery:
        queue = worker.queue if worker is not None else "fastrpc-tests-nobody"
        clients.append(make_app(broker.url, backend, queue, **conf))
        return clients[-1]

    yield make
    for app in clients:
        consumer = getattr(app.backend, "result_consumer", None)
        # Stock's stop() fails if it was never started.
        with suppress(Exception):
            consumer.stop()
        app.close()


@pytest.fixture
def connect(broker) -> Iterator[Callable[..., kombu.Connection]]:
    """connect(transport, **transport_options) -> an open connection for this test."""
    opened: list[kombu.Connection] = []

    def connect(transport=Transport, **options) -> kombu.Connection:
        opened.append(
            kombu.Connection(
                broker.url, transport=transport, transport_options=options, connect_timeout=10
            )
        )
        return opened[-1].ensure_connection(max_retries=0)

    yield connect
    for connection in opened:
        connection.collect()


@pytest.fixture(scope="session", params=PAIRS, ids=pair_id)
def pair(request) -> tuple[str, str]:
    """(the client's backend, the worker's backend)."""
    return request.param


@pytest.fixture(scope="session")
def worker(pair, make_worker) -> Worker:
    """A prefork worker with the pair's second backend."""
    return make_worker(pair[1], "prefork")


@pytest.fixture(scope="session")
def app(pair, worker, make_client) -> Celery:
    """A client of that worker with the pair's first backend."""
    return make_client(pair[0], worker)


@pytest.fixture
def task(app) -> Callable[[str], Task]:
    """task("add") is the client's tests.add."""
    return lambda name: app.tasks[f"tests.{name}"]
