"""fastrpc.sending.publisher with a fake broker."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from amqp.exceptions import AccessRefused
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from fastrpc._lock import start_thread
from fastrpc.options import Options
from fastrpc.sending import publisher as publisher_module
from fastrpc.sending._window import ConfirmWindow
from fastrpc.sending.lanes import make_publisher
from fastrpc.sending.link import Lost
from fastrpc.sending.publisher import REFUSED_FOR_GOOD, AMQPPublisher, Message
from fastrpc.stats import SentStats
from tests.support.inside import watching_publishers
from tests.support.publishing import (
    Broker,
    FakeLink,
    apology,
    connected_broker,
    message,
    send,
    send_tasks,
)
from tests.support.waiting import wait_until


def waiting_sender(publisher: AMQPPublisher, name: str) -> threading.Thread:
    """A thread that sends ``name``, once it waits for room."""
    thread = threading.Thread(target=send, args=(publisher, name))
    thread.start()
    wait_until(publisher._room.locked, 5, "it waits for room")
    return thread


@pytest.fixture
def broker(monkeypatch) -> Broker:
    return connected_broker(monkeypatch)


@pytest.fixture
def make(broker, monkeypatch):
    """make(confirm_window=2) -> a publisher, whose thread ends with the test."""
    monkeypatch.setattr(publisher_module, "WATCH_INTERVAL", 0.01)
    monkeypatch.setattr(publisher_module, "_passing", threading.local())
    made: list[AMQPPublisher] = []
    app = SimpleNamespace(connection_for_write=dict)

    def make(**options) -> AMQPPublisher:
        given = {"retry_policy": {"max_retries": 3, "interval_max": 0.01}, **options}
        made.append(AMQPPublisher(app, 1, Options.parse(given), SentStats(), apology))
        return made[-1]

    yield make
    broker.down = broker.refuses = False
    for publisher in made:
        publisher.window = ConfirmWindow()
    wait_until(lambda: not watching_publishers(), 10, "no thread looks for confirms")


@pytest.fixture
def unwatched(monkeypatch):
    """Without watching threads: only senders read confirms."""
    monkeypatch.setattr(AMQPPublisher, "_ensure_watched", lambda self: None)


@pytest.mark.usefixtures("unwatched")
class TestTheWindow:
    def test_a_result_is_sent_at_once_and_kept_until_it_is_confirmed(self, make, broker):
        publisher = make()
        send(publisher, "a")
        assert broker.got == ["a"]
        assert publisher.unconfirmed == 1
        broker.link.confirm(1)
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == 0
        assert (publisher.stats.published, publisher.stats.confirmed) == (1, 1)

    def test_one_confirm_may_be_for_many(self, make, broker):
        publisher = make()
        send(publisher, *"abcde")
        broker.link.confirm(3, multiple=True)
        publisher._tend()
        assert [m.correlation_id for m in publisher.window] == ["d", "e"]
        assert publisher.stats.confirmed == 3

    def test_confirms_may_come_in_any_order(self, make, broker):
        publisher = make()
        send(publisher, *"abc")
        for tag in (3, 1, 2):
            broker.link.confirm(tag)
        publisher._tend()
        assert publisher.unconfirmed == 0

    def test_confirms_of_unknown_tags_change_nothing(self, make, broker):
        publisher = make()
        send(publisher, *"ab")
        for tag in (1, 1, 99):
            broker.link.confirm(tag)
        publisher._tend()
        assert publisher.unconfirmed == 1
        assert publisher.stats.confirmed == 1

    def test_after_an_interrupted_send_all_unconfirmed_results_are_sent_again(self, make, broker):
        """The tag of the interrupted message is not known, so no later confirm can be matched."""
        publisher = make()
        send(publisher, *"ab")
        broker.link.interrupt = SoftTimeLimitExceeded()
        with pytest.raises(SoftTimeLimitExceeded):
            send(publisher, "c")
        send(publisher, "d")
        assert broker.got == ["a", "b", "a", "b", "d"]
        assert [m.correlation_id for m in publisher.window] == ["a", "b", "d"]
        assert publisher.window.bytes == 30
        assert (publisher.stats.published, publisher.stats.resent) == (3, 2)

    def test_without_confirms_nothing_is_kept(self, make, broker):
        publisher = make(publisher_confirms=False)
        send(publisher, *"abc")
        assert publisher.unconfirmed == 0
        assert broker.got == ["a", "b", "c"]

    def test_without_confirms_a_sender_waits_for_a_broker_that_is_behind(
        self, make, broker, monkeypatch
    ):
        monkeypatch.setattr(publisher_module, "MOST_AHEAD", 300_000)
        publisher = make(publisher_confirms=False)
        for name in "abc":
            publisher.publish(message(name, 100_000))
        sending = waiting_sender(publisher, "d")
        assert (broker.got, broker.link.asked) == (list("abc"), 3)
        broker.link.answer()
        sending.join(10)
        assert broker.got == list("abcd")

    def test_without_confirms_a_flooding_thread_does_not_hold_up_the_others(
        self, make, broker, monkeypatch
    ):
        monkeypatch.setattr(publisher_module, "MOST_AHEAD", 100_000)
        publisher = make(publisher_confirms=False)
        publisher.publish(message("a", 100_000))
        flooding = waiting_sender(publisher, "flood")
        send(publisher, "b")
        assert broker.got == list("ab")
        assert flooding.is_alive()
        broker.link.answer()
        flooding.join(10)
        assert broker.got == ["a", "b", "flood"]

    def test_a_sender_reads_confirms_now_and_then(self, make, broker):
        broker.confirms_at_once = True
        publisher = make()
        send(publisher, *(f"t{n}" for n in range(200)))
        assert publisher.unconfirmed < publisher_module.SENDS_PER_LOOK
        assert broker.link.looks < 20

    def test_large_results_are_not_kept_after_their_confirm(self, make, broker):
        broker.confirms_at_once = True
        publisher = make()
        for n in range(20):
            publisher.publish(message(str(n), 1 << 20))
            assert publisher.unconfirmed <= 1

    def test_few_large_results_are_kept_while_the_broker_confirms_soon(
        self, make, broker, monkeypatch
    ):
        monkeypatch.setattr(publisher_module, "MOMENT", 5.0)
        publisher = make()
        for n in range(20):
            publisher.publish(message(str(n), 1 << 20))
            assert publisher.unconfirmed <= 2
            threading.Timer(0.005, broker.link.confirm, [n + 1]).start()

    def test_a_sender_waits_while_the_window_is_full(self, make, broker):
        publisher = make(confirm_window=3)
        send(publisher, *"abc")
        timer = threading.Timer(0.1, lambda: broker.link.confirm(2, multiple=True))
        started = time.monotonic()
        timer.start()
        send(publisher, "d")
        assert time.monotonic() - started >= 0.09
        assert publisher.unconfirmed == 2
        timer.join()

    def test_with_persistent_results_the_window_follows_the_rate_of_confirms(
        self, make, broker, monkeypatch
    ):
        monkeypatch.setattr(publisher_module, "RATE_INTERVAL", 0.05)
        broker.confirms_at_once = True
        publisher = make()
        publisher.delivery_mode = publisher_module.PERSISTENT
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            send(publisher, *"abcdefgh")
        broker.confirms_at_once = False
        send(publisher, *(str(n) for n in range(1_500)))
        assert publisher.unconfirmed >= 1_500

    def test_a_window_that_has_grown_meanwhile_has_room(self, make):
        publisher = make()
        send(publisher, *"abc")
        publisher.delivery_mode = publisher_module.PERSISTENT
        publisher._size = 3
        publisher._confirms, publisher._confirms_since = 2_000, time.monotonic() - 1
        assert publisher._publish(message("d"))

    def test_a_given_confirm_window_does_not_grow(self, make, broker, monkeypatch):
        monkeypatch.setattr(publisher_module, "RATE_INTERVAL", 0.0)
        broker.confirms_at_once = True
        publisher = make(confirm_window=3)
        publisher.delivery_mode = publisher_module.PERSISTENT
        send(publisher, *(str(n) for n in range(200)))
        assert publisher._size == 3

    def test_a_flooding_thread_does_not_hold_up_the_others(self, make, broker):
        publisher = make(confirm_window=3)
        send(publisher, *"abc")
        flooding = waiting_sender(publisher, "flood")
        send(publisher, "d")
        assert broker.got == list("abcd")
        assert flooding.is_alive()
        broker.link.confirm(4, multiple=True)
        flooding.join(10)
        assert broker.got[4:] == ["flood"]

    def test_the_results_that_pass_a_flooding_thread_are_limited(self, make, broker):
        publisher = make(confirm_window=2)
        send(publisher, *"ab")
        threads = [
            threading.Thread(target=send, args=(publisher, name)) for name in ["flood", *"1234"]
        ]
        for thread in threads:
            thread.start()
            wait_until(publisher._room.locked, 5, "the first waits for room")
        wait_until(lambda: publisher.unconfirmed == 4, 5, "two pass by")
        time.sleep(0.05)
        assert publisher.unconfirmed == 4
        broker.confirms_at_once = True
        broker.link.confirm(4, multiple=True)
        for thread in threads:
            thread.join(10)
        assert len(set(broker.got)) == 7

    def test_the_window_is_limited_in_bytes_too(self, make, broker):
        publisher = make(confirm_window_bytes=100)
        publisher.publish(message("a", 60))
        publisher.publish(message("b", 60))
        timer = threading.Timer(0.1, lambda: broker.link.confirm(1))
        started = time.monotonic()
        timer.start()
        publisher.publish(message("c", 1))
        assert time.monotonic() - started >= 0.09
        timer.join()

    def test_a_result_larger_than_the_window_is_still_sent(self, make, broker):
        publisher = make(confirm_window_bytes=10)
        publisher.publish(message("a", 1000))
        assert broker.got == ["a"]

    def test_a_sender_waits_while_the_broker_blocks_the_connection(self, make, broker):
        publisher = make()
        send(publisher, "a")
        link = broker.link
        link.blocked = True
        timer = threading.Timer(0.1, lambda: setattr(link, "blocked", False))
        started = time.monotonic()
        timer.start()
        send(publisher, "b")
        assert time.monotonic() - started >= 0.09
        timer.join()

    def test_many_threads_may_send(self, make, broker):
        broker.confirms_at_once = True
        publisher = make(confirm_window=10)
        threads = [
            threading.Thread(target=send, args=(publisher, *(f"{t}-{n}" for n in range(100))))
            for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(set(broker.got)) == 400
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.stats.published == publisher.stats.confirmed == 400


@pytest.mark.usefixtures("unwatched")
class TestALostConnection:
    def test_unconfirmed_results_are_sent_again_before_new_ones(self, make, broker):
        publisher = make()
        send(publisher, *"abc")
        broker.link.confirm(1)
        publisher._tend()
        broker.link.cut = True
        send(publisher, "d")
        assert broker.got == ["a", "b", "c", "b", "c", "d"]
        assert len(broker.links) == 2
        assert (publisher.stats.published, publisher.stats.resent) == (4, 2)
        broker.link.confirm(3, multiple=True)
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == 0

    @pytest.mark.parametrize("count", range(1, 2 * publisher_module.SENDS_PER_LOOK + 2))
    def test_a_result_sent_just_before_the_loss_is_sent_again_once(self, make, broker, count):
        publisher = make()
        names = [str(n) for n in range(count)]
        send(publisher, *names[:-1])
        link = publisher._open_link()
        just_send = link.send

        def send_and_break(message: Message, window: ConfirmWindow) -> None:
            just_send(message, window)
            link.cut = True

        link.send = send_and_break
        send(publisher, names[-1])
        assert broker.got == names
        send(publisher, "next")
        assert broker.got == [*names, *names, "next"]
        assert (publisher.stats.published, publisher.stats.resent) == (count + 1, count)

    def test_the_order_is_kept_through_several_losses(self, make, broker):
        publisher = make()
        send(publisher, *"abc")
        for name in "de":
            broker.link.cut = True
            send(publisher, name)
        assert broker.got[-5:] == ["a", "b", "c", "d", "e"]
        assert [m.correlation_id for m in publisher.window] == list("abcde")

    def test_a_send_is_retried_as_often_as_the_policy_says(self, make, broker):
        publisher = make(retry_policy={"max_retries": 3, "interval_max": 0.01})
        broker.down = True
        tried: list = []
        connect = publisher._connect
        publisher._connect = lambda: tried.append(1) or connect()
        with pytest.raises(OperationalError, match="down"):
            send(publisher, "a")
        assert len(tried) == 4
        assert publisher.unconfirmed == 0

    @pytest.mark.parametrize("answered", [True, False])
    def test_a_link_on_which_the_broker_answered_uses_up_no_retry(
        self, make, broker, monkeypatch, answered
    ):
        publisher = make(retry_policy={"max_retries": 2, "interval_max": 0})
        cuts = iter(range(6))

        def connect(*args) -> FakeLink:
            link = Broker.connect(broker, *args)
            link.answered = answered
            link.cut = next(cuts, None) is not None
            return link

        monkeypatch.setattr(publisher_module, "Link", connect)
        if answered:
            send(publisher, "a")
            assert (broker.got, len(broker.links)) == (["a"], 7)
        else:
            with pytest.raises(OperationalError, match="cut"):
                send(publisher, "a")
            assert len(broker.links) == 3

    def test_sending_again_stops_while_the_broker_blocks_the_connection(self, make, broker):
        publisher = make()
        send(publisher, *"abcde")
        broker.link.cut = True
        publisher._tend()
        link = publisher._open_link()

        def block() -> None:
            link.blocked = link.sent == 2

        link.on_send = block
        publisher._tend()
        assert broker.got[5:] == ["a", "b", "c"]
        publisher._tend()
        assert broker.got[5:] == ["a", "b", "c"]
        link.blocked = False
        send(publisher, "f")
        assert broker.got[5:] == list("abcdef")

    def test_the_link_after_a_silent_one_has_heartbeats(self, make, broker, monkeypatch):
        """Without heartbeats, a broker that blocks publishing looks like a dead path."""
        monkeypatch.setattr(publisher_module, "SILENCE", 0.05)
        publisher = make(retry_policy={"max_retries": 0})
        send(publisher, "a")
        first = broker.link
        first.confirm(1)
        publisher._tend()
        first.blocked = True
        assert first.heartbeat == 0
        send(publisher, "b")
        assert first.closed
        second = broker.link
        assert (broker.got, second.heartbeat) == (["a", "b"], publisher_module.HEARTBEAT)
        second.cut = True
        send(publisher, "c")
        assert (broker.got[2:], broker.link.heartbeat) == (["b", "c"], 0)

    def test_a_refused_connection_is_not_retried(self, make, broker):
        publisher = make(retry_policy={"max_retries": 1000, "interval_start": 1})
        broker.refuses = True
        started = time.monotonic()
        with pytest.raises(OperationalError) as raised:
            send(publisher, "a")
        assert isinstance(raised.value.__cause__, AccessRefused)
        assert time.monotonic() - started < 1

    def test_a_send_that_fails_leaves_the_window_as_it_was(self, make, broker):
        publisher = make()
        send(publisher, "a")
        broker.link.cut = broker.down = True
        with pytest.raises(OperationalError):
            send(publisher, "b")
        assert publisher.unconfirmed == 1
        broker.down = False
        send(publisher, "c")
        assert broker.got == ["a", "a", "c"]

    def test_after_a_pause_the_connection_is_read_before_a_send(self, make, broker, monkeypatch):
        monkeypatch.setattr(publisher_module, "IDLE", 0.02)
        publisher = make()
        send(publisher, "a")
        broker.link.confirm(1)
        time.sleep(0.05)
        send(publisher, "b")
        assert publisher.unconfirmed == 1

    def test_a_link_on_which_the_broker_is_silent_is_given_up(self, make, broker, monkeypatch):
        monkeypatch.setattr(publisher_module, "SILENCE", 0.05)
        publisher = make(confirm_window=1)
        send(publisher, "a")
        silent = broker.link
        broker.confirms_at_once = True
        send(publisher, "b")
        assert silent.closed
        assert broker.got == ["a", "a", "b"]

    def test_without_confirms_what_a_silent_link_had_is_not_sent_again(
        self, make, broker, monkeypatch
    ):
        monkeypatch.setattr(publisher_module, "SILENCE", 0.05)
        monkeypatch.setattr(publisher_module, "MOST_AHEAD", 100_000)
        publisher = make(publisher_confirms=False)
        publisher.publish(message("a", 100_000))
        silent = broker.link
        send(publisher, "b")
        assert silent.closed
        assert broker.got == ["a", "b"]

    def test_a_link_without_unconfirmed_results_is_not_silent(self, make, broker, monkeypatch):
        monkeypatch.setattr(publisher_module, "SILENCE", 0.1)
        publisher = make()
        send(publisher, "a")
        broker.link.confirm(1)
        publisher._tend()
        time.sleep(0.2)
        send(publisher, "b")
        publisher._tend()
        assert not broker.link.closed
        assert broker.got == ["a", "b"]


@pytest.mark.usefixtures("unwatched")
class TestTooLarge:
    """The broker closes the channel after a message that is too large for it."""

    def close_channel(self, broker) -> None:
        broker.link.cut = broker.link.too_large = True

    def test_a_substitute_takes_its_place(self, make, broker):
        publisher = make()
        send(publisher, "a")
        publisher.publish(message("large", 99))
        send(publisher, "b")
        self.close_channel(broker)
        publisher._tend()
        publisher._tend()
        assert broker.got[3:] == ["a", "sorry, large", "b"]

    def test_it_is_dropped_if_the_substitute_is_not_smaller(self, make, broker):
        publisher = make()
        publisher.publish(message("large", 5))
        self.close_channel(broker)
        publisher._tend()
        assert publisher.unconfirmed == 0

    def test_without_confirms_the_result_is_dropped(self, make, broker):
        publisher = make(publisher_confirms=False)
        publisher.publish(message("large", 99))
        self.close_channel(broker)
        send(publisher, "b")
        assert broker.got == ["large", "b"]


@pytest.mark.usefixtures("unwatched")
class TestSinglingOut:
    """The broker closes the channel over a task, and does not say which it was."""

    @pytest.fixture
    def publisher(self, make, broker) -> AMQPPublisher:
        broker.confirms_at_once = True
        return make()

    def test_the_others_are_sent_again_one_at_a_time_and_it_is_dropped(
        self, publisher, broker, caplog
    ):
        broker.not_taken = {"bad"}
        send_tasks(publisher, "a", "b", "bad", "c", "d")
        for _ in range(3):
            publisher._tend()
        assert broker.got[5:] == ["a", "b", "bad", "c", "d"]
        assert publisher.unconfirmed == publisher.window.bytes == 0
        assert "the broker does not take task bad: no such exchange" in caplog.text

    def test_a_suspect_waits_for_the_confirm_of_the_one_before(self, publisher, broker):
        broker.not_taken = {"bad"}
        send_tasks(publisher, "a", "bad")
        publisher._tend()
        broker.confirms_at_once = False
        publisher._tend()
        publisher._tend()
        assert broker.got[2:] == ["a"]
        assert publisher._pause == publisher_module.SLICE_INTERVAL
        broker.link.confirm(1)
        send_tasks(publisher, "c")
        assert broker.got[3:] == ["bad", "c"]

    def test_many_are_dropped_one_after_another(self, publisher, broker):
        names = [f"{n}" for n in range(30)]
        broker.not_taken = {*names[::3], *names[20:]}
        send_tasks(publisher, *names)
        publisher.close(30)
        assert publisher.unconfirmed == 0
        taken = [name for name in names if name not in broker.not_taken]
        assert set(taken) <= {*broker.got}
        assert len(broker.links) <= 1 + 2 * len(broker.not_taken)

    def test_one_that_was_refused_before(self, publisher, broker, caplog):
        broker.confirms_at_once = False
        send_tasks(publisher, "bad", "a")
        broker.link.refuse(1)
        broker.link.confirm(2)
        publisher._tend()
        broker.not_taken = {"bad"}
        wait_until(lambda: publisher._tend() or not publisher.unconfirmed, 5, "it is dropped")
        assert publisher.window.refused_bytes == 0
        assert "the broker does not take task bad" in caplog.text

    def test_once_it_is_dropped_refused_ones_wait_for_no_other(self, publisher, broker):
        broker.not_taken = {"bad"}
        send_tasks(publisher, "bad")
        publisher._tend()
        assert not publisher.unconfirmed
        broker.confirms_at_once = False
        send_tasks(publisher, "a", "b")
        broker.link.refuse(1)
        publisher._tend()
        wait_until(
            lambda: publisher._tend() is None and broker.got[3:] == ["a"], 5, "it is sent again"
        )

    def test_a_forbidden_exchange_does_not_fail_other_calls(self, publisher, broker):
        broker.not_taken = {"bad"}
        send_tasks(publisher, "bad")
        publisher._sent_at = 0  # so that the next send reads first
        send_tasks(publisher, "a")
        assert broker.got == ["bad", "a"]

    def test_a_result_is_kept(self, make, broker):
        """They all have the default exchange: the fault is not theirs."""
        publisher = make()
        broker.not_taken = {"a"}
        send(publisher, "a")
        for _ in range(3):
            publisher._tend()
        assert publisher.unconfirmed == 1


@pytest.mark.usefixtures("unwatched")
class TestRefusals:
    """The broker refuses a message (basic.nack), and may accept it later."""

    def test_a_refused_result_is_sent_again(self, make, broker):
        publisher = make(retry_policy={"max_retries": 3, "interval_max": 0})
        send(publisher, *"ab")
        broker.link.refuse(1)
        broker.link.confirm(2)
        publisher._tend()
        assert publisher.unconfirmed == 1
        publisher._tend()
        assert broker.got == ["a", "b", "a"]
        broker.link.confirm(3)
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == 0

    def test_it_is_given_up_when_its_retries_are_used_up(self, make, broker, caplog):
        publisher = make(retry_policy={"max_retries": 2, "interval_max": 0})
        send(publisher, "the-task")
        for tag in (1, 2, 3):
            broker.link.refuse(tag)
            publisher._tend()
            publisher._tend()
        assert broker.got == ["the-task"] * 3
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == 0
        assert "the-task 3 times" in caplog.text

    def test_it_waits_as_long_as_the_policy_says(self, make, broker):
        publisher = make(retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_max": 1})
        send(publisher, "a")
        broker.link.refuse(1)
        publisher._tend()
        publisher._tend()
        assert broker.got == ["a"]
        time.sleep(0.12)
        publisher._tend()
        assert broker.got == ["a", "a"]

    def test_an_old_connection_is_replaced_before_a_resend(self, make, broker):
        """RabbitMQ may refuse a message on one channel for ever, and accept it on a new one."""
        publisher = make(retry_policy={"max_retries": 3, "interval_max": 0})
        send(publisher, *"ab")
        first = broker.link
        first.refuse(1)
        publisher._tend()
        publisher._tend()
        assert (broker.got, first.closed) == (["a", "b", "a"], False)
        first.refuse(3)
        publisher._tend()
        first.opened_at -= REFUSED_FOR_GOOD
        publisher._tend()
        assert (broker.got, first.closed) == (["a", "b", "a"], False), "not on this one"
        publisher._renew()
        assert first.closed
        broker.confirms_at_once = True
        publisher._tend()
        assert broker.got == ["a", "b", "a", "b", "a"]
        assert publisher.unconfirmed == 0
        assert len(broker.links) == 2

    def test_an_old_connection_without_refusals_is_kept(self, make, broker):
        publisher = make()
        send(publisher, "a")
        broker.link.cut = True
        publisher._tend()
        broker.confirms_at_once = True
        publisher._open_link().opened_at -= REFUSED_FOR_GOOD
        publisher._tend()
        assert (broker.got, publisher.unconfirmed) == (["a", "a"], 0)
        assert len(broker.links) == 2

    @pytest.mark.usefixtures("unwatched")
    def test_a_new_refusal_does_not_use_up_the_retries_of_older_ones(self, make, broker):
        """A broker that refuses everything for a second must not use up all retries."""
        policy = {"max_retries": 2, "interval_start": 0, "interval_step": 5, "interval_max": 5}
        publisher = make(retry_policy=policy)
        send(publisher, "a")
        for tag, new in enumerate("bcdefgh", 1):
            broker.link.refuse(tag)
            publisher._tend()
            send(publisher, new)
        assert broker.got.count("a") <= 2
        assert publisher.unconfirmed == 8

    def test_the_old_link_is_kept_until_a_new_one_is_open(self, make, broker):
        publisher = make(retry_policy={"max_retries": 3, "interval_max": 0})
        send(publisher, "a")
        first = broker.link
        first.refuse(1)
        publisher._tend()
        first.opened_at -= REFUSED_FOR_GOOD
        broker.down = True
        assert isinstance(publisher._renew(), Lost)
        assert not first.closed
        send(publisher, "b")
        assert (broker.got, publisher.unconfirmed) == (["a", "b"], 2)

    def test_if_the_broker_keeps_refusing_links_are_replaced_less_often(self, make, broker):
        publisher = make(retry_policy={"max_retries": 99, "interval_max": 0})
        send(publisher, "a")
        ages = []
        for _ in range(6):
            broker.link.refuse(broker.link.sent)
            publisher._tend()
            link, age = broker.link, 0.0
            while broker.link is link and age < 60:
                age += 0.5
                link.opened_at -= 0.5
                publisher._renew()
            ages.append(age)
            publisher._tend()
        assert ages == [1, 2, 4, 8, 8, 8]
        broker.link.confirm(broker.link.sent)
        publisher._tend()
        assert publisher._patience == REFUSED_FOR_GOOD

    def test_refused_results_take_no_room_in_the_window(self, make, broker):
        """Neither while they wait nor while they are in flight again."""
        policy = {"max_retries": 9, "interval_start": 0, "interval_max": 0}
        publisher = make(confirm_window=2, confirm_window_bytes=20, retry_policy=policy)
        send(publisher, *"ab")
        broker.link.refuse(2, multiple=True)
        publisher._tend()
        assert (publisher.window.refused_count, publisher.unconfirmed) == (2, 2)
        send(publisher, "c")
        publisher._tend()
        assert (broker.got, publisher.window.in_flight) == (["a", "b", "c", "a", "b"], 3)
        send(publisher, "d")
        assert publisher.unconfirmed == 4
        broker.confirms_at_once = True
        broker.link.confirm(6, multiple=True)
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == publisher.window.refused_bytes == 0

    @pytest.mark.parametrize("limit", [{"confirm_window": 3}, {"confirm_window_bytes": 30}])
    def test_over_the_limit_the_oldest_refused_results_are_given_up(
        self, make, broker, caplog, monkeypatch, limit
    ):
        monkeypatch.setattr(publisher_module, "REFUSED_WINDOWS", 1)
        policy = {"max_retries": 9, "interval_start": 99, "interval_max": 99}
        publisher = make(retry_policy=policy, **limit)
        for tag, name in enumerate("abcde", 1):
            send(publisher, name)
            broker.link.refuse(tag)
            publisher._tend()
        assert [m.correlation_id for _, _, m in publisher.window.refused] == ["c", "d", "e"]
        for name in "ab":
            assert f"refused the message of task {name} 1 times, it is given up" in caplog.text

    def test_a_refused_result_larger_than_the_limit_is_still_sent_again(self, make, broker):
        publisher = make(confirm_window_bytes=10)
        publisher.publish(message("a", 1000))
        broker.link.refuse(1)
        publisher._tend()
        publisher._tend()
        assert broker.got == ["a", "a"]

    def test_refused_results_are_sent_again_in_slices(self, make, broker, monkeypatch):
        monkeypatch.setattr(publisher_module, "SLICE", 2)
        publisher = make(retry_policy={"max_retries": 9, "interval_max": 0})
        send(publisher, *"abcde")
        broker.link.refuse(5, multiple=True)
        publisher._look(broker.link)
        for sent in (7, 9, 10):
            publisher._tend()
            assert len(broker.got) == sent
            waits = (
                publisher_module.SLICE_INTERVAL if sent < 10 else publisher_module.WATCH_INTERVAL
            )
            assert publisher._pause == waits

    def test_a_lost_link_does_not_count_as_a_refusal(self, make, broker):
        publisher = make(retry_policy={"max_retries": 1, "interval_max": 0})
        send(publisher, *"ab")
        broker.link.refuse(2, multiple=True)
        publisher._tend()
        publisher._tend()
        assert broker.got == ["a", "b", "a", "b"]
        send(publisher, "c")
        broker.link.cut = True
        publisher._tend()
        assert publisher.window.refused_count == 2
        publisher._tend()
        assert broker.got[5:] == ["c", "a", "b"]
        broker.link.confirm(3, multiple=True)
        publisher._tend()
        assert publisher.unconfirmed == 0
        assert publisher.window.bytes == publisher.window.refused_bytes == 0


@pytest.mark.usefixtures("unwatched")
class TestASendInsideASend:
    """A signal handler or a destructor sends a result while its own thread holds the lock."""

    @pytest.mark.parametrize("confirms", [True, False])
    def test_the_inner_result_is_sent_after_the_outer_one(self, make, broker, confirms):
        publisher = make(publisher_confirms=confirms)
        send(publisher, "a")
        inner = iter(["inner"])
        broker.link.on_send = lambda: send(publisher, *inner)
        send(publisher, "outer")
        assert broker.got == ["a", "outer"]
        send(publisher, "next")
        assert broker.got == ["a", "outer", "inner", "next"]
        assert publisher.stats.published == 4
        assert publisher.unconfirmed == (4 if confirms else 0)

    def test_the_inner_result_is_sent_even_if_no_other_follows(self, make, broker):
        publisher = make()
        send(publisher, "a")
        inner = iter(["inner"])
        broker.link.on_send = lambda: send(publisher, *inner)
        send(publisher, "outer")
        publisher._tend()
        assert broker.got == ["a", "outer", "inner"]


class TestWhileNobodySends:
    def test_a_link_with_heartbeats_is_closed_when_the_watching_thread_ends(self, make, broker):
        publisher = make()
        publisher._heartbeat = 20
        send(publisher, "a")
        wait_until(lambda: broker.link.heartbeats >= 5, 5, "they are sent")
        assert not broker.link.said_goodbye
        broker.link.confirm(1)
        wait_until(lambda: broker.link.said_goodbye, 5, "it is closed in order")
        send(publisher, "b")
        assert [link.heartbeat for link in broker.links] == [20, 20]

    def test_a_thread_whose_start_was_interrupted_still_watches(self, make, broker, monkeypatch):
        publisher = make()

        def start_and_break(*args) -> None:
            start_thread(*args)
            raise SoftTimeLimitExceeded

        monkeypatch.setattr(publisher_module, "start_thread", start_and_break)
        with pytest.raises(SoftTimeLimitExceeded):
            send(publisher, "a")
        monkeypatch.undo()
        monkeypatch.setattr(publisher_module, "Link", broker.connect)
        wait_until(lambda: publisher._watcher is not None, 5, "it says so itself")
        broker.link.confirm(1)
        wait_until(lambda: publisher._watcher is None, 5, "the watcher has ended")
        assert publisher.stats.confirmed == 1

    def test_a_thread_reads_the_confirms_and_ends(self, make, broker):
        publisher = make()
        send(publisher, "a")
        assert publisher._watcher is not None
        broker.link.confirm(1)
        wait_until(lambda: publisher._watcher is None, 5, "the watcher has ended")
        assert publisher.stats.confirmed == 1

    def test_a_thread_replaces_a_lost_connection_and_sends_again(self, make, broker):
        publisher = make()
        send(publisher, *"ab")
        broker.confirms_at_once = True
        broker.link.cut = True
        wait_until(lambda: publisher.stats.confirmed == 2, 5, "both are confirmed")
        assert broker.got == ["a", "b", "a", "b"]

    def test_the_result_is_sent_even_if_no_thread_can_start(self, make, broker, monkeypatch):
        """From Python 3.12 on, this happens in a thread that outlives the main thread."""

        def start(*args) -> None:
            raise RuntimeError("can't create new thread at interpreter shutdown")

        monkeypatch.setattr(publisher_module, "start_thread", start)
        publisher = make()
        publisher.publish(message("a"))
        assert broker.got == ["a"]
        broker.link.confirm(1)
        publisher.close(5)
        assert publisher.stats.confirmed == 1

    def test_an_exception_of_application_code_does_not_end_the_thread(
        self, make, broker, monkeypatch, caplog
    ):
        """For example of a callable broker_password, which is called for each new connection."""
        publisher = make()
        send(publisher, "a")
        connect, failures = broker.connect, iter([1, 2])

        def connect_in_the_end(*args):
            if next(failures, None):
                raise ZeroDivisionError
            return connect(*args)

        monkeypatch.setattr(publisher_module, "Link", connect_in_the_end)
        broker.confirms_at_once = True
        broker.link.cut = True
        wait_until(lambda: publisher.stats.confirmed == 1, 5, "it is confirmed")
        assert broker.got == ["a", "a"]
        assert caplog.text.count("cannot connect to send, trying again") == 2

    def test_without_unconfirmed_results_there_is_no_thread(self, make, broker):
        publisher = make(publisher_confirms=False)
        send(publisher, "a")
        assert publisher._watcher is None


class TestTheEnd:
    def test_closing_waits_for_the_confirms(self, make, broker):
        publisher = make()
        send(publisher, "a")
        timer = threading.Timer(0.1, lambda: broker.link.confirm(1))
        timer.start()
        publisher.close(5)
        assert publisher.stats.confirmed == 1
        assert broker.links[0].said_goodbye
        timer.join()

    def test_closing_reconnects_if_the_connection_is_lost(self, make, broker):
        publisher = make()
        send(publisher, "a")
        broker.link.cut = True
        broker.confirms_at_once = True
        publisher.close(5)
        assert publisher.stats.confirmed == 1
        assert broker.got == ["a", "a"]

    def test_closing_stops_waiting_after_its_timeout_and_logs_how_many_are_left(
        self, make, broker, caplog
    ):
        publisher = make()
        send(publisher, *"ab")
        started = time.monotonic()
        publisher.close(0.1)
        assert 0.1 <= time.monotonic() - started < 2
        assert "2 messages were not confirmed" in caplog.text
        wait_until(lambda: publisher._watcher is None, 5, "the watcher has ended")
        assert len(broker.links) == 1, "nobody connects for what is given up"

    def test_closing_a_publisher_that_never_connected(self, make, broker):
        make().close(1)
        assert broker.links == []

    @pytest.mark.usefixtures("unwatched")
    def test_a_forked_child_leaves_the_parents_connection_and_window_alone(self, make, broker):
        publisher = make()
        send(publisher, "a")
        publisher.after_fork()
        assert broker.links[0].abandoned
        assert not broker.links[0].said_goodbye
        assert publisher.unconfirmed == 0
        send(publisher, "b")
        assert broker.got == ["a", "b"]
        assert len(broker.links) == 2


def test_the_publisher_fits_the_broker():
    from celery import Celery

    for url, kind in [
        ("amqp://", "Lanes"),
        ("pyamqp://", "Lanes"),
        ("amqps://", "Lanes"),
        ("memory://", "KombuPublisher"),
        ("redis://", "KombuPublisher"),
    ]:
        app = Celery(broker=url, set_as_current=False)
        made = make_publisher(app, None, 1, Options(), SentStats(), apology)
        assert type(made).__name__ == kind, url


def test_a_sender_that_waits_for_room_sleeps_at_the_socket(make, broker):
    publisher = make(confirm_window=1)
    send(publisher, "a")
    link = broker.link
    wait = link.wait

    def noted(timeout):
        wait(timeout)
        if len(link.waits) == 3:
            link.confirm(1)

    link.wait = noted
    send(publisher, "b")
    assert link.waits == [publisher_module.ROOM_INTERVAL] * 3
