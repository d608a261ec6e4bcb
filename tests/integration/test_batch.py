"""kombu's Producer.batch() over our transport."""

from __future__ import annotations

import uuid

import kombu
import pytest
from amqp.exceptions import FrameSyntaxError
from kombu.transport import pyamqp

from fastrpc.transport.batch import BatchPublishError
from fastrpc.transport.transports import Transport
from tests.support.processes import Child
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(
    not hasattr(kombu.Producer, "batch"), reason="kombu has it since 5.7"
)
WAIT = 10


@pytest.fixture
def queue(connect):
    channel = connect().default_channel
    queue = kombu.Queue(f"fastrpc-tests-{uuid.uuid4()}", expires=60)(channel)
    queue.declare()
    return queue


def size(queue) -> int:
    return queue.queue_declare(passive=True).message_count


def writes_of(connection) -> list[int]:
    """The sizes of what is written from now on."""
    transport, sizes = connection.connection.transport, []
    write = transport.write

    def counted(data):
        sizes.append(len(data))
        write(data)

    transport.write = counted
    return sizes


def test_many_messages_leave_in_one_write_and_are_those_of_stock(connect, queue):
    for transport in (pyamqp.Transport, Transport):
        connection = connect(transport)
        producer = connection.Producer(connection.default_channel)
        sizes = writes_of(connection)
        with producer.batch():
            for n in range(100):
                producer.publish([n], routing_key=queue.name, headers={"n": n}, priority=n % 9)
            if transport is Transport:
                assert sizes == []
        if transport is Transport:
            assert len(sizes) == 1
    wait_until(lambda: size(queue) == 200, WAIT, "all have arrived")
    got = [queue.get(no_ack=True) for _ in range(200)]
    seen = [(m.body, m.headers, m.properties, m.content_type) for m in got]
    assert seen[:100] == seen[100:]


@pytest.mark.parametrize(("body", "max_size", "at_least"), [("x", 10, 10), ("x" * 5000, 1000, 4)])
def test_a_batch_is_written_when_it_is_full(connect, queue, body, max_size, at_least):
    connection = connect()
    producer = connection.Producer(connection.default_channel)
    sizes = writes_of(connection)
    with producer.batch(max_size=max_size):
        for _ in range(100):
            producer.publish(body, routing_key=queue.name)
    assert at_least <= len(sizes) < 100
    wait_until(lambda: size(queue) == 100, WAIT, "all have arrived")


def test_an_exception_discards_what_was_not_written(connect, queue):
    connection = connect()
    producer = connection.Producer(connection.default_channel)

    def fail():
        with producer.batch():
            producer.publish("lost", routing_key=queue.name)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    producer.publish("kept", routing_key=queue.name)
    wait_until(lambda: size(queue) == 1, WAIT, "one has arrived")
    assert queue.get(no_ack=True).payload == "kept"


def test_a_message_that_cannot_be_encoded_is_no_part_of_it(connect, queue):
    connection = connect()
    producer = connection.Producer(connection.default_channel)
    with producer.batch():
        producer.publish("first", routing_key=queue.name)
        with pytest.raises(FrameSyntaxError):
            producer.publish("bad", routing_key=queue.name, headers={"bad": object()})
        producer.publish("second", routing_key=queue.name)
    wait_until(lambda: size(queue) == 2, WAIT, "two have arrived")


def test_a_lost_connection_says_how_many_are_in_doubt(connect, queue):
    connection = connect()
    producer = connection.Producer(connection.default_channel)
    batch = producer.batch()
    batch.__enter__()
    for _ in range(3):
        producer.publish("x", routing_key=queue.name)
    connection.connection.sock.close()
    with pytest.raises(BatchPublishError, match="3 messages"):
        batch.flush()


def test_with_confirms_each_message_is_waited_for(connect, queue):
    connection = connect(confirm_publish=True)
    producer = connection.Producer(connection.default_channel)
    assert not producer.supports_batch_publish
    with producer.batch():
        producer.publish("x", routing_key=queue.name)
        assert size(queue) == 1


def test_a_fork_sends_nothing_of_its_parents_batch(connect, queue):
    connection = connect()
    producer = connection.Producer(connection.default_channel)
    with producer.batch() as batch:
        producer.publish("once", routing_key=queue.name)
        Child(batch.flush).result()
    wait_until(lambda: size(queue), WAIT, "it has arrived")
    # This channel answers after it has handled all that was sent on it.
    bound = queue(connection.default_channel)
    assert size(bound) == 1
