"""The broker itself fails: it is restarted, killed, or stopped in the middle of a stream."""

from __future__ import annotations

import time

import pytest
from celery.exceptions import TimeoutError

from tests.support import inside
from tests.support.apps import client
from tests.support.broker import settle
from tests.support.results import answer, await_confirms, expect
from tests.support.threads import Background
from tests.support.waiting import LATE, stopwatch, wait_until

PERSISTENT = {"result_persistent": True}


@pytest.fixture
def pair(own_broker, make_client):
    """A caller and a sender that are connected to a broker that may be stopped."""

    def make(**conf):
        app, sender = make_client(own_broker.url, **conf), make_client(own_broker.url, **conf)
        [result] = expect(app, 1)
        answer(sender, app.backend.oid, [result], "at ease")
        assert result.get(timeout=20) == "at ease"
        await_confirms(sender)
        return app, sender

    return make


class TestPersistent:
    """With result_persistent no confirmed result is lost, however the broker ends."""

    @pytest.mark.parametrize("how", ["restart", "kill"])
    def test_results_that_waited_in_the_queue(self, own_broker, pair, how):
        app, sender = pair(**PERSISTENT)
        settle()
        results = expect(app, 2_000)
        oid = app.backend.oid
        # The caller is away, so that all of them lie in the broker when it goes.
        inside.hang_up(app)
        answer(sender, oid, results)
        await_confirms(sender)
        if how == "kill":
            own_broker.kill()
            own_broker.start()
        else:
            own_broker.restart()
        assert [result.get(timeout=60) for result in results] == list(range(2_000))

    def test_a_stream_in_which_it_is_killed(self, own_broker, pair):
        """Each result arrives exactly once, wherever it is when the broker dies."""
        app, sender = pair(**PERSISTENT)
        settle()
        results = expect(app, 4_000)
        heard: list[str] = []
        for result in results:
            result.then(lambda result: heard.append(result.id))
        oid = app.backend.oid
        waiting = Background(lambda: app.ResultSet(results, app=app).get(timeout=80))

        def send() -> None:
            for n, result in enumerate(results):
                answer(sender, oid, [result], n + 1)
                if n % 10 == 0:
                    time.sleep(0.01)

        sending = Background(send)
        wait_until(lambda: len(heard) > 500, 30, "it streams")
        own_broker.kill()
        own_broker.start()
        sending.result(60)
        await_confirms(sender)
        assert waiting.result(60) == list(range(1, 4_001))
        assert sorted(heard) == sorted(result.id for result in results)

    def test_stopped_for_five_seconds_in_the_middle(self, own_broker, pair):
        app, sender = pair(**PERSISTENT)
        results = expect(app, 600)
        oid = app.backend.oid
        waiting = Background(lambda: app.ResultSet(results, app=app).get(timeout=80))
        answer(sender, oid, results[:200])
        own_broker.stop()
        stopped = time.monotonic()
        # Sends meanwhile wait, under the retry policy.
        sending = Background(lambda: answer(sender, oid, results[200:]))
        time.sleep(max(0.0, stopped + 5 - time.monotonic()))
        assert waiting.running
        own_broker.start()
        sending.result(40)
        assert waiting.result(40) == [*range(200), *range(400)]


class TestTransient:
    """Without it a broker may forget results; then the caller's own timeout ends the wait."""

    def test_nothing_hangs_and_the_next_calls_work(self, own_broker, pair):
        app, sender = pair()
        forgotten, later = expect(app, 2)
        oid = app.backend.oid
        inside.hang_up(app)
        answer(sender, oid, [forgotten])
        await_confirms(sender)
        own_broker.kill()
        own_broker.start()
        with stopwatch(2 + LATE, "get(2)"), pytest.raises(TimeoutError):
            forgotten.get(timeout=2)
        answer(sender, oid, [later], "later")
        assert later.get(timeout=15) == "later"
        [new] = expect(app, 1)
        answer(sender, oid, [new], "new")
        assert new.get(timeout=15) == "new"

    def test_waits_across_a_restart_get_results_sent_after_it(self, own_broker, pair):
        app, sender = pair()
        results = expect(app, 100)
        oid = app.backend.oid
        waiting = Background(lambda: app.ResultSet(results, app=app).get(timeout=60))
        wait_until(lambda: inside.role_is_taken(app), 5, "it waits")
        own_broker.restart()
        answer(sender, oid, results)
        assert waiting.result(30) == list(range(100))

    def test_timeouts_are_kept_while_it_is_down(self, own_broker, pair):
        app, sender = pair()
        settle()
        results = expect(app, 3)
        oid = app.backend.oid
        own_broker.kill()
        try:
            for n, result in enumerate(results):
                with stopwatch(0.3 * n + LATE, f"get({0.3 * n})"), pytest.raises(TimeoutError):
                    result.get(timeout=0.3 * n)
        finally:
            own_broker.start()
        answer(sender, oid, results)
        assert [result.get(timeout=20) for result in results] == [0, 1, 2]


def test_a_process_that_ends_while_the_broker_is_down_ends_soon(own_broker):
    """It can neither flush nor delete anything; it logs this and ends."""
    app = client(own_broker.url, options={"shutdown_timeout": 1})
    [result] = expect(app, 1)
    answer(app, app.backend.oid, [result], "one")
    assert result.get(timeout=10) == "one"
    own_broker.kill()
    try:
        with stopwatch(8, "close()"):
            app.backend.close()
    finally:
        own_broker.start()
