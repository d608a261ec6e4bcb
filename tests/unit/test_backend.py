"""fastrpc.backend without a server: how to get it, and every name of its API."""

from __future__ import annotations

import gc
import inspect
import json
import pickle
import socket
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from types import SimpleNamespace

import celery
import kombu
import pytest
from celery import chord, group, states
from celery.app.task import Context
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend
from celery.backends.rpc import RPCBackend as StockBackend
from celery.exceptions import TimeoutError
from celery.signals import worker_before_create_process, worker_process_init
from kombu.exceptions import DecodeError

import fastrpc
from fastrpc import BacklogLimitExceeded, ResultDropped, _lifecycle, errors
from fastrpc.backend import RPCBackend
from fastrpc.chords.chords import Chords
from fastrpc.client.names import QueueNames
from fastrpc.client.reader import ResultConsumer
from fastrpc.client.side import ClientSide
from fastrpc.sending.kombu_publisher import KombuPublisher
from fastrpc.worker.side import WorkerSide
from tests.support.apps import make_app
from tests.support.installed import installed
from tests.support.results import meta
from tests.support.threads import Background
from tests.support.waiting import stopwatch


@pytest.fixture
def app():
    app = make_app()
    yield app
    app.backend.close()


@pytest.fixture
def backend(app) -> RPCBackend:
    return app.backend


def arrives(backend, task_id: str, *args) -> None:
    """Deliver a message, as the reader does."""
    backend.client.matcher.deliver(task_id.encode(), meta(task_id, *args))


class TestGettingIt:
    def test_the_url_is_enough(self):
        assert type(make_app(backend="fastrpc://").backend) is RPCBackend

    def test_the_url_is_enough_in_a_new_process_that_imports_nothing_of_ours(self):
        code = (
            "from celery import Celery\n"
            "print(type(Celery(broker='memory://', backend='fastrpc://').backend).__module__)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.split() == ["fastrpc.backend"]

    def test_it_is_one_entry_point_of_celerys_group(self):
        (entry,) = entry_points(group="celery.result_backends", name="fastrpc")
        assert entry.value == "fastrpc.backend:RPCBackend"
        assert entry.load() is RPCBackend

    def test_install_takes_over_rpc(self):
        assert type(make_app(backend="rpc://").backend) is StockBackend
        with installed():
            assert type(make_app(backend="rpc://").backend) is RPCBackend
            assert type(make_app(backend="rpc").backend) is RPCBackend

    def test_without_install_rpc_is_celerys(self):
        assert type(make_app(backend="rpc://").backend) is StockBackend

    def test_importing_the_package_does_not_import_celery(self):
        code = "import sys, fastrpc; print('celery' in sys.modules)"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.split() == ["False"]

    def test_the_public_names_are_there_and_no_others(self):
        assert all(hasattr(fastrpc, name) for name in fastrpc.__all__)
        assert set(fastrpc.__all__) == {*errors.__all__, "apply_many", "batch", "install"}

    def test_the_errors_are_one_tree(self):
        for name in errors.__all__:
            assert issubclass(getattr(fastrpc, name), fastrpc.FastRPCError)


class TestNames:
    def test_it_is_built_on_celerys_extension_points_not_on_its_rpc(self):
        assert issubclass(RPCBackend, Backend)
        assert issubclass(RPCBackend, AsyncBackendMixin)
        assert not issubclass(RPCBackend, StockBackend)

    def test_it_has_every_public_name_of_rpc(self):
        missing = {name for name in dir(StockBackend) if not name.startswith("_")} - set(
            dir(RPCBackend)
        )
        assert not missing

    @pytest.mark.parametrize(
        "name",
        [
            name
            for name, value in vars(StockBackend).items()
            if inspect.isfunction(value) and not name.startswith("_")
        ],
    )
    def test_it_accepts_the_arguments_of_rpc(self, name):
        stock = inspect.signature(getattr(StockBackend, name)).parameters
        ours = inspect.signature(getattr(RPCBackend, name)).parameters
        # By place: one argument of rpc's has a name that says something else than it is.
        assert [p.default for p in stock.values()] == [p.default for p in ours.values()]
        assert [p.kind for p in stock.values()] == [p.kind for p in ours.values()]

    def test_the_constructor_accepts_rpcs_arguments(self):
        stock = inspect.signature(StockBackend.__init__).parameters
        ours = inspect.signature(RPCBackend.__init__).parameters
        assert [*stock] == [*ours]
        assert {n: p.default for n, p in stock.items()} == {n: p.default for n, p in ours.items()}

    def test_the_class_attributes(self):
        assert RPCBackend.Exchange is kombu.Exchange
        assert RPCBackend.Producer is kombu.Producer
        assert issubclass(RPCBackend.Consumer, kombu.Consumer)
        assert RPCBackend.Consumer.auto_declare is False
        assert issubclass(RPCBackend.Queue, kombu.Queue)
        assert RPCBackend.ResultConsumer is ResultConsumer
        assert RPCBackend.BacklogLimitExceeded is BacklogLimitExceeded
        assert RPCBackend.persistent is False
        assert RPCBackend.supports_autoexpire is True
        assert RPCBackend.supports_native_join is True
        assert RPCBackend.retry_policy == StockBackend.retry_policy

    def test_one_object_serves_all_threads(self, app):
        app.backend  # noqa: B018
        seen: list = []
        threads = [threading.Thread(target=lambda: seen.append(app.backend)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [app.backend] * 3

    def test_also_if_celery_is_told_otherwise(self):
        app = make_app(result_backend_thread_safe=False)
        seen: list = []
        thread = threading.Thread(target=lambda: seen.append(app.backend))
        app.backend  # noqa: B018
        thread.start()
        thread.join()
        assert seen == [app.backend]

    def test_it_calls_itself_rpc(self, backend):
        assert backend.as_uri() == "rpc://"
        assert backend.as_uri(include_password=False) == "rpc://"

    def test_calls_without_work_do_nothing(self, backend, app):
        assert backend.revive(object()) is None
        assert backend.on_reply_declare("id") is None
        assert backend.on_result_fulfilled(app.AsyncResult("id")) is None

    @pytest.mark.parametrize(
        ("name", "args"),
        [
            ("reload_task_result", ("id",)),
            ("reload_group_result", ("id",)),
            ("save_group", ("id", None)),
            ("restore_group", ("id",)),
            ("restore_group", ("id", False)),
            ("delete_group", ("id",)),
        ],
    )
    def test_what_is_not_supported_says_so_by_name(self, backend, name, args):
        with pytest.raises(NotImplementedError, match=name):
            getattr(backend, name)(*args)

    def test_chords_are_refused_and_the_message_says_what_to_do(self, app, backend):
        with pytest.raises(NotImplementedError, match="redis://") as refused:
            backend.ensure_chords_allowed()
        assert "chord" in str(refused.value)

        @app.task
        def add(*args):
            return sum(args)

        with pytest.raises(NotImplementedError, match="chord"):
            chord([add.s(1), add.s(2)])(add.s())
        with pytest.raises(NotImplementedError, match="chord"):
            (group(add.s(1), add.s(2)) | add.s()).delay()

    def test_it_can_be_pickled_with_its_settings(self):
        app = make_app(backend="fastrpc://?prefetch=7")
        before = RPCBackend(
            app,
            url="fastrpc://?prefetch=7",
            serializer="pickle",
            persistent=True,
            auto_delete=False,
        )
        after = pickle.loads(pickle.dumps(before))
        assert after.options.prefetch == 7
        assert (after.serializer, after.persistent, after.auto_delete) == ("pickle", True, False)

    def test_stats_are_numbers_from_the_beginning(self, backend):
        stats = backend.stats()
        assert stats.pop("bad_messages") == {}
        assert set(stats.values()) == {0}
        assert {"received", "fulfilled", "duplicates", "published", "waiting", "unclaimed"} <= set(
            stats
        )


class TestPersistence:
    @pytest.mark.parametrize(
        ("setting", "argument", "mode"),
        [(None, None, 1), (True, None, 2), (False, None, 1), (False, True, 2), (True, False, 1)],
    )
    def test_the_argument_goes_before_the_setting(self, setting, argument, mode):
        conf = {} if setting is None else {"result_persistent": setting}
        backend = RPCBackend(make_app(**conf), persistent=argument)
        assert backend.delivery_mode == mode
        assert backend.persistent is (mode == 2)


class TestDestination:
    def test_it_is_in_the_request(self, backend):
        request = Context({"reply_to": "queue", "correlation_id": "cid"})
        assert backend.destination_for("id", request) == ("queue", "cid")

    def test_without_a_correlation_id_the_task_id_serves(self, backend):
        assert backend.destination_for("id", Context({"reply_to": "queue"})) == ("queue", "id")

    def test_without_a_request_the_current_tasks_request_is_used(self, app, backend):
        @app.task(bind=True)
        def where(self):
            return backend.destination_for("id", None)

        where.push_request(reply_to="queue", correlation_id="cid")
        from celery._state import _task_stack

        _task_stack.push(where)
        try:
            assert backend.destination_for("id", None) == ("queue", "cid")
        finally:
            _task_stack.pop()
            where.pop_request()

    def test_without_either_the_error_names_the_task(self, backend):
        with pytest.raises(RuntimeError, match="the-task"):
            backend.destination_for("the-task", None)

    def test_without_a_reply_queue_nothing_is_sent(self, backend):
        assert backend.store_result("id", 5, states.SUCCESS, request=Context({})) == 5
        assert backend.stats()["published"] == 0


class TestReplyQueue:
    def test_its_name_is_the_oid_of_the_thread(self, app, backend):
        assert backend.oid == app.thread_oid == backend.binding.name == backend.binding.routing_key

    def test_each_thread_has_its_own(self, backend):
        seen = [backend.oid]
        all_there = threading.Barrier(3)  # the name of a thread that ended may be given again

        def client() -> None:
            seen.append(backend.oid)
            all_there.wait(10)

        threads = [threading.Thread(target=client) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(seen)) == 4

    def test_it_is_durable_classic_and_expires(self, backend):
        queue = backend.binding
        assert queue.exchange.name == ""
        assert queue.durable is True
        assert queue.auto_delete is False
        assert queue.expires == 86400
        assert queue.queue_arguments == {
            "x-queue-type": "classic",
            "x-max-length-bytes": 2**30,
            "x-overflow": "reject-publish",
        }

    def test_it_expires_after_result_expires(self):
        assert make_app(result_expires=60).backend.binding.expires == 60
        assert not make_app(result_expires=0).backend.binding.expires

    def test_it_may_be_a_quorum_queue(self):
        queue = make_app(backend="fastrpc://?queue_type=quorum").backend.binding
        assert queue.queue_arguments["x-queue-type"] == "quorum"


class TestLooking:
    def test_an_unknown_task_is_pending(self, backend):
        assert backend.get_task_meta("id") == {"status": "PENDING", "result": None}
        assert backend.poll("id") == backend.get_task_meta("id")
        assert backend.task_result_exists("id") is False
        assert backend.is_cached("id") is False

    def test_an_arrived_result_is_seen_and_stays(self, app, backend):
        backend.get_task_meta("id")
        arrives(backend, "id", "here")
        assert backend.task_result_exists("id")
        assert backend.is_cached("id")
        assert backend.get_task_meta("id")["result"] == "here"
        assert app.AsyncResult("id").state == states.SUCCESS
        assert app.AsyncResult("id").get(timeout=1) == "here"

    def test_ready_may_hand_it_out(self, app, backend, monkeypatch):
        """As with `then`: ready() itself reads the result, which goes to the waiter."""
        result = app.AsyncResult("id")
        backend.add_pending_result(result)
        monkeypatch.setattr(
            backend.result_consumer, "look", lambda queue: arrives(backend, "id", "here") or 0
        )
        assert result.state == states.SUCCESS

    def test_forgetting_is_final_and_never_fails(self, app, backend):
        arrives(backend, "id")
        backend.forget("id")
        backend.forget("id")
        backend.forget("never heard of")
        assert backend.get_task_meta("id")["status"] == "PENDING"
        assert not backend.task_result_exists("id")
        app.AsyncResult("other").forget()

    @pytest.mark.parametrize("got", [True, False], ids=["got before", "never asked for"])
    def test_getting_a_forgotten_result_fails_at_once(self, app, backend, got):
        arrives(backend, "id")
        if got:
            app.AsyncResult("id").get(timeout=5)
        app.AsyncResult("id").forget()
        with pytest.raises(ResultDropped, match=r"id was handed out already.* or forgotten"):
            app.AsyncResult("id").get(timeout=5)

    @pytest.mark.parametrize("timeout", [None, 5, 0])
    def test_the_same_object_asks_for_nothing_more(self, app, backend, timeout):
        """As on rpc://."""
        result = app.AsyncResult("id")
        arrives(backend, "id")
        assert result.get(timeout=5) == 1
        result.forget()
        assert result.get(timeout=timeout) is None
        assert (result.state, result.ready()) == ("PENDING", False)
        assert backend.stats()["waiting"] == 0

    def test_nor_does_a_set_of_them(self, app, backend):
        results = app.ResultSet([app.AsyncResult(i) for i in "abc"], app=app)
        for task_id in "abc":
            arrives(backend, task_id)
        assert results.get(timeout=5) == [1, 1, 1]
        results.results[1].forget()
        assert results.get(timeout=5) == [1, None, 1]
        results.forget()
        assert results.get(timeout=5) == [None, None, None]
        assert list(results.iter_native(timeout=5)) == []

    def test_asking_after_forget_takes_nothing_from_others(self, app, backend):
        old = app.AsyncResult("id")
        arrives(backend, "id")
        old.get(timeout=5)
        old.forget()
        with app.connection_for_write() as connection:
            backend.on_task_call(kombu.Producer(connection), "id")
        assert old.get(timeout=5) is None
        arrives(backend, "id", "second")
        assert app.AsyncResult("id").get(timeout=5) == "second"

    def test_a_task_that_goes_on_can_be_waited_for_after_it_was_forgotten(self, app, backend):
        arrives(backend, "id", {"step": 1}, "PROGRESS")
        result = app.AsyncResult("id")
        result.forget()
        assert result.state == "PENDING"
        arrives(backend, "id", "the end")
        assert result.get(timeout=5) == "the end"

    def test_a_long_backlog_is_not_read_by_polling(self, backend, monkeypatch):
        monkeypatch.setattr(backend.result_consumer, "look", lambda queue: 11)
        with pytest.raises(BacklogLimitExceeded):
            backend.get_task_meta("id", backlog_limit=10)
        assert backend.get_task_meta("id", backlog_limit=11)["status"] == "PENDING"

    def test_a_message_out_of_band_is_kept_and_acknowledged(self, app, backend):
        class Message:
            body = meta("id", "out of band")
            content_type, content_encoding = "application/json", "utf-8"
            acknowledged = False

            def ack(self):
                self.acknowledged = True

        message = Message()
        backend.on_out_of_band_result("id", message)
        assert message.acknowledged
        assert app.AsyncResult("id").get(timeout=1) == "out of band"


class TestWaiting:
    def test_a_result_that_never_arrives_times_out(self, app):
        with pytest.raises(TimeoutError):
            app.AsyncResult("id").get(timeout=0.05)

    def test_a_handed_out_result_can_be_fetched_again(self, app, backend):
        arrives(backend, "id", [1])
        first, second, third = (app.AsyncResult("id") for _ in range(3))
        assert first.get(timeout=5) == [1]
        assert (third.ready(), third.state, third.result) == (True, states.SUCCESS, [1])
        assert backend.task_result_exists("id")
        assert second.get(timeout=5) == [1]
        assert second.result is not first.result
        again = app.ResultSet([app.AsyncResult("id")], app=app)
        assert again.join_native(timeout=5) == [[1]]

    def test_a_failure_and_another_format_too(self, app, backend):
        error = {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}
        arrives(backend, "a", error, states.FAILURE)
        backend.client.matcher.deliver(b"b", b"{")
        for task_id, raised in (("a", KeyError), ("b", DecodeError)) * 2:
            with pytest.raises(raised):
                app.AsyncResult(task_id).get(timeout=5)

    @pytest.mark.parametrize(
        ("option", "kept"),
        [("max_claimed=0", 0), ("max_claimed=4", 4), ("max_claimed_bytes=0", 0)],
    )
    def test_but_only_for_a_while(self, option, kept):
        app = make_app(backend=f"fastrpc://?{option}")
        for n in range(10):
            arrives(app.backend, f"id{n}", n)
            assert app.AsyncResult(f"id{n}").get(timeout=5) == n
        again = [n for n in range(10) if app.AsyncResult(f"id{n}").ready()]
        assert again == list(range(10 - kept, 10))
        if not kept:
            with pytest.raises(ResultDropped, match="id9 was handed out already"):
                app.AsyncResult("id9").get(timeout=5)
        app.backend.close()

    def test_a_large_one_is_not_kept(self, app, backend):
        arrives(backend, "id", "x" * 3 * 1024 * 1024)
        first = app.AsyncResult("id")
        first.get(timeout=5)
        with pytest.raises(ResultDropped, match="id was handed out already"):
            app.AsyncResult("id").get(timeout=5)
        assert first.get(timeout=5)

    @pytest.fixture
    def nested(self, app):
        """[a, [b, [c, [d]], []]], and a set of its own for what is in it on each level."""
        a, b, c, d = (app.AsyncResult(i) for i in "abcd")
        third = app.GroupResult("third", [d], app=app)
        second = app.GroupResult("second", [c, third], app=app)
        first = app.GroupResult(
            "first", [b, second, app.GroupResult("empty", [], app=app)], app=app
        )
        return app.GroupResult("outer", [a, first], app=app)

    def test_a_nested_group_is_ready_when_all_its_members_are(self, app, backend, nested):
        arriving = iter("dcab")
        seen = []
        with app.connection_for_write() as connection:
            backend.on_task_call(kombu.Producer(connection), "a")  # there is a queue to read
        results = nested.iter_native(timeout=5, on_interval=lambda: arrive_next())

        def arrive_next():
            for task_id in arriving:
                arrives(backend, task_id, task_id)
                return

        for member_id, value in results:
            seen.append(member_id)
            if member_id == "first":
                assert value is nested.results[1].results
                assert value[1].get() == ["c", ["d"]]  # no more waiting
        assert seen == ["a", "first"]
        assert nested.get(timeout=0) == ["a", ["b", ["c", ["d"]], []]]

    @pytest.mark.parametrize("missing", "abcd")
    def test_one_deadline_holds_on_every_level(self, backend, nested, missing):
        for task_id in set("abcd") - {missing}:
            arrives(backend, task_id)
        with stopwatch(2, "get"), pytest.raises(TimeoutError):
            nested.get(timeout=0.2)

    def test_an_empty_group_does_not_wait(self, app):
        empty = app.GroupResult("empty", [], app=app)
        result = app.AsyncResult("never")
        outer = app.GroupResult("outer", [empty, result], app=app)
        assert next(outer.iter_native(timeout=5)) == ("empty", [])

    def test_a_result_may_be_in_several_groups(self, app, backend):
        result = app.AsyncResult("a")
        inner = app.GroupResult("inner", [result, app.AsyncResult("b")], app=app)
        outer = app.ResultSet([result, inner, app.GroupResult("x", [inner], app=app)], app=app)
        arrives(backend, "a", 1)
        arrives(backend, "b", 2)
        assert outer.get(timeout=5) == [1, [1, 2], [[1, 2]]]

    def test_a_failure_in_a_nested_group_is_raised(self, app, backend, nested):
        error = {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}
        arrives(backend, "d", error, states.FAILURE)
        for task_id in "abc":
            arrives(backend, task_id, task_id)
        with pytest.raises(KeyError):
            nested.get(timeout=5)

    @pytest.mark.skipif(celery.VERSION < (5, 7), reason="this Celery raises it all the same")
    def test_without_propagate_it_is_a_value_of_that_group(self, backend, nested):
        error = {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}
        arrives(backend, "d", error, states.FAILURE)
        for task_id in "abc":
            arrives(backend, task_id, task_id)
        a, (b, (c, (d,)), empty) = nested.get(timeout=5, propagate=False)
        assert (a, b, c, type(d), empty) == ("a", "b", "c", KeyError, [])

    def test_getting_an_evicted_result_fails_at_once(self):
        app = make_app(backend="fastrpc://?max_unclaimed=1")
        arrives(app.backend, "a")
        arrives(app.backend, "b")
        with pytest.raises(ResultDropped, match="task a"):
            app.AsyncResult("a").get()
        assert app.AsyncResult("b").get(timeout=5) == 1
        assert app.backend.stats()["evicted"] == 1

    def test_in_a_set_too(self):
        app = make_app(backend="fastrpc://?max_unclaimed=1")
        arrives(app.backend, "a")
        arrives(app.backend, "b")
        results = app.ResultSet([app.AsyncResult("b"), app.AsyncResult("a")], app=app)
        with pytest.raises(ResultDropped, match="task a"):
            results.join_native()

    def test_it_arrives_between_two_checks(self, app, backend, monkeypatch):
        """The reader hands it out just after a thread has seen that it is not there."""
        result = app.AsyncResult("id")
        backend.add_pending_result(result)
        add = backend.client.matcher.add

        def interrupted(result, **kwargs):
            arrives(backend, result.id, "just now")
            return add(result, **kwargs)

        monkeypatch.setattr(backend.client.matcher, "add", interrupted)
        assert result.get(timeout=5) == "just now"

    def test_the_task_is_sent_again_under_the_same_id(self, app, backend):
        arrives(backend, "id", "first")
        assert app.AsyncResult("id").get(timeout=5) == "first"
        with app.connection_for_write() as connection:
            backend.on_task_call(kombu.Producer(connection), "id")
        arrives(backend, "id", "second")
        assert app.AsyncResult("id").get(timeout=5) == "second"

    def test_pending_results_can_be_added_and_removed(self, app, backend):
        results = [app.AsyncResult(i) for i in "abc"]
        assert backend.add_pending_results(results) == results
        assert backend.stats()["waiting"] == 3
        assert backend.remove_pending_result(results[0]) is results[0]
        assert backend.stats()["waiting"] == 2

    def test_a_wait_that_gives_up_leaves_nothing_behind(self, app, backend):
        for n in range(5):
            with pytest.raises(TimeoutError):
                app.AsyncResult(f"t{n}").get(timeout=0)
        gc.collect()
        assert backend.stats()["waiting"] == 0
        assert not len(backend.client.watchers)

    def test_get_many_yields_results_as_they_arrive(self, app, backend):
        for task_id in "ab":
            arrives(backend, task_id, task_id * 2)
        got = dict(backend.get_many(["a", "b"], timeout=5))
        assert {k: v["result"] for k, v in got.items()} == {"a": "aa", "b": "bb"}

    def test_get_many_times_out(self, backend):
        with pytest.raises(TimeoutError):
            list(backend.get_many(["nope"], timeout=0.05))

    def test_get_many_with_one_iteration_yields_what_has_arrived(self, backend):
        arrives(backend, "a")
        assert [i for i, _ in backend.get_many(["a", "b"], max_iterations=1)] == ["a"]


class TestCallbacksThatFail:
    def test_the_waiting_thread_gets_the_error(self, app, backend):
        result = app.AsyncResult("id")
        result.then(lambda result: 1 / 0)
        backend.add_pending_result(result)
        timer = threading.Timer(0.1, arrives, (backend, "id"))
        timer.start()
        with pytest.raises(ZeroDivisionError):
            result.get(timeout=5)
        timer.join()

    def test_without_a_waiter_it_is_logged(self, app, backend, caplog):
        result = app.AsyncResult("id")
        result.then(lambda result: 1 / 0)
        arrives(backend, "id")
        assert "a callback of the result of task id failed" in caplog.text


class TestTwins:
    """Celery makes two backends for an app if two threads ask for the first one at once."""

    def test_they_wait_on_the_same_queues(self, app, backend):
        twin = RPCBackend(app, url="fastrpc://")
        assert twin is not backend
        assert twin.result_consumer is backend.result_consumer

    def test_each_counts_what_it_sends_itself(self, app, backend):
        twin = RPCBackend(app, url="fastrpc://")
        request = Context(id="a", reply_to="queue", correlation_id="a")
        twin.store_result("a", 1, states.SUCCESS, request=request)
        assert (backend.stats()["published"], twin.stats()["published"]) == (0, 1)

    def test_so_does_the_backend_of_a_result_that_was_unpickled(self, app, backend):
        app.set_current()
        result = app.AsyncResult("id")
        unpickled = pickle.loads(pickle.dumps(result))
        assert unpickled.backend.result_consumer is backend.result_consumer

    def test_another_app_has_a_client_side_of_its_own(self, backend):
        assert make_app().backend.result_consumer is not backend.result_consumer


def test_a_backend_that_is_made_while_the_process_ends_hinders_nothing(monkeypatch):
    class Growing(list):
        grew = False

        def __iter__(self):
            if not self.grew:
                self.grew = True
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    backend = make_app().backend
    monkeypatch.setattr(_lifecycle, "_closeables", Growing([backend]))
    assert _lifecycle._registered() == [backend]


@pytest.mark.parametrize("end", ["_close_all", "_flush_all"])
def test_one_that_fails_to_close_does_not_stop_the_others(end, monkeypatch, caplog):
    def fail(self, timeout):
        ended.append(self)
        raise ZeroDivisionError

    ended: list = []
    monkeypatch.setattr(KombuPublisher, "close", fail)
    backends = [make_app().backend for _ in range(3)]
    monkeypatch.setattr(_lifecycle, "_closeables", backends)
    publishers = [backend.worker.publisher for backend in backends]
    getattr(_lifecycle, end)()
    assert ended == publishers
    assert (
        caplog.text.count("closing a result backend failed") == caplog.text.count("Traceback") == 3
    )


def test_a_pooled_producer_that_lost_its_connection_is_revived(app, backend):
    with app.producer_or_acquire() as producer:
        backend.on_task_call(producer, "id")
        lost = producer.channel
        producer.__connection__.collect()
        lost.connection = None  # as py-amqp's channel has it then
        backend.on_task_call(producer, "id")
        assert producer.channel is not lost


class TestCelerysNames:
    """Methods of Celery's own backend and consumer that subclasses and tools call."""

    def test_a_result_changed_by_a_subclass_is_sent(self, app):
        class Stamped(RPCBackend):
            def _to_result(self, *args):
                return {**super()._to_result(*args), "stamp": 1}

        backend = Stamped(app)
        sent: list = []
        backend.worker.publisher = SimpleNamespace(
            publish=sent.append, close=lambda timeout: None, after_fork=lambda: None
        )
        request = Context(id="a", reply_to="queue", correlation_id="a")
        backend.store_result("a", 1, states.SUCCESS, request=request)
        assert json.loads(sent[0].body)["stamp"] == 1

    def test_the_binding_of_a_task_is_the_threads_queue(self, backend):
        assert backend._create_binding("any").name == backend.oid

    def test_a_consumer_is_driven_by_hand(self, app, backend):
        consumer = backend.result_consumer
        result = app.AsyncResult("a")
        backend.add_pending_result(result)
        with pytest.raises(socket.timeout):
            consumer.drain_events(timeout=0.01)
        request = Context(id="a", reply_to=backend.oid, correlation_id="a")
        backend.store_result("a", 1, states.SUCCESS, request=request)
        for _ in consumer.drain_events_until(result.on_ready, timeout=5):
            pass
        assert result.get(timeout=0) == 1
        consumer.cancel_for("a")
        consumer.stop()


def test_a_large_prefetch_brings_no_duplicates():
    """After a cut the broker redelivers results that were handed out but not acknowledged."""
    prefetch = 65_535
    app = make_app(result_backend_transport_options={"prefetch": prefetch})
    table = app.backend.client.table
    for n in range(prefetch):
        table.finish(f"{n:08}")
    assert all(table.store(f"{n:08}", b"again") == -1 for n in range(prefetch))


class TestWhatOneSideDoesNotNeed:
    """A process imports each side when it first uses it."""

    CODE = """
import sys
from celery import Celery
app = Celery(broker="memory://", backend="fastrpc://")
backend = app.backend
assert not {"fastrpc.client.side", "fastrpc.worker.side"} & sys.modules.keys()
from celery.app.task import Context
request = Context(id="a", reply_to="queue", correlation_id="a")
"""

    @pytest.mark.parametrize(
        ("use", "imported", "not_imported"),
        [
            ("backend.store_result('a', 1, 'SUCCESS', request=request)", "worker", "client"),
            ("app.AsyncResult('a').ready()", "client", "worker"),
        ],
    )
    def test_is_not_imported(self, use, imported, not_imported):
        check = (
            f"assert 'fastrpc.{imported}.side' in sys.modules\n"
            f"assert 'fastrpc.{not_imported}.side' not in sys.modules"
        )
        subprocess.run([sys.executable, "-c", "\n".join([self.CODE, use, check])], check=True)

    def test_a_read_of_the_counters_imports_nothing(self):
        check = "backend.stats(); assert 'fastrpc.client.side' not in sys.modules"
        subprocess.run([sys.executable, "-c", f"{self.CODE}\n{check}"], check=True)

    def test_its_counters_are_zero(self, backend):
        unused = backend.stats()
        for part in ("client", "worker", "chords"):
            getattr(backend, part)
        assert unused == backend.stats()

    @pytest.mark.parametrize("signal", [worker_before_create_process, worker_process_init])
    def test_a_worker_makes_both_before_its_first_task(self, backend, signal):
        signal.send(sender=None)
        assert backend._names.side is not None
        assert backend._worker is not None

    def test_a_destructor_makes_nothing(self, app, backend):
        result = app.AsyncResult("a")
        del result
        gc.collect()
        assert backend._names.side is None

    @pytest.mark.parametrize(
        ("part", "made_class"),
        [("client", ClientSide), ("worker", WorkerSide), ("chords", Chords)],
    )
    def test_what_interrupts_its_making_may_use_it(self, backend, monkeypatch, part, made_class):
        """A destructor or a signal handler, for example."""
        used: list = []
        usual = made_class.__init__

        def interrupted(made, *args, **kwargs):
            monkeypatch.setattr(made_class, "__init__", usual)
            used.append(getattr(backend, part))
            usual(made, *args, **kwargs)

        monkeypatch.setattr(made_class, "__init__", interrupted)
        assert Background(lambda: getattr(backend, part)).result(5) is used[0]

    def test_what_interrupts_the_making_of_a_backend_may_make_another(self, monkeypatch):
        usual = QueueNames.__init__

        def interrupted(names, local):
            monkeypatch.setattr(QueueNames, "__init__", usual)
            made.append(app.backend)
            usual(names, local)

        app, made = make_app(), []
        monkeypatch.setattr(QueueNames, "__init__", interrupted)
        backend = Background(lambda: app.backend).result(5)
        assert backend.client is made[0].client

    def test_all_backends_of_an_app_close_its_client_side(self, app, backend, monkeypatch):
        second = RPCBackend(app)
        side = second.client
        assert backend.client is side
        del second
        gc.collect()
        closed: list = []
        monkeypatch.setattr(side, "close", lambda delete_queues: closed.append(side))
        backend.close()
        assert closed == [side]

    def test_a_thread_that_first_sends_when_the_process_ends_declares_nothing(self, app, backend):
        assert backend.leave(1)

        def send():
            with app.producer_or_acquire() as producer:
                backend.on_task_call(producer, "id")

        Background(send).result(5)
        assert not backend.client.queues.names

    def test_a_thread_that_first_looks_when_the_process_ends_connects_to_nothing(
        self, app, backend
    ):
        assert backend.leave(1)
        assert not Background(app.AsyncResult("a").ready).result(5)
        assert backend.client.reader.intake is None
        assert not backend.client.queues.names
