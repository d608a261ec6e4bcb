"""Calling tasks from event loops: nothing that the broker does, or does not do, blocks a loop."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from celery import _state, chain, group, signals, states
from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from fastrpc import aio
from tests.support import inside
from tests.support.installed import installed
from tests.support.loops import Watchdog, run, until
from tests.support.processes import Child
from tests.support.results import answer, expect
from tests.support.threads import run_threads
from tests.support.waiting import wait_until

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


@pytest.fixture
def working(private_broker, worker, make_client):
    """A client whose tasks a worker runs."""
    return make_client(private_broker.url, worker.queue)


class TestApplyAsync:
    def test_a_call_and_its_result(self, working):
        add = working.tasks["tests.add"]

        async def main():
            result = await aio.apply_async(add, (2, 2))
            assert isinstance(result, working.AsyncResult)
            signature = await aio.apply_async(add.s(3), (4,))
            grouped = await aio.apply_async(group(add.s(n, n) for n in range(3)))
            chained = await aio.apply_async(chain(add.s(1, 1), add.s(2)))
            return await aio.gather(result, signature, grouped, chained, timeout=20)

        assert run(main()) == [4, 7, [0, 2, 4], 4]

    def test_hundreds_at_once_from_several_loops(self, working):
        echo = working.tasks["tests.echo"]

        async def call(n: int) -> int:
            return await aio.get(await aio.apply_async(echo, (n,)), timeout=60)

        async def calls():
            return await asyncio.gather(*(call(n) for n in range(50)))

        assert run_threads(4, lambda n: asyncio.run(calls()), 60) == [list(range(50))] * 4
        wait_until(lambda: not inside.threads_of_ours(), 10, "the threads have ended")
        assert inside.reply_queues(working)
        assert len(inside.reply_queues(working)) <= 2  # all were sent by one thread

    def test_what_it_raises(self, working):
        class Unserializable:
            pass

        async def main():
            with pytest.raises(Exception, match="not JSON serializable"):
                await aio.apply_async(working.tasks["tests.echo"], (Unserializable(),))

        run(main())

    def test_it_raises_stop_iteration(self):
        """As any coroutine does: in a RuntimeError, as no future can hold it."""
        task = SimpleNamespace(apply_async=Mock(side_effect=StopIteration("early")))

        async def main():
            with pytest.raises(RuntimeError, match="StopIteration") as raised:
                await aio.apply_async(task)
            return raised.value.__cause__

        assert isinstance(run(main(), timeout=10), StopIteration)

    def test_a_call_that_fails_because_no_thread_starts_is_not_sent_later(self, monkeypatch):
        task = Mock()
        full = Mock(side_effect=RuntimeError("can't start new thread"))

        async def main():
            with monkeypatch.context() as patch:
                patch.setattr(aio, "start_thread", full)
                with pytest.raises(RuntimeError, match="new thread"):
                    await aio.apply_async(task, (1,))
            await aio.apply_async(task, (2,))

        wait_until(lambda: not inside.threads_of_ours(), 10, "the threads have ended")
        run(main())
        task.apply_async.assert_called_once_with((2,), None)

    def test_the_context_is_the_callers(self, working):
        """What tracing tools go by, in Celery's signals."""
        seen = []

        @signals.before_task_publish.connect
        def note(**kwargs):
            seen.append((request_id.get(), threading.current_thread() is threading.main_thread()))

        async def main():
            request_id.set("mine")
            return await aio.get(await aio.apply_async(working.tasks["tests.echo"]), timeout=20)

        run(main())
        signals.before_task_publish.disconnect(note)
        assert seen == [("mine", False)]

    def test_many_at_once(self, working):
        async def main():
            echo = working.tasks["tests.echo"]
            results = await aio.apply_many(echo, ((n,) for n in range(500)))
            return await aio.gather(*results, timeout=40)

        with installed():
            assert run(main()) == list(range(500))

    def test_a_blocked_broker(self, own_broker, make_client):
        """Sends wait in their thread; the loop, and what it awaits, go on."""
        app = make_client(own_broker.url, broker_transport_options={"confirm_publish": True})
        echo = app.tasks["tests.echo"]

        async def main():
            await aio.apply_async(echo)
            await asyncio.to_thread(own_broker.set_alarm, True)
            async with Watchdog():
                sending = [asyncio.create_task(aio.apply_async(echo)) for _ in range(3)]
                sending[2].cancel()
                _, pending = await asyncio.wait(sending[:2], timeout=1)
                assert len(pending) == 2
                with pytest.raises(TimeoutError):
                    await aio.get(app.AsyncResult("some-id"), timeout=0.2)
            await asyncio.to_thread(own_broker.set_alarm, False)
            return len(await asyncio.gather(*sending[:2]))

        try:
            assert run(main(), debug=False) == 2
        finally:
            own_broker.set_alarm(False)

    def test_a_full_window(self, private_broker, proxy, make_client):
        """Calls with pipelined confirms wait in their thread once 1,000 tasks are unconfirmed."""
        with installed():
            app = make_client(
                private_broker.url_for(proxy.port),
                "fastrpc-full-window",
                broker_transport_options={"confirm_publish": "pipelined"},
            )
            echo = app.tasks["tests.echo"]

            async def main():
                for _ in range(2):  # the second opens the connection of the window
                    await aio.apply_async(echo, ignore_result=True)
                proxy.freeze()
                async with Watchdog():
                    calls = [aio.apply_async(echo, ignore_result=True) for _ in range(1_100)]
                    sending = [asyncio.create_task(call) for call in calls]
                    await until(lambda: sum(call.done() for call in sending) > 900, "most left")
                    await asyncio.sleep(1)  # the rest would leave too
                    assert sum(call.done() for call in sending) <= 1_000
                proxy.thaw()
                return len(await asyncio.gather(*sending))

            assert run(main(), debug=False) == 1_100

    def test_a_broker_that_cannot_be_reached(self, private_broker, proxy, make_client):
        app = make_client(
            private_broker.url_for(proxy.port),
            task_publish_retry_policy={"max_retries": 2, "interval_start": 0.2},
            broker_connection_timeout=1,
        )
        proxy.refuse()

        async def main():
            async with Watchdog():
                with pytest.raises(OperationalError):
                    await aio.apply_async(app.tasks["tests.echo"])

        run(main(), debug=False)

    def test_a_forked_child_sends_by_a_thread_of_its_own(self, working):
        echo = working.tasks["tests.echo"]

        async def call(n: int) -> int:
            return await aio.get(await aio.apply_async(echo, (n,)), timeout=20)

        assert asyncio.run(call(1)) == 1
        assert Child(lambda: asyncio.run(call(2))).result() == 2
        assert asyncio.run(call(3)) == 3


class TestRevoke:
    @pytest.fixture
    def revoked(self, working, monkeypatch):
        """The ids that were revoked, each time."""
        seen: list[list[str]] = []
        monkeypatch.setattr(working.control, "revoke", seen.append)
        return seen

    @pytest.mark.parametrize("revoke", [True, False])
    def test_a_cancelled_await_revokes_only_where_it_is_told_to(self, working, revoked, revoke):
        async def main():
            slow = await aio.apply_async(working.tasks["tests.sleep"], (3,))
            [quick] = [await aio.apply_async(working.tasks["tests.echo"])]
            waiting = asyncio.create_task(aio.gather(slow, quick, revoke=revoke))
            await asyncio.to_thread(wait_until, lambda: quick._cache, 20, "the quick one is there")
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            return slow.id

        slow = run(main())
        wait_until(lambda: not inside.threads_of_ours(), 10, "the threads have ended")
        assert revoked == ([[slow]] if revoke else [])

    def test_one_that_is_ready_but_not_yet_told_of_is_not_revoked(self, app, sender, monkeypatch):
        revoked = Mock()
        monkeypatch.setattr(app.control, "revoke", revoked)

        async def main():
            [ready] = expect(app, 1)
            waiting = asyncio.create_task(aio.gather(ready, revoke=True))
            await asyncio.sleep(0.1)
            answer(sender, app.backend.oid, [ready])
            wait_until(ready.ready, 10, "it is ready")  # blocks the loop
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

        run(main())
        wait_until(lambda: not inside.threads_of_ours(), 10, "the threads have ended")
        revoked.assert_not_called()

    def test_one_that_times_out(self, working, revoked):
        async def main():
            slow = await aio.apply_async(working.tasks["tests.sleep"], (2,))
            with pytest.raises(TimeoutError):
                await aio.get(slow, timeout=0.1, revoke=True)
            return slow.id

        slow = run(main())
        wait_until(lambda: revoked, 10, "it is revoked")
        assert revoked == [[slow]]

    def test_a_task_that_raises_celerys_timeout_error(self, app, sender, monkeypatch):
        """It is the task that took too long, not the await."""
        revoked = Mock()
        monkeypatch.setattr(app.control, "revoke", revoked)

        async def main():
            failing, other = expect(app, 2)
            gathering = asyncio.create_task(aio.gather(failing, other, revoke=True))
            await asyncio.sleep(0.1)
            oid = app.backend.oid
            answer(sender, oid, [failing], TimeoutError("in the task"), states.FAILURE)
            with pytest.raises(TimeoutError, match="in the task"):
                await gathering

        run(main())
        wait_until(lambda: not inside.threads_of_ours(), 10, "the threads have ended")
        revoked.assert_not_called()

    def test_a_worker_does_not_run_it(self, working):
        async def main():
            blocking = [await aio.apply_async(working.tasks["tests.sleep"], (1,)) for _ in range(8)]
            last = await aio.apply_async(working.tasks["tests.echo"], countdown=4)
            with pytest.raises(TimeoutError):
                await aio.get(last, timeout=0.1, revoke=True)
            await aio.gather(*blocking, timeout=20)
            with pytest.raises(Exception, match="revoked"):
                await aio.get(last, timeout=20)

        run(main())

    def test_the_process_ends_at_once(self):
        """Not before it has revoked; over a new connection that takes a while."""
        ended = subprocess.run([sys.executable, "-c", ENDS_AT_ONCE], capture_output=True, text=True)
        assert (ended.stdout, ended.stderr) == ("revoked ['an-id']\n", "")


ENDS_AT_ONCE = """
import asyncio, time
from celery import Celery
from celery.exceptions import TimeoutError
from fastrpc import aio

app = Celery(broker="memory://", backend="fastrpc://")

def revoke(ids):
    time.sleep(0.5)
    print("revoked", ids, flush=True)

app.control.revoke = revoke
try:
    asyncio.run(aio.get(app.AsyncResult("an-id"), timeout=0.1, revoke=True))
except TimeoutError:
    pass
"""


class TestInstall:
    def test_results_are_awaitable(self, working):
        aio.install(working)
        add = working.tasks["tests.add"]

        async def main():
            grouped = group(add.s(n, n) for n in range(3)).apply_async()
            return await add.delay(2, 2), await grouped, await chain(add.s(1, 1), add.s(1))()

        usual = working.AsyncResult
        assert run(main(), timeout=20) == (4, [0, 2, 4], 3)
        aio.install(working)
        assert working.AsyncResult is usual

    def test_get_and_pickle_are_as_before(self, working, monkeypatch):
        aio.install(working)
        result = working.tasks["tests.add"].delay(2, 3)
        assert result.get(timeout=20) == 5
        monkeypatch.setattr(_state._tls, "current_app", working)
        again = pickle.loads(pickle.dumps(result))
        assert again == result
        assert type(again) is working.AsyncResult

    def test_an_eager_task(self, working):
        aio.install(working)
        working.conf.task_always_eager = True

        async def main():
            with pytest.raises(ValueError, match="on purpose"):
                await working.tasks["tests.fail"].delay()
            return await working.tasks["tests.add"].delay(2, 2)

        assert run(main()) == 4
