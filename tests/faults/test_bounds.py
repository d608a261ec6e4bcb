"""Kept results stay within their limits, and finished work leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from typing import Any

import pytest
from celery.exceptions import TimeoutError

from fastrpc.errors import ResultDropped
from tests.support import inside
from tests.support.inside import threads_of_ours
from tests.support.queues import queue_exists
from tests.support.resources import growth, open_files
from tests.support.results import answer, await_confirms, call, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import stopwatch, wait_until

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]

MIB = 1024 * 1024


def take_in(app, count: int) -> None:
    """Let the client receive `count` results without waiters."""
    stats = app.backend.stats

    def received() -> bool:
        app.backend.result_consumer.look(app.backend.oid)
        return stats()["received"] >= count

    wait_until(received, 30, f"{count} results are received")


class TestUnclaimed:
    def test_results_never_asked_for_stay_within_the_count(
        self, private_broker, make_client, sender, records
    ):
        app = make_client(private_broker.url, options={"max_unclaimed": 1_000})
        results = expect(app, 5_000)
        answer(sender, app.backend.oid, results)
        take_in(app, 5_000)
        stats = app.backend.stats()
        assert (stats["unclaimed"], stats["evicted"]) == (1_000, 4_000)
        assert records.count("were dropped, the oldest first") == 1
        # The newest are there; asking for an old one fails at once instead of hanging.
        assert [result.get(timeout=1) for result in results[4_000:]] == list(range(4_000, 5_000))
        # (of as many of those as are kept, it is remembered)
        with stopwatch(1, "get"), pytest.raises(ResultDropped):
            results[3_500].get(timeout=30)

    def test_results_never_asked_for_stay_within_the_bytes(
        self, private_broker, make_client, sender
    ):
        app = make_client(private_broker.url, options={"max_unclaimed_bytes": MIB})
        results = expect(app, 500)
        parts = iter((results[20:260], results[260:]))

        def send_and_take_in(part: list[Any]) -> None:
            received = app.backend.stats()["received"]
            answer(sender, app.backend.oid, part, "x" * 10_000)
            take_in(app, received + len(part))
            await_confirms(sender)

        send_and_take_in(results[:20])
        assert growth(lambda: send_and_take_in(next(parts))) < 2 * MIB
        stats = app.backend.stats()
        assert stats["unclaimed_bytes"] <= MIB
        assert stats["unclaimed"] + stats["evicted"] == 500
        with pytest.raises(ResultDropped):
            results[0].get(timeout=30)
        assert results[-1].get(timeout=1) == "x" * 10_000

    def test_a_body_larger_than_the_limit_is_dropped_alone(
        self, private_broker, make_client, sender
    ):
        app = make_client(private_broker.url, options={"max_unclaimed_bytes": 100_000})
        small, large = expect(app, 2)
        oid = app.backend.oid
        answer(sender, oid, [small], "small")
        answer(sender, oid, [large], "x" * 200_000)
        take_in(app, 2)
        assert small.get(timeout=1) == "small"
        with pytest.raises(ResultDropped):
            large.get(timeout=30)

    def test_a_body_larger_than_the_limit_reaches_its_waiter(
        self, private_broker, make_client, sender
    ):
        app = make_client(private_broker.url, options={"max_unclaimed_bytes": 100_000})
        [large] = expect(app, 1)
        oid = app.backend.oid
        waiting = Background(lambda: large.get(timeout=20))
        wait_until(lambda: inside.role_is_taken(app), 5, "it reads")
        answer(sender, oid, [large], "x" * 200_000)
        assert waiting.result(20) == "x" * 200_000

    def test_unclaimed_ones_expire(self, private_broker, make_client, sender):
        app = make_client(private_broker.url, result_expires=1)
        old, new = expect(app, 2)
        oid = app.backend.oid
        answer(sender, oid, [old])
        take_in(app, 1)
        began = time.monotonic()

        def expired() -> bool:
            if time.monotonic() - began > 2:
                answer(sender, oid, expect(app, 1))
            app.backend.result_consumer.look(oid)
            return app.backend.stats()["evicted"] >= 1

        wait_until(expired, 10, "it expires")
        with stopwatch(1, "get"), pytest.raises(ResultDropped):
            old.get(timeout=30)
        answer(sender, oid, [new], "new")
        assert new.get(timeout=5) == "new"

    def test_twenty_thousand_fetched_last_first(self, app, sender):
        """Five times the prefetch lies between the first and the one that is waited for."""
        results = expect(app, 20_000)
        answer(sender, app.backend.oid, results)
        for n in reversed(range(20_000)):
            assert results[n].get(timeout=30) == n
        stats = app.backend.stats()
        assert (stats["unclaimed"], stats["unclaimed_bytes"], stats["waiting"]) == (0, 0, 0)

    def test_all_threads_claim_from_a_full_table(self, private_broker, make_client, sender):
        app = make_client(private_broker.url, options={"max_unclaimed": 5_000})
        results = expect(app, 5_000)
        answer(sender, app.backend.oid, results)
        take_in(app, 5_000)
        got = run_threads(10, lambda n: [r.get(timeout=5) for r in results[n::10]])
        assert got == [list(range(n, 5_000, 10)) for n in range(10)]


def test_a_result_that_is_dropped_takes_its_body_along(app, sender):
    """At once, without the garbage collector, which may not run for minutes."""
    gc.disable()
    try:
        [result] = expect(app, 1)
        answer(sender, app.backend.oid, [result], "x" * MIB)
        assert len(result.get(timeout=10)) == MIB
        heard = []
        result.then(heard.append)
        assert heard == [result]
        dropped = weakref.ref(result)
        heard.clear()
        del result
        assert dropped() is None
    finally:
        gc.enable()


class TestNothingIsLeftBehind:
    def test_by_a_get_that_timed_out(self, app, sender):
        results = expect(app, 200)
        for result in results:
            with pytest.raises(TimeoutError):
                result.get(timeout=0)
        assert app.backend.stats()["waiting"] == 0
        assert inside.watched(app) == 0
        assert inside.sleepers(app) == 0
        # It may be asked for again all the same.
        answer(sender, app.backend.oid, results)
        assert [result.get(timeout=10) for result in results] == list(range(200))

    def test_by_get_many_that_timed_out(self, app, sender):
        call(app, sender, 1)  # the connection is there
        results = expect(app, 3)
        answer(sender, app.backend.oid, results[:1])
        came = app.backend.get_many([result.id for result in results], timeout=0.5)
        assert next(came)[0] == results[0].id
        with pytest.raises(TimeoutError):
            next(came)
        assert app.backend.stats()["waiting"] == 0
        answer(sender, app.backend.oid, results[1:])
        assert [app.AsyncResult(result.id).get(timeout=5) for result in results[1:]] == [0, 1]

    def test_by_a_group_that_timed_out(self, app):
        results = expect(app, 200)
        with pytest.raises(TimeoutError):
            app.ResultSet(results, app=app).get(timeout=0.2)
        assert inside.watched(app) == 0
        del results
        gc.collect()

    def test_by_an_async_result_that_was_collected(self, app, sender):
        before = app.backend.stats()["waiting"]
        results = expect(app, 500)
        for result in results:
            assert not result.ready()
        oid = app.backend.oid
        answer(sender, oid, results[:1])
        assert results[0].get(timeout=5) == 0
        del results, result
        gc.collect()
        assert app.backend.stats()["waiting"] == before

    def test_by_an_iteration_that_was_broken_off(self, app, sender):
        results = expect(app, 50)
        answer(sender, app.backend.oid, results[:10])
        came = app.ResultSet(results, app=app).iter_native(timeout=10)
        for _ in range(5):
            next(came)
        came.close()
        assert inside.watched(app) == 0
        assert [result.get(timeout=5) for result in results[:10]] == list(range(10))

    def test_by_threads_and_connections_that_are_over(self, private_broker, make_client):
        """File descriptors and threads are back to where they were."""

        def live() -> None:
            app, sender = make_client(private_broker.url), make_client(private_broker.url)

            def call(n: int) -> list[int]:
                results = expect(app, 20)
                answer(sender, app.backend.oid, results)
                return [result.get(timeout=20) for result in results]

            assert run_threads(8, call) == [list(range(20))] * 8
            await_confirms(sender)
            for each in (app, sender):
                each.backend.close()

        def quiet() -> bool:
            gc.collect()
            return not threads_of_ours()

        live()
        wait_until(quiet, 5, "no thread of ours is left")
        files, threads = open_files(), threading.active_count()
        for _ in range(12):
            live()
        wait_until(quiet, 5, "no thread of ours is left")
        # Celery's own pool of connections grows to ten, as threads happen to meet in it.
        assert open_files() <= files + 9
        assert threading.active_count() <= threads

    def test_by_reconnecting(self, private_broker, proxy, make_client, sender):
        app = make_client(private_broker.url_for(proxy.port))
        oid = app.backend.oid

        def call_and_cut(times: int) -> None:
            for _ in range(times):
                results = expect(app, 5)
                answer(sender, oid, results)
                assert [result.get(timeout=10) for result in results] == list(range(5))
                inside.intake_socket(app).shutdown(2)

        call_and_cut(60)
        gc.collect()
        files = open_files()
        assert growth(lambda: call_and_cut(50)) < 2 * MIB
        gc.collect()
        assert open_files() <= files + 2  # not one for each of the hundred

    @pytest.mark.parametrize("count", [50_000, pytest.param(1_000_000, marks=LONG)])
    def test_by_many_results_through_one_process(self, app, sender, count):
        oid = app.backend.oid

        def through(total: int) -> None:
            for _ in range(total // 2_000):
                results = expect(app, 2_000)
                answer(sender, oid, results)
                assert app.ResultSet(results, app=app).get(timeout=30) == list(range(2_000))

        through(20_000)  # until what is remembered of finished ones (10,000) is full
        assert growth(lambda: through(count // 2)) < 2 * MIB
        gone = expect(app, 1)[0]

        def get_in_vain() -> None:
            for _ in range(count // 20):
                with pytest.raises(TimeoutError):
                    gone.get(timeout=0)

        assert growth(get_in_vain) < MIB


def test_reply_queues_are_gone_after_close(private_broker, make_client, sender):
    app = make_client(private_broker.url)
    [result] = expect(app, 1)
    answer(sender, app.backend.oid, [result])
    result.get(timeout=5)
    oid = app.backend.oid
    assert oid in private_broker.queues()
    app.backend.close()
    assert oid not in private_broker.queues()


def test_reply_queues_of_a_process_that_was_killed_expire(private_broker, make_client, sender):
    app = make_client(private_broker.url, result_expires=5)
    oid = app.backend.oid
    expect(app, 1)
    assert queue_exists(private_broker.url, oid)  # at once: rabbitmqctl may take seconds
    wait_until(lambda: oid not in private_broker.queues(), 20, "it has expired")
