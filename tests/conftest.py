"""Fixtures for every kind of test: the servers, one of each per session, started when asked for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.broker import RabbitMQ, Redis
from tests.support.crashes import CrashReporter
from tests.support.inside import watching_publishers
from tests.support.session import ForeignBroker, session_broker, started
from tests.support.waiting import wait_until


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds; not in test-quick")
    config.addinivalue_line("markers", "long: takes many minutes; only in test-long")
    config.pluginmanager.register(CrashReporter())


@pytest.fixture(autouse=True)
def no_watcher_outlives_its_test() -> Iterator[None]:
    """A thread that still restores its connection would disturb the tests that follow."""
    yield
    wait_until(
        lambda: not watching_publishers(),
        10,
        "all results are confirmed, or their backend is closed",
    )


@pytest.fixture(scope="session")
def broker():
    """The session's RabbitMQ: a private node, or the broker that FASTRPC_TEST_BROKER_URL names."""
    with session_broker() as server:
        yield server


@pytest.fixture(scope="session")
def private_broker(broker):
    """The session's broker, for tests that need its rabbitmqctl."""
    if isinstance(broker, ForeignBroker):
        with started(RabbitMQ) as own:
            yield own
    else:
        yield broker


@pytest.fixture(scope="session")
def redis_server():
    with started(Redis) as server:
        yield server
