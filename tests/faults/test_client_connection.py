"""The caller's connection breaks, in every way: nothing is lost, nothing hangs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from fastrpc.client import amqp_intake as intake
from fastrpc.errors import ReplyQueueMismatch
from tests.support import inside
from tests.support.amqp_bytes import NOT_AMQP
from tests.support.apps import client
from tests.support.broker import RabbitMQ
from tests.support.proxy import TO_CLIENT, Proxy
from tests.support.results import answer, await_confirms, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import LATE, stopwatch, wait_until


def connect(app: Celery, sender: Celery) -> None:
    """Receive one result, so that the client is connected."""
    [result] = expect(app, 1)
    answer(sender, app.backend.oid, [result], "connected")
    assert result.get(timeout=10) == "connected"


def reading(app: Celery) -> bool:
    return inside.intake(app) is not None and inside.role_is_taken(app)


def has_ended(app: Celery) -> bool:
    """Whether the broker has closed the connection; bytes before that are read and dropped."""
    sock = inside.intake_socket(app)
    try:
        sock.settimeout(0.5)
        return not sock.recv(1 << 16)
    except ConnectionResetError:
        return True
    except OSError:
        return False


class TestCut:
    def test_ten_thousand_results_while_it_is_cut_every_half_second(self, cut_app, sender, proxy):
        results = expect(cut_app, 10_000)
        oid = cut_app.backend.oid
        cut_app.backend.add_pending_results(results)
        reader = Background(
            lambda: list(cut_app.ResultSet(results, app=cut_app).iter_native(timeout=50))
        )
        proxy.cut_every(0.5)
        # Spread over four seconds, so that each cut meets results on their way.
        began = time.monotonic()
        for n in range(0, 10_000, 100):
            answer(sender, oid, results[n : n + 100], f"batch {n}")
            time.sleep(max(0.0, began + n / 2_500 - time.monotonic()))
        came = reader.result(50)
        assert sorted(task_id for task_id, _ in came) == sorted(result.id for result in results)
        for n, result in enumerate(results):
            assert result.get(timeout=1) == f"batch {n // 100 * 100}"
        stats = cut_app.backend.stats()
        assert stats["reconnects"] >= 4
        assert (stats["waiting"], stats["unclaimed"]) == (0, 0)

    @pytest.mark.parametrize("count", [1, 7, 100, 1_000, 30_000])
    def test_cut_in_the_middle_of_a_delivery(self, cut_app, sender, proxy, count):
        """After so many bytes: in a frame's head, in its body, between two of them."""
        results = expect(cut_app, 100)
        connect(cut_app, sender)
        proxy.cut_after(count, TO_CLIENT)
        answer(sender, cut_app.backend.oid, results, "x" * 1_000)
        assert [result.get(timeout=20) for result in results] == ["x" * 1_000] * 100
        assert cut_app.backend.stats()["reconnects"] == 1

    @pytest.mark.parametrize("rst", [True, False], ids=["rst", "fin"])
    def test_waiting_threads_carry_on(self, cut_app, sender, proxy, rst):
        results = expect(cut_app, 16)
        oid = cut_app.backend.oid
        waiters = Background(lambda: run_threads(16, lambda n: results[n].get(timeout=30)))
        wait_until(lambda: inside.sleepers(cut_app) == 15, 10, "all wait")
        for _ in range(3):
            proxy.cut(rst=rst)
        answer(sender, oid, results)
        assert waiters.result(30) == list(range(16))

    def test_a_callback_is_called_once_for_each_result(self, cut_app, sender, proxy):
        """Results that were not acknowledged arrive again, and are recognised."""
        results = expect(cut_app, 3_000)
        heard: list[str] = []
        for result in results:
            result.then(lambda result: heard.append(result.id))
        connect(cut_app, sender)
        proxy.cut_every(0.1)
        answer(sender, cut_app.backend.oid, results)
        cut_app.ResultSet(results, app=cut_app).join_native(timeout=40)
        proxy.cut_every(None)
        assert sorted(heard) == sorted(result.id for result in results)

    def test_a_result_sent_while_the_client_was_away(self, cut_app, sender, proxy):
        results = expect(cut_app, 10)
        oid = cut_app.backend.oid
        connect(cut_app, sender)
        proxy.refuse()
        proxy.cut()
        answer(sender, oid, results)
        await_confirms(sender)
        assert sender.backend.stats()["returned"] == 0
        proxy.listen()
        assert [result.get(timeout=10) for result in results] == list(range(10))


class TestNotAMQP:
    """The peer sends nonsense: only the connection is lost."""

    @pytest.mark.parametrize("data", NOT_AMQP.values(), ids=NOT_AMQP)
    def test_waiting_threads_carry_on(self, cut_app, sender, proxy, data):
        results = expect(cut_app, 10)
        oid = cut_app.backend.oid
        connect(cut_app, sender)
        waiters = Background(lambda: run_threads(10, lambda n: results[n].get(timeout=30)))
        wait_until(lambda: inside.sleepers(cut_app) == 9, 10, "all wait")
        proxy.inject(data)
        wait_until(lambda: cut_app.backend.stats()["reconnects"] == 1, 10, "it is noticed")
        answer(sender, oid, results)
        assert waiters.result(30) == list(range(10))
        assert cut_app.backend.stats()["reconnects"] == 1


class TestUnreachable:
    @pytest.mark.parametrize("timeout", [0.1, 0.5, 1.5])
    @pytest.mark.parametrize("how", ["refused", "silent"])
    def test_get_times_out_in_time(self, cut_app, sender, proxy, how, timeout):
        """Refused at once, or accepted and never greeted."""
        [result] = expect(cut_app, 1)
        if how == "refused":
            proxy.refuse()
        else:
            proxy.freeze()
        proxy.cut()
        with stopwatch(timeout + LATE, f"get({timeout})"), pytest.raises(TimeoutError):
            result.get(timeout=timeout)

    @pytest.mark.parametrize("connected", [True, False])
    def test_every_thread_times_out_in_time(self, cut_app, sender, proxy, connected):
        results = expect(cut_app, 12)
        if connected:
            connect(cut_app, sender)
        proxy.refuse()
        proxy.cut()

        def wait(n: int) -> None:
            timeout = 0.2 + n / 10
            with stopwatch(timeout + LATE, f"get({timeout})"), pytest.raises(TimeoutError):
                results[n].get(timeout=timeout)

        run_threads(12, wait)

    def test_a_patient_reader_does_not_delay_a_hasty_one(self, cut_app, sender, proxy):
        """The thread that reconnects has no deadline; the others keep theirs."""
        patient, hasty = expect(cut_app, 2)
        connect(cut_app, sender)
        proxy.freeze()
        proxy.cut()
        waiting = Background(lambda: patient.get(timeout=30))
        wait_until(lambda: inside.role_is_taken(cut_app), 5, "it tries to connect")
        with stopwatch(0.5 + LATE, "get(0.5)"), pytest.raises(TimeoutError):
            hasty.get(timeout=0.5)
        proxy.thaw()
        answer(sender, cut_app.backend.oid, [patient], "in the end")
        assert waiting.result(20) == "in the end"

    def test_a_wait_without_timeout_carries_on_when_the_broker_is_back(
        self, cut_app, sender, proxy, records
    ):
        [result] = expect(cut_app, 1)
        oid = cut_app.backend.oid
        waiting = Background(result.get)
        wait_until(lambda: reading(cut_app), 10, "it reads")
        proxy.refuse()
        proxy.cut()
        wait_until(lambda: records.count("trying again") >= 4, 20, "it tried four times")
        assert waiting.running
        proxy.listen()
        answer(sender, oid, [result], "back")
        assert waiting.result(15) == "back"

    def test_one_of_many_short_waits_connects_again(self, cut_app, sender, proxy):
        """Each wait is shorter than the back-off pause after so many attempts."""
        [result] = expect(cut_app, 1)
        connect(cut_app, sender)
        proxy.refuse()
        proxy.cut()

        def look() -> bool:
            try:
                return result.get(timeout=0.3) == "seen"
            except TimeoutError:
                return False

        assert not any(look() for _ in range(20))
        proxy.listen()
        answer(sender, cut_app.backend.oid, [result], "seen")
        wait_until(look, 10, "one of the waits gets the result")

    def test_it_tries_again_with_pauses_that_grow(self, cut_app, proxy):
        """No storm: within three seconds a handful of attempts."""
        [result] = expect(cut_app, 1)
        proxy.freeze()  # accepts, so that attempts are counted; answers nothing
        proxy.cut()
        before = proxy.stats["accepted"]
        with pytest.raises(TimeoutError):
            result.get(timeout=3)
        assert 1 <= proxy.stats["accepted"] - before <= 8

    @pytest.mark.parametrize("count", [1, 300, 500, 520, 535, 550, 570, 600, 620, 640, 660])
    def test_frozen_at_any_point_of_connecting(self, private_broker, make_client, count):
        """The handshake, opening the channels, declaring, consuming: each may stay unanswered."""
        with Proxy(private_broker.host, private_broker.port) as proxy:
            app = make_client(private_broker.url)
            [result] = expect(app, 1)  # its queue is there: only the results come by the proxy
            app.conf.broker_read_url = private_broker.url_for(proxy.port)
            proxy.freeze_after(count, TO_CLIENT)

            def wait() -> None:
                with stopwatch(1 + LATE, "get(1)"), pytest.raises(TimeoutError):
                    result.get(timeout=1)

            Background(wait).result(5)

    def test_ready_does_not_hang_if_the_broker_does_not_answer(self, cut_app, sender, proxy):
        [result] = expect(cut_app, 1)
        connect(cut_app, sender)
        proxy.freeze()
        with stopwatch(1, "ready()"):
            assert not result.ready()


class TestHalfOpen:
    """The peer disappears without closing the connection: no FIN, no RST, no more bytes."""

    def test_closing_does_not_hang(self, cut_app, sender, proxy):
        connect(cut_app, sender)
        proxy.freeze()
        with stopwatch(10, "close()"):
            cut_app.backend.close()

    def test_heartbeats_notice_it(self, private_broker, proxy, make_client, sender):
        app = make_client(private_broker.url_for(proxy.port), options={"heartbeat": 1})
        self.notices_while_waiting(app, sender, proxy, well_for=0, within=6)

    def test_without_heartbeats_too(self, private_broker, proxy, make_client, sender, monkeypatch):
        """By a request on the channel that is not answered."""
        monkeypatch.setattr(intake, "ANSWER_TIMEOUT", 2.0)
        monkeypatch.setattr(intake, "QUESTION_INTERVAL", 2.0)
        app = make_client(private_broker.url_for(proxy.port), options={"heartbeat": 0})
        self.notices_while_waiting(app, sender, proxy, well_for=3, within=10)

    def notices_while_waiting(
        self, app: Celery, sender: Celery, proxy: Proxy, well_for: float, within: float
    ) -> None:
        [result] = expect(app, 1)
        connect(app, sender)
        waiting = Background(lambda: result.get(timeout=30))
        wait_until(lambda: reading(app), 5, "it reads")
        time.sleep(well_for)
        assert app.backend.stats()["reconnects"] == 0, "as long as it is answered"
        proxy.freeze()
        wait_until(lambda: app.backend.stats()["reconnects"], within, "it was noticed")
        proxy.cut()
        proxy.thaw()
        answer(sender, app.backend.oid, [result], "after all")
        assert waiting.result(20) == "after all"

    @pytest.mark.parametrize("queue_type", ["classic", "quorum"])
    def test_the_brokers_end_of_the_old_connection_gets_no_results(
        self, private_broker, proxy, make_client, sender, queue_type
    ):
        """The broker does not know yet, and has two consumers of the queue, one of them dead."""
        through_proxy = private_broker.url_for(proxy.port)
        app = make_client(
            f"{through_proxy};{private_broker.url}", options={"queue_type": queue_type}
        )
        connect(app, sender)
        results = expect(app, 10)
        proxy.freeze()
        inside.intake_socket(app).shutdown(2)
        waiting = Background(lambda: [result.get(timeout=20) for result in results])
        intake = inside.intake(app)
        wait_until(lambda: inside.intake(app) not in (intake, None), 20, "it reconnects")
        answer(sender, app.backend.oid, results)
        assert waiting.result(10) == list(range(10))

    def test_results_sent_to_the_old_connection_arrive_after_the_broker_drops_it(
        self, private_broker, proxy, make_client, sender
    ):
        """Without a reader the new connection is soon full; the next results go to the old one."""
        prefetch = 5
        app = make_client(
            f"{private_broker.url_for(proxy.port)};{private_broker.url}",
            options={"prefetch": prefetch, "heartbeat": 2},
        )
        connect(app, sender)
        results = expect(app, 4 * prefetch)
        proxy.freeze()
        inside.intake_socket(app).shutdown(2)
        old = inside.intake(app)
        with pytest.raises(TimeoutError):
            results[0].get(timeout=0.1)
        if inside.intake(app) in (old, None):
            with suppress(TimeoutError):
                results[0].get(timeout=3)
        answer(sender, app.backend.oid, results)
        await_confirms(sender)
        with stopwatch(20, "all come"):
            assert [result.get(timeout=20) for result in results] == list(range(4 * prefetch))

    def test_heartbeats_are_kept_while_waiting(self, private_broker, make_client, sender):
        """The broker drops a client that is silent for two heartbeats; waiting is not silence."""
        app = make_client(private_broker.url, options={"heartbeat": 1})
        [result] = expect(app, 1)
        connect(app, sender)
        with pytest.raises(TimeoutError):
            result.get(timeout=4)
        answer(sender, app.backend.oid, [result], "still here")
        assert result.get(timeout=5) == "still here"
        assert app.backend.stats()["reconnects"] == 0

    def test_an_idle_process_whose_broker_hung_up_recovers(
        self, private_broker, make_client, sender
    ):
        """It sends no heartbeats while it does not wait: the next call connects again."""
        app = make_client(private_broker.url, options={"heartbeat": 1})
        connect(app, sender)
        wait_until(lambda: has_ended(app), 10, "the broker hangs up")
        with stopwatch(3, "the next call"):
            connect(app, sender)
            results = expect(app, 5)
            answer(sender, app.backend.oid, results)
            assert [result.get(timeout=5) for result in results] == list(range(5))

    def test_an_idle_process_that_only_looks_recovers(self, cut_app, sender, proxy):
        [result] = expect(cut_app, 1)
        connect(cut_app, sender)
        proxy.cut()
        answer(sender, cut_app.backend.oid, [result], "seen")
        wait_until(result.ready, 10, "it is ready")

    def test_calls_go_on_over_connections_that_died(self, private_broker, proxy, worker):
        """Also over Celery's own connection, which sends the tasks."""
        app = client(private_broker.url_for(proxy.port), worker.queue)
        echo = app.tasks["tests.echo"]
        for n in range(4):
            assert echo.delay(n).get(timeout=20) == n
            proxy.cut(rst=bool(n % 2))
        app.backend.close()

    def test_a_call_with_a_producer_that_was_kept_connects_again(self, app):
        """Its connection, and so its channel, was closed meanwhile."""
        with app.connection_for_write() as connection:
            producer = app.amqp.Producer(connection)
            app.backend.on_task_call(producer, "some-id")
            connection.collect()
            app.backend.on_task_call(producer, "some-id")
            assert producer.channel.connection is not None

    def test_a_task_sent_once_arrives_if_its_connection_died(self, cut_app, proxy, worker):
        """Declaring the reply queue connects again, and nobody else does: with ``retry=False``
        kombu tries no second time. Celery 5.7 sends the next task of a chain so."""
        echo = cut_app.signature("tests.echo", queue=worker.queue)
        with cut_app.connection_for_write() as connection:
            producer = cut_app.amqp.Producer(connection)
            for n in range(4):
                result = echo.apply_async((n,), producer=producer, retry=False)
                assert result.get(timeout=20) == n
                proxy.cut(rst=bool(n % 2))


@contextmanager
def collector_off() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class TestDisturbed:
    """The connection stays, but the broker closes or deletes something on it."""

    def test_the_queue_is_deleted_under_us(self, app, sender, private_broker):
        [before, after] = expect(app, 2)
        oid = app.backend.oid
        waiting = Background(lambda: before.get(timeout=20))
        wait_until(lambda: reading(app), 10, "it reads")
        private_broker.ctl("delete_queue", oid)
        wait_until(lambda: oid in private_broker.queues(), 10, "the queue is there again")
        answer(sender, oid, [before, after])
        assert waiting.result(20) == 0
        assert after.get(timeout=5) == 1

    def test_the_queue_is_deleted_while_nobody_waits(self, app, sender, private_broker, worker):
        """The next call must declare the queue again, or its result would be lost."""
        app.conf.task_default_queue = worker.queue
        echo = app.tasks["tests.echo"]
        assert echo.apply_async((1,), queue=worker.queue).get(timeout=10) == 1
        private_broker.ctl("delete_queue", app.backend.oid)
        assert echo.apply_async((2,), queue=worker.queue).get(timeout=10) == 2

    def test_the_queue_is_lost_with_the_connection(self, cut_app, proxy, private_broker, worker):
        """A write after the peer's FIN succeeds but is lost, so it cannot declare the queue."""
        echo, oid = cut_app.tasks["tests.echo"], cut_app.backend.oid

        def call(value):
            result = echo.apply_async((value,), queue=worker.queue)
            wait_until(lambda: private_broker.queues().get(oid), 10, "it is answered")
            return result

        call(1)
        proxy.cut(rst=False)
        private_broker.ctl("delete_queue", oid)
        assert call(2).get(timeout=10) == 2

    def test_other_queues_results_survive_that(self, app, sender, private_broker):
        """One thread's queue is deleted while results stream into another's."""
        oid = app.backend.oid  # ours first: the other thread ends, and its name is free again
        theirs, _ = Background(lambda: (app.backend.oid, expect(app, 1))).result(10)
        results = expect(app, 6_000)
        connect(app, sender)
        waiting = Background(lambda: app.ResultSet(results, app=app).get(timeout=40))
        answer(sender, oid, results[:2_000])
        deleting = Background(lambda: private_broker.ctl("delete_queue", theirs))
        n = 2_000
        while deleting.running and n < 5_900:
            answer(sender, oid, results[n : n + 10], "during")
            n += 10
            time.sleep(0.002)
        answer(sender, oid, results[n:], "after")
        got = waiting.result(40)
        assert got == [*range(2_000), *["during"] * (n - 2_000), *["after"] * (6_000 - n)]

    def test_a_wait_is_interrupted_while_it_connects(self, app, sender, monkeypatch):
        """The abandoned connection must not keep the results that were delivered to it."""
        results = expect(app, 100)
        answer(sender, app.backend.oid, results)
        await_confirms(sender)

        def consume(self, name, consume=intake.AMQPIntake._consume):
            consume(self, name)
            time.sleep(0.3)  # the results are on their way
            raise KeyboardInterrupt

        monkeypatch.setattr(intake.AMQPIntake, "_consume", consume)
        with collector_off():
            with pytest.raises(KeyboardInterrupt):
                results[0].get(timeout=10)
            monkeypatch.undo()
            assert [result.get(timeout=10) for result in results] == list(range(100))

    def test_the_channel_is_closed_by_an_error(self, app, sender):
        [result] = expect(app, 1)
        oid = app.backend.oid
        connect(app, sender)
        # An acknowledgement of nothing: PRECONDITION_FAILED, and the broker closes the channel.
        inside.intake(app).channel.basic_ack(4711, multiple=False)
        answer(sender, oid, [result], "after")
        assert result.get(timeout=10) == "after"
        assert app.backend.stats()["reconnects"] == 1

    def test_the_connection_is_closed_by_an_operator(self, app, sender, private_broker):
        [result] = expect(app, 1)
        oid = app.backend.oid
        waiting = Background(lambda: result.get(timeout=20))
        wait_until(lambda: reading(app), 10, "it reads")
        private_broker.ctl("close_all_connections", "by an operator")
        answer(sender, oid, [result], "after")
        assert waiting.result(20) == "after"

    def test_a_short_lived_queue_expires_between_calls(
        self, private_broker, make_client, sender, worker
    ):
        """x-expires passes while the client is away: the next call makes the queue again."""
        app = make_client(private_broker.url, worker.queue, result_expires=1)
        echo = app.tasks["tests.echo"]
        assert echo.delay(1).get(timeout=10) == 1
        oid = app.backend.oid
        inside.intake_socket(app).shutdown(2)
        app.backend.result_consumer.look(oid)  # notices, and does not connect again
        wait_until(lambda: oid not in private_broker.queues(), 10, "it has expired")
        assert echo.delay(2).get(timeout=10) == 2


def test_results_for_others_do_not_move_the_deadline(app, sender):
    connect(app, sender)
    [result, other] = expect(app, 2)
    later = threading.Timer(0.9, lambda: answer(sender, oid, [other]))
    oid = app.backend.oid
    later.start()
    with stopwatch(1.2 + LATE, "get"), pytest.raises(TimeoutError):
        result.get(timeout=1.2)
    wait_until(other.ready, 5, "the other has come")


@contextmanager
def silenced(node: RabbitMQ, queue: str) -> Iterator[None]:
    """Inside the block, the broker's process for `queue` does not answer, as if it was killed."""
    find = f'{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, <<"{queue}">>)),'
    node.ctl("eval", f"{find} sys:suspend(amqqueue:get_pid(Q)).")
    try:
        yield
    finally:
        node.ctl("eval", f"{find} sys:resume(amqqueue:get_pid(Q)).")


class TestSilentQueue:
    """RabbitMQ answers no method for one of the client's two queues."""

    @pytest.fixture
    def other(self, app, sender) -> Any:
        """Another thread's queue and its calls; the connection is lost meanwhile."""
        connect(app, sender)
        silent, late = Background(lambda: (app.backend.oid, expect(app, 1)[0])).result()
        inside.intake_socket(app).shutdown(2)
        time.sleep(0.5)  # the broker's own end of it waits for the answer of each queue, too
        return silent, late

    def test_other_results_arrive_and_its_own_once_it_answers(
        self, app, sender, private_broker, other, records
    ):
        silent, late = other
        [result] = expect(app, 1)
        assert app.backend.oid != silent
        with silenced(private_broker, silent):
            waiting = Background(lambda: late.get(timeout=60))
            answer(sender, app.backend.oid, [result], "undisturbed")
            with stopwatch(5, "get"):
                assert result.get(timeout=20) == "undisturbed"
            [result] = expect(app, 1)
            answer(sender, app.backend.oid, [result], "at once")
            with stopwatch(1, "get"):
                assert result.get(timeout=20) == "at once"
        answer(sender, silent, [late], "late")
        assert waiting.result(20) == "late"
        assert records.count("its declaration is not answered") == 1

    def test_short_waits_get_the_others_results(self, app, sender, private_broker, other):
        silent, _ = other
        [result] = expect(app, 1)
        with silenced(private_broker, silent):
            answer(sender, app.backend.oid, [result], "undisturbed")
            for _ in range(40):
                with suppress(TimeoutError):
                    assert result.get(timeout=0.3) == "undisturbed"
                    break
            assert result.ready()

    @pytest.mark.slow
    def test_one_that_falls_silent_when_it_is_consumed(
        self, app, sender, private_broker, other, monkeypatch, records
    ):
        """After the answer to its declaration: RabbitMQ's channel waits for it, with all others.

        What that channel was given already comes when RabbitMQ gives it up; nothing more must be.
        """
        monkeypatch.setattr(intake, "ANSWER_TIMEOUT", 3.0)
        silent, late = other
        with ExitStack() as until_then:
            consumed = threading.Event()

            def fall_silent(self, name, consume=intake.AMQPIntake._consume):
                if name == silent and not consumed.is_set():
                    until_then.enter_context(silenced(private_broker, silent))
                    consumed.set()
                consume(self, name)

            monkeypatch.setattr(intake.AMQPIntake, "_consume", fall_silent)
            waiting = Background(lambda: late.get(timeout=60))
            assert consumed.wait(10)
            wait_until(lambda: records.count("no answer to basic.qos") == 1, 20, "it is noticed")
            wait_until(lambda: records.count("its declaration is not answered"), 20, "set aside")
            results = expect(app, 10)
            answer(sender, app.backend.oid, results, "undisturbed")
            with stopwatch(2, "get"):
                assert [result.get(timeout=20) for result in results] == ["undisturbed"] * 10
        answer(sender, silent, [late], "late")
        assert waiting.result(25) == "late"

    def test_closing_does_not_hang(self, app, private_broker, other):
        silent, _ = other
        with silenced(private_broker, silent), stopwatch(8, "close"):
            app.backend.close()

    def test_closing_does_not_hang_if_no_thread_ever_waited(self, app, private_broker):
        expect(app, 1)
        with silenced(private_broker, app.backend.oid), stopwatch(8, "close"):
            app.backend.close()


class TestQueueOfStock:
    """rpc:// made a queue of our name, with other arguments (406)."""

    @pytest.fixture
    def app(self, private_broker, make_client) -> Celery:
        app = make_client(private_broker.url)
        oid = app.backend.oid
        with app.connection_for_write() as connection:
            as_stock = app.backend.Queue(oid, durable=False, auto_delete=True, expires=60)
            as_stock(connection.default_channel).declare()
        yield app
        with app.connection_for_write() as connection:
            connection.default_channel.queue_delete(app.backend.oid)

    def test_a_call_says_so(self, app):
        with stopwatch(5, "apply_async"), pytest.raises(ReplyQueueMismatch, match="other argu"):
            app.tasks["tests.echo"].delay(1)

    def test_waiting_says_so(self, app):
        with (
            stopwatch(5, "get"),
            pytest.raises((ReplyQueueMismatch, OperationalError), match="other argu"),
        ):
            app.AsyncResult("some-id").get(timeout=3)
