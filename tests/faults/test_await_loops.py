"""Awaits in uvloop, and over kombu transports that are not AMQP."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop
from celery.exceptions import TimeoutError

from fastrpc import aio
from fastrpc.client.kombu_intake import KombuIntake
from tests.support import inside
from tests.support.loops import run
from tests.support.results import answer, call, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import LATE, stopwatch, wait_until


class TestUvloop:
    def test_beside_threads_and_through_a_cut(self, private_broker, proxy, make_client, sender):
        app = make_client(private_broker.url_for(proxy.port))

        async def main():
            assert type(asyncio.get_running_loop()).__module__ == "uvloop"
            for _ in range(3):
                results = await asyncio.to_thread(expect, app, 300)
                tasks = [asyncio.create_task(aio.get(result, timeout=40)) for result in results]
                oid = inside.reply_queues(app)[-1]
                threads = Background(lambda: run_threads(4, lambda n: call(app, sender, 20), 40))
                await asyncio.to_thread(answer, sender, oid, results)
                assert await asyncio.gather(*tasks) == list(range(300))
                await asyncio.to_thread(threads.result, 40)
                await asyncio.to_thread(proxy.cut)

        run(main(), new_loop=uvloop.new_event_loop)
        wait_until(lambda: not inside.leftovers(app), 10, "nothing is left")
        assert not inside.loops(app)

    def test_cancelled_and_timed_out(self, app, sender):
        async def main():
            [result, other] = await asyncio.to_thread(expect, app, 2)
            with stopwatch(0.3 + LATE, "get"), pytest.raises(TimeoutError):
                await aio.get(result, timeout=0.3)
            waiting = asyncio.create_task(aio.gather(result, other))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert app.backend.stats()["waiting"] == 0
            oid = inside.reply_queues(app)[-1]
            await asyncio.to_thread(answer, sender, oid, [result, other])
            return [each async for each in aio.as_completed([result, other], timeout=20)]

        assert len(run(main(), new_loop=uvloop.new_event_loop)) == 2

    def test_several_and_those_of_asyncio(self, app, sender):
        def in_a_loop(n: int) -> list[int]:
            async def main():
                results = await asyncio.to_thread(expect, app, 50)
                await asyncio.to_thread(answer, sender, inside.reply_queues(app)[-1], results)
                return await aio.gather(*results, timeout=40)

            loop = uvloop.new_event_loop() if n % 2 else asyncio.new_event_loop()
            try:
                return loop.run_until_complete(main())
            finally:
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        # Whichever queue a call was answered on: all of them are consumed.
        assert run_threads(8, in_a_loop, 60) == [list(range(50))] * 8


@pytest.fixture(params=["memory", "redis"])
def other(request, make_client):
    """A client over another kombu transport; it answers itself."""
    url = "memory://" if request.param == "memory" else request.getfixturevalue("redis_server").url
    app = make_client(url, broker_transport_options={"polling_interval": 0.01})
    yield app
    assert isinstance(inside.intake(app), KombuIntake)


class TestOtherTransports:
    """The keeper reads: there is no socket that a loop could watch."""

    def test_awaits_beside_threads(self, other):
        async def main():
            results = expect(other, 100)
            tasks = [asyncio.create_task(aio.get(result, timeout=30)) for result in results]
            threads = Background(lambda: run_threads(2, lambda n: call(other, other, 10), 30))
            await asyncio.sleep(0.2)
            answer(other, other.backend.oid, results)
            values = await asyncio.gather(*tasks)
            return values, await asyncio.to_thread(threads.result, 30)

        assert run(main()) == (list(range(100)), [list(range(10))] * 2)
        wait_until(lambda: not inside.leftovers(other), 10, "nothing is left")

    def test_one_after_the_other(self, other):
        async def main():
            got = []
            for n in range(10):
                [result] = expect(other, 1)
                answer(other, other.backend.oid, [result], n)
                got.append(await aio.get(result, timeout=20))
            return got

        assert run(main()) == list(range(10))

    async def states_of(self, result, other):
        """What the states tell, the final one of which is sent after the first."""
        seen = []
        async for meta in aio.states(result, timeout=20):
            seen.append(meta["result"])
            if len(seen) == 1:
                answer(other, other.backend.oid, [result], "whole")
        return seen

    def test_time_outs_and_states(self, other):
        async def main():
            [result] = expect(other, 1)
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await aio.get(result, timeout=0.3)
            assert time.monotonic() - began < 0.3 + LATE
            answer(other, other.backend.oid, [result], "half", "PROGRESS")
            return await self.states_of(result, other)

        assert run(main()) == ["half", "whole"]

    def test_a_state_that_arrives_while_the_newest_is_looked_up(self, other, monkeypatch):
        """It is told once."""
        matcher = other.backend.client.matcher
        look_up = matcher.newest

        def newest(task_id):
            for done in ("half", "most"):
                answer(other, other.backend.oid, [task_id], done, "PROGRESS")
            wait_until(lambda: (look_up(task_id) or {}).get("result") == "most", 10, "it came")
            return look_up(task_id)

        async def main():
            [result] = expect(other, 1)
            return await self.states_of(result, other)

        monkeypatch.setattr(matcher, "newest", newest)
        assert run(main()) == ["most", "whole"]
