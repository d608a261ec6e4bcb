"""fastrpc.client.reader with an intake on which nothing arrives."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from fastrpc.client import reader as reader_module
from fastrpc.client._pending import PendingTable
from fastrpc.client._wait import ReadingRole, Wait, Watchers
from fastrpc.client.matcher import ResultMatcher
from fastrpc.client.queues import ReplyQueues
from fastrpc.client.reader import ResultConsumer
from fastrpc.options import Options
from fastrpc.stats import ReceivedStats


class SilentIntake:
    """An intake on which nothing arrives. It counts the calls of `tend`."""

    readers_only = False
    interval = 1.0
    errors = (OSError,)
    holds_some = False
    spoiled = behind = False

    def __init__(self) -> None:
        self.tended = 0
        self.owes_acknowledgement = False

    def has_some(self) -> bool:
        return self.holds_some

    def readable(self) -> bool:
        return False

    def tend(self) -> None:
        self.tended += 1

    def acknowledge(self) -> None:
        self.owes_acknowledgement = False

    def abandon(self) -> None:
        pass


@pytest.fixture
def consumer() -> ResultConsumer:
    stats = ReceivedStats()
    watchers = Watchers()
    role = ReadingRole(watchers)
    matcher = ResultMatcher(
        PendingTable(),
        watchers,
        role,
        accept=None,
        to_python=dict,
        stats=stats,
        max_age=None,
        max_claimed=0,
        max_claimed_bytes=0,
    )
    queues = ReplyQueues(SimpleNamespace, None, SimpleNamespace)
    consumer = ResultConsumer(None, queues, Options.parse({}), stats, matcher, watchers, role)
    consumer._intake = SilentIntake()
    return consumer


def test_polling_keeps_the_connection_alive(consumer):
    for _ in range(3):
        consumer.look("queue")
    assert consumer._intake.tended == 3


def test_if_no_thread_can_start_look_acknowledges_itself(consumer, monkeypatch):
    """From Python 3.12 on, this happens in a thread that outlives the main thread."""

    def start(*args) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(reader_module, "start_thread", start)
    consumer._intake.owes_acknowledgement = True
    consumer.look("queue")
    assert not consumer._intake.owes_acknowledgement
    assert not consumer.reading


def test_a_look_delivers_what_an_interrupted_look_has_read(consumer):
    """After Ctrl-C in a `ready()`, the next one finds the result although nothing more arrives."""
    intake = consumer._intake
    intake.holds_some = True
    intake.pump = lambda: setattr(intake, "holds_some", False)
    intake.read = lambda timeout: False
    consumer.look("queue")
    assert not intake.holds_some


def test_a_look_inside_a_read_does_not_read(consumer):
    """A destructor or a signal handler that interrupts a read gets what is in memory."""
    tended = consumer._role.run(lambda: consumer.look("queue") or consumer._intake.tended)
    assert tended == 0


def test_only_the_first_look_of_a_process_tells_of_a_backlog(consumer, monkeypatch):
    """Otherwise `ready()` raises BacklogLimitExceeded after each connection that was lost."""

    class Backlog(SilentIntake):
        backlog = taken = 2_000

        def open(self, timeout: float = 0) -> None:
            pass

        catch_up = close = open

    monkeypatch.setattr(reader_module, "make_intake", lambda *args: Backlog())
    consumer._intake = None
    assert consumer.look("queue") == 2_000
    consumer._intake.spoiled = True  # a soft time limit struck while it was used
    assert consumer.look("queue") == 0
    consumer.after_fork()
    assert consumer.look("queue") == 2_000


def test_a_wait_inside_a_read_is_an_error_at_once(consumer):
    """It could never end, because the read that it interrupts would have to continue."""
    with pytest.raises(RuntimeError, match="the reader is in use"):
        consumer._role.run(consumer.until_news, Wait(None))
    assert not consumer.reading


def test_an_acknowledging_thread_that_never_started_is_replaced(consumer, monkeypatch):
    """An exception may be thrown in just before the thread starts."""
    monkeypatch.setattr(reader_module, "ACKNOWLEDGE_AFTER", 0.01)
    started: list = []
    monkeypatch.setattr(reader_module, "start_thread", lambda *a: started.append(a))
    consumer._intake.owes_acknowledgement = True
    consumer.look("queue")
    consumer.look("queue")
    assert len(started) == 1
    time.sleep(0.03)
    consumer.look("queue")
    assert len(started) == 2
