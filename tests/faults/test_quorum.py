"""Quorum queues as reply queues, on a single node: the same semantics as classic ones."""

from __future__ import annotations

import time

import pytest
from celery import group
from kombu import Connection

from tests.support import inside
from tests.support.queues import queue_exists
from tests.support.results import answer, await_confirms, expect
from tests.support.waiting import wait_until

WAIT = 30


@pytest.fixture
def quorum(private_broker, make_client):
    """quorum(...) -> a client whose reply queues are quorum queues."""

    def make(url: str = private_broker.url, **conf):
        return make_client(url, "fastrpc-faults", options={"queue_type": "quorum"}, **conf)

    return make


def fetch_and_hang_up(url: str, queue: str, count: int) -> None:
    """Take `count` messages, acknowledge none, and disconnect, so that all are redelivered."""
    connection = Connection(url)
    channel = connection.default_channel
    for _ in range(count):
        wait_until(lambda: channel.basic_get(queue), WAIT, "it is delivered again")
    connection.collect()


def test_a_call_and_a_large_group(quorum, worker):
    app = quorum()
    add = app.tasks["tests.add"]
    assert add.delay(2, 3).get(timeout=WAIT) == 5
    assert group(add.s(n, n) for n in range(1_000))().get(timeout=WAIT) == list(range(0, 2_000, 2))


def test_results_nobody_has_asked_for_yet(quorum, sender):
    app = quorum()
    results = expect(app, 100)
    answer(sender, app.backend.oid, results)
    wait_until(results[-1].ready, WAIT, "the last is there")
    assert app.backend.stats()["unclaimed"] == 100
    assert [result.get(timeout=WAIT) for result in results] == list(range(100))


def test_a_connection_that_is_cut_again_and_again(quorum, private_broker, sender, proxy):
    app = quorum(private_broker.url_for(proxy.port))
    results = expect(app, 2_000)
    heard: list[str] = []
    for result in results:
        result.then(lambda result: heard.append(result.id))
    proxy.cut_every(0.1)
    answer(sender, app.backend.oid, results)
    assert app.ResultSet(results, app=app).get(timeout=WAIT) == list(range(2_000))
    proxy.cut_every(None)
    assert sorted(heard) == sorted(result.id for result in results)


def test_more_redeliveries_than_rabbitmq_4_allows_by_default(quorum, private_broker, sender):
    """Its limit is 20; then it drops the message."""
    app = quorum()
    results = expect(app, 5)
    oid = app.backend.oid
    answer(sender, oid, results)
    await_confirms(sender)
    for _ in range(25):
        fetch_and_hang_up(private_broker.url, oid, 5)
    assert [result.get(timeout=WAIT) for result in results] == list(range(5))


def test_it_is_deleted_at_a_clean_exit(quorum, private_broker):
    app = quorum()
    expect(app, 1)
    oid = app.backend.oid
    assert queue_exists(private_broker.url, oid)
    app.backend.close()
    assert not queue_exists(private_broker.url, oid)


def test_it_expires_unused(quorum, private_broker, sender):
    app = quorum(result_expires=3)  # it must outlive the sender's connecting
    [result] = expect(app, 1)
    oid = app.backend.oid
    answer(sender, oid, [result], "used")
    assert result.get(timeout=WAIT) == "used"
    time.sleep(3.5)  # longer than it may be unused, but it is in use
    assert queue_exists(private_broker.url, oid)
    inside.hang_up(app)
    wait_until(lambda: not queue_exists(private_broker.url, oid), WAIT, "it has expired")
