"""Every wait ends: for an unusable result, for one asked for twice, for groups in groups."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
from celery import chain, group, states
from celery.exceptions import TimeoutError
from kombu.exceptions import ContentDisallowed, DecodeError

from fastrpc.errors import ResultDropped
from tests.support.backends import BACKENDS, FAST
from tests.support.waiting import stopwatch, wait_until

WAIT = 30
SOON = 10  # a wait that does not end takes WAIT

backends = pytest.mark.parametrize("backend", BACKENDS)

#: What the worker sends -> (its result_serializer, the client's accept_content, task, exception)
UNUSABLE = {
    "refused": ("pickle", ["json"], "tests.echo", ContentDisallowed),
    "undecodable": ("msgpack", ["json", "msgpack"], "tests.integer_keys", DecodeError),
}


def leaves(result) -> list:
    """The AsyncResults in a group, on all levels."""
    members = getattr(result, "results", None)
    return [result] if members is None else [leaf for m in members for leaf in leaves(m)]


@pytest.fixture
def send(make_worker, make_client):
    """send(kind, backend) makes a worker send a result that the client cannot use."""

    def send(kind: str, backend: str = FAST, count: int | None = None, **options):
        serializer, accept, name, _ = UNUSABLE[kind]
        conf = {"result_serializer": serializer, "accept_content": ["json", serializer]}
        app = make_client(backend, make_worker(backend, "solo", conf=conf), accept_content=accept)
        signature = app.signature(name, **options)
        if count is None:
            return signature.apply_async()
        return group(signature.clone() for _ in range(count)).apply_async()

    return send


@pytest.mark.parametrize("kind", UNUSABLE)
class TestUnusable:
    @backends
    def test_get_says_why(self, send, kind, backend):
        with stopwatch(SOON, "get"), pytest.raises(UNUSABLE[kind][3]):
            send(kind, backend).get(timeout=WAIT)

    def test_every_other_way_of_asking_does_too(self, send, kind):
        expected = UNUSABLE[kind][3]
        result = send(kind)
        called: list = []
        result.then(called.append)
        wait_until(result.ready, SOON, "ready() is true")
        assert result.state == states.FAILURE
        assert called == [result]
        with pytest.raises(expected, match=f"{result.id} arrived and cannot be used"):
            result.get(timeout=WAIT)
        with pytest.raises(expected):
            result.app.AsyncResult(result.id).get(timeout=WAIT)
        assert sum(result.backend.stats()["bad_messages"].values()) == 1

    def test_a_group_does(self, send, kind):
        results = send(kind, count=3)
        with stopwatch(SOON, "get"), pytest.raises(UNUSABLE[kind][3]):
            results.get(timeout=WAIT)
        exceptions = results.get(timeout=WAIT, propagate=False)
        assert [type(exc) for exc in exceptions] == [UNUSABLE[kind][3]] * 3

    def test_threads_do(self, send, kind):
        result = send(kind)
        raised: list = []

        def ask() -> None:
            try:
                result.app.AsyncResult(result.id).get(timeout=WAIT)
            except UNUSABLE[kind][3] as exc:
                raised.append(exc)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert len({id(exc) for exc in raised}) == 4

    def test_a_later_get_gets_the_reason(self, send, kind):
        first = send(kind)
        second = first.app.signature(UNUSABLE[kind][2]).apply_async()
        with pytest.raises(UNUSABLE[kind][3]):
            second.get(timeout=WAIT)
        assert first.backend.stats()["unclaimed"] == 1
        with stopwatch(SOON, "get"), pytest.raises(UNUSABLE[kind][3]):
            first.get()


@pytest.fixture
def client(make_worker, make_client):
    """client(backend) is an app of its own, with a worker of that backend."""
    return lambda backend: make_client(backend, make_worker(backend, "prefork"))


class TestAskingTwice:
    @backends
    def test_after_forget_there_is_nothing_more_to_wait_for(self, client, backend):
        result = client(backend).tasks["tests.echo"].delay(1)
        assert result.get(timeout=WAIT) == 1
        result.forget()
        with stopwatch(SOON, "get"):
            assert result.get(timeout=WAIT) is None

    def test_another_asyncresult_of_that_id_is_told_so(self, client):
        app = client(FAST)
        result = app.tasks["tests.echo"].delay(1)
        assert result.get(timeout=WAIT) == 1
        result.forget()
        with stopwatch(SOON, "get"), pytest.raises(ResultDropped, match="forgotten"):
            app.AsyncResult(result.id).get(timeout=WAIT)

    @backends
    @pytest.mark.parametrize("arrived", [True, False], ids=["arrived", "on the way"])
    def test_an_id_of_ones_own_is_sent_twice(self, client, backend, arrived):
        echo, task_id = client(backend).tasks["tests.echo"], f"job {uuid.uuid4()}"
        first, second = (echo.apply_async((1,), task_id=task_id) for _ in range(2))
        if arrived:
            time.sleep(0.5)
        assert first.get(timeout=WAIT) == 1
        with stopwatch(SOON, "get"):
            assert second.get(timeout=WAIT) == 1

    @backends
    def test_an_id_that_is_sent_again_is_a_new_result(self, client, backend):
        echo, task_id = client(backend).tasks["tests.echo"], f"job {uuid.uuid4()}"
        for value in ("first", "second", "third"):
            assert echo.apply_async((value,), task_id=task_id).get(timeout=WAIT) == value

    def test_a_handed_out_result_can_be_fetched_again(self, client):
        """Celery's own message-based backends cannot do that."""
        app = client(FAST)
        task_id = app.tasks["tests.echo"].delay([1]).id
        assert app.AsyncResult(task_id).get(timeout=WAIT) == [1]
        assert app.AsyncResult(task_id).state == states.SUCCESS
        assert app.AsyncResult(task_id).get(timeout=WAIT) == [1]


class TestNestedGroups:
    @staticmethod
    def nested(app, leaf=None):
        """Six tasks on four levels, sent by ``leaf(n)``."""
        leaf = leaf or app.tasks["tests.echo"].delay
        one, two, three, four, five, six = (leaf(n) for n in range(1, 7))
        results = app.GroupResult(str(uuid.uuid4()), [five, six], app=app)
        for members in ([four], [two, three], [one]):
            results = app.GroupResult(str(uuid.uuid4()), [*members, results], app=app)
        return results

    @backends
    def test_each_level_is_a_list(self, client, backend):
        assert self.nested(client(backend)).get(timeout=WAIT) == [1, [2, 3, [4, [5, 6]]]]

    @backends
    def test_chains_that_end_in_groups(self, client, backend):
        add = client(backend).tasks["tests.add"]
        one = chain(add.s(1, 1), group(add.s(1), add.s(2)))
        two = chain(add.s(2, 2), group(add.s(1), chain(add.s(2), group(add.s(3), add.s(4)))))
        result = group(one, add.s(0, 0), two).apply_async()
        assert result.get(timeout=WAIT) == [[3, 4], 0, [5, [9, 10]]]

    def test_every_message_is_shown(self, client):
        """Stock shows only messages that arrive before it waits for the inner group."""
        seen: list = []
        result = self.nested(client(FAST))
        result.get(timeout=WAIT, on_message=lambda meta: seen.append(meta["result"]))
        assert sorted(seen) == [1, 2, 3, 4, 5, 6]

    def test_there_is_one_deadline(self, client):
        """Stock waits for inner groups without a deadline."""
        app = client(FAST)
        never = app.tasks["tests.echo"].s("never").set(queue="fastrpc-tests-nobody", expires=60)
        echo = app.tasks["tests.echo"]
        result = self.nested(app, lambda n: never.delay() if n == 6 else echo.delay(n))
        threads = threading.active_count()
        with stopwatch(3, "get"), pytest.raises(TimeoutError):
            result.get(timeout=1)
        assert result.children[0].get(timeout=WAIT) == 1
        assert threading.active_count() <= threads + 1  # one may be acknowledging

    def test_iter_native_yields_a_group_when_it_is_ready(self, client):
        app = client(FAST)
        slow = app.tasks["tests.started_then"]
        result = self.nested(app, lambda n: slow.delay(n, 0.2))
        single, inner = result.results
        got = {}
        for task_id, meta in result.iter_native(timeout=WAIT):
            got[task_id] = meta
            # Not asked of the inner one itself: that would have it read.
            assert task_id != inner.id or all(leaf._cache for leaf in leaves(inner))
        assert got[single.id]["result"] == 1
        assert got[inner.id] is inner.results
