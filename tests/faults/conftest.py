"""A client, a sender and a proxy over the session's broker, or over one that may be broken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import pytest
from celery import Celery

from tests.support.apps import client
from tests.support.broker import RabbitMQ
from tests.support.logs import Records
from tests.support.proxy import Proxy
from tests.support.session import ForeignBroker
from tests.support.worker import Worker


@pytest.fixture
def make_client() -> Iterator[Callable[..., Celery]]:
    """make_client(url, ...) -> an app that is closed when the test is over."""
    apps: list[Celery] = []

    def make(*args, **conf) -> Celery:
        apps.append(client(*args, **conf))
        return apps[-1]

    yield make
    for app in apps:
        app.backend.close()
        app.close()


@pytest.fixture
def app(private_broker, make_client) -> Celery:
    """A client that is connected to the broker directly."""
    return make_client(private_broker.url)


@pytest.fixture
def sender(private_broker, make_client) -> Celery:
    """An app that sends the results, over a direct connection."""
    return make_client(private_broker.url)


@pytest.fixture
def proxy(private_broker) -> Iterator[Proxy]:
    with Proxy(private_broker.host, private_broker.port) as proxy:
        yield proxy


@pytest.fixture
def cut_app(private_broker, proxy, make_client) -> Iterator[Celery]:
    """A client whose connections all go through the proxy."""
    yield make_client(private_broker.url_for(proxy.port))
    proxy.listen()
    proxy.thaw()


@pytest.fixture
def records() -> Iterator[Records]:
    """The records of every logger, at every level."""
    handler, root = Records(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture(scope="session")
def worker(private_broker) -> Iterator[Worker]:
    """A worker that answers quickly and to many at once."""
    with Worker(
        private_broker.url, "fastrpc://", pool="threads", concurrency=4, queues=("fastrpc-faults",)
    ) as worker:
        yield worker


@pytest.fixture(scope="module")
def own_broker(broker) -> Iterator[RabbitMQ]:
    """A node for the tests of one file that stop it, or change its settings."""
    del broker  # its fixture ends the session if RabbitMQ is not installed
    with RabbitMQ() as node:
        yield node


@pytest.fixture(scope="session")
def foreign(broker) -> bool:
    return isinstance(broker, ForeignBroker)
