"""Event loops await results, together with other loops and threads that wait in get()."""

from __future__ import annotations

import asyncio
import builtins
import gc
import random
import threading
import time
from contextlib import suppress
from typing import Any, get_type_hints

import pytest
from celery import Celery, chain, group, states
from celery.exceptions import TimeoutError
from celery.result import EagerResult, denied_join_result
from kombu.exceptions import DecodeError

from fastrpc import aio
from fastrpc.errors import ResultDropped
from tests.support import inside
from tests.support.loops import run, until
from tests.support.resources import growth, open_files
from tests.support.results import answer, expect, new_ids, publish
from tests.support.threads import Background, run_threads
from tests.support.waiting import LATE, stopwatch, wait_until


def sent(app, sender, count: int, value: Any = None, state: str = states.SUCCESS) -> list[Any]:
    """Make calls in this thread and answer them."""
    results = expect(app, count)
    answer(sender, app.backend.oid, results, value, state)
    return results


def failed(app, sender, exc: Exception) -> Any:
    [result] = sent(app, sender, 1, exc, states.FAILURE)
    return result


async def turns(count: int = 3) -> None:
    """Let everything else in the loop go on a little."""
    for _ in range(count):
        await asyncio.sleep(0)


def await_rest(app) -> None:
    """Check that a second after the last await no thread and no descriptor is left."""
    left: dict[str, Any] = {}

    def nothing_left() -> bool:
        left.clear()
        left.update(inside.leftovers(app), loops=len(inside.loops(app)))
        return not any(left.values())

    with suppress(builtins.TimeoutError):
        wait_until(nothing_left, 10, "nothing is left")
    assert not any(left.values()), left


class TestGet:
    def test_a_result_that_arrives_later(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            waiting = asyncio.create_task(aio.get(result, timeout=20))
            await asyncio.sleep(0.3)
            answer(sender, app.backend.oid, [result], "later")
            return await waiting

        assert run(main()) == "later"
        await_rest(app)

    def test_one_that_is_there_already(self, app, sender):
        async def main():
            [result] = sent(app, sender, 1, "there")
            assert await aio.get(result, timeout=20) == "there"
            return await aio.get(result), await aio.get(app.AsyncResult(result.id))

        assert run(main()) == ("there", "there")

    def test_one_after_the_other(self, app, sender):
        async def main():
            return [await aio.get(sent(app, sender, 1, n)[0], timeout=20) for n in range(50)]

        assert run(main()) == list(range(50))

    def test_thousands_at_once_in_any_order(self, app, sender):
        async def main():
            results = expect(app, 1000)
            tasks = [asyncio.create_task(aio.get(result, timeout=40)) for result in results]
            await turns()
            assert app.backend.stats()["waiting"] == 1000
            calls = list(enumerate(results))
            random.Random(7).shuffle(calls)
            for n, result in calls:
                answer(sender, app.backend.oid, [result], n)
            return await asyncio.gather(*tasks)

        assert run(main()) == list(range(1000))
        await_rest(app)

    def test_the_tasks_own_exception(self, app, sender):
        async def main():
            with pytest.raises(ValueError, match="on purpose"):
                await aio.get(failed(app, sender, ValueError("on purpose")), timeout=20)
            value = await aio.get(failed(app, sender, KeyError("k")), timeout=20, propagate=False)
            assert isinstance(value, KeyError)

        run(main())

    @pytest.mark.parametrize("timeout", [0, 0.3])
    def test_it_times_out_in_time_with_celerys_error(self, app, sender, timeout):
        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            [result] = expect(app, 1)
            with stopwatch(timeout + LATE, "get"), pytest.raises(TimeoutError):
                await aio.get(result, timeout=timeout)
            answer(sender, app.backend.oid, [result], "late")
            return await aio.get(result, timeout=20)

        assert run(main()) == "late"
        await_rest(app)

    def test_timeout_0_finds_an_arrived_result(self, app, sender):
        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            for _ in range(3):
                [result] = sent(app, sender, 1, "there")
                await until(inside.intake(app).readable, "it has come")
                with suppress(TimeoutError):  # the keeper of the connection may just read it
                    return await aio.get(result, timeout=0)

        assert run(main()) == "there"

    def test_one_that_was_dropped(self, private_broker, make_client, sender):
        app = make_client(private_broker.url, options={"max_claimed": 0})

        async def main():
            [result] = sent(app, sender, 1)
            await aio.get(result, timeout=20)
            with pytest.raises(ResultDropped):
                await aio.get(app.AsyncResult(result.id))

        run(main())
        await_rest(app)

    def test_one_that_was_forgotten_or_is_ignored(self, app, sender):
        async def main():
            [forgotten, ignored] = sent(app, sender, 2)
            await aio.get(forgotten, timeout=20)
            forgotten.forget()
            ignored.ignored = True
            return await aio.get(forgotten), await aio.get(ignored)

        assert run(main()) == (None, None)

    def test_one_of_an_eager_task(self):
        async def main():
            failing = EagerResult("2", ValueError("eager"), states.FAILURE)
            with pytest.raises(ValueError, match="eager"):
                await aio.get(failing)
            return await aio.get(EagerResult("1", 4, states.SUCCESS))

        assert run(main()) == 4

    def test_the_exception_of_a_callback_is_raised_by_the_await(self, app, sender):
        def fail(result):
            raise LookupError("callback")

        async def main():
            quiet, loud = expect(app, 2)
            loud.then(fail)
            tasks = [asyncio.create_task(aio.get(result, timeout=20)) for result in (quiet, loud)]
            await turns()
            answer(sender, app.backend.oid, [quiet, loud])
            return await asyncio.gather(*tasks, return_exceptions=True)

        value, error = run(main())
        assert value == 0
        assert isinstance(error, LookupError)

    def test_several_await_the_same_result(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            same = [aio.get(result, timeout=20) for _ in range(3)]
            same += [aio.get(app.AsyncResult(result.id), timeout=20) for _ in range(3)]
            tasks = [asyncio.create_task(each) for each in same]
            await turns()
            answer(sender, app.backend.oid, [result], "for all")
            return await asyncio.gather(*tasks)

        assert run(main()) == ["for all"] * 6
        await_rest(app)

    def test_in_a_task_it_is_refused_as_get_is(self, app):
        async def main():
            with denied_join_result(), pytest.raises(RuntimeError, match="within a task"):
                await aio.get(app.AsyncResult(new_ids(1)[0]))

        run(main())

    def test_a_result_of_another_backend(self, private_broker, make_client):
        app = make_client(private_broker.url)
        app.conf.result_backend = "cache+memory://"
        result = app.AsyncResult("1", backend=app._get_backend())

        async def main():
            with pytest.raises(TypeError, match="CacheBackend"):
                await aio.get(result)

        run(main())


class TestHostile:
    def test_a_message_that_cannot_be_used_ends_its_await_and_no_other(self, app, sender):
        async def main():
            bad, good = expect(app, 2)
            oid = app.backend.oid
            tasks = [asyncio.create_task(aio.get(result, timeout=20)) for result in (bad, good)]
            await asyncio.sleep(0.2)
            publish(sender, oid, b"{", correlation_id=bad.id)
            publish(sender, oid, b"nobody's")
            publish(sender, oid, b"\xff" * 1000, correlation_id="x" * 200, content_type="image/png")
            answer(sender, oid, [good], "good")
            return await asyncio.gather(*tasks, return_exceptions=True)

        error, value = run(main())
        assert isinstance(error, DecodeError)
        assert value == "good"
        assert app.backend.stats()["reconnects"] == 0
        await_rest(app)


class TestCancelled:
    def test_the_result_can_be_fetched_later(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(aio.get(result), 0.3)
            answer(sender, app.backend.oid, [result], "kept")
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            return await aio.get(app.AsyncResult(result.id), timeout=20)

        assert run(main()) == "kept"

    def test_others_continue_to_await_it(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            in_thread = Background(lambda: result.get(timeout=20))
            patient = asyncio.create_task(aio.get(result, timeout=20))
            hasty = asyncio.create_task(aio.get(result, timeout=20))
            await turns()
            hasty.cancel()
            await turns()
            answer(sender, app.backend.oid, [result], "still")
            return await patient, in_thread.result(20), hasty.cancelled()

        assert run(main()) == ("still", "still", True)
        await_rest(app)

    def test_it_leaves_nothing(self, app, sender):
        async def cancel(count: int) -> None:
            results = expect(app, count)
            tasks = [asyncio.create_task(aio.get(result, timeout=60)) for result in results]
            tasks.append(asyncio.create_task(aio.gather(*results)))
            await turns()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            stats = app.backend.stats()
            assert (stats["waiting"], stats["unclaimed"], inside.watched(app)) == (0, 0, 0)

        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            await cancel(1000)
            return await asyncio.to_thread(
                growth, lambda: asyncio.run_coroutine_threadsafe(cancel(1000), loop).result(30)
            )

        async def with_loop():
            nonlocal loop
            loop = asyncio.get_running_loop()
            return await main()

        loop = None
        assert run(with_loop()) < 50_000  # 1,000 of 1 KiB would be 20 times as much
        await_rest(app)

    def test_a_result_that_arrives_at_the_same_time(self, app, sender):
        """Whichever comes first, the result is there, for the await or for later."""

        async def main():
            rng = random.Random(11)
            for _ in range(100):
                [result] = expect(app, 1)
                task = asyncio.create_task(aio.get(result, timeout=20))
                await turns()
                answer(sender, app.backend.oid, [result], "there")
                await asyncio.sleep(rng.uniform(0, 0.001))
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                if not task.cancelled():
                    assert task.result() == "there"
                assert await aio.get(app.AsyncResult(result.id), timeout=20) == "there"

        run(main())
        await_rest(app)

    def test_in_a_task_group_that_fails(self, app, sender):
        async def main():
            results = expect(app, 10)
            tasks = [asyncio.create_task(aio.get(result)) for result in results]
            await turns()
            answer(sender, app.backend.oid, results[:1], ValueError("first"), states.FAILURE)
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)
            assert isinstance(done.pop().exception(), ValueError)
            assert app.backend.stats()["waiting"] == 0
            answer(sender, app.backend.oid, results[1:], "later")
            return await aio.gather(*results[1:], timeout=20)

        assert run(main()) == ["later"] * 9


class TestThreads:
    """Threads that wait in get() and loops that await, in any mix."""

    def test_a_thread_reads_and_the_loop_is_told(self, app, sender):
        async def main():
            [theirs] = sent(app, sender, 1)
            assert await aio.get(theirs, timeout=20) == 0
            [never] = expect(app, 1)
            thread = Background(lambda: never.get(timeout=20))
            await until(lambda: inside.role_is_taken(app), "the thread reads")
            got = []
            for n in range(20):
                [mine] = sent(app, sender, 1, n)
                got.append(await aio.get(mine, timeout=20))
            assert thread.running
            answer(sender, app.backend.oid, [never], "at last")
            thread.result(20)
            [mine] = sent(app, sender, 1, 20)  # the loop reads again
            return [*got, await aio.get(mine, timeout=20)]

        assert run(main()) == list(range(21))
        await_rest(app)

    def test_a_thread_that_leaves_hands_over_at_once(self, app, sender, monkeypatch):
        """The loop reads again at once, without waiting for a message."""
        monkeypatch.setattr("fastrpc.client.aio.INTERVAL", 5.0)

        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            inside.intake(app).interval = 5.0
            for n in range(20):
                mine, theirs = expect(app, 2)
                waiting = asyncio.create_task(aio.get(mine, timeout=20))
                thread = Background(lambda result=theirs: result.get(timeout=20))
                await until(lambda: inside.role_is_taken(app), "the thread reads")
                answer(sender, app.backend.oid, [theirs])
                await asyncio.to_thread(thread.result, 20)
                answer(sender, app.backend.oid, [mine], n)
                with stopwatch(3, "the loop reads"):  # a missed handover takes up to five
                    assert await waiting == n

        run(main())

    def test_many_of_each(self, app, sender):
        """8 threads wait for 100 results one by one while a loop awaits 400."""

        def wait_in_turn(n: int) -> list[int]:
            return [sent(app, sender, 1, n * 1000 + i)[0].get(timeout=60) for i in range(100)]

        async def main():
            threads = Background(lambda: run_threads(8, wait_in_turn, 60))
            got = []
            for n in range(20):
                results = sent(app, sender, 20, n)
                got += await asyncio.gather(*(aio.get(result, timeout=60) for result in results))
            return got, await asyncio.to_thread(threads.result, 60)

        got, of_threads = run(main(), timeout=100)
        assert got == [n for n in range(20) for _ in range(20)]
        assert of_threads == [[n * 1000 + i for i in range(100)] for n in range(8)]
        await_rest(app)

    def test_get_blocks_in_the_thread_of_the_loop(self, app, sender):
        """Bad style, but it works."""

        async def main():
            mine, theirs = expect(app, 2)
            waiting = asyncio.create_task(aio.get(mine, timeout=20))
            await asyncio.sleep(0.2)
            answer(sender, app.backend.oid, [mine, theirs])
            return theirs.get(timeout=20), await waiting

        assert run(main()) == (1, 0)

    def test_a_callback_may_wait_for_another_result(self, app, sender):
        async def main():
            first, second = expect(app, 2)
            got = []
            first.then(lambda result: got.append(second.get(timeout=20)))
            waiting = asyncio.create_task(aio.get(first, timeout=20))
            await turns()
            oid = app.backend.oid
            answer(sender, oid, [first])
            threading.Timer(0.3, answer, (sender, oid, [second], "second")).start()
            return await waiting, got

        assert run(main()) == (0, ["second"])

    def test_the_sending_thread_is_another(self, app, sender):
        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)
            results = await asyncio.to_thread(sent, app, sender, 10)
            return await aio.gather(*results, timeout=20)

        assert run(main()) == list(range(10))

    def test_ready_while_it_is_awaited(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            waiting = asyncio.create_task(aio.get(result, timeout=20))
            await asyncio.sleep(0.2)
            assert not result.ready()
            answer(sender, app.backend.oid, [result], "both")
            await until(result.ready, "it is ready")
            return await waiting

        assert run(main()) == "both"


def test_no_descriptor_is_left_of_a_loop(app, sender):
    async def main():
        await aio.get(sent(app, sender, 1)[0], timeout=20)

    run(main())
    await_rest(app)
    files, threads = open_files(), threading.active_count()
    for _ in range(5):
        run(main())
    gc.collect()
    await_rest(app)
    assert open_files() <= files
    assert threading.active_count() < threads + 5


class TestSeveral:
    """gather(), as_completed(), groups and chains; the senders are real where that matters."""

    def test_gather_keeps_the_order(self, app, sender):
        async def main():
            results = expect(app, 200)
            gathering = asyncio.create_task(aio.gather(*results, timeout=20))
            await turns()
            for n in reversed(range(200)):
                answer(sender, app.backend.oid, [results[n]], n)
            return await gathering

        assert run(main()) == list(range(200))
        await_rest(app)

    def test_gather_raises_the_first_exception_and_leaves_the_others(self, app, sender):
        async def main():
            first, failing, last = expect(app, 3)
            gathering = asyncio.create_task(aio.gather(first, failing, last, timeout=20))
            await turns()
            answer(sender, app.backend.oid, [failing], ValueError("second"), states.FAILURE)
            with pytest.raises(ValueError, match="second"):
                await gathering
            assert app.backend.stats()["waiting"] == 0
            answer(sender, app.backend.oid, [first, last])
            values = await aio.gather(first, failing, last, return_exceptions=True, timeout=20)
            return values[0], type(values[1]), values[2]

        assert run(main()) == (0, ValueError, 1)
        await_rest(app)

    def test_gather_of_nothing(self):
        async def main():
            return await aio.gather(), [result async for result in aio.as_completed([])]

        assert run(main()) == ([], [])

    def test_gather_of_one_result_twice(self, app, sender):
        async def main():
            [result] = sent(app, sender, 1, "twice")
            other = app.AsyncResult(result.id)
            return await aio.gather(result, result, other, timeout=20)

        assert run(main()) == ["twice"] * 3

    def test_as_completed_yields_in_the_order_of_arrival(self, app, sender):
        async def main():
            results = expect(app, 5)
            got = []
            answer(sender, app.backend.oid, [results[3]])
            async for result in aio.as_completed(results, timeout=20):
                got.append(results.index(result))
                await aio.get(result)
                if len(got) < 5:
                    answer(sender, app.backend.oid, [results[[1, 4, 0, 2][len(got) - 1]]])
            return got

        assert run(main()) == [3, 1, 4, 0, 2]
        await_rest(app)

    @pytest.mark.parametrize("function", [aio.as_completed, aio.states])
    def test_type_checkers_allow_to_close_it_early(self, function):
        assert hasattr(get_type_hints(function)["return"], "aclose")  # for contextlib.aclosing()

    def test_as_completed_has_one_deadline_and_may_be_left(self, app, sender):
        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)  # the connection is there
            results = expect(app, 3)
            answer(sender, app.backend.oid, results[:1])
            completed = aio.as_completed(results, timeout=0.5)
            assert await anext(completed) is results[0]
            with stopwatch(0.5 + LATE, "as_completed"), pytest.raises(TimeoutError):
                await anext(completed)
            answer(sender, app.backend.oid, results[1:2])
            async for result in aio.as_completed(results[1:], timeout=20):
                assert result is results[1]
                break
            await turns(10)
            assert app.backend.stats()["waiting"] == inside.watched(app) == 0

        run(main())
        await_rest(app)

    def test_as_completed_yields_one_that_is_given_twice_once(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            empty = app.GroupResult("empty", [], app=app)
            given = [result, empty, result, empty]
            answer(sender, app.backend.oid, [result])
            while_it_waits = [each async for each in aio.as_completed(given, timeout=20)]
            when_it_is_there = [each async for each in aio.as_completed(given)]
            return len(while_it_waits), len(when_it_is_there)

        assert run(main()) == (2, 2)

    @pytest.mark.parametrize("before", [True, False])
    def test_as_completed_yields_what_follows_a_failed_task(self, app, sender, before):
        """It never becomes ready; get() raises what the earlier task has raised."""

        async def main():
            failing, last, member, other = expect(app, 4)
            last.parent = failing
            ends_in_group = app.GroupResult("group", [member], parent=failing, app=app)

            def fail() -> None:
                answer(sender, app.backend.oid, [failing], ValueError("first"), states.FAILURE)

            async def collect() -> list[Any]:
                given = [last, failing, ends_in_group, other]
                return [given.index(each) async for each in aio.as_completed(given, timeout=20)]

            if before:
                fail()
                with pytest.raises(ValueError, match="first"):
                    await aio.get(failing, timeout=20)
            collecting = asyncio.create_task(collect())
            await turns()
            if not before:
                fail()
            answer(sender, app.backend.oid, [other])
            order = await collecting
            for result in (last, ends_in_group):
                with pytest.raises(ValueError, match="first"):
                    await aio.get(result, timeout=20)
            assert inside.watched(app) == 0
            return sorted(order[:3]), order[3]

        assert run(main()) == ([0, 1, 2], 3)

    def test_as_completed_sees_a_failure_that_comes_between_two_steps(self, app, sender):
        """Another await has fetched it meanwhile, so it does not arrive a second time."""

        async def main():
            late, early, after_late, after_early = expect(app, 4)
            after_late.parent, after_early.parent = late, early

            async def fail(result: Any) -> None:
                answer(sender, app.backend.oid, [result], ValueError("first"), states.FAILURE)
                with pytest.raises(ValueError, match="first"):
                    await aio.get(result, timeout=20)

            await fail(early)
            completed = aio.as_completed([after_late, after_early], timeout=20)
            assert await anext(completed) is after_early
            await fail(late)
            assert [result async for result in completed] == [after_late]
            assert inside.watched(app) == 0

        run(main())

    def test_results_of_several_apps(self, app, sender):
        async def main():
            with pytest.raises(ValueError, match="several apps"):
                await aio.gather(*expect(app, 1), *expect(sender, 1))

        run(main())

    @pytest.mark.parametrize("wait", [aio.get, aio.gather])
    def test_what_is_no_result(self, wait):
        with pytest.raises(TypeError, match="str is no result of a task, nor a group"):
            run(wait("an id"))

    def test_a_result_of_another_backend(self):
        stored = Celery(backend="cache+memory://", set_as_current=False).AsyncResult("an id")
        with pytest.raises(TypeError, match="CacheBackend: make the app with backend='fastrpc://'"):
            run(aio.get(stored))

    def test_groups_in_groups(self, app, sender):
        async def main():
            leaves = expect(app, 5)
            inner = app.GroupResult("inner", leaves[3:], app=app)
            outer = app.GroupResult("outer", [leaves[1], leaves[2], inner], app=app)
            empty = app.GroupResult("empty", [], app=app)
            everything = app.ResultSet([leaves[0], outer, empty], app=app)
            gathering = asyncio.create_task(aio.get(everything, timeout=20))
            order = []

            async def note():
                async for member in aio.as_completed(everything, timeout=20):
                    order.append(everything.results.index(member))

            noting = asyncio.create_task(note())
            await turns()
            for n in (4, 3, 1, 2, 0):
                answer(sender, app.backend.oid, [leaves[n]], n)
            await noting
            return order, await gathering

        assert run(main()) == ([2, 1, 0], [0, [1, 2, [3, 4]], []])
        await_rest(app)

    def test_real_groups_and_chains(self, private_broker, worker, make_client):
        app = make_client(private_broker.url, worker.queue)
        add = app.tasks["tests.add"]

        async def main():
            sums = group(add.s(n, n) for n in range(5)).apply_async()
            steps = chain(add.s(1, 1), add.s(2), add.s(3)).apply_async()
            ends_in_group = chain(add.s(1, 1), group(add.s(1), add.s(2))).apply_async()
            return await aio.gather(sums, steps, ends_in_group, add.delay(2, 2), timeout=30)

        assert run(main()) == [[0, 2, 4, 6, 8], 7, [3, 4], 4]

    @pytest.mark.parametrize("last", ["task", "group"])
    def test_a_chain_whose_first_fails(self, app, sender, last):
        """What follows never comes. With get() a group at the end waits for ever."""

        async def main():
            first, second, *ends = expect(app, 4)
            second.parent = first
            if last == "group":
                end = app.GroupResult("end", ends, parent=second, app=app)
            else:
                end = ends[0]
                end.parent = second
            waiting = asyncio.create_task(aio.get(end, timeout=20))
            await turns()
            answer(sender, app.backend.oid, [first], ValueError("the first"), states.FAILURE)
            with pytest.raises(ValueError, match="the first"):
                await waiting
            with pytest.raises(ValueError, match="the first"):
                await aio.get(end, timeout=20)
            with pytest.raises(TimeoutError):
                await aio.get(end, timeout=0.2, propagate=False)

        run(main())
        if last == "task":  # a group waits for its members from the start, as Celery makes it
            await_rest(app)

    def test_a_chain_in_a_group_whose_first_fails(self, app, sender):
        """However deep: what follows never comes."""

        async def main():
            first, second, end, *others = expect(app, 5)
            end.parent = second
            second.parent = first
            inner = app.GroupResult("inner", [others[0], end], app=app)
            outer = app.GroupResult("outer", [others[1], inner], app=app)
            waiting = asyncio.create_task(aio.get(outer, timeout=20))
            await turns()
            answer(sender, app.backend.oid, [first], ValueError("the first"), states.FAILURE)
            with pytest.raises(ValueError, match="the first"):
                await waiting
            assert inside.watched(app) == 0

        run(main())

    def test_a_chain_in_a_group_that_ends_in_a_group(self, private_broker, worker, make_client):
        app = make_client(private_broker.url, worker.queue)
        add, fail = app.tasks["tests.add"], app.tasks["tests.fail"]

        async def main():
            ends_in_group = chain(fail.si(), group(add.si(1, 1), add.si(2, 2)))
            with pytest.raises(ValueError, match="on purpose"):
                await aio.get(group(ends_in_group, add.si(3, 3)).apply_async(), timeout=20)

        run(main())

    def test_a_chain_whose_first_result_was_handed_out(self, private_broker, make_client, sender):
        app = make_client(private_broker.url, options={"max_claimed": 0})

        async def main():
            first, end = sent(app, sender, 2)
            await aio.get(first, timeout=20)
            end.parent = app.AsyncResult(first.id)
            return await aio.get(end, timeout=20)

        assert run(main()) == 1


class TestStates:
    def test_every_state_and_the_final_one_last(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            seen = []
            answer(sender, app.backend.oid, [result], {"step": 0}, "PROGRESS")
            async for meta in aio.states(result, timeout=20):
                seen.append((meta["status"], meta["result"]))
                if len(seen) == 1:
                    answer(sender, app.backend.oid, [result], {"step": 1}, "PROGRESS")
                    answer(sender, app.backend.oid, expect(app, 1), "of another", "PROGRESS")
                if len(seen) == 2:
                    answer(sender, app.backend.oid, [result], "done")
            again = [meta["result"] async for meta in aio.states(result)]
            return seen, again

        seen, again = run(main())
        progress = [("PROGRESS", {"step": 0}), ("PROGRESS", {"step": 1})]
        assert (seen, again) == ([*progress, ("SUCCESS", "done")], ["done"])
        await_rest(app)

    def test_the_newest_earlier_state_comes_first(self, app, sender):
        async def main():
            await aio.get(sent(app, sender, 1)[0], timeout=20)  # the connection is there
            [result] = expect(app, 1)
            answer(sender, app.backend.oid, [result], {"step": 7}, "PROGRESS")
            with pytest.raises(TimeoutError):
                await aio.get(result, timeout=0.5)
            states = aio.states(result, timeout=0.5)
            first = await anext(states)
            with pytest.raises(TimeoutError):
                await anext(states)
            return first["result"]

        assert run(main()) == {"step": 7}
        await_rest(app)

    @pytest.mark.parametrize("way", ["states", "on_message", "get"])
    def test_messages_do_not_put_the_end_off(self, app, sender, way):
        """They come faster than they are taken."""
        [result] = expect(app, 1)
        oid = app.backend.oid
        end, began = threading.Event(), time.monotonic()

        def report() -> None:
            while not end.is_set():
                answer(sender, oid, [result], "at work", "PROGRESS")
                time.sleep(0.001)

        def take(meta) -> None:
            time.sleep(0.002)
            assert time.monotonic() - began < 5, "it goes on"

        async def states_of_it() -> None:
            async for meta in aio.states(result, timeout=0.5):
                take(meta)
                await asyncio.sleep(0)

        ways = {
            "states": lambda: run(states_of_it()),
            "on_message": lambda: run(aio.get(result, timeout=0.5, on_message=take)),
            "get": lambda: result.get(timeout=0.5, on_message=take),
        }
        reports = Background(report)
        try:
            with pytest.raises(TimeoutError):
                ways[way]()
        finally:
            end.set()
            reports.result(20)
        await_rest(app)

    def test_a_group_has_none(self, app):
        async def main():
            with pytest.raises(TypeError, match="a GroupResult has no states"):
                await anext(aio.states(app.GroupResult("group", [], app=app)))

        run(main())

    def test_an_exception_is_an_exception(self, app, sender):
        async def main():
            [result] = expect(app, 1)
            answer(sender, app.backend.oid, [result], ConnectionError("again"), states.RETRY)
            answer(sender, app.backend.oid, [result], ValueError("for good"), states.FAILURE)
            return [type(meta["result"]) async for meta in aio.states(result, timeout=20)]

        assert run(main()) == [ConnectionError, ValueError]

    def test_on_message_is_told_of_these_tasks_only(self, app, sender):
        async def main():
            one, other, third = expect(app, 3)
            heard: list[Any] = []
            of_others: list[Any] = []
            tasks = [
                asyncio.create_task(aio.get(one, timeout=20, on_message=heard.append)),
                asyncio.create_task(aio.gather(other, on_message=of_others.append)),
                asyncio.create_task(aio.get(third, timeout=20)),
            ]
            await turns()
            answer(sender, app.backend.oid, [one, other], "half", "PROGRESS")
            answer(sender, app.backend.oid, [one, other, third], "whole")
            await asyncio.gather(*tasks)
            return [[meta["result"] for meta in metas] for metas in (heard, of_others)]

        assert run(main()) == [["half", "whole"]] * 2
        await_rest(app)
