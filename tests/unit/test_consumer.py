"""fastrpc.consumer: who reads and who is told, over an intake that brings nothing."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from fastrpc import consumer as consumer_module
from fastrpc._pending import PendingTable
from fastrpc.consumer import ResultConsumer, Wait
from fastrpc.matching import ResultMatcher
from fastrpc.options import Options
from fastrpc.queues import ReplyQueues
from fastrpc.stats import Stats

BODY = b'{"status": "PROGRESS", "result": 1, "task_id": "a"}'


class SilentIntake:
    """Nothing comes; what the consumer does to keep the connection is counted."""

    readers_only = False
    interval = 1.0
    errors = (OSError,)
    holds_some = False

    def __init__(self) -> None:
        self.consumed: set[str] = set()
        self.heartbeats = 0
        self.owes_acknowledgement = False

    def readable(self) -> bool:
        return False

    def heartbeat(self) -> None:
        self.heartbeats += 1

    def acknowledge(self) -> None:
        self.owes_acknowledgement = False


@pytest.fixture
def consumer() -> ResultConsumer:
    stats = Stats()
    consumer = ResultConsumer(None, ReplyQueues(SimpleNamespace, None), Options.parse({}), stats)
    consumer.matcher = ResultMatcher(PendingTable(), None, dict, stats, None)
    consumer._intake = SilentIntake()
    return consumer


def test_who_only_polls_keeps_the_connection_alive(consumer):
    for _ in range(3):
        consumer.look("queue")
    assert consumer._intake.heartbeats == 3


def test_listeners_come_and_go_while_a_message_is_handed_to_them(consumer):
    class Fickle(Wait):
        """Another thread begins to listen just when this one is looked at."""

        @property
        def queue(self) -> str:
            consumer._listening[Wait(None, print, "other")] = None
            return "queue"

        @queue.setter
        def queue(self, name: str) -> None: ...

    fickle = Fickle(None, print, "queue")
    consumer._listening[fickle] = None
    consumer._deliver(b"a", BODY, b"", "queue")
    assert [meta["result"] for meta in fickle.metas] == [1]


def test_the_collector_may_end_a_wait_in_the_midst_of_another(consumer):
    """It runs the `finally` of a generator that was given up, wherever it happens to run."""
    result = SimpleNamespace(id="a")
    given_up = Wait(None, None, "queue")
    consumer.watch([result], given_up)

    def collected() -> None:
        with consumer._watching:
            consumer.unwatch([result], given_up)

    thread = threading.Thread(target=collected, daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()


def test_when_no_thread_can_be_started_it_acknowledges_itself(consumer, monkeypatch):
    """As in a thread that outlives the main one, from Python 3.12 on."""

    def start(self) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(consumer_module.threading.Thread, "start", start)
    consumer._intake.owes_acknowledgement = True
    consumer.look("queue")
    assert not consumer._intake.owes_acknowledgement
    assert not consumer.reading


def test_two_greenlets_of_one_thread_do_not_both_read(consumer, monkeypatch):
    """The lock is of before gevent patched, and knows real threads only."""
    greenlets = iter([1, 2, 1])
    monkeypatch.setattr(consumer_module.threading, "get_ident", lambda: next(greenlets))
    assert consumer._become_reader()
    assert not consumer._become_reader()
    assert consumer._become_reader()  # in a callback
