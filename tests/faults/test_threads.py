"""Many threads: any of them may wait for any result; one reads, the others sleep."""

from __future__ import annotations

import gc
import random
import threading
from contextlib import suppress
from functools import partial

import pytest
from celery import states
from celery.exceptions import TimeoutError
from celery.result import denied_join_result

from fastrpc.backend import RPCBackend
from fastrpc.client import side
from fastrpc.client._wait import Wait
from fastrpc.client.reader import ResultConsumer
from tests.support import inside
from tests.support.resources import growth
from tests.support.results import answer, answer_once_consumed, call, expect, new_ids
from tests.support.threads import Background, run_threads
from tests.support.waiting import LATE, stopwatch, wait_until

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]

THREADS = 64
EACH = 200


class TestEveryThreadGetsItsOwn:
    def test_64_threads_wait_for_200_results_each(self, app, sender):
        def call_and_wait(n: int) -> list[str]:
            results = expect(app, EACH)
            for i, result in enumerate(results):
                answer(sender, app.backend.oid, [result], [n, i])
            return [result.get(timeout=60) for result in results]

        got = run_threads(THREADS, call_and_wait, timeout=100)
        assert got == [[[n, i] for i in range(EACH)] for n in range(THREADS)]
        stats = app.backend.stats()
        assert (stats["fulfilled"], stats["waiting"]) == (THREADS * EACH, 0)

    def test_64_threads_wait_while_others_send(self, app, sender):
        """As above, but the results come in any order, while the threads sleep."""
        ready = threading.Barrier(THREADS + 1)
        calls: list[tuple[str, str, list[int]]] = []

        def call_and_wait(n: int) -> list[list[int]]:
            results = expect(app, EACH // 4)
            calls.extend((app.backend.oid, r.id, [n, i]) for i, r in enumerate(results))
            ready.wait(30)
            return [result.get(timeout=60) for result in results]

        threads = Background(partial(run_threads, THREADS, call_and_wait, 60))
        ready.wait(30)
        random.Random(5).shuffle(calls)
        for oid, task_id, value in calls:
            answer(sender, oid, [task_id], value)
        got = threads.result(60)
        assert got == [[[n, i] for i in range(EACH // 4)] for n in range(THREADS)]

    def test_with_real_tasks(self, private_broker, worker, make_client):
        app = make_client(private_broker.url, worker.queue)

        def call_and_wait(n: int) -> list[int]:
            echo = app.tasks["tests.echo"]
            return [echo.delay(n * 100 + i).get(timeout=30) for i in range(5)]

        got = run_threads(THREADS, call_and_wait, timeout=60)
        assert got == [[n * 100 + i for i in range(5)] for n in range(THREADS)]


class TestAnyThreadWaitsForAnyResult:
    """Results are not bound to the thread that sent the task."""

    @pytest.mark.parametrize("by", ["object", "id"])
    @pytest.mark.parametrize("waited_before", [False, True], ids=["first", "connected"])
    def test_the_sending_thread_is_dead(self, app, sender, by, waited_before):
        if waited_before:  # its connection consumes this thread's queue and no other yet
            [mine] = expect(app, 1)
            answer(sender, app.backend.oid, [mine])
            assert mine.get(timeout=10) == 0
        calls = Background(lambda: (app.backend.oid, expect(app, 10)))
        oid, results = calls.result(10)
        # The next thread that needs a queue gets that of one that is dead.
        assert (oid != app.backend.oid) is waited_before
        if by == "id":
            results = [app.AsyncResult(result.id) for result in results]
        answer(sender, oid, results)
        assert [result.get(timeout=10) for result in results] == list(range(10))

    def test_ready_is_true_of_another_threads_result(self, app, sender):
        [mine] = expect(app, 1)
        assert not mine.ready()  # connected from here on
        oid, [theirs] = Background(lambda: (app.backend.oid, expect(app, 1))).result(10)
        answer(sender, oid, [theirs])
        wait_until(theirs.ready, 5, "the other thread's result is ready")
        assert theirs.result == 0

    def test_a_pool_of_waiters_over_a_pool_of_callers(self, app, sender):
        """Every result is waited for by some thread that did not send the task."""
        calls = run_threads(16, lambda n: (app.backend.oid, expect(app, 50)))
        for oid, results in calls:
            answer(sender, oid, results)

        def wait(n: int) -> list[int]:
            return [result.get(timeout=30) for result in calls[(n + 1) % 16][1]]

        assert run_threads(16, wait) == [list(range(50))] * 16

    def test_many_threads_wait_for_the_same_result(self, app, sender):
        [result] = expect(app, 1)
        oid = app.backend.oid
        waiters = Background(
            lambda: run_threads(16, lambda n: app.AsyncResult(result.id).get(timeout=20))
        )
        wait_until(lambda: inside.sleepers(app) == 15, 10, "one reads, 15 sleep")
        answer(sender, oid, [result], "for all")
        assert waiters.result(10) == ["for all"] * 16

    def test_one_thread_gives_up_and_another_still_gets_it(self, app, sender):
        """Both wait for the same AsyncResult."""
        [result] = expect(app, 1)
        patient = Background(lambda: result.get(timeout=20))
        with pytest.raises(TimeoutError):
            result.get(timeout=0.3)
        answer(sender, app.backend.oid, [result], "there")
        assert patient.result(5) == "there"

    def test_one_thread_gives_up_just_when_another_begins(self, app, sender, monkeypatch):
        [result] = expect(app, 1)
        fulfiller = app.backend.client.matcher.fulfiller

        def begin_just_then(*args) -> Wait:
            fulfiller.give_up([result], Wait(0))
            return Wait(*args)

        monkeypatch.setattr(side, "Wait", begin_just_then)
        answer(sender, app.backend.oid, [result], "there")
        assert result.get(timeout=5) == "there"

    def test_tasks_wait_in_several_threads_of_a_prefork_child(self, app, sender):
        """A send in a prefork child declares no queue, so the wait must."""

        def call_and_wait(n: int) -> int:
            result = app.AsyncResult(new_ids(1)[0])
            oid = app.backend.oid
            Background(lambda: answer_once_consumed(app, sender, oid, result, n))
            return result.get(timeout=10, disable_sync_subtasks=False)

        with denied_join_result():
            assert run_threads(1, call_and_wait) == [0]
            assert run_threads(3, call_and_wait) == [0, 1, 2]

    def test_a_result_set_is_waited_for_in_another_thread(self, app, sender):
        results = expect(app, 100)
        answer(sender, app.backend.oid, results)
        waiting = Background(lambda: app.ResultSet(results, app=app).get(timeout=20))
        assert waiting.result(20) == list(range(100))


class TestHandingOver:
    def test_when_the_reader_times_out_a_sleeper_reads_on_at_once(self, app, sender, monkeypatch):
        """The role passes on; the sleeper does not find it free at the end of its interval."""
        call(app, sender, 1)  # the connection is there
        monkeypatch.setattr("fastrpc.client.reader.INTERVAL", 60.0)
        first, second = expect(app, 2)
        oid = app.backend.oid

        def time_out() -> None:
            with pytest.raises(TimeoutError):
                first.get(timeout=0.9)  # less than a read: it leaves the role once, at its end

        reader = Background(time_out)
        wait_until(lambda: inside.role_is_taken(app), 10, "somebody reads")
        sleeper = Background(lambda: second.get(timeout=20))
        wait_until(lambda: inside.sleepers(app), 10, "somebody sleeps")
        reader.result(10)
        wait_until(lambda: inside.role_is_taken(app), 5, "the sleeper reads")
        answer(sender, oid, [second], "second")
        assert sleeper.result(10) == "second"

    def test_the_reader_wakes_each_sleeper_and_reads_on(self, app, sender, monkeypatch):
        """No step wakes them, and nobody hands over: the reader's own answer comes last."""
        monkeypatch.setattr("fastrpc.client.reader.INTERVAL", 60.0)
        reads, usual = [], ResultConsumer.read

        def read(consumer, wait, patience=60.0):
            reads.append(wait)
            return usual(consumer, wait, patience)

        monkeypatch.setattr(ResultConsumer, "read", read)
        first, mine, *others = expect(app, 33)
        oid = app.backend.oid
        answer(sender, oid, [first])
        assert first.get(timeout=5) == 0
        inside.intake(app).interval = 60.0
        reader = Background(lambda: mine.get(timeout=60))
        wait_until(lambda: inside.role_is_taken(app), 10, "it reads")
        sleepers = Background(lambda: run_threads(31, lambda n: others[n].get(timeout=60)))
        wait_until(lambda: inside.sleepers(app) == 31, 10, "all others sleep")
        begun = len(reads)
        for n in random.Random(1).sample(range(31), 31):
            answer(sender, oid, [others[n]], n)
        assert sleepers.result(20) == list(range(31))
        assert len(reads) == begun
        assert reader.running
        answer(sender, oid, [mine], "mine")
        assert reader.result(20) == "mine"

    def test_every_timeout_is_kept_while_another_thread_reads(self, app, sender):
        call(app, sender, 1)  # else the first one connects in its time
        results = expect(app, 16)

        def time_out(n: int) -> None:
            timeout = 0.2 + n * 0.1
            with (
                stopwatch(timeout + LATE, f"get(timeout={timeout:.1f})"),
                pytest.raises(TimeoutError),
            ):
                results[n].get(timeout=timeout)

        run_threads(16, time_out)
        assert app.backend.stats()["waiting"] == 0


class TestCallbacks:
    def test_on_interval_is_called_when_anything_came(self, app, sender, monkeypatch):
        """So a parent's failure is noticed when it arrives, not only once reads are idle."""
        monkeypatch.setattr("fastrpc.client.reader.INTERVAL", 60.0)
        first, parent, child = expect(app, 3)
        answer(sender, app.backend.oid, [first])
        assert first.get(timeout=5) == 0
        inside.intake(app).interval = 60.0
        child.parent = parent
        waiting = Background(lambda: child.get(timeout=60))
        wait_until(lambda: inside.role_is_taken(app), 5, "it reads")
        failure = ValueError("the parent's")
        answer(sender, app.backend.oid, [parent], failure, states.FAILURE)
        with pytest.raises(ValueError, match="the parent's"):
            waiting.result(10)

    def test_then_calls_back_into_the_backend(self, app, sender):
        """A callback polls and sends the next task while its thread reads."""
        first, second = expect(app, 2)
        called = []

        def on_first(result):
            [third] = expect(app, 1)
            answer(sender, app.backend.oid, [second, third], "from the callback")
            called.append((third, second.state, app.backend.stats()["waiting"]))

        first.then(on_first)
        answer(sender, app.backend.oid, [first], "first")
        assert first.get(timeout=10) == "first"
        [(third, state, _)] = called
        assert state in {states.PENDING, states.SUCCESS}  # it may have arrived at that look
        assert third.get(timeout=10) == "from the callback"
        assert second.get(timeout=10) == "from the callback"

    def test_then_waits_for_another_result(self, app, sender):
        first, second = expect(app, 2)
        got, oid = [], app.backend.oid

        def on_first(result):
            answer(sender, oid, [second], "second")
            got.append(second.get(timeout=10))

        first.then(on_first)
        answer(sender, oid, [first], "first")
        assert Background(lambda: first.get(timeout=5)).result(10) == "first"
        assert got == ["second"]

    def test_on_message_calls_back_into_the_backend(self, app, sender):
        oid = app.backend.oid
        first, second = expect(app, 2)
        seen = []

        def on_message(meta):
            if meta["task_id"] == first.id:
                answer(sender, oid, [second], "second")
                seen.append(second.get(timeout=10))

        answer(sender, oid, [first], "first")
        assert first.get(timeout=20, on_message=on_message) == "first"
        assert seen == ["second"]

    def test_a_callback_that_raises_reaches_the_waiting_thread_only(self, app, sender):
        results = expect(app, 3)
        oid = app.backend.oid

        def fail(result):
            raise LookupError("a callback's own")

        results[1].then(fail)

        def wait(n):
            try:
                return results[n].get(timeout=20)
            except LookupError as exc:
                return repr(exc)

        waiters = Background(lambda: run_threads(3, wait))
        wait_until(lambda: inside.sleepers(app) == 2, 10, "all wait")
        answer(sender, oid, results)
        assert waiters.result(20) == [0, 'LookupError("a callback\'s own")', 2]


@pytest.mark.parametrize("thread_safe", [True, False])
def test_the_thread_safe_setting_changes_nothing(private_broker, make_client, sender, thread_safe):
    app = make_client(private_broker.url, result_backend_thread_safe=thread_safe)

    def call_and_wait(n: int):
        results = expect(app, 20)
        answer(sender, app.backend.oid, results)
        return id(app.backend), [result.get(timeout=20) for result in results]

    got = run_threads(8, call_and_wait)
    assert [values for _, values in got] == [list(range(20))] * 8
    assert {backend for backend, _ in got} == {id(app.backend)}


class TestShortLivedThreads:
    @pytest.mark.parametrize("threads", [1_000, pytest.param(10_000, marks=LONG)], ids=str)
    def test_they_leave_neither_queues_nor_memory(
        self, app, sender, private_broker, threads, foreign
    ):
        at_once = 8

        def call_and_wait(_n: int) -> None:
            [result] = expect(app, 1)
            answer(sender, app.backend.oid, [result], "x" * 100)
            assert result.get(timeout=30) == "x" * 100

        def live_and_die(count: int) -> None:
            for _ in range(count // at_once):
                run_threads(at_once, call_and_wait)

        live_and_die(at_once * 10)
        gc.collect()
        alive = threading.active_count()
        assert growth(lambda: live_and_die(threads // 2)) < 2 * 1024 * 1024
        wait_until(lambda: threading.active_count() <= alive, 5, "no thread is left")
        # Thread idents are reused, and with them the names of queues.
        names = set(inside.reply_queues(app))
        assert len(names) <= 4 * at_once
        stats = app.backend.stats()
        assert (stats["waiting"], stats["unclaimed"]) == (0, 0)
        app.backend.close()
        if not foreign:
            assert not names & private_broker.queues().keys()


def test_threads_that_ask_for_the_backend_at_once_wait_on_the_same_queues(
    private_broker, make_client, monkeypatch
):
    """As the first two requests of a threaded server; Celery makes a backend for each."""
    made_by = RPCBackend.__init__
    app = make_client(private_broker.url)
    app._backend_cache = None  # as before anybody asked
    both = threading.Barrier(2)

    def slowly(self, *args, **kwargs):
        made_by(self, *args, **kwargs)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.5)

    monkeypatch.setattr(RPCBackend, "__init__", slowly)
    first, second = run_threads(2, lambda n: app.backend)
    assert first.result_consumer is second.result_consumer
