"""The connection for sending results breaks in many ways: each result still arrives once."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded, TimeoutError
from kombu.exceptions import OperationalError

from fastrpc import ResultTooLarge
from fastrpc.sending import link, publisher
from fastrpc.sending.lanes import LARGE_LANE_BYTES
from tests.support import inside
from tests.support.amqp_bytes import NOT_AMQP
from tests.support.apps import client
from tests.support.broker import RabbitMQ
from tests.support.proxy import TO_SERVER, Proxy
from tests.support.results import answer, await_confirms, expect, new_ids
from tests.support.threads import Background
from tests.support.waiting import stopwatch, wait_until
from tests.support.worker import Worker


@pytest.fixture
def cut_sender(private_broker, proxy, make_client) -> Celery:
    """A sender whose connection goes through the proxy."""
    return make_client(private_broker.url_for(proxy.port))


def link_is_open(sender: Celery, *, large: bool = False) -> bool:
    return inside.link(sender, large=large) is not None


class TestCut:
    def test_twenty_thousand_results_while_it_is_cut_at_random(
        self, app, cut_sender, proxy, private_broker
    ):
        rng = random.Random(4)
        results = expect(app, 20_000)
        oid = app.backend.oid
        heard: Counter[str] = Counter()
        for result in results[::20]:
            result.then(lambda result: heard.update([result.id]))
        reader = Background(
            lambda: Counter(
                task_id for task_id, _ in app.ResultSet(results, app=app).iter_native(timeout=60)
            )
        )
        n = 0
        while n < len(results):
            batch = rng.randrange(100, 1_500)
            # After a random number of bytes, so anywhere in a frame.
            proxy.cut_after(rng.randrange(1, 300 * batch), TO_SERVER)
            for i in range(n, min(n + batch, len(results))):
                answer(cut_sender, oid, [results[i]], i + 1)
            n += batch
        await_confirms(cut_sender)
        came = reader.result(60)
        assert came == Counter({result.id: 1 for result in results})
        assert [result.result for result in results] == list(range(1, 20_001))
        assert set(heard.values()) == {1}
        stats = cut_sender.backend.stats()
        assert proxy.stats["cut"] >= 5
        assert stats["resent"] > 0
        assert stats["published"] == 20_000
        assert app.backend.stats()["waiting"] == 0

    @pytest.mark.parametrize("count", [0, 1, 50, 200])
    def test_cut_after_the_last_result_without_another_send(self, app, cut_sender, proxy, count):
        """The broker has not read the whole result, and no later send notices the cut."""
        first, last = expect(app, 2)
        oid = app.backend.oid
        answer(cut_sender, oid, [first])
        await_confirms(cut_sender)
        if count:
            proxy.cut_after(count, TO_SERVER)
            answer(cut_sender, oid, [last], "the last")
        else:
            proxy.freeze()  # it lies in the proxy's socket, unread
            answer(cut_sender, oid, [last], "the last")
            proxy.cut()
            proxy.thaw()
        with stopwatch(5, "the last result"):
            assert last.get(timeout=10) == "the last"
        await_confirms(cut_sender)

    def test_900_unconfirmed_results_are_sent_again(self, app, cut_sender, proxy):
        """A whole window of results is in flight when the connection dies."""
        results = expect(app, 900)
        oid = app.backend.oid
        answer(cut_sender, oid, expect(app, 1))
        await_confirms(cut_sender)
        proxy.freeze()
        answer(cut_sender, oid, results)
        proxy.cut()
        proxy.thaw()
        assert [result.get(timeout=20) for result in results] == list(range(900))
        await_confirms(cut_sender)
        assert cut_sender.backend.stats()["resent"] == 900

    @pytest.mark.parametrize("data", NOT_AMQP.values(), ids=NOT_AMQP)
    def test_bytes_that_are_not_amqp_come_before_the_confirms(self, app, cut_sender, proxy, data):
        results = expect(app, 10)
        oid = app.backend.oid
        answer(cut_sender, oid, expect(app, 1))
        await_confirms(cut_sender)
        proxy.freeze()
        answer(cut_sender, oid, results)
        proxy.inject(data)
        proxy.thaw()
        assert [result.get(timeout=20) for result in results] == list(range(10))
        await_confirms(cut_sender)
        assert cut_sender.backend.stats()["resent"] == 10

    @pytest.mark.parametrize("part", [0.5, 1], ids=["in the midst of it", "just after it"])
    def test_a_soft_time_limit_hits_a_send(self, app, cut_sender, proxy, part):
        """Half a frame was written, or a message without a tag. Other callers get their results."""
        first, hit, last = expect(app, 3)
        oid = app.backend.oid
        answer(cut_sender, oid, [first])
        await_confirms(cut_sender)
        link = inside.link(cut_sender)
        just_write = link._write

        def write(frames):
            just_write(frames[: int(len(frames) * part)])
            raise SoftTimeLimitExceeded

        link._write = write
        with pytest.raises(SoftTimeLimitExceeded):
            answer(cut_sender, oid, [hit])
        time.sleep(0.3)  # the broker confirms it if it arrived
        proxy.freeze()
        link._write = just_write
        sending = Background(lambda: answer(cut_sender, oid, [last], "the last"))
        time.sleep(0.3)
        proxy.cut()
        proxy.thaw()
        assert last.get(timeout=10) == "the last"
        sending.result(5)
        await_confirms(cut_sender)

    def test_a_soft_time_limit_hits_a_read_of_confirms(
        self, private_broker, make_client, app, monkeypatch
    ):
        """The confirm that it has read is lost. The next send must not wait for it."""
        monkeypatch.setattr(publisher.AMQPPublisher, "_ensure_watched", lambda self: None)
        sender = make_client(private_broker.url, options={"confirm_window": 1})
        first, hit, last = expect(app, 3)
        oid = app.backend.oid
        answer(sender, oid, [first])
        amqp = inside.link_amqp(sender)

        def fill(timeout, fill=amqp.fill):
            fill(timeout)
            raise SoftTimeLimitExceeded

        amqp.fill = fill
        with pytest.raises(SoftTimeLimitExceeded):
            answer(sender, oid, [hit])
        with stopwatch(5, "the next one"):
            answer(sender, oid, [last], "the last")
        assert (first.get(timeout=10), last.get(timeout=10)) == (0, "the last")
        with pytest.raises(TimeoutError):
            hit.get(timeout=0.2)

    def test_the_watching_thread_ends_when_all_results_are_confirmed(self, app, cut_sender):
        answer(cut_sender, app.backend.oid, expect(app, 10))
        await_confirms(cut_sender)
        wait_until(lambda: not inside.is_watched(cut_sender), 5, "it has ended")

    def test_the_broker_is_unreachable_until_the_retries_are_used_up(
        self, private_broker, make_client, proxy
    ):
        """store_result raises, as it does for rpc://."""
        policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.1}
        sender = make_client(private_broker.url_for(proxy.port), options={"retry_policy": policy})
        proxy.refuse()
        with stopwatch(5, "store_result"), pytest.raises(OperationalError):
            answer(sender, "nowhere", ["some-id"])

    def test_the_broker_is_unreachable_for_a_while(self, app, cut_sender, proxy):
        first, second = expect(app, 2)
        oid = app.backend.oid
        answer(cut_sender, oid, [first])
        await_confirms(cut_sender)
        proxy.refuse()
        proxy.cut()
        sending = Background(lambda: answer(cut_sender, oid, [second], "patient"))
        wait_until(lambda: not link_is_open(cut_sender), 5, "it is noticed")
        proxy.listen()
        assert second.get(timeout=15) == "patient"
        sending.result(5)

    @pytest.mark.slow
    def test_a_silent_connection_is_given_up(self, app, cut_sender, proxy, monkeypatch):
        """Half-open, without a FIN or RST. Only the missing confirms show it."""
        monkeypatch.setattr(publisher, "SILENCE", 5.0)
        [result] = expect(app, 1)
        oid = app.backend.oid
        answer(cut_sender, oid, expect(app, 1))
        await_confirms(cut_sender)
        proxy.freeze()
        answer(cut_sender, oid, [result], "in the end")
        wait_until(lambda: not link_is_open(cut_sender), 20, "it is given up")
        proxy.cut()
        proxy.thaw()
        assert result.get(timeout=20) == "in the end"

    def test_a_slow_write_of_a_large_result_is_not_given_up(
        self, private_broker, proxy, make_client, app
    ):
        """`WRITE_TIMEOUT` limits the time without progress, not the time of the whole write."""
        sender = make_client(private_broker.url_for(proxy.port), options={"confirm_window": 1})
        small, large = expect(app, 2), expect(app, 1)
        oid = app.backend.oid
        answer(sender, oid, small)  # the second one waits for the first one's confirm
        answer(sender, oid, expect(app, 1), "x" * (1 << 20))
        await_confirms(sender)
        proxy.freeze()
        sending = Background(lambda: answer(sender, oid, large, "x" * (16 << 20)))
        time.sleep(2)
        assert sending.running
        proxy.thaw()
        sending.result(20)
        assert large[0].get(timeout=20) == "x" * (16 << 20)
        assert proxy.stats["accepted"] == 2

    def test_a_write_that_makes_no_progress_is_given_up(self, app, cut_sender, proxy, monkeypatch):
        monkeypatch.setattr(link, "WRITE_TIMEOUT", 1)
        small, large = expect(app, 1), expect(app, 1)
        oid = app.backend.oid
        answer(cut_sender, oid, small, "x" * (1 << 20))
        await_confirms(cut_sender)
        proxy.freeze()
        sending = Background(lambda: answer(cut_sender, oid, large, "x" * (16 << 20)))
        wait_until(lambda: not link_is_open(cut_sender, large=True), 10, "it is given up")
        proxy.thaw()
        sending.result(20)
        assert large[0].get(timeout=20) == "x" * (16 << 20)

    def test_without_confirms_nothing_is_kept(self, private_broker, make_client, app):
        sender = make_client(private_broker.url, options={"publisher_confirms": False})
        results = expect(app, 100)
        answer(sender, app.backend.oid, results)
        stats = sender.backend.stats()
        assert (stats["unconfirmed"], stats["confirmed"], stats["published"]) == (0, 0, 100)
        assert [result.get(timeout=10) for result in results] == list(range(100))


def test_only_the_first_large_result_for_a_caller_that_is_gone_is_returned(
    private_broker, proxy, make_client
):
    sender = make_client(private_broker.url_for(proxy.port))
    answer(sender, "gone", ["a"], "x" * (1 << 20))
    await_confirms(sender)
    before = proxy.stats["to_client"]
    answer(sender, "gone", ["b"], "x" * (1 << 20))
    await_confirms(sender)
    assert proxy.stats["to_client"] - before < 10_000
    assert sender.backend.stats()["returned"] == 2


def test_small_results_pass_a_large_one(app, cut_sender, proxy):
    """Over a slow path, on which the large result takes many seconds."""
    oid = app.backend.oid
    [large] = expect(app, 1)
    answer(cut_sender, oid, expect(app, 1))
    await_confirms(cut_sender)
    proxy.limit(1_000_000, TO_SERVER)
    sending = Background(lambda: answer(cut_sender, oid, [large], "x" * (20 << 20)))
    wait_until(lambda: inside.link(cut_sender, large=True) is not None, 5, "it has begun")
    small = expect(app, 100)
    answer(cut_sender, oid, small)
    assert [result.get(timeout=10) for result in small] == list(range(100))
    assert sending.running
    proxy.limit(None, TO_SERVER)
    sending.result(20)
    assert large.get(timeout=20) == "x" * (20 << 20)


class TestWindow:
    """Unconfirmed results are kept up to a limit. At the limit the next send waits."""

    @pytest.mark.parametrize(
        ("options", "value", "fit"),
        [
            ({"confirm_window": 10}, "x", 10),
            ({"confirm_window_bytes": 10_000}, "x" * 1_000, 10),
        ],
        ids=["count", "bytes"],
    )
    def test_the_limit_is_kept(self, private_broker, proxy, make_client, app, options, value, fit):
        sender = make_client(private_broker.url_for(proxy.port), options=options)
        results = expect(app, 50)
        oid = app.backend.oid
        answer(sender, oid, [expect(app, 1)[0]])
        await_confirms(sender)
        proxy.freeze()
        sending = Background(lambda: answer(sender, oid, results, value))
        publisher = inside.publisher(sender)
        wait_until(lambda: publisher.unconfirmed >= fit - 1, 5, "the window is full")
        assert sending.running
        assert publisher.unconfirmed <= fit
        proxy.thaw()
        sending.result(10)
        assert [result.get(timeout=10) for result in results] == [value] * 50
        await_confirms(sender)
        assert inside.unconfirmed_bytes(sender) == 0

    def test_without_confirms_a_broker_that_is_behind_holds_up_only_the_thread_that_floods(
        self, private_broker, proxy, make_client, app, records
    ):
        options = {"publisher_confirms": False}
        sender = make_client(private_broker.url_for(proxy.port), options=options)
        oid = app.backend.oid
        first, other, *results = expect(app, 5_002)
        answer(sender, oid, [first])
        assert first.get(timeout=10) == 0
        proxy.freeze()
        sending = Background(lambda: answer(sender, oid, results, "x" * 1_000))
        wait_until(inside.publisher(sender)._room.locked, 10, "it waits for room")
        assert sender.backend.stats()["published"] * 1_000 < 1.2 * publisher.MOST_AHEAD
        answer(sender, oid, [other])
        assert sending.running
        proxy.thaw()
        sending.result(20)
        sender.backend.close()
        assert other.get(timeout=10) == 0
        assert [result.get(timeout=10) for result in results] == ["x" * 1_000] * 5_000
        assert records.count("during closing") == 0, "answers that nobody waits for"

    def test_the_bytes_are_counted_correctly_after_cuts(
        self, private_broker, make_client, app, proxy
    ):
        # The proxy may cut the connection before it is open, again and again.
        options = {"retry_policy": {"max_retries": None}}
        cut_sender = make_client(private_broker.url_for(proxy.port), options=options)
        oid = app.backend.oid
        results = expect(app, 3_000)
        proxy.cut_every(0.05)
        answer(cut_sender, oid, results, "x" * 500)
        proxy.cut_every(None)
        await_confirms(cut_sender)
        assert inside.unconfirmed_bytes(cut_sender) == 0
        assert [result.get(timeout=20) for result in results] == ["x" * 500] * 3_000


@pytest.fixture(scope="module")
def strict() -> Iterator[RabbitMQ]:
    with RabbitMQ(config=["max_message_size = 1000000"]) as broker:
        yield broker


class TestTooLarge:
    """The broker closes the channel after a message larger than its `max_message_size`."""

    def test_its_caller_gets_an_error_and_other_callers_their_results(
        self, strict, make_client, records
    ):
        app, sender = make_client(strict.url), make_client(strict.url)
        results = expect(app, 40)
        large = {7: "x" * 2_000_000, 8: "y" * 1_500_000, 30: "z" * 1_000_001}
        for n, result in enumerate(results):
            answer(sender, app.backend.oid, [result], large.get(n, [n]))
        for n, result in enumerate(results):
            if n not in large:
                assert result.get(timeout=10) == [n]
                continue
            with pytest.raises(ResultTooLarge, match=f"result of task {result.id} .* bytes"):
                result.get(timeout=10)
        await_confirms(sender)
        assert records.count("does not take the message of task") == 3
        assert app.backend.stats()["waiting"] == 0

    @pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
    def test_a_progress_state_that_is_too_large_is_dropped(self, strict, make_client, serializer):
        """The task continues, and its result still arrives."""
        conf = {"result_serializer": serializer, "result_accept_content": [serializer]}
        app, sender = make_client(strict.url, **conf), make_client(strict.url, **conf)
        [result] = expect(app, 1)
        answer(sender, app.backend.oid, [result], "x" * 2_000_000, "PROGRESS")
        time.sleep(0.5)
        answer(sender, app.backend.oid, [result], "x" * 2_000_000)
        with pytest.raises(ResultTooLarge):
            result.get(timeout=10)
        assert app.backend.stats()["received"] == 1


class TestReturned:
    def test_a_caller_that_is_back_gets_large_results(self, app, sender):
        """Its queue is declared again within the second in which it counts as gone."""
        [result] = expect(app, 1)
        oid = app.backend.oid
        with sender.connection_for_write() as connection:
            connection.default_channel.queue_delete(oid)
            answer(sender, oid, new_ids(1), "x")
            await_confirms(sender)
            app.backend.client.queues.make(oid)(connection.default_channel).declare()
        answer(sender, oid, [result], "x" * 100_000)
        assert result.get(timeout=10) == "x" * 100_000

    def test_a_result_whose_caller_is_gone_is_counted(self, sender, app, records):
        answer(sender, "a-queue-that-is-gone", ["one", "two", "three"])
        await_confirms(sender)
        stats = sender.backend.stats()
        assert (stats["returned"], stats["confirmed"]) == (3, 3)
        assert not [r for r in records.records if r.name == "fastrpc" and r.levelname != "DEBUG"]
        [result] = expect(app, 1)
        answer(sender, app.backend.oid, [result], "others are not held up")
        assert result.get(timeout=10) == "others are not held up"


class TestRefused:
    """A full reply queue with a policy by which the broker refuses more (basic.nack)."""

    @pytest.fixture
    def full(self, private_broker, make_client) -> Iterator[Celery]:
        """A client that does not read yet, and whose queue has room for ten results."""
        app = make_client(private_broker.url)
        expect(app, 1)
        definition = '{"max-length": 10, "overflow": "reject-publish"}'
        pattern = re.escape(app.backend.oid)
        private_broker.ctl("set_policy", "full", pattern, definition, "--apply-to", "queues")
        yield app
        private_broker.ctl("clear_policy", "full")

    def test_refused_results_arrive_as_soon_as_there_is_room(self, full, sender):
        results = [full.AsyncResult(task_id) for task_id in new_ids(30)]
        answer(sender, full.backend.oid, results)
        wait_until(lambda: sender.backend.stats()["confirmed"] == 10, 10, "it is full")
        assert [result.get(timeout=20) for result in results] == list(range(30))
        await_confirms(sender)

    def test_a_caller_that_reads_nothing_does_not_fill_the_broker(
        self, private_broker, make_client, sender
    ):
        app = make_client(private_broker.url, options={"max_queue_bytes": 100_000})
        results = expect(app, 30)
        answer(sender, app.backend.oid, results, "x" * 10_000)
        with app.connection_for_read() as connection:
            queue = app.backend.client.queues.make(app.backend.oid)(connection.default_channel)
            wait_until(lambda: queue.queue_declare() and inside.refused(sender), 10, "it is full")
            assert 9 <= queue.queue_declare(passive=True)[1] <= 11
        assert [result.get(timeout=20) for result in results] == ["x" * 10_000] * 30
        await_confirms(sender)

    def test_results_for_other_callers_are_not_held_up(self, full, app, sender, records):
        started = time.monotonic()
        answer(sender, full.backend.oid, new_ids(30))
        oid = app.backend.oid
        heard: Counter[str] = Counter()
        for _ in range(40):
            results = expect(app, 25)
            for result in results:
                result.then(lambda result: heard.update([result.id]))
            answer(sender, oid, results)
            with stopwatch(2, "all of them"):
                assert [result.get(timeout=5) for result in results] == list(range(25))
            time.sleep(0.1)
        assert (len(heard), heard.total()) == (1_000, 1_000)
        # Meanwhile the refused ones are sent over new connections, at most one a second.
        given_up = records.count("the broker keeps refusing messages on this connection")
        assert 1 <= given_up <= time.monotonic() - started

    @pytest.mark.parametrize("retries", [3, None], ids=["given up", "tried for ever"])
    def test_more_refusals_than_the_window_holds_do_not_hold_up_others(
        self, full, private_broker, make_client, app, retries
    ):
        policy = {"max_retries": retries, "interval_start": 0, "interval_step": 1}
        sender = make_client(
            private_broker.url, options={"confirm_window": 100, "retry_policy": policy}
        )
        results = new_ids(400)
        oid, full_oid = app.backend.oid, full.backend.oid  # a thread has its own
        Background(lambda: answer(sender, full_oid, results)).result(3)
        window = inside.publisher(sender).window
        wait_until(lambda: window.refused_count > 100, 10, "more are refused than it holds")
        for _ in range(10):
            results = expect(app, 50)
            with stopwatch(2, "all of them"):
                answer(sender, oid, results)
                assert [result.get(timeout=5) for result in results] == list(range(50))
        full.backend.close()  # deletes the full queue, so nothing refuses the results any more
        await_confirms(sender)


class TestBlocked:
    """The broker has an alarm and blocks publishers (connection.blocked)."""

    @pytest.fixture
    def alarm(self, own_broker):
        yield own_broker.set_alarm
        own_broker.set_alarm(False)

    def test_sends_wait_and_are_logged_and_continue(self, own_broker, make_client, alarm, records):
        app, sender = make_client(own_broker.url), make_client(own_broker.url)
        results = expect(app, 20)
        oid = app.backend.oid
        alarm(True)
        # The broker blocks a connection only once something is published on it.
        answer(sender, oid, results[:1])
        wait_until(lambda: inside.link(sender).blocked, 15, "it is blocked")
        assert records.count("blocks publishing") == 1

        def send_each() -> None:
            for n, result in enumerate(results[1:], 1):
                answer(sender, oid, [result], [n])

        sending = Background(send_each)
        sending.thread.join(1)
        assert sending.running
        published = sender.backend.stats()["published"]
        assert published == 1
        alarm(False)
        sending.result(30)
        assert [result.get(timeout=10) for result in results] == [0, *([n] for n in range(1, 20))]
        assert records.count("takes messages again") == 1

    def test_without_confirms_they_wait_too(self, own_broker, make_client, alarm, records):
        app = make_client(own_broker.url)
        sender = make_client(own_broker.url, options={"publisher_confirms": False})
        first, *results = expect(app, 5_001)
        oid = app.backend.oid
        answer(sender, oid, [first])
        assert first.get(timeout=10) == 0
        alarm(True)
        sending = Background(lambda: answer(sender, oid, results, "x" * 1_000))
        wait_until(lambda: inside.link(sender).blocked, 15, "it is blocked")
        sending.thread.join(1)
        assert sending.running
        alarm(False)
        sending.result(30)
        assert [result.get(timeout=10) for result in results] == ["x" * 1_000] * 5_000
        assert records.count("blocks publishing") == 1

    @pytest.fixture
    def brief(self, monkeypatch):
        """Shorter timeouts: seconds instead of half a minute."""
        monkeypatch.setattr(publisher, "SILENCE", 3.0)
        monkeypatch.setattr(publisher, "HEARTBEAT", 2, raising=False)
        monkeypatch.setattr(link, "WRITE_TIMEOUT", 3)

    @pytest.mark.usefixtures("brief")
    @pytest.mark.parametrize(
        ("size", "count"), [(24 << 20, 1), (200_000, 60)], ids=["a large one", "many"]
    )
    def test_a_long_alarm_is_not_a_lost_connection(
        self, own_broker, make_client, alarm, records, size, count
    ):
        """Longer than `SILENCE`, and than a write may make no progress."""
        app = make_client(own_broker.url)
        once = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1}
        sender = make_client(own_broker.url, options={"retry_policy": once})
        results = expect(app, count)
        oid = app.backend.oid
        alarm(True)
        sending = Background(lambda: answer(sender, oid, results, "x" * size))
        sending.thread.join(12)
        assert sending.running
        assert records.count("blocks publishing") == 2, "on the first connection, and on the next"
        assert not [r for r in records.records if "lost" in r.getMessage() and r.levelno > 20]
        alarm(False)
        sending.result(30)
        assert [result.get(timeout=20) for result in results] == ["x" * size] * count
        await_confirms(sender)
        # No thread sends heartbeats while idle, so the connection that has them is closed.
        large = size >= LARGE_LANE_BYTES
        wait_until(lambda: not link_is_open(sender, large=large), 5, "it is closed")
        assert sender.backend.stats()["published"] == count

    @pytest.mark.slow
    @pytest.mark.usefixtures("brief")
    @pytest.mark.parametrize("mid_frame", [False, True], ids=["between results", "in one"])
    def test_a_path_that_falls_silent_while_blocked_is_given_up(
        self, own_broker, make_client, alarm, mid_frame
    ):
        """TCP still works, but nothing from the broker arrives, not even the end of the alarm."""
        with Proxy(own_broker.host, own_broker.port) as proxy:
            app, sender = make_client(own_broker.url), make_client(own_broker.url_for(proxy.port))
            first, last = expect(app, 2)
            oid = app.backend.oid
            answer(sender, oid, expect(app, 1))
            await_confirms(sender)
            alarm(True)
            answer(sender, oid, [first])
            wait_until(lambda: inside.link(sender).blocked, 15, "it is blocked")
            value = "x" * (24 << 20 if mid_frame else 1)
            sending = Background(lambda: answer(sender, oid, [last], value))
            time.sleep(8)  # longer than `SILENCE`
            silent = inside.link(sender)
            assert silent.blocked
            proxy.freeze()
            alarm(False)
            wait_until(lambda: inside.link(sender) is not silent, 10, "it is given up")
            proxy.thaw()
            sending.result(20)
            assert (first.get(timeout=20), last.get(timeout=20)) == (0, value)
            await_confirms(sender)

    def test_shutting_down_while_blocked_does_not_hang(self, own_broker, make_client, alarm):
        app = make_client(own_broker.url)
        sender = client(own_broker.url, options={"shutdown_timeout": 2})
        results = expect(app, 5)
        oid = app.backend.oid
        answer(sender, oid, results[:1])
        await_confirms(sender)
        alarm(True)
        answer(sender, oid, results[1:2])
        wait_until(lambda: inside.link(sender).blocked, 15, "it is blocked")
        sending = Background(lambda: answer(sender, oid, results[2:]))
        wait_until(inside.publisher(sender)._room.locked, 5, "a send waits")
        closing = Background(sender.backend.close)
        try:
            closing.result(10)
        finally:
            alarm(False)
            closing.result(20)
            sending.result(20)


class TestShutdown:
    """A worker with any pool waits for its confirms before it ends."""

    @pytest.mark.parametrize("pool", ["solo", "threads", "prefork", "gevent", "eventlet"])
    def test_no_result_is_lost_at_a_warm_shutdown(self, private_broker, make_client, pool):
        """The worker is stopped in the middle of its work. All tasks that it ran are answered."""
        queue = f"fastrpc-faults-shutdown-{pool}"
        app = make_client(private_broker.url, queue)
        with Worker(
            private_broker.url,
            "fastrpc://",
            pool=pool,
            concurrency=1 if pool == "solo" else 4,
            queues=(queue,),
            conf={"worker_prefetch_multiplier": 50},
        ) as worker:
            echo = app.tasks["tests.echo"]
            results = [echo.delay(n) for n in range(400)]
            assert results[20].get(timeout=30) == 20
            assert worker.stop() == 0
        # The tasks that it has not begun are still in the queue. Another worker runs them.
        with Worker(private_broker.url, "fastrpc://", pool="solo", queues=(queue,)):
            assert [result.get(timeout=30) for result in results] == list(range(400))

    def test_the_window_is_flushed_over_a_new_connection(self, app, private_broker, proxy):
        """The connection dies at the very end. close() opens another and waits for the confirms."""
        sender = client(private_broker.url_for(proxy.port))
        results = expect(app, 200)
        oid = app.backend.oid
        answer(sender, oid, expect(app, 1))
        await_confirms(sender)
        proxy.freeze()
        answer(sender, oid, results)
        proxy.cut()
        proxy.thaw()
        sender.backend.close()
        assert sender.backend.stats()["unconfirmed"] == 0
        assert [result.get(timeout=10) for result in results] == list(range(200))

    def test_closing_is_bounded_in_time_and_logs_what_may_be_lost(
        self, app, private_broker, proxy, records
    ):
        sender = client(private_broker.url_for(proxy.port), options={"shutdown_timeout": 1})
        oid = app.backend.oid
        answer(sender, oid, expect(app, 1))
        await_confirms(sender)
        proxy.freeze()
        answer(sender, oid, expect(app, 3))
        with stopwatch(5, "close()"):
            sender.backend.close()
        assert records.count("3 messages were not confirmed") == 1
