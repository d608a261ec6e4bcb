"""Publishing and consuming over our transport, on a real broker; stock is the measure."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import uuid

import kombu
import pytest
from amqp.exceptions import FrameSyntaxError, NotFound, RecoverableConnectionError
from kombu.transport import pyamqp

from fastrpc.transport.transports import use_our_transport
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

WAIT = 10


@pytest.fixture
def connection(connect):
    return connect()


@pytest.fixture
def queue(connection):
    queue = kombu.Queue(f"fastrpc-tests-{uuid.uuid4()}", expires=60)(connection.default_channel)
    queue.declare()
    yield queue
    if connection.connected:
        queue.delete()


def receive(queue) -> kombu.Message:
    got: list[kombu.Message] = []
    wait_until(lambda: got.append(queue.get(no_ack=True)) or got[-1], WAIT, "the message is there")
    return got[-1]


def shape(message) -> tuple:
    info = {k: message.delivery_info[k] for k in ("exchange", "routing_key", "redelivered")}
    return (
        message.body,
        message.headers,
        message.properties,
        message.content_type,
        message.content_encoding,
        info,
    )


OPTIONS = [
    {},
    {"headers": {"a": 1, "b": [True, None, {"c": "d"}], "ü": "ß"}, "priority": 5},
    {"serializer": "pickle", "compression": "gzip"},
    {"expiration": 30, "correlation_id": "c", "reply_to": "r", "message_id": "m", "type": "t"},
    {"delivery_mode": 1, "app_id": "app", "timestamp": 1_700_000_000, "mandatory": True},
    {"content_type": "text/plain", "content_encoding": "utf-8"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("size", [0, 10, 300_000])
def test_a_message_is_the_same_as_over_pyamqp(connect, connection, queue, options, size):
    stock = connect(pyamqp.Transport)
    for sender in (stock, connection):
        sender.Producer().publish("x" * size, routing_key=queue.name, **options)
    first, second = receive(queue), receive(queue)
    assert shape(first) == shape(second)


def test_a_header_that_has_no_type_leaves_the_connection_usable(connection, queue):
    producer = connection.Producer()
    with pytest.raises(FrameSyntaxError):
        producer.publish("bad", routing_key=queue.name, headers={"bad": object()})
    producer.publish("good", routing_key=queue.name)
    assert receive(queue).payload == "good"


def test_the_error_of_a_channel_comes_at_the_next_publish(connection, queue):
    producer = connection.Producer()
    producer.publish("lost", exchange=f"fastrpc-tests-{uuid.uuid4()}", routing_key="nowhere")
    sock = connection.connection.sock

    def send_for_a_while():
        for _ in range(100):  # the broker's answer takes a moment
            producer.publish("next", routing_key=queue.name)
            time.sleep(0.05)

    with pytest.raises(NotFound):
        send_for_a_while()
    assert connection.connection.sock is sock
    queue.purge()
    producer.publish("again", routing_key=queue.name)
    assert receive(queue).payload == "again"


def test_confirmed_messages_are_waited_for(connect, queue):
    connection = connect(confirm_publish=True)
    confirmed = []
    connection.default_channel.events["basic_ack"].add(lambda tag, _: confirmed.append(tag))
    for n in range(1, 4):
        connection.Producer().publish(n, routing_key=queue.name)
        assert confirmed == list(range(1, n + 1))


def test_an_unroutable_message_is_returned(connection):
    returned = []
    producer = connection.Producer(on_return=lambda *args: returned.append(args[2]))
    producer.publish("x", routing_key="fastrpc-tests-nowhere", mandatory=True)
    connection.drain_events(timeout=WAIT)
    assert returned == ["fastrpc-tests-nowhere"]


def test_threads_share_a_connection(connection, queue):
    """Each message whole, none lost; one thread waits for events meanwhile."""
    each, threads = 200, 4
    stop = threading.Event()

    def read():
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.05)

    def send(number):
        producer = connection.Producer()
        for n in range(each):
            producer.publish([number, n, "x" * (n * 50)], routing_key=queue.name)

    reader = threading.Thread(target=read)
    senders = [threading.Thread(target=send, args=(n,)) for n in range(threads)]
    reader.start()
    for thread in senders:
        thread.start()
    for thread in senders:
        thread.join(30)
    stop.set()
    reader.join(10)
    got = [receive(queue).payload[:2] for _ in range(each * threads)]
    assert sorted(got) == [[number, n] for number in range(threads) for n in range(each)]
    for number in range(threads):
        assert [n for sender, n in got if sender == number] == list(range(each))


def test_threads_set_the_prefetch_count_while_one_consumes(connection, queue):
    """As a worker and its pool after a lost connection. Over py-amqp a thread may wait for ever."""
    channel = connection.default_channel
    queue.consume(callback=lambda message: None)
    ended: list[int] = []

    def set_often() -> None:
        for n in range(200):
            channel.basic_qos(0, n, True)
        ended.append(1)

    def consume() -> None:
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.001)

    consume()
    threads = [threading.Thread(target=set_often, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()

    def work() -> bool:
        channel.basic_qos(0, 1, True)
        consume()
        return len(ended) == 3

    worker = threading.Thread(target=wait_until, args=(work, 60, "all are set"), daemon=True)
    worker.start()
    worker.join(70)
    assert len(ended) == 3
    assert not worker.is_alive()


def test_a_loss_that_an_acknowledgement_met_is_not_hidden_from_the_consumer(connect, queue):
    """kombu's drain_events() connects again, and nothing would consume."""
    connection = connect()
    got: list[kombu.Message] = []
    consumer = connection.Consumer(queue, on_message=got.append)
    consumer.consume()
    connection.connection.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError):
        consumer.channel.basic_ack(1)
    for _ in range(2):
        with pytest.raises(RecoverableConnectionError, match="consumers"):
            connection.drain_events(timeout=1)
    with pytest.raises(NotFound):
        connection.Consumer(kombu.Queue("no-such-queue"), auto_declare=False).consume()
    with pytest.raises(RecoverableConnectionError, match="consumers"):
        connection.drain_events(timeout=1)
    consumer.revive(connection.channel())
    consumer.consume()
    connection.Producer().publish("hello", routing_key=queue.name)
    wait_until(lambda: connection.drain_events(timeout=WAIT) or got, WAIT, "it consumes again")


def test_a_loss_after_which_kombu_changes_the_url_is_not_hidden_either(broker, queue):
    """kombu then closes the lost connection, and connects with another transport."""
    with Proxy(broker.host, broker.port) as proxy:
        urls = f"{broker.url_for(proxy.port)};{broker.url}"
        with use_our_transport(kombu.Connection(urls)) as connection:
            consumer = connection.Consumer(queue)
            consumer.consume()
            proxy.refuse()
            connection.connection.sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(ConnectionError):
                consumer.channel.basic_ack(1)
            with pytest.raises(RecoverableConnectionError, match="consumers"):
                connection.drain_events(timeout=1)
            assert connection.port == broker.port


@pytest.mark.parametrize("end", [kombu.Connection.close, kombu.Connection.collect])
def test_a_connection_that_was_closed_and_opened_again_may_wait_without_consumers(
    connect, queue, end
):
    connection = connect()
    connection.Consumer(queue).consume()
    end(connection)
    with pytest.raises(TimeoutError):
        connection.connect().client.drain_events(timeout=0.1)


def test_a_connection_that_kombu_replaces_is_closed(connect, queue):
    """kombu would declare the exchange on the lost channel in each retry."""
    connection = connect()
    producer = connection.Producer()
    channel, sock = producer.channel, connection.connection.sock
    sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError):
        channel.basic_ack(1)
    assert connection.connection.sock is not sock
    assert sock.fileno() == -1
    assert channel.connection is None
    producer.publish(
        "hello",
        routing_key=queue.name,
        declare=[kombu.Exchange("celeryev", type="topic")],
        retry=True,
        retry_policy={"max_retries": 2, "interval_start": 0},
    )
    assert receive(queue).payload == "hello"


def test_a_publish_that_times_out_is_a_lost_connection(connect):
    connection = connect()
    producer = connection.Producer(connection.default_channel)
    ours, theirs = socket.socketpair()  # a peer that reads nothing
    transport = connection.connection.transport
    broker, transport.sock = transport.sock, ours
    transport._write = ours.sendall
    try:
        with pytest.raises(RecoverableConnectionError, match="timed out"):
            producer.publish("x" * 10_000_000, routing_key="q", timeout=0.2)
        assert not connection.connected
    finally:
        broker.close()
        theirs.close()


def test_sending_counts_as_a_sign_of_life(connection, queue):
    before = connection.connection.bytes_sent
    connection.Producer().publish("x", routing_key=queue.name)
    assert connection.connection.bytes_sent > before


def test_a_long_wait_for_events_does_not_shorten_later_writes(connection):
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=1.1)
    assert connection.connection.sock.gettimeout() is None
