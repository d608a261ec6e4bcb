"""fastrpc._lock: no exception thrown into a thread leaves a lock or a signal locked."""

from __future__ import annotations

import ctypes
import queue
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fastrpc._lock import Lock, Signal, start_thread
from tests.support.threads import Background

#: How many exceptions hit each way of taking it.
BLOWS = 300


class Blow(Exception):
    """The exception that is thrown in."""


@contextmanager
def alarms() -> Iterator[Callable[[float], object]]:
    """A signal handler raises in this thread, once for each `strike(seconds)`."""

    def handler(signum: int, frame: object) -> None:
        raise Blow

    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def async_exceptions() -> Iterator[Callable[[float], object]]:
    """Another thread throws into this one, as time limits among threads do."""
    orders: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    victim = ctypes.c_ulong(threading.get_ident())

    def throw() -> None:
        while (seconds := orders.get()) is not None:
            time.sleep(seconds)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(victim, ctypes.py_object(Blow))

    thrower = threading.Thread(target=throw)
    thrower.start()
    try:
        yield orders.put
    finally:
        orders.put(None)
        thrower.join()


def plainly(lock: Lock) -> None:
    with lock:
        pass


def in_time(lock: Lock) -> None:
    with lock.within(1):
        pass


@pytest.mark.parametrize("take", [plainly, in_time])
@pytest.mark.parametrize("storm", [alarms, async_exceptions])
def test_no_thrown_exception_leaves_it_locked(storm, take: Callable[[Lock], None]):
    lock, rng = Lock(), random.Random(1)
    with storm() as strike:
        for _ in range(BLOWS):
            try:
                strike(rng.uniform(1e-5, 5e-4))
                end = time.monotonic() + 10
                while time.monotonic() < end:
                    take(lock)
                pytest.fail("the exception was swallowed")
            except Blow:
                pass
            assert not lock.locked()
            assert not lock.mine


def test_within_gives_up_in_time():
    lock = Lock()
    taken_by_other, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken_by_other.set()
            over.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    taken_by_other.wait(10)
    assert lock.locked()
    assert not lock.mine
    began = time.monotonic()
    with lock.within(0.1) as taken:
        assert not taken
    with lock.within(-1) as taken:
        assert not taken
    assert 0.1 <= time.monotonic() - began < 5
    assert lock.locked(), "the other's"
    over.set()
    holder.join(10)
    with lock.within(0) as taken:
        assert taken
    assert not lock.locked()


def test_only_one_thread_is_in():
    lock, inside, most = Lock(), 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(300):
            with lock:
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert most == 1


def test_an_error_in_the_block_is_raised_and_releases_it():
    lock = Lock()
    with pytest.raises(ZeroDivisionError), lock:
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), lock.within(1):
        raise ZeroDivisionError
    assert not lock.locked()


def test_it_is_not_taken_repeatedly_before_a_waiter():
    lock, over, turns = Lock(), threading.Event(), 0

    def flood() -> None:
        nonlocal turns
        while not over.is_set():
            with lock:
                turns += 1
                time.sleep(0.002)

    flooding = threading.Thread(target=flood)
    flooding.start()
    most = 0
    try:
        for _ in range(50):
            before = turns
            with lock:
                most = max(most, turns - before)
            time.sleep(0.001)
    finally:
        over.set()
        flooding.join(10)
    # The one that held it, and one more in the first millisecond of the wait.
    assert most <= 3


def test_waiters_get_it_in_the_order_of_their_arrival():
    lock, order = Lock(), []

    def take(n: int) -> None:
        with lock:
            order.append(n)
            time.sleep(0.002)

    threads = [threading.Thread(target=take, args=(n,)) for n in range(10)]
    with lock:
        for thread in threads:
            thread.start()
            time.sleep(0.01)
    for thread in threads:
        thread.join(10)
    assert order == list(range(10))


class TestANewThread:
    def test_an_exception_thrown_at_its_creator_does_not_end_it(self):
        """Up to CPython 3.12 it has the ident of its creator until it runs."""
        ran: queue.SimpleQueue[int] = queue.SimpleQueue()
        set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
        me = ctypes.c_ulong(threading.get_ident())
        thrown = ctypes.py_object(Blow)

        def run(n: int) -> None:
            ran.put(n)

        for n in range(BLOWS):
            with suppress(Blow):
                start_thread(run, n)
                set_async_exc(me, thrown)
                set_async_exc(me, thrown)
                time.sleep(0)
            assert ran.get(timeout=5) == n

    def test_the_exception_that_ends_it_is_reported(self, monkeypatch):
        reports: queue.SimpleQueue[object] = queue.SimpleQueue()
        monkeypatch.setattr(sys, "unraisablehook", lambda args: reports.put(args.exc_type))

        def fail() -> None:
            raise Blow

        start_thread(fail)
        assert reports.get(timeout=5) is Blow


class TestSignal:
    def test_it_wakes_the_one_that_waits_and_no_other(self):
        signalled = Signal()
        waiter = Background(lambda: signalled.wait(10))
        signalled.set()
        assert waiter.result()
        assert not signalled.wait(0)

    def test_those_that_come_at_once_are_one(self):
        signalled = Signal()
        signalled.set()
        signalled.set()
        assert [signalled.wait(0), signalled.wait(0)] == [True, False]

    @pytest.mark.parametrize("storm", [alarms, async_exceptions])
    def test_no_thrown_exception_keeps_it_from_waking(self, storm):
        """The thread that signals is not held up by one that was struck while it waited."""
        signalled, rng = Signal(), random.Random(1)
        with storm() as strike:
            for _ in range(BLOWS):
                with suppress(Blow):
                    strike(rng.uniform(1e-5, 5e-4))
                    while True:
                        signalled.wait(1e-4)
                signalled.set()
                assert signalled.wait(0)
