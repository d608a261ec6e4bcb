"""Fixtures for every kind of test: the servers, one of each per session, started when asked for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from tests.support.broker import ForeignBroker, MissingServer, RabbitMQ, Redis
from tests.support.waiting import wait_until


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; not in test-quick")
    config.addinivalue_line("markers", "long: takes many minutes; only in test-long")


@pytest.fixture(autouse=True)
def no_watcher_outlives_its_test() -> Iterator[None]:
    """A thread that still mends its connection would meddle with the tests that follow."""
    yield
    wait_until(
        lambda: all(thread.name != "fastrpc-confirms" for thread in threading.enumerate()),
        10,
        "all results are confirmed, or their backend is closed",
    )


def _start(server: type) -> RabbitMQ | Redis:
    try:
        return server().__enter__()
    except MissingServer as exc:
        # Never a skip: a run without its broker has tested nothing.
        pytest.exit(str(exc), returncode=3)


@pytest.fixture(scope="session")
def broker():
    """The session's RabbitMQ: a private node, or what FASTRPC_TEST_BROKER_URL names."""
    if url := os.environ.get("FASTRPC_TEST_BROKER_URL"):
        yield ForeignBroker(url)
        return
    server = _start(RabbitMQ)
    yield server
    server.close()


@pytest.fixture(scope="session")
def private_broker(broker):
    """The session's broker, for tests that need its rabbitmqctl."""
    if isinstance(broker, ForeignBroker):
        own = _start(RabbitMQ)
        yield own
        own.close()
    else:
        yield broker


@pytest.fixture(scope="session")
def redis_server():
    server = _start(Redis)
    yield server
    server.close()
