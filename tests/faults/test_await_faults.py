"""Event loops that await while the connection breaks, beside each other, and across forks."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Iterator

import pytest
from celery import Celery
from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from fastrpc import aio
from fastrpc.client import amqp_intake
from fastrpc.client._wait import Wait
from fastrpc.client.aio import LoopReader
from fastrpc.client.amqp_intake import AMQPIntake
from fastrpc.client.intake import Intake
from fastrpc.client.queues import ReplyQueues
from fastrpc.transport.writer import FrameWriter
from tests.support import inside
from tests.support.amqp_bytes import NOT_AMQP
from tests.support.broker import RabbitMQ
from tests.support.loops import Watchdog, run
from tests.support.processes import Child
from tests.support.results import answer, call, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import LATE, stopwatch, wait_until


@pytest.fixture(autouse=True)
def never_in_a_loop(monkeypatch) -> Iterator[None]:
    """What writes, or waits for the broker, is called in no event loop.

    A test that calls tasks in its loop has to do so in a thread.
    """
    seen: list[str] = []

    def watch(cls: type, name: str) -> None:
        usual = getattr(cls, name)

        def watched(*args, **kwargs):
            if asyncio._get_running_loop() is not None:
                seen.append(f"{cls.__name__}.{name}")
            return usual(*args, **kwargs)

        monkeypatch.setattr(cls, name, watched)

    for name in ("open", "close", "catch_up", "goodbye"):
        watch(Intake, name)
    for name in ("tend", "acknowledge"):
        watch(AMQPIntake, name)
    watch(ReplyQueues, "declare")
    watch(FrameWriter, "_write")
    yield
    assert not seen


async def off_loop(function, *args):
    return await asyncio.to_thread(function, *args)


async def until(condition, what: str, timeout: float = 20) -> None:
    await off_loop(wait_until, condition, timeout, what)


async def answered(app: Celery, sender: Celery, count: int = 1) -> list:
    """Calls that were answered, on a reply queue of some other thread's."""

    def call_and_answer() -> list:
        results = expect(app, count)
        answer(sender, app.backend.oid, results)
        return results

    return await off_loop(call_and_answer)


async def connected(app: Celery, sender: Celery) -> None:
    """One result was awaited: the loop reads."""
    assert await aio.gather(*await answered(app, sender), timeout=20) == [0]


def awaited(results: list, timeout: float = 40) -> list[asyncio.Task]:
    return [asyncio.create_task(aio.get(result, timeout=timeout)) for result in results]


class TestConnection:
    @pytest.mark.parametrize("rst", [True, False], ids=["rst", "fin"])
    def test_those_who_await_carry_on_when_it_is_cut(self, cut_app, sender, proxy, rst):
        async def main():
            results = await off_loop(expect, cut_app, 16)
            tasks = awaited(results)
            await until(lambda: inside.intake(cut_app), "it is connected")
            for n in range(3):
                await off_loop(lambda: proxy.cut(rst=rst))
                await until(lambda n=n: cut_app.backend.stats()["reconnects"] > n, "noticed")
                await until(lambda: inside.intake(cut_app), "it is connected again")
            await off_loop(answer, sender, inside.reply_queues(cut_app)[0], results)
            return await asyncio.gather(*tasks)

        assert run(main()) == list(range(16))

    def test_thousands_of_results_while_it_is_cut_again_and_again(self, cut_app, sender, proxy):
        async def main():
            results = await off_loop(expect, cut_app, 3000)
            oid = inside.reply_queues(cut_app)[0]
            gathering = asyncio.create_task(aio.gather(*results, timeout=50))
            await until(lambda: inside.intake(cut_app), "it is connected")
            proxy.cut_every(0.2)
            for n in range(0, 3000, 100):
                await off_loop(answer, sender, oid, results[n : n + 100], f"batch {n}")
                await asyncio.sleep(0.05)
            values = await gathering
            proxy.cut_every(None)
            return values

        assert run(main()) == [f"batch {n // 100 * 100}" for n in range(3000)]
        stats = cut_app.backend.stats()
        assert stats["reconnects"] >= 3
        assert (stats["waiting"], stats["unclaimed"]) == (0, 0)

    @pytest.mark.parametrize("how", ["refused", "silent"])
    @pytest.mark.parametrize("connected_before", [True, False], ids=["connected", "new"])
    def test_the_broker_is_down_and_the_loop_goes_on(
        self, cut_app, sender, proxy, how, connected_before
    ):
        """Awaits time out in time, the others get their results when it is back."""

        async def time_out(result, timeout: float) -> None:
            with stopwatch(timeout + LATE, f"get({timeout})"), pytest.raises(TimeoutError):
                await aio.get(result, timeout=timeout)

        async def main():
            if connected_before:
                await connected(cut_app, sender)
            results = await off_loop(expect, cut_app, 12)
            oid = inside.reply_queues(cut_app)[-1]
            await off_loop(proxy.refuse if how == "refused" else proxy.freeze)
            await off_loop(proxy.cut)
            async with Watchdog():
                patient = awaited(results[:4])
                await asyncio.gather(
                    *(time_out(result, 0.2 + n / 4) for n, result in enumerate(results[4:]))
                )
            await off_loop(proxy.listen if how == "refused" else proxy.thaw)
            async with Watchdog():
                await off_loop(answer, sender, oid, results)
                return await asyncio.gather(*patient)

        assert run(main(), debug=False) == [0, 1, 2, 3]

    def test_the_broker_restarts_and_the_loop_goes_on(self, make_client):
        with RabbitMQ() as node:
            app, sender = make_client(node.url), make_client(node.url)

            async def main():
                await connected(app, sender)
                results = await off_loop(expect, app, 4)
                async with Watchdog():
                    tasks = awaited(results)
                    await off_loop(node.stop)
                    await asyncio.sleep(0.5)
                    await off_loop(node.start)
                    await until(lambda: inside.intake(app), "it is connected again")
                    await off_loop(answer, sender, inside.reply_queues(app)[0], results)
                    return await asyncio.gather(*tasks)

            assert run(main(), debug=False) == [0, 1, 2, 3]

    def test_a_broker_that_refuses_us_ends_every_await(self, app, sender, private_broker):
        async def main():
            results = await off_loop(expect, app, 3)
            app.conf.broker_read_url = private_broker.url_for(password="wrong")
            ended = await asyncio.gather(*awaited(results), return_exceptions=True)
            app.conf.broker_read_url = private_broker.url
            await off_loop(answer, sender, inside.reply_queues(app)[0], results)
            return [type(error) for error in ended], await aio.gather(*results, timeout=20)

        assert run(main()) == ([OperationalError] * 3, [0, 1, 2])

    @pytest.mark.parametrize("data", NOT_AMQP.values(), ids=NOT_AMQP)
    def test_what_is_not_amqp(self, cut_app, sender, proxy, data):
        async def main():
            await connected(cut_app, sender)
            results = await off_loop(expect, cut_app, 10)
            tasks = awaited(results)
            proxy.inject(data)
            await until(lambda: cut_app.backend.stats()["reconnects"] == 1, "it is noticed")
            await off_loop(answer, sender, inside.reply_queues(cut_app)[-1], results)
            return await asyncio.gather(*tasks)

        assert run(main()) == list(range(10))
        assert cut_app.backend.stats()["reconnects"] == 1

    def test_the_queue_is_deleted_under_us(self, app, sender, private_broker):
        """It is made again, and consumed, though nobody may wait for the answers in the loop."""

        async def main():
            await connected(app, sender)
            [result] = await off_loop(expect, app, 1)
            [task] = awaited([result])
            oid = inside.reply_queues(app)[-1]
            await off_loop(private_broker.ctl, "delete_queue", oid)
            await until(lambda: oid in private_broker.queues(), "the queue is there again")
            await off_loop(answer, sender, oid, [result])
            return await task

        assert run(main()) == 0
        assert app.backend.stats()["reconnects"] == 0

    def test_acknowledgements_keep_pace(self, private_broker, make_client, sender):
        """The broker sends no more than the prefetch ahead of them."""
        app = make_client(private_broker.url, options={"prefetch": 8})

        async def main():
            results = await answered(app, sender, 2000)
            return await aio.gather(*results, timeout=40)

        assert run(main()) == list(range(2000))
        wait_until(lambda: not inside.owes_acknowledgement(app), 5, "all is acknowledged")

    def test_heartbeats_are_kept_while_awaiting(self, private_broker, make_client, sender):
        """The broker drops a client that is silent for two heartbeats."""
        app = make_client(private_broker.url, options={"heartbeat": 1})

        async def main():
            await connected(app, sender)
            [result] = await off_loop(expect, app, 1)
            [task] = awaited([result])
            await asyncio.sleep(4)
            await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
            return await task

        assert run(main()) == 0
        assert app.backend.stats()["reconnects"] == 0

    @pytest.mark.parametrize("heartbeat", [1, 0], ids=["heartbeats", "question"])
    def test_a_silent_peer_is_noticed(
        self, private_broker, proxy, make_client, sender, monkeypatch, heartbeat
    ):
        monkeypatch.setattr(amqp_intake, "ANSWER_TIMEOUT", 2.0)
        monkeypatch.setattr(amqp_intake, "QUESTION_INTERVAL", 2.0)
        app = make_client(private_broker.url_for(proxy.port), options={"heartbeat": heartbeat})

        async def main():
            await connected(app, sender)
            [result] = await off_loop(expect, app, 1)
            [task] = awaited([result])
            await asyncio.sleep(2.5)
            assert app.backend.stats()["reconnects"] == 0, "as long as it is answered"
            async with Watchdog():
                await off_loop(proxy.freeze)
                await until(lambda: app.backend.stats()["reconnects"], "it was noticed")
                await off_loop(proxy.cut)
                await off_loop(proxy.thaw)
                await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
                return await task

        assert run(main(), debug=False) == 0


def in_a_loop(app: Celery, sender: Celery, count: int, together: bool) -> list[int]:
    """Call, answer and await, in a loop of this thread's own."""

    async def main():
        results = await answered(app, sender, count)
        if together:
            return await aio.gather(*results, timeout=60)
        return [await aio.get(result, timeout=60) for result in results]

    return asyncio.run(main())


class TestSeveralLoops:
    def test_64_loops(self, app, sender):
        got = run_threads(64, lambda n: in_a_loop(app, sender, 20, n % 2 == 0), 100)
        assert got == [list(range(20))] * 64
        wait_until(lambda: not inside.leftovers(app), 10, "nothing is left")
        assert not inside.loops(app)

    def test_loops_and_threads(self, app, sender):
        def wait(n: int) -> list[int]:
            if n % 2:
                return in_a_loop(app, sender, 50, True)
            return call(app, sender, 50)

        assert run_threads(16, wait, 100) == [list(range(50))] * 16

    def test_one_that_is_busy_holds_up_nobody(self, app, sender):
        """It awaits as well, and would be the one to read."""
        begun, end = threading.Event(), threading.Event()

        async def busy():
            [result] = await answered(app, sender)
            await aio.get(result, timeout=20)
            [never] = await off_loop(expect, app, 1)
            waiting = asyncio.create_task(aio.get(never))
            await asyncio.sleep(0.1)
            begun.set()
            end.wait(30)
            waiting.cancel()

        thread = Background(lambda: asyncio.run(busy()))
        begun.wait(20)
        with stopwatch(10, "the other loop"):
            assert in_a_loop(app, sender, 100, False) == list(range(100))
            assert call(app, sender, 100) == list(range(100))
        end.set()
        thread.result(20)

    def test_one_that_ends_while_others_wait(self, app, sender):
        """Closed with an await that was never cancelled: nothing of it stays."""

        def begin_and_close(never) -> asyncio.AbstractEventLoop:
            loop = asyncio.new_event_loop()
            _task = loop.create_task(aio.get(never))  # noqa: RUF006
            loop.run_until_complete(asyncio.sleep(0.3))
            loop.close()
            return loop

        async def main():
            await connected(app, sender)
            [never] = await off_loop(expect, app, 1)
            closed = await off_loop(begin_and_close, never)
            results = await answered(app, sender, 20)
            values = [await aio.get(result, timeout=20) for result in results]
            await until(lambda: closed not in inside.loops(app), "the closed one is forgotten")
            return values

        asyncio_logger = logging.getLogger("asyncio")
        asyncio_logger.disabled = True  # it says that the await of the closed loop was destroyed
        try:
            assert asyncio.run(main()) == list(range(20))
            gc.collect()
            wait_until(lambda: not inside.leftovers(app), 10, "nothing is left")
        finally:
            asyncio_logger.disabled = False

    def test_one_that_stops_and_goes_on(self, app, sender):
        loop = asyncio.new_event_loop()
        [result] = expect(app, 1)
        task = loop.create_task(aio.get(result, timeout=40))
        loop.run_until_complete(asyncio.sleep(0.3))
        answer(sender, app.backend.oid, [result], "meanwhile")
        assert in_a_loop(app, sender, 10, True) == list(range(10))
        assert loop.run_until_complete(task) == "meanwhile"
        loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
class TestForks:
    def test_a_child_of_a_thread_beside_the_loop(self, app, sender):
        """The child awaits in a loop of its own; the parent's goes on, over its own connection."""

        async def main():
            await connected(app, sender)
            results = await off_loop(expect, app, 5)
            oid = inside.reply_queues(app)[-1]
            tasks = awaited(results)
            intake = inside.intake(app)
            child = await off_loop(lambda: Child(lambda: in_a_loop(app, sender, 100, True)))
            assert await off_loop(child.result) == list(range(100))
            await off_loop(answer, sender, oid, results)
            values = await asyncio.gather(*tasks)
            assert inside.intake(app) is intake
            return values

        assert run(main()) == [0, 1, 2, 3, 4]
        assert app.backend.stats()["reconnects"] == 0

    def test_a_child_of_the_loop_itself(self, app, sender):
        """In its midst; what the child does to its copy of the loop must not reach the parent's."""

        async def main():
            await connected(app, sender)
            [result] = await off_loop(expect, app, 1)
            [task] = awaited([result])
            await asyncio.sleep(0.1)
            files = len(os.listdir("/proc/self/fd"))

            def of_child() -> list:
                left = len(os.listdir("/proc/self/fd"))
                return [left < files, call(app, sender, 5), inside.loops(app)]

            child = Child(of_child)
            assert await off_loop(child.result) == [True, [0, 1, 2, 3, 4], []]
            await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
            return await task

        assert run(main()) == 0
        assert app.backend.stats()["reconnects"] == 0


def test_the_connection_is_closed_while_something_is_awaited(app, sender):
    """Whoever waits connects again."""

    async def main():
        await connected(app, sender)
        [result] = await off_loop(expect, app, 1)
        [task] = awaited([result])
        before = inside.intake(app)
        await off_loop(app.backend.result_consumer.stop)
        await until(lambda: inside.intake(app) not in (None, before), "it is connected again")
        await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
        return await task

    assert run(main()) == 0


def test_a_loop_does_not_spin_while_another_thread_claims_the_role(app, sender, monkeypatch):
    """As close() does, which at the end of the process never gives it back."""
    looks = []
    usual = LoopReader._look
    monkeypatch.setattr(LoopReader, "_look", lambda self: looks.append(1) or usual(self))

    async def main():
        await connected(app, sender)
        [result] = await off_loop(expect, app, 1)
        [task] = awaited([result])
        role = app.backend.client.role
        await off_loop(role.claim, Wait(None))
        await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
        await asyncio.sleep(0.1)
        looks.clear()
        await asyncio.sleep(1)
        assert len(looks) < 20
        assert not task.done()
        await off_loop(role.end_claim)
        return await task

    assert run(main()) == 0


def test_a_callback_that_ends_the_keeper(app, sender):
    """It reads for two loops, and so runs the callbacks of results; another takes its place."""

    def leave(result) -> None:
        raise SystemExit

    async def main():
        await connected(app, sender)
        first, second = await off_loop(expect, app, 2)
        [never] = await off_loop(expect, app, 1)
        first.then(leave)
        tasks = awaited([first, second])
        other = Background(lambda: asyncio.run(aio.get(never, timeout=20)))
        await until(lambda: len(inside.loops(app)) == 2, "two loops wait")
        for result in (first, second, never):
            await off_loop(answer, sender, inside.reply_queues(app)[-1], [result])
        return await asyncio.gather(*tasks), await off_loop(other.result, 20)

    assert run(main()) == ([0, 0], 0)
    wait_until(lambda: not inside.leftovers(app), 10, "nothing is left")
