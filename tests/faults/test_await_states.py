"""Awaits, threads, cancellation, answers and cuts in any order: hypothesis chooses it."""

from __future__ import annotations

import asyncio
from typing import Any

from celery import Celery
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fastrpc import aio
from tests.support import inside
from tests.support.proxy import Proxy
from tests.support.results import answer, expect
from tests.support.threads import Background
from tests.support.waiting import wait_until

TIMEOUT = 30


class Awaits(RuleBasedStateMachine):
    """The test gives a subclass what it works on."""

    app: Celery
    sender: Celery
    proxy: Proxy
    results = Bundle("results")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.answered: set[str] = set()
        self.awaits: list[tuple[asyncio.Task, list[Any]]] = []
        self.threads: list[tuple[Background, Any]] = []

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, TIMEOUT))

    def answer(self, result: Any) -> None:
        if result.id not in self.answered:
            self.answered.add(result.id)
            answer(self.sender, self.app.backend.oid, [result], result.id)

    @rule(target=results)
    def call(self):
        return expect(self.app, 1)[0]

    @rule(result=results, again=st.booleans())
    def begin(self, result, again):
        """The same AsyncResult may be awaited several times; or another of the same task."""
        result = self.app.AsyncResult(result.id) if again else result
        self.awaits.append((self.loop.create_task(aio.get(result)), [result]))

    @rule(results=st.lists(results, min_size=1, max_size=5))
    def begin_several(self, results):
        self.awaits.append((self.loop.create_task(aio.gather(*results)), results))

    @rule(result=results)
    def get_in_a_thread(self, result):
        result = self.app.AsyncResult(result.id)
        self.threads.append((Background(lambda: result.get(timeout=TIMEOUT)), result))

    @rule(result=results)
    def answer_one(self, result):
        self.answer(result)

    @rule(result=results)
    def answer_and_await(self, result):
        self.answer(result)
        assert self.run(aio.get(result)) == result.id

    @rule(number=st.integers(0, 20))
    def cancel(self, number):
        if self.awaits:
            task, _ = self.awaits.pop(number % len(self.awaits))
            task.cancel()
            self.run(asyncio.wait([task]))

    @rule(seconds=st.sampled_from([0, 0, 0.001, 0.02]))
    def go_on(self, seconds):
        self.run(asyncio.sleep(seconds))

    @rule()
    def cut(self):
        self.proxy.cut()

    @invariant()
    def the_table_is_in_order(self):
        assert inside.table(self.app)._check() == 0

    def teardown(self):
        for task, results in self.awaits:
            for result in results:
                self.answer(result)
            value = self.run(task)
            ids = [result.id for result in results]
            assert value == ids or [value] == ids
        for thread, result in self.threads:
            self.answer(result)
            assert thread.result(TIMEOUT) == result.id
        self.run(asyncio.sleep(0))
        self.loop.close()
        stats = self.app.backend.stats()
        assert (stats["waiting"], inside.watched(self.app)) == (0, 0)


def test_in_any_order(private_broker, proxy, make_client, sender):
    app = make_client(private_broker.url_for(proxy.port))

    run_state_machine_as_test(
        type("Machine", (Awaits,), {"app": app, "sender": sender, "proxy": proxy}),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    wait_until(lambda: not inside.leftovers(app), 10, "nothing is left")
    assert not inside.loops(app)
