"""A connection under kombu's event loop: what one turn serves, in which order, for how long."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import pytest
from amqp.exceptions import RecoverableConnectionError
from kombu.asynchronous import Hub

from fastrpc._lock import Lock
from fastrpc.transport import loop
from fastrpc.transport.loop import LONGEST_TURN, Alarm, LoopReader
from fastrpc.wire._poll import readable
from fastrpc.wire._reader import FrameReader
from tests.support.amqp_bytes import frame


def numbered(n: int) -> bytes:
    return frame(1, n, b"method")


class Served:
    """A connection to a peer that the test is, which writes down the channels of its frames."""

    connected = True
    consuming_thread = 0

    def __init__(self) -> None:
        self.ours, self.peer = socket.socketpair()
        self.reader, self.reading_lock = FrameReader(), Lock()
        self.left_deliveries: deque[Callable[[], object]] = deque()
        self.done: list[object] = []
        self.on_frame: Callable[[], object] = lambda: None

    def fill_now(self) -> int:
        return self.reader.recv_now(self.ours.fileno())

    def dispatch(self, kind: int) -> None:
        self.done.append(self.reader.channel)
        self.on_frame()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def connection() -> Iterator[Served]:
    connection = Served()
    with connection.ours, connection.peer:
        yield connection


@pytest.fixture
def served(connection, hub) -> Iterator[LoopReader]:
    served = LoopReader(connection, hub)
    yield served
    served.close()


@pytest.fixture
def long_turns(monkeypatch) -> None:
    """A busy machine does not end a turn of the test."""
    monkeypatch.setattr(loop, "LONGEST_TURN", 60.0)


def wants_a_turn(served: LoopReader) -> bool:
    return readable(served.alarm.fileno())


@pytest.mark.usefixtures("long_turns")
def test_what_arrives_while_others_are_served_is_served_in_the_same_turn(served, connection):
    connection.peer.sendall(numbered(1) + numbered(2))
    more = [numbered(3), numbered(4)]
    connection.on_frame = lambda: more and connection.peer.sendall(more.pop(0))
    served.on_readable()
    assert connection.done == [1, 2, 3, 4]
    assert not wants_a_turn(served)


@pytest.mark.usefixtures("long_turns")
def test_what_a_delivery_asks_for_is_done_before_the_next(served, connection, hub):
    """A solo pool asks the loop to acknowledge the task that has run."""
    connection.peer.sendall(numbered(1) + numbered(2))
    connection.on_frame = lambda: hub.call_soon(connection.done.append, "acknowledged")
    served.on_readable()
    assert connection.done == [1, "acknowledged", 2, "acknowledged"]


def test_the_loop_gets_its_turn_while_much_arrives(served, connection):
    connection.peer.sendall(numbered(1) + numbered(2))
    connection.on_frame = lambda: time.sleep(2 * LONGEST_TURN)
    served.on_readable()
    assert connection.done == [1]
    assert wants_a_turn(served)
    connection.on_frame = lambda: None
    served.on_alarm()
    assert connection.done == [1, 2]
    assert not wants_a_turn(served)


def test_what_another_thread_has_left_comes_first(served, connection):
    connection.peer.sendall(numbered(2))
    connection.left_deliveries.append(lambda: connection.done.append(1))
    served.on_readable()
    assert connection.done == [1, 2]
    assert connection.consuming_thread == threading.get_ident()


def test_what_another_thread_leaves_at_the_end_of_a_turn_wants_another(served, connection):
    def leave_one() -> int:
        if not connection.left_deliveries:
            connection.left_deliveries.append(lambda: connection.done.append(1))
            served.alarm.set()
        return 0

    connection.fill_now = leave_one
    served.on_readable()
    assert connection.done == []
    assert wants_a_turn(served)
    connection.fill_now = lambda: 0
    served.on_alarm()
    assert connection.done == [1]
    assert not wants_a_turn(served)


@pytest.mark.usefixtures("long_turns")
def test_part_of_a_frame_wants_no_turn(served, connection):
    connection.peer.sendall(numbered(1) + numbered(2)[:-1])
    served.alarm.set()
    served.on_alarm()
    assert connection.done == [1]
    assert not wants_a_turn(served)


def test_a_turn_in_the_middle_of_setting_the_alarm_leaves_no_alarm_for_ever(served, monkeypatch):
    """Another thread sets it: the loop would spin from then on."""
    write = os.write

    def write_after_a_turn(*args: object) -> int:
        served.on_alarm()
        return write(*args)

    monkeypatch.setattr(os, "write", write_after_a_turn)
    served.alarm.set()
    monkeypatch.undo()
    assert wants_a_turn(served)
    served.on_alarm()
    assert not wants_a_turn(served)


def test_an_alarm_that_is_set_too_often_or_too_late():
    alarm = Alarm()
    for _ in range(100_000):
        alarm.set()
    alarm.close()
    alarm.set()


def test_another_thread_reads(served, connection):
    connection.peer.sendall(numbered(1))
    held, free = threading.Event(), threading.Event()

    def read() -> None:
        with connection.reading_lock:
            held.set()
            free.wait(10)

    thread = threading.Thread(target=read)
    thread.start()
    held.wait(10)
    served.on_readable()
    free.set()
    thread.join()
    assert connection.done == []
    served.on_readable()
    assert connection.done == [1]


def test_a_lost_connection(served, connection):
    connection.peer.close()
    with pytest.raises(OSError, match="unexpectedly closed"):
        served.on_readable()
    connection.connected = False
    with pytest.raises(RecoverableConnectionError):
        served.on_readable()
