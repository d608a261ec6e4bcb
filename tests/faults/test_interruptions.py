"""Interruptions of a call: by a signal handler, a finalizer, a callback or an exception.

tests/storm.py makes all of these at random; here each comes at its most critical moment.
"""

from __future__ import annotations

import builtins
import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeoutError
from celery.result import AsyncResult

from tests.support.inside import has_dead_watcher, held_locks, leftovers, role_is_taken
from tests.support.results import answer, await_confirms, expect
from tests.support.steps import each_step
from tests.support.threads import Background
from tests.support.waiting import wait_until

#: The files in which an interruption may separate steps that belong together.
FILES = ("/fastrpc/", "/threading.py")

#: A list of this many dicts makes a result of more than 4 MiB, which kombu decodes in Python.
LARGE = [{"n": n, "text": "x" * 90} for n in range(100_000)]


@pytest.fixture(autouse=True, scope="module")
def import_nothing() -> Iterator[None]:
    """kombu tries to import librabbitmq for each connection. An exception that is thrown in there
    leaves Python's import lock locked, and the process hangs at its next import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "librabbitmq", None)
        yield


@contextmanager
def on_signal(handler: Callable[[int, Any], None], every: float) -> Iterator[None]:
    """Inside the block, `handler` interrupts the main thread after each `every` seconds of CPU.

    It does not use SIGALRM, with which pytest-timeout ends a test.
    """
    usual = signal.signal(signal.SIGPROF, handler)
    signal.setitimer(signal.ITIMER_PROF, every, every)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, usual)


@contextmanager
def garbage_that_calls(finalizer: Callable[[], Any], pieces: int = 10) -> Iterator[None]:
    """Inside the block, garbage collection runs often, each time on garbage with `finalizer`."""
    wanted = True

    class Garbage:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            if wanted:
                Garbage()
                finalizer()

    usual = gc.get_threshold()
    gc.collect()
    gc.freeze()  # else a full collection takes a while
    gc.set_threshold(50, 2, 2)
    try:
        for _ in range(pieces):
            Garbage()
        yield
    finally:
        wanted = False
        gc.set_threshold(*usual)
        gc.unfreeze()
        gc.collect()


def strike() -> None:
    raise SoftTimeLimitExceeded


def await_reader(app: Any) -> None:
    end = time.monotonic() + 0.01
    while not role_is_taken(app) and time.monotonic() < end:
        time.sleep(0.001)


def decodes(frame: Any) -> bool:
    """Whether `frame` runs inside the decoding of JSON."""
    while frame is not None:
        if frame.f_code.co_name == "object_hook" or "/json/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False


def nothing_is_left(app: Any) -> None:
    with suppress(builtins.TimeoutError):
        wait_until(lambda: not leftovers(app), 5, "nothing is left")
    assert leftovers(app) == {}


class TestSomebodyPolls:
    """The poll finds nothing new, and the interrupted read is not affected."""

    def test_in_a_signal_handler_while_a_large_result_is_decoded(self, app, sender):
        small, large = expect(app, 2)
        others = expect(app, 1_000)
        oid = app.backend.oid
        other = app.AsyncResult("other")
        answer(sender, app.backend.oid, [small])
        assert small.get(timeout=10) == 0
        answer(sender, oid, [large], LARGE)
        await_confirms(sender)
        # A signal may interrupt its own handler: no Event, whose lock the handler may hold.
        struck = 0

        def poll(signum: int, frame: Any) -> None:
            nonlocal struck
            if decodes(frame):
                struck += 1
                assert not other.ready()

        def send_others() -> None:
            wait_until(lambda: struck, 30, "a signal strikes the decoder")
            answer(sender, oid, others, "x" * 200)

        sending = Background(send_others)
        with on_signal(poll, 0.002):
            assert large.get(timeout=30) == LARGE
        sending.result(10)
        assert struck > 5
        assert [result.get(timeout=5) for result in others] == ["x" * 200] * len(others)
        nothing_is_left(app)

    def test_in_finalizers_while_small_results_are_decoded(self, app, sender):
        """Up to Python 3.11 any allocation may start a collection, also in the decoder."""
        [first, *results] = expect(app, 6_001)
        oid = app.backend.oid
        other = app.AsyncResult("other")
        answer(sender, app.backend.oid, [first])
        assert first.get(timeout=10) == 0
        found: list[Any] = []

        def poll() -> None:
            try:
                found.append(other.ready())
            except BaseException as exc:
                found.append(exc)

        with garbage_that_calls(poll):
            group = app.ResultSet(results, app=app)
            waiting = Background(lambda: group.get(timeout=20))
            # A few at a time: a finalizer reads everything available, and is not interrupted.
            answer(sender, oid, results)
            assert waiting.result(60) == list(range(6_000))
        assert found
        assert not any(found), found
        nothing_is_left(app)

    @pytest.mark.timeout(120)  # it may wait for a lock of its own; a signal ends that
    def test_at_each_step_of_a_wait(self, private_broker, make_client, sender):
        """Also of an acknowledgement, here after each result: their order must not change."""
        app = make_client(private_broker.url, options={"prefetch": 4})
        oid = app.backend.oid
        other = app.AsyncResult("other")
        meanwhile = expect(app, 2_000)
        unsent = iter(meanwhile)

        def send() -> Any:
            [result] = expect(app, 1)
            answer(sender, oid, [result], result.id)
            return result

        def wait(result: Any) -> None:
            assert result.get(timeout=5) == result.id

        def poll() -> None:
            result = next(unsent)
            answer(sender, oid, [result], result.id)
            time.sleep(0.005)  # it is there
            with suppress(RuntimeError):
                other.ready()

        wait(send())
        for where, _, exc in each_step(send, wait, poll, (*FILES, "/amqp/")):
            assert exc is None, where
            assert app.backend.stats()["reconnects"] == 0, where
        came = meanwhile[: meanwhile.index(next(unsent))]
        assert [result.get(timeout=5) for result in came] == [result.id for result in came]
        nothing_is_left(app)

    @pytest.mark.timeout(40)  # it may wait for a lock of its own; a signal ends that
    def test_at_each_step_while_another_thread_is_woken(self, app, sender):
        """A thread that releases the role is interrupted by code that takes and releases it."""
        first, mine, yours = expect(app, 3)
        other = app.AsyncResult("other")
        answer(sender, app.backend.oid, [first])
        assert first.get(timeout=10) == 0

        def wait(result: Any, timeout: float) -> None:
            with suppress(TimeoutError):
                result.get(timeout=timeout)

        def let_another_sleep() -> Background:
            return Background(lambda: (await_reader(app), wait(yours, 0.03)))

        def read(sleeper: Background) -> None:
            wait(mine, 0.015)
            sleeper.result(10)

        def poll() -> None:
            with suppress(RuntimeError):
                other.ready()

        for where, _, exc in each_step(let_another_sleep, read, poll, FILES):
            assert exc is None, where
        nothing_is_left(app)


class TestThrownIn:
    def test_the_reading_role_is_given_back(self, app, sender):
        """However often an exception is thrown in: other threads can wait afterwards."""
        never, first = expect(app, 2)
        oid = app.backend.oid
        answer(sender, oid, [first])
        assert first.get(timeout=10) == 0
        exposed, struck = False, 0
        end = time.monotonic() + 8

        def strike(signum: int, frame: Any) -> None:
            if exposed:
                raise SoftTimeLimitExceeded

        gc.collect()  # nothing of earlier tests is finalized under fire
        gc.disable()
        with on_signal(strike, 0.0007):
            while struck < 3_000 and time.monotonic() < end:
                try:
                    exposed = True
                    with suppress(TimeoutError):
                        never.get(timeout=0)
                    exposed = False
                except SoftTimeLimitExceeded:
                    exposed = False
                    struck += 1
        gc.enable()
        assert struck > 100
        # Celery's get() registers a result before the wait begins. An exception that strikes in
        # between leaves that to the next get().
        with pytest.raises(TimeoutError):
            never.get(timeout=0)
        [second] = expect(app, 1)
        answer(sender, oid, [second], "second")
        assert Background(lambda: second.get(timeout=5)).result(10) == "second"
        nothing_is_left(app)

    def test_each_step_of_a_wait_in_vain(self, app, sender):
        never, first = expect(app, 2)
        answer(sender, app.backend.oid, [first])
        assert first.get(timeout=10) == 0
        nothing_is_left(app)

        def wait(result: Any) -> None:
            with suppress(TimeoutError):
                result.get(timeout=0)

        for where, _, exc in each_step(lambda: never, wait, strike, FILES):
            assert isinstance(exc, SoftTimeLimitExceeded), where
            wait(never)
            # The sender's watching thread may begin only now; what was left behind stays.
            wait_until(lambda: not leftovers(app), 5, where)

    def test_each_step_of_a_wait_for_what_comes(self, app, sender):
        oid = app.backend.oid

        def send() -> Any:
            [result] = expect(app, 1)
            answer(sender, oid, [result], result.id)
            return result

        def wait(result: Any) -> None:
            assert result.get(timeout=5) == result.id

        def only_usual_leftovers() -> bool:
            return leftovers(app).keys() <= {"timers", "threads", "unacknowledged"}

        wait(send())
        for where, result, exc in each_step(send, wait, strike, FILES):
            assert isinstance(exc, SoftTimeLimitExceeded), where
            # The thread that acknowledges holds it for a moment; one that was left stays taken.
            wait_until(lambda: not role_is_taken(app), 5, where)
            wait(result)
            wait_until(only_usual_leftovers, 5, where)
        nothing_is_left(app)

    def test_each_step_of_a_look(self, app, sender):
        [first] = expect(app, 1)
        answer(sender, app.backend.oid, [first])
        assert first.get(timeout=10) == 0
        nothing_is_left(app)
        other = app.AsyncResult("other")
        for where, _, exc in each_step(lambda: other, AsyncResult.ready, strike, FILES):
            assert isinstance(exc, SoftTimeLimitExceeded), where
            wait_until(lambda: not leftovers(app), 5, where)  # as above

    def test_each_step_of_a_send(self, app, sender):
        """The result is sent or not; the next send works, and may send it again."""
        oid = app.backend.oid
        results = expect(app, 1_000)
        unsent = iter(results)

        def send(task_id: str) -> None:
            answer(sender, oid, [task_id], task_id)

        def sweep() -> None:
            for where, task_id, exc in each_step(lambda: next(unsent).id, send, strike, FILES):
                assert isinstance(exc, SoftTimeLimitExceeded), where
                # The watching thread holds one for a moment; one that was left is held for ever.
                wait_until(lambda: not held_locks(sender), 5, where)
                wait_until(lambda: not has_dead_watcher(sender), 5, where)
                send(task_id)

        Background(sweep).result(60)
        sent = results[: results.index(next(unsent))]
        assert [result.get(timeout=5) for result in sent] == [result.id for result in sent]
        nothing_is_left(sender)

    @pytest.mark.parametrize("thrown", [SoftTimeLimitExceeded, KeyboardInterrupt])
    def test_it_goes_out_of_the_thread_whose_callback_it_strikes(self, app, sender, thrown):
        first, second = expect(app, 2)
        called = []

        def callback(result: Any) -> None:
            called.append(result.id)
            raise thrown

        first.then(callback)
        answer(sender, app.backend.oid, [first, second])
        await_confirms(sender)
        with pytest.raises(thrown):
            second.get(timeout=5)
        assert second.get(timeout=5) == 1
        assert first.get(timeout=5) == 0
        assert called == [first.id]
        nothing_is_left(app)

    @pytest.mark.parametrize("thrown", [SoftTimeLimitExceeded, KeyboardInterrupt])
    def test_it_strikes_a_callback_that_has_read_meanwhile(self, app, sender, thrown):
        """The delivery of that callback is counted, too."""
        first, second, third = expect(app, 3)

        def callback(result: Any) -> None:
            assert second.get(timeout=5) == 1
            raise thrown

        first.then(callback)
        answer(sender, app.backend.oid, [first, second, third])
        await_confirms(sender)
        with pytest.raises(thrown):
            third.get(timeout=5)
        assert [result.get(timeout=5) for result in (first, second, third)] == [0, 1, 2]
        nothing_is_left(app)


def test_a_duplicate_comes_while_its_callback_reads(app, sender):
    """A redelivered result, as after a lost connection, calls no callback a second time."""
    first, second, third = expect(app, 3)
    oid = app.backend.oid
    called = []

    def callback(result: Any) -> None:
        called.append(result.id)
        if len(called) == 1:
            answer(sender, oid, [first, second])
            assert second.get(timeout=5) == 1

    first.then(callback)
    answer(sender, oid, [first])
    assert first.get(timeout=5) == 0
    answer(sender, oid, [third])
    assert third.get(timeout=5) == 0
    assert called == [first.id]
    nothing_is_left(app)
