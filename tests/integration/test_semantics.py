"""Everything that rpc:// does, with a real worker, for each pair of client and worker backend."""

from __future__ import annotations

import datetime
import pickle
import threading
import time
import uuid

import celery
import pytest
from celery import chain, chord, group, states
from celery.exceptions import TaskRevokedError, TimeoutError
from celery.result import allow_join_result, result_from_tuple

from tests.support.backends import STOCK
from tests.support.tasks import CustomError
from tests.support.waiting import wait_until
from tests.support.worker import Worker

WAIT = 30  # longer than anything here takes; a test that needs it all has failed


@pytest.fixture
def unanswered(task):
    """A task that no worker will ever run."""
    return task("echo").apply_async(("never",), queue="fastrpc-tests-nobody", expires=60)


@pytest.fixture
def polled(pair, worker, make_client):
    """polled("add") is tests.add of a separate client, which has not waited for anything yet.

    Stock rpc:// polls by basic.get; once a get() has started its consumer, ready() and state
    see only what a later get() happens to read.
    """
    app = make_client(pair[0], worker)
    return lambda name: app.tasks[f"tests.{name}"]


class Seen(list):
    """An on_message callback; it is told of every message, also of other tests' tasks."""

    def of(self, *results):
        ids = {result.id for result in results}
        return [meta for meta in self if meta["task_id"] in ids]


class TestOneResult:
    def test_get_returns_what_the_task_returned(self, task):
        assert task("add").delay(2, 3).get(timeout=WAIT) == 5

    def test_wait_is_get(self, task):
        assert task("add").delay(2, 3).wait(timeout=WAIT) == 5

    def test_a_finished_result_knows_all_about_itself(self, task):
        result = task("add").delay(2, 3)
        result.get(timeout=WAIT)
        assert result.ready()
        assert result.successful()
        assert not result.failed()
        assert result.state == result.status == states.SUCCESS
        assert result.result == result.info == 5
        assert result.traceback is None
        assert result.children == []
        assert isinstance(result.date_done, datetime.datetime)

    def test_get_again_returns_the_same(self, task):
        result = task("echo").delay({"a": [1, None]})
        assert result.get(timeout=WAIT) == {"a": [1, None]}
        assert result.get(timeout=WAIT) == {"a": [1, None]}

    def test_results_can_be_fetched_in_any_order(self, task):
        results = [task("echo").delay(n) for n in range(50)]
        assert [r.get(timeout=WAIT) for r in reversed(results)] == list(reversed(range(50)))

    def test_a_result_is_found_by_its_id_alone(self, app, task):
        task_id = task("echo").delay("by id").id
        assert app.AsyncResult(task_id).get(timeout=WAIT) == "by id"

    def test_the_caller_may_choose_the_id(self, task):
        task_id = f"my own id {uuid.uuid4()}"
        result = task("echo").apply_async(("mine",), task_id=task_id)
        assert result.id == task_id
        assert result.get(timeout=WAIT) == "mine"

    def test_the_caller_may_choose_the_correlation_id(self, task):
        result = task("echo").apply_async(("mine",), correlation_id=f"chosen {uuid.uuid4()}")
        assert result.get(timeout=WAIT) == "mine"

    def test_polling_ready_sees_the_result_arrive(self, polled):
        result = polled("echo").delay("polled")
        wait_until(result.ready, WAIT, "ready() is true")
        assert result.state == states.SUCCESS
        assert result.get(timeout=WAIT) == "polled"

    def test_polling_one_result_keeps_the_others(self, polled):
        results = [polled("echo").delay(n) for n in range(10)]
        wait_until(results[-1].ready, WAIT, "the last is ready")
        assert [r.get(timeout=WAIT) for r in results] == list(range(10))

    def test_an_unanswered_task_is_pending(self, unanswered):
        assert unanswered.state == states.PENDING
        assert not unanswered.ready()
        assert unanswered.result is None

    def test_an_unknown_id_is_pending(self, app):
        assert app.AsyncResult(str(uuid.uuid4())).state == states.PENDING

    def test_it_survives_as_tuple(self, app, task):
        result = task("echo").delay("tuple")
        assert result_from_tuple(result.as_tuple(), app=app).get(timeout=WAIT) == "tuple"

    def test_forget_drops_what_is_known(self, task):
        result = task("echo").delay("forget me")
        result.get(timeout=WAIT)
        result.forget()
        assert result.state == states.PENDING

    def test_forgetting_what_never_came_is_harmless(self, unanswered):
        unanswered.forget()
        assert unanswered.state == states.PENDING

    @pytest.mark.parametrize("size", [0, 1, 131_072 - 200, 131_072, 1_000_000, 5_000_000])
    def test_results_of_any_size_arrive_whole(self, task, size):
        assert task("big").delay(size).get(timeout=WAIT) == "x" * size

    @pytest.mark.parametrize(
        "value",
        [
            None,
            True,
            0,
            -(2**63),
            2**63,
            10**30,
            1.5,
            "",
            "naïve ☃ 𝄞",
            [],
            {},
            [[["deep"]]],
            {"k": {}},
        ],
        ids=repr,
    )
    def test_json_values_arrive_as_they_are(self, task, value):
        got = task("echo").delay(value).get(timeout=WAIT)
        assert got == value
        assert type(got) is type(value)

    @pytest.mark.parametrize(
        "value",
        [
            datetime.datetime(2024, 2, 29, 12, 30, 1, 250000, tzinfo=datetime.timezone.utc),
            datetime.date(2024, 2, 29),
            uuid.UUID("12345678-1234-5678-1234-567812345678"),
            b"\x00\xffbytes",
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_the_types_that_kombus_json_knows_arrive_too(self, task, value):
        assert task("echo").delay(value).get(timeout=WAIT) == value

    def test_four_threads_each_wait_for_their_own(self, task):
        got: dict[int, list] = {}

        def client(number: int) -> None:
            results = [task("add").delay(number, n) for n in range(25)]
            got[number] = [r.get(timeout=WAIT) for r in results]

        threads = [threading.Thread(target=client, args=(n * 1000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert got == {n * 1000: [n * 1000 + i for i in range(25)] for n in range(4)}


class TestTimeouts:
    def test_get_raises_when_the_time_is_up(self, unanswered):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            unanswered.get(timeout=0.3)
        assert 0.3 <= time.monotonic() - started < 3

    def test_no_time_at_all_is_a_timeout_at_once(self, unanswered):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            unanswered.get(timeout=0)
        assert time.monotonic() - started < 2

    def test_a_result_that_was_too_late_can_still_be_had(self, task):
        # Stock looks at the clock once a second.
        result = task("sleep").delay(3)
        with pytest.raises(TimeoutError):
            result.get(timeout=0.05)
        assert result.get(timeout=WAIT) == 3

    def test_joining_a_set_raises_when_the_time_is_up(self, app, task, unanswered):
        results = app.ResultSet([task("echo").delay(1), unanswered], app=app)
        with pytest.raises(TimeoutError):
            results.join(timeout=1)
        with pytest.raises(TimeoutError):
            results.join_native(timeout=1)


class TestFailures:
    def test_get_raises_the_tasks_exception(self, task):
        result = task("fail").delay("broken")
        with pytest.raises(ValueError, match="broken"):
            result.get(timeout=WAIT)
        assert result.failed()
        assert not result.successful()
        assert result.state == states.FAILURE
        assert isinstance(result.result, ValueError)

    def test_without_propagation_the_exception_is_returned(self, task):
        exc = task("fail").delay("returned").get(timeout=WAIT, propagate=False)
        assert isinstance(exc, ValueError)
        assert exc.args == ("returned",)

    def test_the_workers_traceback_comes_along(self, task):
        result = task("fail").delay("traced")
        result.get(timeout=WAIT, propagate=False)
        assert "ValueError: traced" in result.traceback
        assert "tasks.py" in result.traceback

    def test_a_key_error_keeps_its_key(self, task):
        exc = task("fail_key").delay("k").get(timeout=WAIT, propagate=False)
        assert isinstance(exc, KeyError)
        assert exc.args == ("k",)

    def test_an_exception_class_of_the_application_is_rebuilt(self, task):
        exc = task("fail_custom").delay("a", 1).get(timeout=WAIT, propagate=False)
        assert type(exc) is CustomError
        assert exc.args == ("a", 1)

    def test_an_exception_that_cannot_be_rebuilt_still_says_what_it_was(self, task):
        result = task("fail_unpicklable").delay(7)
        exc = result.get(timeout=WAIT, propagate=False)
        assert result.state == states.FAILURE
        assert "UnpicklableError" in repr(exc)
        assert "cannot be pickled" in str(exc)

    def test_a_result_that_cannot_be_serialised_is_a_failure(self, task):
        result = task("unserialisable").delay()
        exc = result.get(timeout=WAIT, propagate=False)
        assert result.state == states.FAILURE
        assert "EncodeError" in repr(exc) or "not JSON serializable" in str(exc)

    def test_wrong_arguments_are_a_type_error(self, app, task):
        sent = app.send_task("tests.add", (1,))
        with pytest.raises(TypeError):
            sent.get(timeout=WAIT)

    def test_an_unregistered_task_is_reported(self, app):
        exc = app.send_task("tests.no_such_task").get(timeout=WAIT, propagate=False)
        assert type(exc).__name__ == "NotRegistered"

    def test_a_soft_time_limit_is_reported(self, task):
        result = task("sleep").apply_async((20,), soft_time_limit=1)
        exc = result.get(timeout=WAIT, propagate=False)
        assert type(exc).__name__ == "SoftTimeLimitExceeded"

    def test_a_hard_time_limit_is_reported(self, task):
        result = task("sleep").apply_async((20,), time_limit=1)
        exc = result.get(timeout=WAIT, propagate=False)
        assert type(exc).__name__ == "TimeLimitExceeded"


class TestStates:
    def test_every_progress_report_reaches_on_message_in_order(self, task):
        seen = Seen()
        result = task("progress").delay(5)
        assert result.get(timeout=WAIT, on_message=seen.append) == 5
        assert [m["status"] for m in seen.of(result)] == ["PROGRESS"] * 5 + ["SUCCESS"]
        assert [m["result"] for m in seen.of(result)] == [
            {"step": n, "of": 5} for n in range(5)
        ] + [5]

    def test_on_message_of_a_group_sees_every_member(self, app, task):
        seen = Seen()
        results = [task("progress").delay(2) for _ in range(3)]
        got = app.ResultSet(results, app=app).join_native(timeout=WAIT, on_message=seen.append)
        assert got == [2, 2, 2]
        assert sorted(m["status"] for m in seen.of(*results)) == ["PROGRESS"] * 6 + ["SUCCESS"] * 3

    def test_polling_sees_the_newest_progress(self, polled):
        result = polled("progress_then_wait").delay(4, 1.5)
        wait_until(lambda: result.state == "PROGRESS" and result.info["step"] == 3, WAIT, "step 3")
        assert result.info == {"step": 3, "of": 4}
        assert not result.ready()
        assert result.get(timeout=WAIT) == 4
        assert result.state == states.SUCCESS

    def test_started_is_reported_where_asked_for(self, task):
        seen = Seen()
        result = task("started_then").delay("v")
        assert result.get(timeout=WAIT, on_message=seen.append) == "v"
        assert [m["status"] for m in seen.of(result)] == ["STARTED", "SUCCESS"]
        assert set(seen.of(result)[0]["result"]) == {"pid", "hostname"}

    def test_retries_are_reported_and_the_end_is_a_success(self, task):
        seen = Seen()
        result = task("flaky").delay(2)
        assert result.get(timeout=WAIT, on_message=seen.append) == 2
        assert [m["status"] for m in seen.of(result)] == ["RETRY", "RETRY", "SUCCESS"]

    def test_when_the_retries_are_spent_the_tasks_exception_is_raised(self, task):
        with pytest.raises(ConnectionError, match="never"):
            task("hopeless").delay().get(timeout=WAIT)

    def test_an_ignored_result_is_none_at_once(self, task):
        result = task("ignored").delay("v")
        assert result.ignored
        assert result.get(timeout=WAIT) is None

    def test_ignoring_can_be_asked_for_per_call(self, task):
        assert task("echo").apply_async(("v",), ignore_result=True).get(timeout=WAIT) is None

    @pytest.mark.skipif(celery.VERSION[:2] < (5, 7), reason="Celery's workers heed it since 5.7")
    def test_not_ignoring_can_be_asked_for_per_call(self, task):
        assert task("ignored").apply_async(("v",), ignore_result=False).get(timeout=WAIT) == "v"

    def test_a_task_that_ignores_itself_leaves_its_last_state(self, polled):
        result = polled("ignore_itself").delay()
        wait_until(lambda: result.state == "LEFT", WAIT, "the state is LEFT")
        assert result.info == {"by": "itself"}

    def test_a_replaced_task_answers_for_the_first(self, task):
        assert task("replaced").delay(3, 4).get(timeout=WAIT) == 7


class TestRevoking:
    def test_a_task_revoked_before_it_ran_raises(self, app, worker, task):
        task_id = str(uuid.uuid4())
        reply = app.control.revoke(task_id, reply=True, destination=[worker.name], timeout=10)
        assert reply
        result = task("echo").apply_async(("no",), task_id=task_id)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=WAIT)
        assert result.state == states.REVOKED
        assert result.failed() is False

    def test_a_task_terminated_while_it_ran_raises(self, polled):
        result = polled("started_then").delay("no", 60)
        wait_until(lambda: result.state == states.STARTED, WAIT, "the task has started")
        result.revoke(terminate=True, signal="SIGKILL")
        with pytest.raises(TaskRevokedError):
            result.get(timeout=WAIT)
        assert result.state == states.REVOKED

    def test_an_expired_task_is_revoked(self, task):
        past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=5)
        result = task("echo").apply_async(("late",), expires=past)
        with pytest.raises(TaskRevokedError):
            result.get(timeout=WAIT)


class TestCallbacks:
    def test_then_is_called_with_the_finished_result(self, task):
        called: list = []
        result = task("echo").delay("then")
        result.then(called.append)
        assert result.get(timeout=WAIT) == "then"
        assert called == [result]
        assert called[0].result == "then"

    def test_then_after_the_end_is_called_at_once(self, task):
        called: list = []
        result = task("echo").delay("late")
        result.get(timeout=WAIT)
        result.then(called.append)
        assert called == [result]

    def test_then_of_one_is_called_while_waiting_for_another(self, task):
        called: list = []
        first = task("echo").delay(1)
        first.then(called.append)
        other = task("sleep").delay(0.3)
        assert other.get(timeout=WAIT) == 0.3
        first.get(timeout=WAIT)
        assert called == [first]

    def test_the_callback_of_get_gets_id_and_value(self, task):
        called: list = []
        result = task("echo").delay("v")
        result.get(timeout=WAIT, callback=lambda *args: called.append(args))
        assert called == [(result.id, "v")]

    def test_then_of_a_set_is_called_when_all_are_there(self, app, task):
        called: list = []
        results = app.ResultSet([task("echo").delay(n) for n in range(5)], app=app)
        results.then(called.append)
        assert results.get(timeout=WAIT) == list(range(5))
        assert called == [results]

    def test_a_linked_task_runs_with_the_result(self, task):
        link = task("add").s(10)
        linked = link.freeze()
        assert task("add").apply_async((1, 2), link=link).get(timeout=WAIT) == 3
        assert linked.get(timeout=WAIT) == 13

    def test_an_error_link_runs_after_a_failure(self, task):
        handler = task("echo").si("handled")
        handled = handler.freeze()
        result = task("fail").apply_async(("broken",), link_error=handler)
        with pytest.raises(ValueError, match="broken"):
            result.get(timeout=WAIT)
        assert handled.get(timeout=WAIT) == "handled"

    def test_an_errback_in_the_worker_does_no_harm(self, task):
        result = task("fail").apply_async(("broken",), link_error=task("on_error").s())
        with pytest.raises(ValueError, match="broken"):
            result.get(timeout=WAIT)


class TestChildren:
    def test_subtasks_are_the_results_children(self, task):
        result = task("spawn").delay([1, 2, 3])
        ids = result.get(timeout=WAIT)
        assert [child.id for child in result.children] == ids

    def test_a_group_is_one_child_with_its_members(self, app, task):
        result = task("spawn_group").delay([1, 2, 3])
        group_id = result.get(timeout=WAIT)
        (child,) = result.children
        assert isinstance(child, app.GroupResult)
        assert child.id == group_id
        assert len(child) == 3

    def test_a_chain_is_one_child(self, task):
        result = task("spawn_chain").delay([1, 2, 3])
        ids = result.get(timeout=WAIT)
        (child,) = result.children
        assert child.id in ids

    def test_collect_walks_a_result_without_children(self, task):
        result = task("echo").delay("alone")
        with allow_join_result():
            assert list(result.collect(timeout=WAIT)) == [(result, "alone")]

    def test_collect_follows_a_link(self, task):
        link = task("add").s(10)
        link.freeze()
        result = task("add").apply_async((1, 2), link=link)
        assert [value for _, value in result.collect(timeout=WAIT)] == [3, 13]
        assert result.get_leaf() == 13

    @pytest.fixture
    def joining(self, pair, make_worker, leaf_worker, make_client):
        """joining("join") is the task of a worker whose tasks may wait for subtasks.

        With stock the worker has only one pool process: two would inherit the name of one reply
        queue from their parent, and take each other's results.
        """
        worker = make_worker(pair[1], "prefork", concurrency=1 if pair[1] == STOCK else 2)
        leaf_worker(worker)
        app = make_client(pair[0], worker)
        return lambda name: app.tasks[f"tests.{name}"]

    def test_a_task_may_wait_for_its_subtasks_inside_the_worker(self, joining):
        assert joining("join").delay([1, 2, 3]).get(timeout=WAIT) == [2, 4, 6]
        assert joining("join_one").delay("leaf").get(timeout=WAIT) == "leaf"

    def test_tasks_that_wait_for_subtasks_work_again_and_again(self, joining):
        sent = [joining("join_one").delay(n) for n in range(30)]
        assert [r.get(timeout=WAIT) for r in sent] == list(range(30))


class TestChains:
    def test_a_chain_returns_the_last_result(self, task):
        add = task("add")
        result = chain(add.s(1, 2), add.s(3), add.s(4))()
        assert result.get(timeout=WAIT) == 10

    def test_every_link_of_a_chain_can_be_read(self, task):
        add = task("add")
        result = chain(add.s(1, 2), add.s(3), add.s(4))()
        assert result.get(timeout=WAIT) == 10
        assert result.parent.get(timeout=WAIT) == 6
        assert result.parent.parent.get(timeout=WAIT) == 3
        assert result.graph is not None

    def test_a_chain_may_be_written_with_pipes(self, task):
        add = task("add")
        assert (add.s(1, 1) | add.s(1) | add.si(5, 5))().get(timeout=WAIT) == 10

    def test_a_failure_early_in_a_chain_is_raised_at_its_end(self, task):
        result = chain(task("fail").s("early"), task("add").s(1), task("add").s(1))()
        with pytest.raises(ValueError, match="early"):
            result.get(timeout=WAIT)

    def test_a_long_chain_arrives(self, task):
        add = task("add")
        assert chain(add.s(0, 1), *(add.s(1) for _ in range(29)))().get(timeout=WAIT) == 30


class TestGroups:
    @pytest.fixture
    def ten(self, task):
        return group(task("add").s(n, n) for n in range(10))()

    def test_join_returns_the_results_in_order(self, ten):
        assert ten.join(timeout=WAIT) == [2 * n for n in range(10)]

    def test_join_native_returns_the_results_in_order(self, ten):
        assert ten.join_native(timeout=WAIT) == [2 * n for n in range(10)]

    def test_get_returns_the_results_in_order(self, ten):
        assert ten.supports_native_join
        assert ten.get(timeout=WAIT) == [2 * n for n in range(10)]

    def test_join_after_join_native_still_knows(self, ten):
        assert ten.join_native(timeout=WAIT) == ten.join(timeout=WAIT) == ten.get(timeout=WAIT)

    def test_iter_native_yields_id_and_meta_as_they_arrive(self, ten):
        got = {task_id: meta["result"] for task_id, meta in ten.iter_native(timeout=WAIT)}
        assert got == {result.id: 2 * n for n, result in enumerate(ten.results)}

    def test_a_finished_group_knows_all_about_itself(self, ten):
        ten.get(timeout=WAIT)
        assert ten.ready()
        assert ten.successful()
        assert not ten.failed()
        assert not ten.waiting()
        assert ten.completed_count() == 10

    def test_a_group_becomes_ready_by_polling(self, pair, polled):
        if pair[0] == STOCK:
            pytest.skip("rpc:// starts its consumer for a group, and then polls nothing")
        ten = group(polled("add").s(n, n) for n in range(10))()
        wait_until(ten.ready, WAIT, "the group is ready")
        assert ten.get(timeout=WAIT) == [2 * n for n in range(10)]

    def test_join_calls_back_with_id_and_value(self, ten):
        called: dict = {}
        ten.join(timeout=WAIT, callback=called.__setitem__)
        assert called == {result.id: 2 * n for n, result in enumerate(ten.results)}

    def test_join_native_calls_back_with_id_and_value(self, ten):
        called: dict = {}
        ten.join_native(timeout=WAIT, callback=called.__setitem__)
        assert called == {result.id: 2 * n for n, result in enumerate(ten.results)}

    def test_a_member_can_be_read_alone(self, ten):
        assert ten[7].get(timeout=WAIT) == 14
        assert ten.get(timeout=WAIT) == [2 * n for n in range(10)]

    def test_a_failed_member_raises(self, task):
        result = group(task("echo").s(1), task("fail").s("one bad"), task("echo").s(2))()
        with pytest.raises(ValueError, match="one bad"):
            result.get(timeout=WAIT)
        # Waited for, not polled: stock polls nothing once it has waited.
        result.get(timeout=WAIT, propagate=False)
        assert result.failed()
        assert not result.successful()

    def test_without_propagation_a_failed_member_is_returned(self, task):
        result = group(task("echo").s(1), task("fail").s("one bad"), task("echo").s(2))()
        first, bad, last = result.get(timeout=WAIT, propagate=False)
        assert (first, last) == (1, 2)
        assert isinstance(bad, ValueError)

    def test_groups_in_groups(self, task):
        add = task("add")
        inner = group(add.s(1, 1), add.s(2, 2))
        result = group(inner, add.s(3, 3), group(add.s(4, 4), group(add.s(5, 5))))()
        leaves = [2, 4, 6, 8, 10]
        assert sorted(_flat(result.get(timeout=WAIT))) == leaves

    def test_a_group_of_chains(self, task):
        add = task("add")
        result = group(chain(add.s(n, 1), add.s(1)) for n in range(4))()
        assert result.get(timeout=WAIT) == [2, 3, 4, 5]

    def test_a_task_chained_into_a_group(self, task):
        add = task("add")
        result = chain(add.s(1, 1), group(add.s(n) for n in range(3)))()
        assert result.get(timeout=WAIT) == [2, 3, 4]
        assert result.parent.get(timeout=WAIT) == 2

    def test_a_group_of_one(self, task):
        assert group([task("echo").s("one")])().get(timeout=WAIT) == ["one"]

    def test_an_empty_group(self, app):
        assert group([], app=app)().get(timeout=WAIT) == []

    def test_a_thousand_members(self, task):
        result = group(task("echo").s(n) for n in range(1000))()
        assert result.get(timeout=WAIT) == list(range(1000))

    def test_a_group_survives_as_tuple(self, app, ten):
        again = result_from_tuple(ten.as_tuple(), app=app)
        assert again.get(timeout=WAIT) == [2 * n for n in range(10)]

    def test_the_members_carry_their_groups_id(self, task):
        result = group(task("about_me").s() for _ in range(2))()
        assert [me["group"] for me in result.get(timeout=WAIT)] == [result.id] * 2


class TestResultSets:
    def test_results_are_added_and_removed(self, app, task):
        first, second = task("echo").delay(1), task("echo").delay(2)
        results = app.ResultSet([], app=app)
        results.add(first)
        results.add(second)
        assert results.get(timeout=WAIT) == [1, 2]
        results.remove(first)
        assert results.get(timeout=WAIT) == [2]

    def test_a_set_of_mixed_ages(self, app, task):
        old = [task("echo").delay(n) for n in range(5)]
        assert old[2].get(timeout=WAIT) == 2
        new = [task("echo").delay(n) for n in range(5, 10)]
        assert app.ResultSet(old + new, app=app).join_native(timeout=WAIT) == list(range(10))

    def test_iter_native_of_a_set(self, app, task):
        results = app.ResultSet([task("echo").delay(n) for n in range(20)], app=app)
        got = sorted(meta["result"] for _, meta in results.iter_native(timeout=WAIT))
        assert got == list(range(20))

    def test_forget_forgets_all(self, app, task):
        results = app.ResultSet([task("echo").delay(n) for n in range(3)], app=app)
        results.get(timeout=WAIT)
        results.forget()
        assert [r.state for r in results] == [states.PENDING] * 3


class TestNotSupported:
    """As on rpc://, each raises at once, with a clear message."""

    def test_a_chord(self, task):
        with pytest.raises(NotImplementedError, match="chord"):
            chord([task("add").s(1, 1)] * 2)(task("echo").s())

    def test_a_group_chained_into_a_task(self, task):
        signature = group(task("add").s(1, 1), task("add").s(2, 2)) | task("echo").s()
        with pytest.raises(NotImplementedError, match="chord"):
            signature.delay()

    def test_saving_a_group(self, app, task):
        result = group([task("echo").s(1)])()
        with pytest.raises(NotImplementedError, match="save_group"):
            result.save()
        with pytest.raises(NotImplementedError, match="restore_group"):
            app.GroupResult.restore(result.id, backend=app.backend)
        with pytest.raises(NotImplementedError, match="delete_group"):
            result.delete()
        assert result.get(timeout=WAIT) == [1]

    def test_reloading(self, app):
        with pytest.raises(NotImplementedError, match="reload_task_result"):
            app.backend.reload_task_result("id")
        with pytest.raises(NotImplementedError, match="reload_group_result"):
            app.backend.reload_group_result("id")


class TestTheMessage:
    def test_replies_go_to_the_callers_own_queue(self, app, task):
        result = task("about_me").delay()
        me = result.get(timeout=WAIT)
        assert me["reply_to"] == app.thread_oid
        assert me["correlation_id"] == me["id"] == result.id

    def test_priority_is_kept(self, task):
        assert task("about_me").apply_async(priority=3).get(timeout=WAIT)["priority"] == 3

    def test_stamps_reach_the_task(self, task):
        signature = task("about_me").s()
        signature.stamp(customer="acme")
        result = signature.apply_async()
        assert result.get(timeout=WAIT)["stamps"] in ({"customer": "acme"}, {"customer": ["acme"]})

    def test_the_backend_calls_itself_rpc(self, app):
        assert app.backend.as_uri() == app.backend.as_uri(include_password=False) == "rpc://"

    def test_the_backend_can_be_pickled(self, app):
        again = pickle.loads(pickle.dumps(app.backend))
        assert type(again) is type(app.backend)

    def test_extended_results_describe_the_task(self, pair, make_worker, make_client):
        worker = make_worker(pair[1], "solo", conf={"result_extended": True})
        app = make_client(pair[0], worker, result_extended=True)
        result = app.tasks["tests.about_me"].apply_async((1, "two"), {"three": 3})
        result.get(timeout=WAIT)
        assert result.name == "tests.about_me"
        assert result.args == [1, "two"]
        assert result.kwargs == {"three": 3}
        assert result.worker == worker.name
        assert result.queue == worker.queue
        assert result.retries == 0


SERIALIZERS = {
    "pickle": {"set": {1, 2}, "tuple": (1, 2), "error": None, "bytes": b"\xff"},
    "yaml": {"list": [1, 2], "text": "naïve", "none": None, "float": 1.5},
    "msgpack": {"list": [1, 2], "text": "naïve", "none": None, "int": 2**40},
    "json": {"list": [1, 2], "text": "naïve", "none": None, "int": 2**70},
}


class TestSerializers:
    @pytest.fixture(params=SERIALIZERS)
    def serializer(self, request):
        return request.param

    @pytest.fixture
    def speaking(self, pair, serializer, make_worker, make_client):
        """A client and a worker that use the serializer both ways."""
        conf = {
            "task_serializer": serializer,
            "result_serializer": serializer,
            "accept_content": [serializer],
        }
        worker = make_worker(pair[1], "solo", conf=conf)
        return make_client(pair[0], worker, **conf)

    def test_values_states_and_errors_come_back(self, speaking, serializer):
        value = SERIALIZERS[serializer]
        assert speaking.tasks["tests.echo"].delay(value).get(timeout=WAIT) == value
        assert speaking.tasks["tests.progress"].delay(3).get(timeout=WAIT) == 3
        exc = speaking.tasks["tests.fail_custom"].delay("e").get(timeout=WAIT, propagate=False)
        assert type(exc) is CustomError
        assert exc.args == ("e",)
        members = group(speaking.tasks["tests.echo"].s(n) for n in range(20))
        assert members().get(timeout=WAIT) == list(range(20))

    def test_an_exception_that_cannot_be_pickled_comes_back_by_name(self, speaking):
        result = speaking.tasks["tests.fail_unpicklable"].delay(7)
        assert "UnpicklableError" in repr(result.get(timeout=WAIT, propagate=False))


@pytest.mark.filterwarnings("ignore:.*cannot store compressed payloads")
def test_asking_for_compressed_results_does_no_harm(pair, make_worker, make_client):
    conf = {"task_compression": "gzip", "result_compression": "gzip"}
    app = make_client(pair[0], make_worker(pair[1], "solo", conf=conf), **conf)
    assert app.tasks["tests.echo"].delay("z" * 100_000).get(timeout=WAIT) == "z" * 100_000


def test_persistent_results(pair, make_worker, make_client):
    conf = {"result_persistent": True}
    app = make_client(pair[0], make_worker(pair[1], "solo", conf=conf), **conf)
    results = group(app.tasks["tests.echo"].s(n) for n in range(20))()
    assert results.get(timeout=WAIT) == list(range(20))


def test_results_of_a_worker_that_is_asked_to_stop_still_arrive(pair, broker, make_client):
    with Worker(broker.url, pair[1], concurrency=1, queues=("fastrpc-tests-stopping",)) as worker:
        result = make_client(pair[0], worker).tasks["tests.started_then"].delay("finished", 1)
        wait_until(lambda: result.state == states.STARTED, WAIT, "the task has started")
        assert worker.stop() == 0
        assert result.get(timeout=WAIT) == "finished"


def _flat(value):
    return [leaf for v in value for leaf in _flat(v)] if isinstance(value, list) else [value]
