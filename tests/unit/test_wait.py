"""fastrpc.client._wait, without an intake and a table."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from types import SimpleNamespace

import pytest

from fastrpc.client import _wait as wait_module
from fastrpc.client._matcher import Claimed, Fulfiller
from fastrpc.client._pending import PendingTable
from fastrpc.client._wait import LoopWait, ReadingRole, Wait, Watchers
from tests.support.waiting import wait_until


@pytest.fixture
def watchers() -> Watchers:
    return Watchers()


@pytest.fixture
def role(watchers) -> ReadingRole:
    return ReadingRole(watchers)


def raising(exc: BaseException):
    def function(*args):
        raise exc

    return function


class Thread(threading.Thread):
    """Runs a function of the role; `answer` is what it returned."""

    answer = None

    def run(self) -> None:
        self.answer = self._target(*self._args)


class TestReadingRole:
    def test_one_thread_has_it_at_a_time(self, role):
        def as_the_reader():
            other = Thread(target=role.run, args=(lambda: "read",))
            other.start()
            other.join()
            return other.answer

        assert role.run(as_the_reader) is None
        assert role.run(lambda: "read") == "read"

    @pytest.mark.parametrize("thrown", [ValueError(), KeyboardInterrupt()])
    def test_an_exception_releases_it(self, role, thrown):
        with pytest.raises(type(thrown)):
            role.run(raising(thrown))
        with pytest.raises(type(thrown)):
            role.run_or_sleep(Wait(None), 0, raising(thrown))
        assert not role.reading

    def test_the_reader_cannot_read_inside_a_read(self, role):
        def read():
            assert role.interrupted
            with pytest.raises(RuntimeError, match="the reader is in use"):
                role.run(list)
            with pytest.raises(RuntimeError, match="the reader is in use"):
                role.run_or_sleep(Wait(0), 0, list)
            return True

        assert role.run(read)
        assert not role.reading

    def test_it_can_in_a_callback_but_not_inside_the_callbacks_read(self, role):
        def callback():
            assert not role.interrupted
            return role.run(lambda: role.interrupted)

        assert role.run(role.call_out, callback) is True
        assert not role.reading

    def test_a_callback_in_another_thread_does_not_open_the_readers_read(self, role):
        def as_the_reader():
            other = Thread(target=role.call_out, args=(lambda: role.interrupted,))
            other.start()
            other.join()
            return role.interrupted

        assert role.run(as_the_reader) is True

    def test_two_greenlets_of_one_thread_do_not_both_read(self, role, monkeypatch):
        """gevent may have patched `threading` after this module was imported."""
        greenlet = SimpleNamespace(number=1)
        monkeypatch.setattr(wait_module.threading, "get_ident", lambda: greenlet.number)

        def as_the_reader():
            greenlet.number = 2
            answer = role.run(lambda: "read")
            greenlet.number = 1
            return answer

        assert role.run(as_the_reader) is None

    def test_the_reader_hands_over_to_the_longest_sleeper(self, role):
        order: list[int] = []
        begun, end = threading.Event(), threading.Event()

        def read() -> None:
            begun.set()
            end.wait(10)

        threads = [Thread(target=role.run, args=(read,))]
        threads[0].start()
        begun.wait(10)
        for n in range(3):
            thread = Thread(target=role.run_or_sleep, args=(Wait(None), 10, order.append, n))
            thread.start()
            threads.append(thread)
            wait_until(lambda n=n: role.sleeping == n + 1, 5, "it sleeps")
        end.set()
        for thread in threads:
            thread.join(5)
        assert order == [0, 1, 2]
        assert not role.sleeping

    def test_a_sleeper_with_news_passes_the_role_on(self, role, watchers):
        """It was woken as the next reader, but already has its result."""
        result, wait = object(), Wait(None)
        watchers.watch([result], wait)
        read: list[str] = []
        begun, end = threading.Event(), threading.Event()

        def as_the_reader() -> None:
            begun.set()
            end.wait(10)
            wait.arrived.append(result)

        reader = Thread(target=role.run, args=(as_the_reader,))
        reader.start()
        begun.wait(10)
        first = Thread(target=role.run_or_sleep, args=(wait, 10, read.append, "first"))
        first.start()
        wait_until(lambda: role.sleeping == 1, 5, "the first sleeps")
        second = Thread(target=role.run_or_sleep, args=(Wait(None), 10, read.append, "second"))
        second.start()
        wait_until(lambda: role.sleeping == 2, 5, "the second sleeps")
        end.set()
        for thread in (reader, first, second):
            thread.join(5)
        assert (first.answer, second.answer, read) == (False, True, ["second"])

    def test_a_sleeper_that_is_interrupted_is_forgotten(self, role):
        class Bell:
            """Raises as a signal handler would, while the thread sleeps on this lock."""

            def acquire(self, blocking, timeout=-1):
                if blocking:
                    raise KeyboardInterrupt

        def as_the_reader():
            other = Thread(target=sleep)
            other.start()
            other.join()
            return role.sleeping

        def sleep() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(wait_module.threading, "Lock", Bell)
                with pytest.raises(KeyboardInterrupt):
                    role.run_or_sleep(Wait(None), 10, list)

        assert role.run(as_the_reader) == 0

    def test_where_no_thread_sleeps_the_loops_hear_that_it_is_free(self, role):
        heard: list[bool] = []
        role.on_free = lambda: heard.append(role.reading)
        role.run(lambda: role.call_out(lambda: role.run(list)))
        role.run_or_sleep(Wait(None), 0, list)
        assert heard == [False, False]

    def test_a_sleeping_thread_comes_before_the_loops(self, role):
        heard: list[int] = []
        role.on_free = lambda: heard.append(role.sleeping)
        begun, end = threading.Event(), threading.Event()
        first = Thread(target=role.run, args=(lambda: begun.set() or end.wait(10),))
        first.start()
        begun.wait(10)
        second = Thread(target=role.run_or_sleep, args=(Wait(None), 10, list))
        second.start()
        wait_until(lambda: role.sleeping == 1, 10, "the second sleeps")
        end.set()
        first.join(10)
        second.join(10)
        assert (second.answer, heard) == (True, [0])

    def test_who_rings_the_loops_may_be_interrupted_and_the_role_goes_on(self, role, watchers):
        """They are rung by Python code: Ctrl-C strikes there too."""
        watchers.watch([], LoopWait(None, [], raising(KeyboardInterrupt()), True))
        sleeper = Thread(target=role.run_or_sleep, args=(Wait(None), 10, list))

        def as_the_reader():
            sleeper.start()
            wait_until(lambda: role.sleeping == 1, 10, "it sleeps")
            watchers.tell("queue", {})

        with pytest.raises(KeyboardInterrupt):
            role.run(as_the_reader)
        sleeper.join(10)
        assert sleeper.answer is True
        assert not role.reading

    def test_a_fork_in_a_callback_leaves_the_role_to_its_thread(self, role):
        def callback():
            role.after_fork()
            return role.run(lambda: "read")

        assert role.run(role.call_out, callback) == "read"
        assert not role.reading

    def test_a_fork_beside_the_reader_leaves_no_reader(self, role):
        def as_the_reader():
            other = Thread(target=role.after_fork)  # the thread that lives on in the child
            other.start()
            other.join()
            return role.reading

        assert role.run(as_the_reader) is False

    def test_a_claim_for_another_thread_replaces_none(self):
        role, me = ReadingRole(Watchers()), threading.get_ident()
        role.claim(Wait(None))
        role.claim_for(me + 1)
        assert not role.claimed
        role.end_claim()
        role.claim_for(me + 1)
        assert role.claimed
        assert not role.run_or_sleep(Wait(0), 0, list)


class TestWatchers:
    @pytest.fixture
    def tell(self, watchers, role):
        """tell(result): its final state came."""
        table = PendingTable()
        fulfiller = Fulfiller(
            table,
            Claimed(0, 0),
            watchers,
            role,
            is_plain=lambda cls: False,
            as_python=dict,
            on_error=lambda result, error: unheard.append(error),
            thrown_in=(),
        )
        unheard: list = []

        def tell(result):
            table.add("a", result)
            fulfiller.hand_out("a", (result,), {"status": "SUCCESS"}, (b"", b"{}"))
            return unheard

        return tell

    @staticmethod
    def result(callback=list):
        ready = SimpleNamespace(ready=False)
        return SimpleNamespace(on_ready=ready, _maybe_set_cache=lambda meta: callback())

    def test_each_watching_wait_is_told_once(self, watchers, tell):
        result = self.result()
        waits = [Wait(None) for _ in range(3)]
        for wait in waits * 2:
            watchers.watch([result], wait)
        tell(result)
        assert [list(wait.arrived) for wait in waits] == [[result]] * 3
        assert len(watchers) == 0

    def test_a_wait_that_gave_up_is_not_told_and_leaves_nothing(self, watchers, tell):
        result = self.result()
        waits = [Wait(None) for _ in range(3)]
        for wait in waits:
            watchers.watch([result], wait)
        for wait in waits[:2]:
            watchers.unwatch([result], wait)
        tell(result)
        assert [len(wait.arrived) for wait in waits] == [0, 0, 1]
        for wait in waits:
            watchers.unwatch([result], wait)
        assert len(watchers) == 0
        assert not watchers.is_watched(result)

    def test_a_failed_callback_is_reported_though_two_waits_gave_up(self, watchers, tell):
        result = self.result(lambda: 1 / 0)
        for wait in (waits := [Wait(None), Wait(None)]):
            watchers.watch([result], wait)
        for wait in waits:
            watchers.unwatch([result], wait)
        assert [type(error) for error in tell(result)] == [ZeroDivisionError]

    def test_a_failed_callback_raises_in_the_waiting_thread(self, watchers, tell):
        result, wait = self.result(lambda: 1 / 0), Wait(None)
        watchers.watch([result], wait)
        assert tell(result) == []
        with pytest.raises(ZeroDivisionError):
            wait.raise_errors()

    def test_unwatch_undoes_an_interrupted_watch(self, watchers):
        results = [object(), object()]
        wait = Wait(None)
        watchers.watch(results[:1], wait)
        watchers.unwatch(results, wait)
        assert len(watchers) == 0

    def test_only_those_that_listen_to_the_queue_are_told(self, watchers):
        mine, other = Wait(None, print, "mine"), Wait(None, print, "other")
        assert not watchers.listening
        watchers.watch([], mine)
        watchers.watch([], other)
        watchers.tell("mine", {"result": 1})
        assert (list(mine.metas), list(other.metas)) == ([{"result": 1}], [])
        watchers.unwatch([], mine)
        watchers.unwatch([], other)
        assert not watchers.listening

    def test_the_collector_may_end_a_wait_inside_another(self, watchers):
        """At any point it may run the `finally` of an abandoned generator."""
        results = [object() for _ in range(50)]
        stays = Wait(None)

        def given_up():
            wait = Wait(None)
            try:
                watchers.watch(results, wait)
                yield
            finally:
                watchers.unwatch(results, wait)

        usual = gc.get_threshold()
        gc.set_threshold(1, 1, 1)
        try:
            for _ in range(200):
                generator = given_up()
                next(generator)
                cycle = [generator]
                cycle.append(cycle)
                del cycle, generator
                watchers.watch(results, stays)
                watchers.unwatch(results, stays)
        finally:
            gc.set_threshold(*usual)
        gc.collect()
        assert len(watchers) == 0


class TestWait:
    def test_its_time(self):
        assert Wait(None).remaining() == float("inf")
        assert Wait(None).remaining(1.5) == 1.5
        assert Wait(-1).remaining() == 0
        assert 9 < Wait(10).remaining() <= 10
        assert Wait(10).deadline == pytest.approx(time.monotonic() + 10, abs=1)

    def test_on_message_runs_in_the_waiting_thread(self):
        heard: list = []
        wait = Wait(None, heard.append, "queue")
        wait.metas.extend([{"n": 1}, {"n": 2}])
        assert wait.news
        wait.run_on_message()
        assert heard == [{"n": 1}, {"n": 2}]
        assert not wait.news


class Dying:
    """Calls a function when it is destroyed."""

    def __init__(self, function) -> None:
        self.function = function

    def __del__(self) -> None:
        self.function()


class TestLoopWait:
    @pytest.fixture
    def loop(self):
        loop = asyncio.new_event_loop()
        yield loop
        loop.close()

    def test_what_it_hears_goes_to_the_list_of_its_loop(self, loop, watchers):
        told: list = []
        rung: list[int] = []
        waits = [LoopWait(loop, told, lambda: rung.append(len(told)), True) for _ in range(2)]
        for wait in waits:
            watchers.watch([], wait)
        watchers.tell("any queue", {"n": 1})
        watchers.wake()
        assert set(told) == set(waits)
        assert rung == [1]  # for the first, the second finds the loop rung already
        assert [wait.take_metas() for wait in waits] == [[{"n": 1}]] * 2
        assert not any(wait.take_metas() for wait in waits)

    @pytest.mark.parametrize("allocations", range(8))
    @pytest.mark.parametrize("tells", [False, True], ids=["hear", "tell"])
    def test_what_it_hears_while_it_hears(self, loop, watchers, tells, allocations):
        """From a destructor, wherever it runs. It may also let another thread run meanwhile."""
        wait = LoopWait(loop, [], list, True)
        watchers.watch([], wait)
        given = [({"n": n}, ValueError(n)) for n in range(2)]

        def hear(n: int) -> None:
            what, error = given[n]
            if tells:
                watchers.tell("any queue", what)
            else:
                wait.hear(what, error)

        usual = gc.get_threshold()
        gc.collect()
        garbage = SimpleNamespace(kept=Dying(lambda: hear(1)))
        garbage.cycle = garbage
        try:
            gc.set_threshold(gc.get_count()[0] + allocations)
            del garbage
            hear(0)
        finally:
            gc.set_threshold(*usual)
        gc.collect()
        assert len(wait.take_metas() if tells else wait.take()) == 2
        for _ in range(0 if tells else 2):
            with pytest.raises(ValueError, match=r"[01]"):
                wait.raise_errors()

    def test_it_is_awaited_until_it_is_resumed(self, loop):
        wait = LoopWait(loop, [], list)

        async def main():
            waiting = asyncio.ensure_future(self.awaited(wait))
            await asyncio.sleep(0)
            assert not waiting.done()
            wait.resume()
            wait.resume()
            await asyncio.wait_for(waiting, 10)

        loop.run_until_complete(main())

    @staticmethod
    async def awaited(wait):
        await wait

    @pytest.mark.parametrize("ends", [LoopWait.expire, lambda wait: wait.fail(ValueError())])
    def test_it_does_not_wait_once_it_is_over(self, loop, ends):
        wait = LoopWait(loop, [], list)
        ends(wait)
        loop.run_until_complete(asyncio.wait_for(self.awaited(wait), 10))

    def test_one_that_was_cancelled_is_resumed_without_harm(self, loop):
        wait = LoopWait(loop, [], list)

        async def main():
            waiting = asyncio.ensure_future(self.awaited(wait))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            wait.resume()

        loop.run_until_complete(main())
