"""fastrpc.transport.connection over a socket pair, of which the test is the other end."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from struct import pack
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import spec

from fastrpc.errors import ProtocolError
from fastrpc.transport.channel import Channel
from fastrpc.transport.connection import (
    HANG_UP_TIMEOUT,
    STICKY_TIMEOUT,
    Connection,
    PendingAnswer,
)
from fastrpc.wire._reader import DELIVERY, FRAME
from tests.support.amqp_bytes import delivery, frame

HEARTBEAT = frame(8, 0)


def table(value: bytes) -> bytes:
    """An encoded table of one value, with its type."""
    return pack(">I", 2 + len(value)) + b"\x01k" + value


class Socket:
    """A socket that records its timeouts, and raises ``fails`` if it is set."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        #: Every timeout that was set.
        self.timeouts: list[float | None] = []
        #: Raised by the reads.
        self.fails: BaseException | None = None
        #: How many decrypted bytes TLS holds.
        self.decrypted = 0

    def settimeout(self, timeout: float | None) -> None:
        self.timeouts.append(timeout)
        self.sock.settimeout(timeout)

    def recv_into(self, view: memoryview) -> int:
        if self.fails is not None:
            raise self.fails
        return self.sock.recv_into(view)

    def pending(self) -> int:
        return self.decrypted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


class Opened:
    """A connection after the handshake, and the broker's end of its socket."""

    def __init__(self, **options: Any) -> None:
        ours, self.peer = socket.socketpair()
        self.sock = Socket(ours)
        self.connection = Connection("localhost", **options)
        self.transport = SimpleNamespace(sock=self.sock, connected=True, close=ours.close)
        self.connection._transport = self.transport
        #: Frames that py-amqp's handler got.
        self.frames: list[tuple[int, int, bytes]] = []
        self.connection.on_inbound_frame = self.frames.append

    def sends(self, data: bytes) -> None:
        self.peer.sendall(data)

    def close(self) -> None:
        self.sock.sock.close()
        self.peer.close()


@pytest.fixture
def opened() -> Iterator[Opened]:
    opened = Opened()
    yield opened
    opened.close()


class TestFill:
    def test_it_reads_once_all_that_is_there(self, opened):
        opened.sends(HEARTBEAT * 3)
        assert opened.connection.fill(1) == 3 * len(HEARTBEAT)
        assert opened.connection.reader.next() == FRAME

    def test_a_short_timeout_is_reset_after_the_read(self, opened):
        opened.sock.sock.settimeout(7)
        with pytest.raises(TimeoutError):
            opened.connection.fill(0.01)
        assert opened.sock.timeouts == [0.01, 7]

    def test_a_long_timeout_stays_on_the_socket(self, opened):
        for _ in range(3):
            opened.sends(HEARTBEAT)
            opened.connection.fill(STICKY_TIMEOUT)
        assert opened.sock.timeouts == [STICKY_TIMEOUT]

    def test_a_socket_that_another_greenlet_closed_is_a_lost_connection(self, opened):
        """eventlet raises EOFError, which nobody takes for the loss of a connection."""
        opened.sock.fails = EOFError()
        with pytest.raises(OSError, match="the socket was closed"):
            opened.connection.fill(1)
        assert opened.transport.connected is False

    def test_a_timeout_of_none_is_reset_after_the_read(self, opened):
        """Otherwise a write could block for ever."""
        opened.sock.sock.settimeout(7)
        opened.sends(HEARTBEAT)
        opened.connection.fill(None)
        assert opened.sock.timeouts == [None, 7]

    @pytest.mark.parametrize(
        "error",
        [
            BlockingIOError(errno.EAGAIN, "not now"),
            InterruptedError(errno.EINTR, "a signal"),
            ssl.SSLWantReadError(),
            ssl.SSLWantWriteError(),
            TimeoutError(),
        ],
        ids=repr,
    )
    def test_an_error_that_means_not_now_is_a_timeout(self, opened, error):
        opened.sock.fails = error
        with pytest.raises(TimeoutError):
            opened.connection.fill(1)
        assert opened.transport.connected

    def test_a_connection_that_was_reset_counts_as_lost(self, opened):
        opened.sock.fails = ConnectionResetError(errno.ECONNRESET, "reset")
        with pytest.raises(ConnectionResetError):
            opened.connection.fill(0.5)
        assert not opened.transport.connected
        assert opened.sock.timeouts == [0.5, None]

    def test_a_connection_that_the_peer_has_closed_counts_as_lost(self, opened):
        opened.peer.close()
        with pytest.raises(OSError, match="closed"):
            opened.connection.fill(1)
        assert not opened.transport.connected


class TestReadable:
    def test_if_bytes_have_arrived(self, opened):
        assert not opened.connection.readable()
        opened.sends(b"x")
        assert opened.connection.readable()

    def test_if_tls_holds_decrypted_bytes(self, opened):
        opened.sock.decrypted = 1
        assert opened.connection.readable()

    def test_if_the_connection_is_lost(self, opened):
        """Only a read finds out that it is."""
        opened.peer.close()
        assert opened.connection.readable()


class TestBlockingRead:
    def test_it_handles_one_event_and_the_buffer_comes_before_the_socket(self, opened):
        opened.sends(HEARTBEAT * 2)
        opened.connection.blocking_read(1)
        opened.sock.fails = AssertionError("the socket was asked")
        opened.connection.blocking_read(1)
        assert opened.frames == [(8, 0, b"")] * 2

    def test_it_waits_for_a_whole_frame(self, opened):
        opened.sends(HEARTBEAT[:3])
        with pytest.raises(TimeoutError):
            opened.connection.blocking_read(0.01)
        opened.sends(HEARTBEAT[3:])
        opened.connection.blocking_read(1)
        assert opened.frames == [(8, 0, b"")]

    def test_without_a_timeout_it_uses_answer_timeout(self):
        opened = Opened(answer_timeout=0.01)
        with pytest.raises(TimeoutError):
            opened.connection.blocking_read()
        assert opened.sock.timeouts[0] == 0.01
        opened.close()

    def test_without_any_timeout_that_of_the_socket_holds(self, opened):
        """Celery sets it before a shutdown: a silent broker must not hold that up."""
        opened.sock.sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            opened.connection.blocking_read()
        assert opened.sock.gettimeout() == 0.01

    def test_it_calls_on_rest_if_more_was_read_than_handled(self, opened):
        told: list[bool] = []
        opened.connection.on_rest = lambda: told.append(True)
        opened.sends(HEARTBEAT * 2)
        opened.connection.blocking_read(1)
        assert told == [True]
        opened.connection.blocking_read(1)
        assert told == [True]

    def test_it_calls_on_rest_even_if_the_handler_fails(self, opened):
        told: list[bool] = []
        opened.connection.on_rest = lambda: told.append(True)
        opened.connection.on_inbound_frame = lambda frame: {}[frame]
        opened.sends(HEARTBEAT * 2)
        with pytest.raises(ProtocolError):
            opened.connection.blocking_read(1)
        assert told == [True]


class TestDispatch:
    @pytest.mark.parametrize("error", [KeyError("x"), TypeError(), ValueError(), IndexError()])
    def test_a_frame_that_py_amqp_cannot_handle_is_a_protocol_error(self, opened, error):
        def fails(frame: Any) -> None:
            raise error

        opened.connection.on_inbound_frame = fails
        opened.connection.reader.feed(frame(1, 9, b"abcd"))
        kind = opened.connection.reader.next()
        with pytest.raises(ProtocolError, match="malformed frame of type 1 on channel 9") as raised:
            opened.connection.dispatch(kind)
        assert raised.value.__cause__ is error

    @pytest.mark.parametrize("error", [ConnectionError, KeyboardInterrupt])
    def test_other_errors_pass_through(self, opened, error):
        def fails(frame: Any) -> None:
            raise error

        opened.connection.on_inbound_frame = fails
        opened.connection.reader.feed(HEARTBEAT)
        with pytest.raises(error):
            opened.connection.dispatch(opened.connection.reader.next())

    def test_a_delivery_goes_to_the_consumer_of_its_tag(self, opened):
        got: list[Any] = []
        channel = Channel(opened.connection, 1)
        channel.callbacks["queue"] = got.append
        opened.connection.reader.feed(delivery(7, b"body", b"id"))
        before = opened.connection.bytes_recv
        assert opened.connection.blocking_read(1) is True
        [message] = got
        assert (message.channel, message.delivery_info["delivery_tag"]) == (channel, 7)
        assert (message.body, message.properties["correlation_id"]) == ("body", "id")
        assert message.ready
        assert message.frame_method == spec.Basic.Deliver
        assert opened.connection.bytes_recv > before  # for heartbeat_tick()

    def test_a_delivery_on_a_channel_that_is_not_open_is_a_protocol_error(self, opened):
        opened.connection.reader.feed(delivery(7, b"body"))
        with pytest.raises(ProtocolError, match="delivery on channel 1"):
            opened.connection.dispatch(opened.connection.reader.next())

    @pytest.mark.parametrize(
        "wrong",
        [
            {"consumer_tag": b"\xff"},
            {"correlation_id": b"\xff"},
            {"content_type": b"\xff"},
            {"headers": table(b"T" + pack(">Q", 2**64 - 1))},
            {"headers": table(b"T" + pack(">Q", 2**62))},
            {"headers": table(b"?")},
        ],
        ids=repr,
    )
    def test_a_delivery_that_has_no_meaning_is_a_lost_connection(self, opened, wrong):
        """And no other error, which would end a worker."""
        Channel(opened.connection, 1)
        opened.connection.reader.feed(delivery(7, b"body", **wrong))
        with pytest.raises(Connection.connection_errors):
            opened.connection.dispatch(opened.connection.reader.next())

    def test_a_delivery_goes_to_on_delivery_if_that_is_replaced(self, opened):
        opened.connection.on_delivery = lambda: opened.connection.reader.delivery_tag
        opened.connection.reader.feed(delivery(7, b"body"))
        assert opened.connection.reader.next() == DELIVERY
        assert opened.connection.dispatch(DELIVERY) == 7

    def test_a_delivery_that_is_too_large_is_a_protocol_error(self):
        """py-amqp's consumers would get an empty body."""
        opened = Opened(max_body=3)
        opened.connection.reader.feed(delivery(7, b"body"))
        with pytest.raises(ProtocolError, match="message of 4 bytes"):
            opened.connection.dispatch(opened.connection.reader.next())
        opened.close()


class TestTwoReaders:
    def test_a_consumer_may_wait_for_a_thread_that_reads(self, opened):
        """As the consumer of Celery waits for room in a pool of greenlets that wait for answers."""
        consuming, answered = threading.Event(), threading.Event()

        def consume(message: Any) -> None:
            consuming.set()
            assert answered.wait(10)

        Channel(opened.connection, 1).callbacks["queue"] = consume
        opened.connection.reader.feed(delivery(7, b"body", b"id") + HEARTBEAT)
        with ThreadPoolExecutor(1) as pool:
            consumer = pool.submit(opened.connection.blocking_read, 1)
            assert consuming.wait(10)
            try:
                opened.connection.blocking_read(1)
            finally:
                answered.set()
            assert consumer.result(10) is True
        assert len(opened.frames) == 1

    def test_a_thread_that_waits_for_an_answer_leaves_deliveries_to_the_consuming_one(self, opened):
        threads: list[int] = []
        connection = opened.connection
        Channel(connection, 1).callbacks["queue"] = lambda m: threads.append(threading.get_ident())
        for tag in (7, 8):
            connection.reader.feed(delivery(tag, b"body", b"id"))

        def wait_for_an_answer() -> None:
            with connection.leaving_deliveries():
                connection.drain_events(1)

        connection.drain_events(1)
        told: list[int] = []
        connection.on_rest = lambda: told.append(1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(wait_for_an_answer).result(10)
        assert len(threads) == len(told) == 1
        connection.drain_events(1)
        assert threads == 2 * [threading.get_ident()]

    def test_a_thread_that_consumes_and_waits_for_an_answer_delivers(self, opened):
        """As on py-amqp, where the callback comes before the answer."""
        done: list[int] = []
        connection = opened.connection
        Channel(connection, 1).callbacks["queue"] = lambda m: done.append(1)
        for tag in (7, 8):
            connection.reader.feed(delivery(tag, b"body", b"id"))
        connection.drain_events(1)
        with connection.leaving_deliveries():
            connection.drain_events(1)
        assert done == [1, 1]

    def test_who_waited_for_another_one_looks_before_it_reads(self, opened):
        """What it waits for may have been served."""
        opened.connection.reading_lock = SimpleNamespace(
            mine=False, locked=lambda: True, within=lambda timeout: nullcontext(True)
        )
        assert opened.connection.blocking_read(0.1) is True


class TestDrainEvents:
    def test_heartbeats_do_not_prolong_the_wait(self, opened, monkeypatch):
        """One comes with each second of the wait."""
        seconds = iter(range(100))
        monkeypatch.setattr("fastrpc.transport.connection.monotonic", lambda: next(seconds))

        def recv_into(self: Socket, view: memoryview) -> int:
            if not self.gettimeout():
                raise BlockingIOError(errno.EAGAIN, "the wait is over")
            assert len(opened.frames) < 10
            view[: len(HEARTBEAT)] = HEARTBEAT
            return len(HEARTBEAT)

        monkeypatch.setattr(Socket, "recv_into", recv_into)
        with pytest.raises(TimeoutError):
            opened.connection.drain_events(timeout=5)
        assert len(opened.frames) == 5


class TestTurns:
    """Two connections that are drained in turns, as Celery's synloop does."""

    @pytest.fixture
    def busy(self) -> Iterator[Opened]:
        busy = Opened()
        channel = Channel(busy.connection, 1)
        channel.callbacks["queue"] = lambda message: None
        yield busy
        busy.close()

    @pytest.fixture
    def idle(self) -> Iterator[Opened]:
        idle = Opened()
        Channel(idle.connection, 1)
        idle.connection._handshake_complete = True
        yield idle
        idle.close()

    def drained(self, opened: Opened) -> list[float | None]:
        """The timeouts of the reads in drain_events()."""
        opened.sock.timeouts.clear()
        with pytest.raises(TimeoutError):
            opened.connection.drain_events(timeout=0.01)
        return opened.sock.timeouts

    def serve(self, busy: Opened) -> None:
        busy.sends(delivery(1, b"body"))
        busy.connection.drain_events(timeout=5)

    def test_an_idle_connection_does_not_wait_while_the_other_is_busy(self, busy, idle):
        self.drained(idle)
        for _ in range(3):
            self.serve(busy)
            assert self.drained(idle)[0] == 0

    def test_an_idle_connection_waits_if_the_other_is_idle_too(self, busy, idle):
        self.serve(busy)
        self.drained(idle)
        assert self.drained(idle)[0] == 0.01
        assert self.drained(busy)[0] == 0.01
        assert self.drained(idle)[0] == 0.01

    @pytest.mark.parametrize("awaited", ["consumer", "return", "answer", "handshake"])
    def test_a_connection_waits_if_something_is_awaited_on_it(self, busy, idle, awaited):
        channel = idle.connection.channels[1]
        if awaited == "consumer":
            channel.callbacks["tag"] = print
        elif awaited == "return":
            channel.events["basic_return"].add(print)
        elif awaited == "handshake":
            idle.connection._handshake_complete = False
        else:
            PendingAnswer(channel, spec.Basic.CancelOk, channel.refusals)
        self.drained(idle)
        self.serve(busy)
        assert self.drained(idle)[0] == 0.01

    def test_an_idle_connection_handles_what_has_arrived(self, busy, idle):
        self.drained(idle)
        self.serve(busy)
        idle.sends(HEARTBEAT)
        assert self.drained(idle)[0] == 0
        assert idle.frames


class TestEnds:
    def test_collect_does_not_wait_for_a_silent_tls_peer(self, opened):
        opened.connection.collect()
        assert opened.sock.timeouts == [HANG_UP_TIMEOUT]
        assert opened.sock.fileno() == -1

    def test_collect_twice_or_with_a_closed_socket(self, opened):
        opened.sock.sock.close()
        opened.connection.collect()
        opened.connection.collect()

    def test_abandon_closes_the_socket_and_writes_nothing(self, opened):
        opened.connection.abandon()
        opened.connection.abandon()
        assert opened.sock.fileno() == -1
        assert opened.transport.sock is None
        assert opened.peer.recv(1) == b""
        assert not opened.connection.connected


class TestPendingAnswer:
    def test_it_came_once_its_method_was_handled(self):
        channel = SimpleNamespace(_pending={}, refusals=0)
        answer = PendingAnswer(channel, spec.Queue.DeclareOk, 0)
        assert not answer.came
        channel._pending.pop(spec.Queue.DeclareOk)()
        assert answer.came
        assert not answer.refused


def test_the_reader_accepts_frames_of_the_negotiated_size(monkeypatch):
    monkeypatch.setattr(Connection, "send_method", lambda *args, **kwargs: None)
    connection = Connection("localhost", frame_max=65536)
    connection._on_tune(10, 8192, 0)
    assert connection.reader.frame_max == connection.frame_max == 8192


def test_a_wrong_confirm_publish_is_refused():
    with pytest.raises(ValueError, match="must be True, False or 'pipelined', not 'pipelind'"):
        Connection("localhost", confirm_publish="pipelind")
