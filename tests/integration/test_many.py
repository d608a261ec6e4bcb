"""apply_many() and batch() against a real broker."""

from __future__ import annotations

import contextvars
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import celery._state
import celery.local
import kombu
import pytest
from amqp.exceptions import NotFound
from celery import Celery, group, shared_task
from celery.app.task import Task
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import EncodeError, OperationalError

import fastrpc
from fastrpc import NotAllSent, TableError
from fastrpc.tasks import batch as batch_module
from fastrpc.tasks.many import Model
from fastrpc.transport.connection import Connection
from tests.support.apps import make_app
from tests.support.installed import installed
from tests.support.processes import Child, run_child
from tests.support.proxy import Proxy
from tests.support.threads import run_threads
from tests.support.waiting import wait_until

WAIT = 20
CONFIRMED = {"broker_transport_options": {"confirm_publish": True}}


@pytest.fixture(autouse=True, scope="module")
def switched_on() -> Iterator[None]:
    with installed():
        yield


class Sender:
    """An app, and the messages in its queue."""

    def __init__(self, url: str, broker: Any, **conf: Any) -> None:
        self.queue = f"fastrpc-tests-many-{uuid.uuid4()}"
        self.app = make_app(url, "rpc://", self.queue, **conf)
        self.add = self.app.tasks["tests.add"]
        self.watcher = kombu.Connection(broker.url)
        self.bound = kombu.Queue(self.queue, kombu.Exchange(self.queue), routing_key=self.queue)
        self.channel = self.watcher.default_channel
        self.bound(self.channel).declare()

    def count(self) -> int:
        return int(self.channel.queue_declare(self.queue, passive=True).message_count)

    def ids(self, count: int) -> list[str]:
        """The ids of all messages, once this many have arrived."""
        wait_until(lambda: self.count() >= count, WAIT, f"{count} have arrived")
        found = []
        while (raw := self.channel.basic_get(self.queue, no_ack=True)) is not None:
            found.append(raw.properties["correlation_id"])
        return found

    @property
    def pipeline(self) -> Any:
        """Of pipelined tasks: what sends them."""
        return self.app.amqp.producer_pool.Producer.keywords["pipeline"]

    def await_confirms(self) -> None:
        """Of pipelined tasks: nothing is to be sent again over a proxy that is gone."""
        self.pipeline.flush()

    def close(self) -> None:
        self.channel.queue_delete(self.queue)
        self.watcher.release()
        self.app.close()


@pytest.fixture
def sender(broker) -> Iterator[Callable[..., Sender]]:
    made: list[Sender] = []

    def make(url: str = broker.url, **conf: Any) -> Sender:
        made.append(Sender(url, broker, **conf))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["model", "one by one"])
def watched(request, monkeypatch) -> str:
    """Both ways of apply_many()."""
    if request.param == "one by one":
        monkeypatch.setattr(Model, "of", lambda *args: None)
    return request.param


class TestApplyMany:
    def test_each_call_is_sent_once_and_has_its_result(self, sender, watched):
        one = sender()
        results = fastrpc.apply_many(one.add, ((n, n) for n in range(2500)))
        assert [result.id for result in results] == one.ids(2500)
        assert len({result.id for result in results}) == 2500

    def test_iterables_are_consumed_a_batch_at_a_time(self, sender, watched):
        one = sender()

        def arguments() -> Iterator[tuple[int, int]]:
            for n in range(2500):
                if n == 2400:
                    wait_until(lambda: one.count() >= 1000, WAIT, "the first have left")
                yield n, n

        assert len(fastrpc.apply_many(one.add, arguments()).results) == 2500

    def test_keyword_arguments(self, sender, watched):
        one = sender()
        fastrpc.apply_many(one.add, kwargslist=[{"x": 1, "y": 2}])
        fastrpc.apply_many(one.add, [(1,), (2,)], [{"y": 2}, {"y": 3}])
        assert len(one.ids(3)) == 3

    @pytest.mark.parametrize("decorator", ["app.task", "shared_task"])
    def test_a_task_that_is_still_a_proxy(self, sender, watched, decorator, monkeypatch):
        """As a decorator leaves it in a module, before the app is finalized."""
        one = sender()
        other = Celery(broker=one.app.conf.broker_url, set_as_current=False)
        other.conf.task_default_queue = one.queue
        monkeypatch.setattr(celery._state._tls, "current_app", other)
        decorate = other.task if decorator == "app.task" else shared_task

        @decorate(name="tests.proxied", ignore_result=True)
        def proxied(n: int) -> None: ...

        assert isinstance(proxied, celery.local.Proxy)
        results = fastrpc.apply_many(proxied, ((n,) for n in range(30)))
        assert [result.id for result in results] == one.ids(30)

    def test_no_calls(self, sender):
        one = sender()
        assert fastrpc.apply_many(one.add, []).results == []
        assert fastrpc.apply_many([]).results == []

    def test_signatures(self, sender):
        one = sender()
        results = fastrpc.apply_many((one.add.s(n, n) for n in range(30)), priority=3)
        assert [result.id for result in results] == one.ids(30)

    def test_eager(self, sender):
        one = sender(task_always_eager=True)
        assert fastrpc.apply_many(one.add, [(1, 2), (3, 4)]).get() == [3, 7]

    def test_missing_or_superfluous_arguments(self, sender):
        one = sender()
        with pytest.raises(TypeError, match="argslist or kwargslist"):
            fastrpc.apply_many(one.add)
        with pytest.raises(TypeError, match="not with signatures"):
            fastrpc.apply_many([one.add.s(1, 2)], [(1, 2)])

    def test_the_name_of_a_task(self, sender):
        one = sender()
        with pytest.raises(TypeError, match="takes a task, not the name"):
            fastrpc.apply_many("tests.add", [(1, 2)])
        results = fastrpc.apply_many(one.app.signature("tests.add", args) for args in [(1, 2)])
        assert [result.id for result in results] == one.ids(1)


class TestFailures:
    """The calls before the failed one are sent, and the error holds their results."""

    def check(self, raised: Any, one: Sender, count: int, cause: type[Exception]) -> None:
        assert isinstance(raised.value.__cause__, cause)
        assert raised.value.in_doubt == []
        assert [result.id for result in raised.value.sent] == one.ids(count)
        assert one.count() == 0

    @pytest.mark.parametrize("bad", [(1,), (1, 2, 3)])
    @pytest.mark.parametrize("at", [0, 1, 1500])
    def test_arguments_that_the_task_does_not_take(self, sender, watched, bad, at):
        one = sender()
        arguments = [(n, n) for n in range(2000)]
        arguments[at] = bad
        with pytest.raises(NotAllSent, match=f"tasks sent: {at}, in doubt: 0; then: ") as raised:
            fastrpc.apply_many(one.add, arguments)
        self.check(raised, one, at, TypeError)

    @pytest.mark.parametrize(
        ("argslist", "kwargslist", "short"),
        [([(1,), (2,)], [{"y": 2}], "kwargslist"), ([(1,)], [{"y": 2}, {"y": 3}], "argslist")],
    )
    def test_lists_of_unequal_length(self, sender, watched, argslist, kwargslist, short):
        one = sender()
        with pytest.raises(NotAllSent, match=f"{short} has too few items") as raised:
            fastrpc.apply_many(one.add, argslist, kwargslist)
        self.check(raised, one, 1, ValueError)

    def test_arguments_that_are_no_list(self, sender, watched):
        one = sender()
        with pytest.raises(NotAllSent) as raised:
            fastrpc.apply_many(one.app.tasks["tests.about_me"], [(1,), "text"])
        self.check(raised, one, 1, TypeError)

    def test_an_argument_that_cannot_be_encoded(self, sender, watched):
        one = sender()
        with pytest.raises(NotAllSent) as raised:
            fastrpc.apply_many(one.add, [(1, 2), (3, object())])
        self.check(raised, one, 1, EncodeError)
        fastrpc.apply_many(one.add, [(1, 2)])  # the connection is usable
        assert len(one.ids(1)) == 1

    def test_an_iterable_that_raises(self, sender, watched):
        def arguments() -> Iterator[tuple[int, int]]:
            yield 1, 2
            yield 3, 4
            raise KeyError("mine")

        one = sender()
        with pytest.raises(NotAllSent) as raised:
            fastrpc.apply_many(one.add, arguments())
        self.check(raised, one, 2, KeyError)

    def test_lists_of_unlike_length(self, sender, watched):
        one = sender()
        with pytest.raises(NotAllSent) as raised:
            fastrpc.apply_many(one.add, [(1,), (2,)], [{"y": 1}])
        self.check(raised, one, 1, ValueError)


class TestLostConnections:
    def cut_at(self, proxy: Proxy, at: int, count: int) -> Iterator[tuple[int, str]]:
        for n in range(count):
            if n == at:
                proxy.cut()
            yield n, "x" * 500

    def test_unwritten_messages_are_sent_over_the_next_one(self, broker, sender, watched):
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port))
            fastrpc.apply_many(one.add, [(1, 2)])
            assert len(one.ids(1)) == 1
            results = fastrpc.apply_many(one.add, self.cut_at(proxy, 20, 100))
            assert set(one.ids(100)) == {result.id for result in results}

    def test_without_retries_the_error_names_the_tasks_in_doubt(self, broker, sender, watched):
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), task_publish_retry=False)
            fastrpc.apply_many(one.add, [(1, 2)])
            assert len(one.ids(1)) == 1
            with pytest.raises(NotAllSent) as raised:
                fastrpc.apply_many(one.add, self.cut_at(proxy, 1500, 3000), ignore_result=True)
            sent, in_doubt = raised.value.sent.results, raised.value.in_doubt
            assert in_doubt
            assert not {result.id for result in sent} & set(in_doubt)
            # Messages written before the cut may be lost with the connection, as on stock.
            assert set(one.ids(1)) <= {*(result.id for result in sent), *in_doubt}

    @pytest.mark.parametrize("options", [{"retry": False}, {"retry_policy": {"max_retries": 0}}])
    def test_the_options_of_the_call_say_whether_it_is_retried(
        self, broker, sender, watched, options
    ):
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), **CONFIRMED)
            fastrpc.apply_many(one.add, [(1, 2)], ignore_result=True)
            assert len(one.ids(1)) == 1
            options = {"ignore_result": True, **options}
            with pytest.raises(NotAllSent) as raised:
                fastrpc.apply_many(one.add, self.cut_at(proxy, 1500, 1600), **options)
            in_doubt = set(raised.value.in_doubt)
            assert in_doubt
            assert len(one.ids(1)) == len(raised.value.sent.results)

    def test_without_retries_each_call_that_wants_a_result_connects_again(
        self, broker, sender, monkeypatch
    ):
        """To declare the reply queue. What is collected is then written to that connection."""
        monkeypatch.setattr(Model, "of", lambda *args: None)
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), task_publish_retry=False)
            fastrpc.apply_many(one.add, [(1, 2)])
            assert len(one.ids(1)) == 1
            results = fastrpc.apply_many(one.add, self.cut_at(proxy, 20, 100))
            assert one.ids(100) == [result.id for result in results]


class TestConfirms:
    def test_the_broker_has_all_when_it_returns(self, sender, watched):
        one = sender(**CONFIRMED)
        results = fastrpc.apply_many(one.add, ((n, n) for n in range(2500)))
        assert one.count() == 2500
        assert [result.id for result in results] == one.ids(2500)

    def test_single_calls_between_batches(self, sender):
        one = sender(**CONFIRMED)
        for n in range(3):
            fastrpc.apply_many(one.add, [(1, 2), (3, 4)])
            one.add.delay(1, 2)
            assert one.count() == 3 * (n + 1)

    def test_tasks_that_the_broker_refuses_are_in_doubt(self, sender, watched):
        one = sender(**CONFIRMED)
        one.channel.queue_delete(one.queue)
        arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
        options = {"queue": kombu.Queue(one.queue, queue_arguments=arguments)}
        with pytest.raises(NotAllSent) as raised:
            fastrpc.apply_many(one.add, [(n, n) for n in range(10)], **options)
        assert len(raised.value.in_doubt) == 7
        assert [result.id for result in raised.value.sent] == one.ids(3)
        for _ in range(3):
            one.add.apply_async((1, 2), **options)
        with pytest.raises(OperationalError, match="the broker refused"):  # stock's has no text
            one.add.apply_async((1, 2), **options)

    def test_a_connection_that_is_cut_while_confirms_are_due(self, broker, sender):
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), **CONFIRMED)
            fastrpc.apply_many(one.add, [(1, 2)])
            assert len(one.ids(1)) == 1

            def arguments() -> Iterator[tuple[int, int]]:
                for n in range(1000):
                    yield n, n
                    if n == 998:
                        proxy.freeze()
                        cutter.start()

            def mend() -> None:
                proxy.thaw()
                proxy.cut()

            cutter = threading.Timer(1, mend)
            results = fastrpc.apply_many(one.add, arguments())
            cutter.join()
            assert set(one.ids(1000)) == {result.id for result in results}

    def test_what_is_confirmed_is_not_sent_again(self, sender, monkeypatch):
        """The connection is lost after three of ten confirms."""
        one = sender(**CONFIRMED)
        fastrpc.apply_many(one.add, [(1, 2)], ignore_result=True)
        assert len(one.ids(1)) == 1
        stock, struck = Connection.drain_events, []

        def lose(connection: Connection, timeout: float | None = None) -> None:
            if timeout is not None or struck:
                return stock(connection, timeout)
            struck.append(connection)
            channel = connection.channels[1]
            for ack in list(channel.events["basic_ack"]):
                ack(channel.published - 7, True)
            raise ConnectionResetError

        monkeypatch.setattr(Connection, "drain_events", lose)
        results = fastrpc.apply_many(one.add, [(n, n) for n in range(10)], ignore_result=True)
        ids = one.ids(17)
        assert struck
        assert [ids.count(result.id) for result in results] == [1] * 3 + [2] * 7

    def test_only_what_is_not_confirmed_is_in_doubt(self, sender, monkeypatch):
        """Though all was written in one go: no retry, and a broker that refused the second."""
        one = sender(task_publish_retry=False, **CONFIRMED)
        fastrpc.apply_many(one.add, [(1, 2)], ignore_result=True)

        def lose(connection: Connection, timeout: float | None = None) -> None:
            if timeout is not None:
                raise TimeoutError
            channel, last = connection.channels[1], connection.channels[1].published
            for nack in list(channel.events["basic_nack"]):
                nack(last - 8, False)
            for ack in list(channel.events["basic_ack"]):
                ack(last - 5, True)
            raise ConnectionResetError

        with monkeypatch.context() as patched:
            patched.setattr(Connection, "drain_events", lose)
            with pytest.raises(NotAllSent) as raised:
                fastrpc.apply_many(one.add, [(n, n) for n in range(10)], ignore_result=True)
        ids = one.ids(11)[1:]
        assert raised.value.in_doubt == [ids[1], *ids[5:]]
        assert [result.id for result in raised.value.sent] == [ids[0], *ids[2:5]]

    def test_a_wait_that_was_interrupted_leaves_no_confirms_to_others(
        self, broker, sender, monkeypatch
    ):
        """The next call would take them for its own."""
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), **CONFIRMED)
            fastrpc.apply_many(one.add, [(1, 2)], ignore_result=True)
            assert len(one.ids(1)) == 1
            before = proxy.stats["accepted"]
            with monkeypatch.context() as patched:
                patched.setattr(Connection, "drain_events", interrupt)
                with pytest.raises(NotAllSent) as raised:
                    fastrpc.apply_many(one.add, [(1, 2), (3, 4)], ignore_result=True)
            assert isinstance(raised.value.__cause__, SoftTimeLimitExceeded)
            assert len(raised.value.in_doubt) == 2
            assert len(one.ids(2)) == 2
            one.add.apply_async((1, 2), ignore_result=True)
            assert one.count() == 1
            assert proxy.stats["accepted"] == before + 1


def interrupt(connection: Connection, timeout: float | None = None) -> None:
    """In place of ``drain_events``: a time limit strikes whoever waits."""
    if timeout is None:
        raise SoftTimeLimitExceeded
    raise TimeoutError


class TestBatch:
    def test_calls_and_groups_leave_together(self, sender):
        one = sender()
        one.add.delay(1, 2)
        assert len(one.ids(1)) == 1
        with fastrpc.batch(one.app) as batch:
            results = [one.add.apply_async((n, n)) for n in range(10)]
            results += group(one.add.s(n, n) for n in range(10))().results
            one.app.send_task("tests.add", (1, 2))
            assert one.count() == 0
            batch.flush()
            wait_until(lambda: one.count() == 21, WAIT, "they have left")
            results.append(one.add.delay(1, 2))
        assert len(one.ids(22)) == 22

    def test_other_threads_and_apps_are_not_in_it(self, sender):
        one, other = sender(), sender()
        with fastrpc.batch(one.app):
            thread = threading.Thread(target=one.add.delay, args=(1, 2))
            thread.start()
            thread.join()
            assert len(one.ids(1)) == 1
            other.add.delay(1, 2)
            assert len(other.ids(1)) == 1
            with fastrpc.batch(other.app):
                one.add.delay(1, 2)
                other.add.delay(1, 2)
            assert len(other.ids(1)) == 1
            assert one.count() == 0
        assert len(one.ids(1)) == 1

    def test_an_exception_inside_discards_unwritten_messages(self, sender):
        one = sender()

        def fail() -> None:
            with fastrpc.batch(one.app, max_size=2):
                for _ in range(3):
                    one.add.delay(1, 2)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        one.add.delay(1, 2)
        assert len(one.ids(3)) == 3

    def test_a_call_that_fails_leaves_the_others(self, sender):
        one = sender()
        with fastrpc.batch(one.app):
            one.add.delay(1, 2)
            with pytest.raises(EncodeError):
                one.add.delay(1, object())
            one.add.delay(3, 4)
        assert len(one.ids(2)) == 2

    def to_a_missing_exchange(self, one: Sender) -> list[str]:
        """Send five tasks in a batch, the third one to an exchange that does not exist."""
        ids = [str(uuid.uuid4()) for _ in range(5)]
        with fastrpc.batch(one.app):
            for n, id in enumerate(ids):
                to = {"exchange": "no-such-exchange", "routing_key": "key"} if n == 2 else {}
                one.add.apply_async((n, n), task_id=id, ignore_result=True, **to)
        return ids

    def test_a_missing_exchange_without_confirms(self, sender):
        """What follows it in the write is lost, and a later call is told, as on stock."""
        one = sender()

        def call() -> None:
            one.add.apply_async((1, 2), ignore_result=True)

        ids = self.to_a_missing_exchange(one)
        assert one.ids(2) == ids[:2]
        with pytest.raises(NotFound):
            wait_until(call, WAIT, "a call is told")
        last = one.add.apply_async((1, 2), ignore_result=True)
        assert one.ids(1) == [last.id]

    def test_a_missing_exchange_with_confirms(self, sender):
        one = sender(**CONFIRMED)
        with pytest.raises(NotAllSent, match="no-such-exchange") as raised:
            self.to_a_missing_exchange(one)
        assert isinstance(raised.value.__cause__, NotFound)
        assert len(raised.value.in_doubt) >= 3

    def test_a_fork_sends_nothing_of_its_parents(self, sender):
        one = sender()
        with fastrpc.batch(one.app) as batch:
            first = one.add.delay(1, 2)
            Child(batch.flush).result()
            second = one.add.delay(1, 2)
        assert one.ids(2) == [first.id, second.id]

    @pytest.mark.parametrize("conf", [{}, CONFIRMED], ids=["plain", "confirmed"])
    def test_a_fork_sends_its_own_at_once_and_leaves_the_block(self, sender, conf):
        one = sender(**conf)

        def in_child() -> None:
            one.add.delay(3, 4)
            batch.flush()
            batch.__exit__(None)

        with fastrpc.batch(one.app) as batch:
            one.add.delay(1, 2)
            Child(in_child).result()
            assert len(one.ids(1)) == 1
            one.add.delay(1, 2)
        assert len(one.ids(2)) == 2

    def test_a_thread_in_a_copy_of_the_context_is_not_in_it(self, sender):
        """As asyncio.to_thread() makes one."""
        one = sender()
        with fastrpc.batch(one.app):
            context = contextvars.copy_context()
            run_threads(3, lambda n: context.copy().run(one.add.delay, n, n))
            assert len(one.ids(3)) == 3
            one.add.delay(1, 2)
            assert one.count() == 0
        assert len(one.ids(1)) == 1

    def test_a_copy_of_the_context_outlives_it(self, sender):
        """A task of asyncio that was made inside."""
        one = sender(broker_pool_limit=1)
        with fastrpc.batch(one.app):
            context = contextvars.copy_context()
            one.add.delay(1, 2)
        context.run(one.add.delay, 3, 4)
        one.add.delay(5, 6)
        assert len(one.ids(3)) == 3

    def test_connections_go_back(self, sender):
        one = sender(broker_pool_limit=1)
        for _ in range(3):
            with fastrpc.batch(one.app):
                one.add.delay(1, 2)
            one.add.delay(1, 2)
        assert len(one.ids(6)) == 6

    def test_a_command_of_remote_control_leaves_at_once(self, sender):
        """Its sender may wait for replies."""
        one = sender()
        exchange = one.app.control.mailbox.exchange
        commands = kombu.Queue(f"{one.queue}-commands", exchange, exclusive=True)(one.channel)
        commands.declare()
        with fastrpc.batch(one.app):
            one.add.delay(1, 2)
            one.app.control.broadcast("enable_events")
            assert len(one.ids(1)) == 1
            wait_until(lambda: commands.get(no_ack=True) is not None, WAIT, "it has arrived")
            one.add.delay(1, 2)
            assert one.count() == 0
        assert len(one.ids(1)) == 1

    def test_it_is_entered_once(self, sender):
        batch = fastrpc.batch(sender().app)
        with batch, pytest.raises(RuntimeError, match="entered only once"):
            batch.__enter__()

    def test_an_app_that_sends_by_celery(self, sender):
        """As one that was made before install(): no gain, and nothing is lost."""
        one = sender()
        app = Celery(amqp="celery.app.amqp:AMQP", set_as_current=False)
        app.conf.update(broker_url=one.app.conf.broker_url, task_default_queue=one.queue)
        add = app.tasks["celery.accumulate"]
        batch = fastrpc.batch(app)
        with pytest.warns(RuntimeWarning, match="before the app is made"):
            batch.__enter__()
        results = [add.delay(1, 2), *fastrpc.apply_many(add, [(3, 4), (5, 6)])]
        assert [result.id for result in results] == one.ids(3)  # before the batch ends
        batch.__exit__(None)

    @pytest.mark.parametrize(
        "send",
        [
            lambda add: fastrpc.apply_many(add, [(1, 2)]),
            lambda add: fastrpc.apply_many(add, ((n, n) for n in range(2))),
            lambda add: fastrpc.apply_many(add.s(n, n) for n in range(2)),
            lambda add: list(fastrpc.apply_many(add, [(n, n)]) for n in range(1)),
            lambda add: fastrpc.batch(add.app).__enter__(),
        ],
        ids=["arguments", "lazy arguments", "lazy signatures", "in a generator", "batch"],
    )
    def test_the_warning_names_the_line_of_the_caller(self, send):
        app = Celery(amqp="celery.app.amqp:AMQP", set_as_current=False, broker="memory://")
        with pytest.warns(RuntimeWarning, match="before the app is made") as caught:
            send(app.tasks["celery.accumulate"])
        found = [(w.filename, w.lineno) for w in caught if "before the app" in str(w.message)]
        assert found == [(__file__, send.__code__.co_firstlineno)]

    def test_a_warning_that_is_raised_leaves_no_batch_behind(self, sender):
        app = Celery(amqp="celery.app.amqp:AMQP", set_as_current=False)
        app.conf.broker_url = sender().app.conf.broker_url
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            with pytest.raises(RuntimeWarning, match="before the app is made"):
                fastrpc.batch(app).__enter__()
        assert batch_module.current_producers(app) is None

    def test_where_the_transport_is_not_ours(self):
        app = make_app("memory://", "cache+memory://")
        with fastrpc.batch(app), pytest.raises(TypeError, match=r"fastrpc.install\(\)"):
            app.tasks["tests.add"].delay(1, 2)


class TestReplacedMethods:
    """As tracing tools do: the replacement is called for each message."""

    @pytest.mark.parametrize(
        ("owner", "name"),
        [
            (Task, "apply_async"),
            (Celery, "send_task"),
            (kombu.Producer, "publish"),
            (kombu.Producer, "_publish"),
        ],
        ids=lambda value: getattr(value, "__name__", value),
    )
    def test_they_are_called(self, sender, monkeypatch, owner, name):
        one = sender()
        method = getattr(owner, name)
        seen = []

        def traced(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            return method(*args, **kwargs)

        one.add.delay(1, 2)
        monkeypatch.setattr(owner, name, traced)
        one.add.delay(1, 2)
        assert len(seen) == 1
        fastrpc.apply_many(one.add, [(1, 2), (3, 4)])
        assert len(seen) == 3
        with fastrpc.batch(one.app):
            one.add.delay(1, 2)
        assert len(seen) == 4
        assert len(one.ids(5)) == 5

    @pytest.mark.parametrize("name", ["apply_async", "send_task", "publish", "_publish"])
    def test_they_are_called_where_they_were_replaced_before_our_import(self, broker, name):
        said = run_child("tests.support.replaced_child", broker.url, name)
        assert said.split() == ["8"]

    def test_signals_are_sent_for_each(self, sender):
        from celery import signals

        one = sender()
        seen = []

        def before(**kwargs: Any) -> None:
            seen.append(kwargs["headers"]["id"])

        signals.before_task_publish.connect(before)
        try:
            results = fastrpc.apply_many(one.add, [(1, 2), (3, 4), (5, 6)])
        finally:
            signals.before_task_publish.disconnect(before)
        assert seen == [result.id for result in results]


class TestPipelined:
    """confirm_publish="pipelined": calls do not wait, and nothing is lost with a connection."""

    CONF: ClassVar = {"broker_transport_options": {"confirm_publish": "pipelined"}}

    def test_calls_arrive_in_order_as_stocks(self, sender):
        one = sender(**self.CONF)
        results = [one.add.apply_async((n, n), headers={"n": n}) for n in range(300)]
        assert [result.id for result in results] == one.ids(300)

    def sent_into_a_frozen_path(self, broker, proxy, sender):
        """A sender whose two first tasks have arrived, and the results of 30 that cannot."""
        one = sender(broker.url_for(proxy.port), **self.CONF)
        one.add.apply_async((0, 0), ignore_result=True)
        one.add.apply_async((0, 0), ignore_result=True)
        assert len(one.ids(2)) == 2
        wait_until(lambda: not one.pipeline._publisher.unconfirmed, WAIT, "both are confirmed")
        proxy.freeze()
        return one, [one.add.apply_async((n, n), ignore_result=True) for n in range(30)]

    def test_a_call_does_not_wait_for_its_confirm(self, broker, sender):
        with Proxy(broker.host, broker.port) as proxy:
            one, results = self.sent_into_a_frozen_path(broker, proxy, sender)
            assert one.count() == 0
            proxy.thaw()
            assert [result.id for result in results] == one.ids(30)
            one.await_confirms()

    def test_who_goes_on_sending_after_a_cut_loses_nothing(self, broker, sender):
        with Proxy(broker.host, broker.port) as proxy:
            one = sender(broker.url_for(proxy.port), **self.CONF)
            ids = []
            for n in range(90):
                if n % 30 == 29:
                    proxy.cut(rst=n % 60 == 29)
                ids.append(one.add.apply_async((n, "x" * 1000)).id)
            wait_until(lambda: one.count() >= 90, WAIT, "all have arrived")
            found: set[str] = set()
            wait_until(
                lambda: found.update(one.ids(0)) or found >= set(ids), WAIT, "each has arrived"
            )
            one.await_confirms()

    def test_what_was_not_confirmed_is_sent_again_though_nobody_sends(self, broker, sender):
        with Proxy(broker.host, broker.port) as proxy:
            one, results = self.sent_into_a_frozen_path(broker, proxy, sender)
            proxy.cut()
            proxy.thaw()
            assert {result.id for result in results} == set(one.ids(30))
            one.await_confirms()

    def test_a_header_that_cannot_be_encoded(self, sender):
        one = sender(**self.CONF)
        one.add.delay(1, 2)
        with pytest.raises(TableError, match="object"):
            one.add.apply_async((1, 2), headers={"bad": object()})
        one.add.delay(1, 2)
        assert len(one.ids(2)) == 2

    @pytest.mark.parametrize("exchange", ["no-such-exchange", "amq.rabbitmq.trace", "message size"])
    def test_a_task_that_the_broker_does_not_take_holds_up_no_other(self, sender, caplog, exchange):
        """Its exchange is missing, or forbidden: the broker closes the channel."""
        one = sender(**self.CONF)
        bad = {"exchange": exchange, "routing_key": "key"}
        results = [
            one.add.apply_async((n, n), ignore_result=True, **(bad if n % 10 == 3 else {}))
            for n in range(50)
        ]
        one.await_confirms()
        dropped = [result.id for result in results[3::10]]
        assert {*one.ids(45)} == {result.id for result in results} - {*dropped}
        for id in dropped:
            assert f"the broker does not take task {id}" in caplog.text

    def test_batches_have_one_wait(self, sender):
        one = sender(**self.CONF)
        fastrpc.apply_many(one.add, [(n, n) for n in range(30)])
        assert one.count() == 30

    def test_they_are_flushed_at_exit(self, broker):
        queue = f"fastrpc-tests-pipelined-{uuid.uuid4()}"
        with Proxy(broker.host, broker.port) as proxy:
            run_child("tests.support.pipelined_child", broker.url_for(proxy.port), queue)
        with kombu.Connection(broker.url) as connection:
            channel = connection.default_channel
            wait_until(
                lambda: channel.queue_declare(queue, passive=True).message_count == 500,
                WAIT,
                "all have arrived",
            )
            channel.queue_delete(queue)
