"""Our transport under kombu's event loop, which looks at the socket and not into our buffer."""

from __future__ import annotations

import time
import uuid

import kombu
import pytest
from kombu.asynchronous import Hub

from fastrpc.transport.transports import use_our_transport

ROUNDS = 30


@pytest.fixture
def connection(broker):
    with use_our_transport(kombu.Connection(broker.url)) as connection:
        yield connection


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def test_what_was_read_past_an_answer_is_served(connection, hub):
    """The first delivery is often read together with the answer to basic.consume."""
    queue = kombu.Queue(f"fastrpc-tests-{uuid.uuid4()}", expires=60)(connection.default_channel)
    queue.declare()
    producer = connection.Producer()
    got = []

    def callback(body, message):
        got.append(body)
        message.ack()

    hub.call_repeatedly(0.01, lambda: None)  # or each round would wait a second for a socket
    connection.register_with_event_loop(hub)
    for n in range(ROUNDS):
        producer.publish(n, routing_key=queue.name)
        with connection.Consumer([queue], callbacks=[callback], prefetch_count=1):
            deadline = time.monotonic() + 5
            while len(got) <= n and time.monotonic() < deadline:
                hub.run_once()
        assert got == list(range(n + 1))
    queue.delete()
