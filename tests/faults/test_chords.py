"""Chords over the broker while everything breaks: the body runs, with all that it must get."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from kombu import Connection, Queue

from fastrpc.chords.connection import ChordConnection
from tests.support.broker import settle
from tests.support.headers import Header
from tests.support.kill_points import KILL_POINTS
from tests.support.waiting import wait_until
from tests.support.worker import Worker, close_all

WAIT = 40
BACKEND = "fastrpc://?chords=1"
ON = {"chords": True}
#: A worker that is killed hands back all that it had.
LATE = {"worker_prefetch_multiplier": 1}
GREEN = ("gevent", "eventlet")


def runs(path: Path) -> int:
    return path.read_text().count("ran\n") if path.exists() else 0


def chord_queues(broker) -> list[str]:
    return [name for name in broker.queues() if name.startswith("fastrpc.chord.")]


class TestKilled:
    """kill -9 of a worker between any two steps: another one brings the chord to its end."""

    @pytest.mark.parametrize("step", KILL_POINTS)
    def test_a_worker_is_killed(self, private_broker, make_client, tmp_path, step):
        killed, notes = tmp_path / "killed", tmp_path / "notes"
        queue = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
        env = {"FASTRPC_TEST_KILL": json.dumps([step, str(killed)])}
        workers = [
            Worker(private_broker.url, BACKEND, pool="solo", queues=(queue,), env=env, conf=LATE)
            for _ in range(2)
        ]
        try:
            tasks = make_client(private_broker.url, queue, options=ON).tasks
            header = [tasks["tests.late_echo"].s(n) for n in range(6)]
            result = chord(header)(tasks["tests.noted_total"].s(str(notes)))
            assert result.get(timeout=WAIT) == 15
            wait_until(
                lambda: [worker.process.poll() for worker in workers].count(None) == 1,
                WAIT,
                "one of the workers was killed",
            )
            wait_until(lambda: not chord_queues(private_broker), WAIT, "the queue is gone")
            again = step in ("after the body is sent", "before the queue is deleted")
            times = 2 if again else 1
            wait_until(lambda: runs(notes) >= times, WAIT, "the body has run")
        finally:
            close_all(workers)
        # The killed worker may have been about to look at a part that was not the last.
        assert runs(notes) == times


class TestCut:
    # With threads Celery acknowledges late from them: stock's connection does not bear that.
    @pytest.mark.parametrize("pool", ["prefork", *GREEN])
    def test_the_connections_of_the_worker_are_cut_again_and_again(
        self, private_broker, make_client, proxy, tmp_path, pool
    ):
        if pool in GREEN:
            pytest.importorskip(pool)
        notes = tmp_path / "notes"
        queue = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
        url = private_broker.url_for(proxy.port)
        install = pool in GREEN
        with Worker(url, BACKEND, pool=pool, concurrency=4, queues=(queue,), install=install):
            tasks = make_client(private_broker.url, queue, options=ON).tasks
            proxy.cut_every(0.4)
            chords = 0
            while proxy.stats["cut"] < 5 and chords < 200:
                results = [
                    chord([tasks["tests.late_echo"].s(n) for n in range(20)])(
                        tasks["tests.noted_total"].s(str(notes))
                    )
                    for _ in range(10)
                ]
                assert [result.get(timeout=WAIT) for result in results] == [190] * 10
                chords += 10
            proxy.cut_every(None)
        assert proxy.stats["cut"] >= 5
        assert runs(notes) >= chords
        wait_until(lambda: not chord_queues(private_broker), WAIT, "the queues are gone")


@pytest.mark.slow
def test_a_minute_of_chords_while_workers_are_cut_and_killed(
    private_broker, make_client, proxy, tmp_path
):
    """Of all shapes at once: each ends, with all its results.

    A chain in a header may fail, seldom: if a connection is reset while its first channel opens,
    ``kombu.Connection.ensure`` raises at once, whatever the retry policy, and the next task of the
    chain is not sent. The chord ends with that error.
    """
    rng = random.Random(20)
    queue = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
    url = private_broker.url_for(proxy.port)

    def new_worker() -> Worker:
        conf = {
            **LATE,
            "task_acks_late": True,
            "task_reject_on_worker_lost": True,
            # By default a task that cannot send the next of its chain fails within a second.
            "task_publish_retry_policy": {"max_retries": 50, "interval_max": 0.5},
        }
        return Worker(url, BACKEND, pool="solo", queues=(queue,), conf=conf)

    tasks = make_client(private_broker.url, queue, options=ON).tasks

    def make() -> tuple[Any, Any]:
        size = rng.randrange(1, 30)
        parts = [tasks["tests.echo"].s(n) for n in range(size)]
        total = sum(range(size))
        match rng.randrange(3):
            case 0:
                return chord(parts, tasks["tests.total"].s()), total
            case 1:
                inner = chord(parts, tasks["tests.total"].s())
                return chord([inner, tasks["tests.echo"].s(1)], tasks["tests.total"].s()), total + 1
            case _:
                nested = chain(
                    tasks["tests.echo"].s(1), group(tasks["tests.add"].s(n) for n in (1, 2))
                )
                return chord([nested, *parts], tasks["tests.collect"].s()), [[[2, 3], *range(size)]]

    workers = [new_worker() for _ in range(3)]
    proxy.cut_every(1.5)
    try:
        end = time.monotonic() + 60
        ended = not_sent = 0
        while time.monotonic() < end:
            made = [make() for _ in range(10)]
            results = [canvas.apply_async() for canvas, _ in made]
            if rng.random() < 0.3:
                workers.pop(rng.randrange(3)).kill()
                workers.append(new_worker())
            for result, (_, expected) in zip(results, made, strict=True):
                value = result.get(timeout=WAIT, propagate=False)
                if str(value).startswith("Join error: OperationalError("):
                    not_sent += 1
                else:
                    assert value == expected
                ended += 1
        proxy.cut_every(None)
        assert ended >= 50
        assert not_sent <= ended / 20
        assert proxy.stats["cut"] >= 5
    finally:
        close_all(workers)
    wait_until(lambda: not chord_queues(private_broker), WAIT, "the queues are gone")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_the_broker_goes_between_two_parts(own_broker, make_client, tmp_path, how):
    release, log = tmp_path / "release", tmp_path / "log"
    queue = "fastrpc-faults-restart"
    with Worker(
        *(own_broker.url, BACKEND), pool="prefork", concurrency=4, queues=(queue,), loglevel="INFO"
    ) as worker:
        tasks = make_client(own_broker.url, queue, options=ON, result_persistent=True).tasks
        wait = tasks["tests.note_and_wait"].si(str(log), 1, str(release)).set(acks_late=True)
        header = [tasks["tests.echo"].s(1), tasks["tests.echo"].s(2), wait]
        result = chord(header)(tasks["tests.collect"].s())
        wait_until(
            lambda: [own_broker.queues()[name] for name in chord_queues(own_broker)] == [2],
            WAIT,
            "two parts are there",
        )
        settle()
        if how == "kill":
            own_broker.kill()
            own_broker.start()
        else:
            own_broker.restart()
        release.touch()
        try:
            assert result.get(timeout=60) == [[1, 2, None]]
        except Exception:
            print(worker.log)
            raise


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_many_workers_see_all_parts_at_once(private_broker, make_client, tmp_path, queue_type):
    """One of them wins: each body runs once."""
    notes = tmp_path / "notes"
    queue = f"fastrpc-faults-once-{queue_type}"
    with Worker(private_broker.url, BACKEND, pool="prefork", concurrency=6, queues=(queue,)):
        options = {"chords": True, "queue_type": queue_type}
        tasks = make_client(private_broker.url, queue, options=options).tasks
        results = [
            chord([tasks["tests.late_echo"].s(n) for n in range(4)])(
                tasks["tests.noted_total"].s(str(notes))
            )
            for _ in range(40)
        ]
        assert [result.get(timeout=WAIT) for result in results] == [6] * 40
    assert runs(notes) == 40


@pytest.fixture(params=["classic", "quorum"])
def chords(request, private_broker, make_client, worker, tmp_path):
    """(an app, a function that makes a Header: of so many tasks, with options of the body)"""
    options = {"chords": True, "queue_type": request.param}
    app = make_client(private_broker.url, "fastrpc-faults", options=options)
    return app, lambda size, **options: Header(app, size, tmp_path / "notes", **options)


def seen(app, **counters) -> None:
    wait_until(
        lambda: all(app.backend.stats()[name] == n for name, n in counters.items()),
        WAIT,
        f"the counters are {counters}",
    )


class TestParts:
    def test_a_part_that_is_run_twice(self, chords, private_broker, tmp_path):
        app, make = chords
        header = make(3)
        header.end(0, 1)
        header.end(0, 1)
        header.end(1, 10)  # three messages, two parts
        wait_until(lambda: app.backend.stats()["chord_put_back"], WAIT, "it is incomplete")
        wait_until(lambda: header.count(private_broker.url) == 3, WAIT, "all are back")
        assert runs(tmp_path / "notes") == 0
        header.end(2, 100)
        assert header.result.get(timeout=WAIT) == 111
        seen(app, chord_parts=4, chords_joined=1, chord_doubles=1)
        header.wait_for_deletion(private_broker.url)
        assert runs(tmp_path / "notes") == 1

    def test_a_part_that_comes_after_the_body_was_sent(self, chords, private_broker, tmp_path):
        app, make = chords
        header = make(1)
        header.end(0, 1)
        assert header.result.get(timeout=WAIT) == 1
        header.wait_for_deletion(private_broker.url)
        header.end(0, 1)
        seen(app, chord_late=1)
        time.sleep(0.3)
        assert runs(tmp_path / "notes") == 1

    def test_more_and_fewer_parts_than_the_header_was_told(self, chords):
        app, make = chords
        for size in (2, 5):
            header = make(3)
            app.backend._chords._applied[header.group_id] = 3
            app.backend.set_chord_size(header.group_id, size)
            header.ids += [str(uuid.uuid4()) for _ in range(2)]
            for index in range(size):
                header.end(index, 1)
            assert header.result.get(timeout=WAIT) == size

    def test_a_message_that_is_no_part(self, chords, private_broker):
        _, make = chords
        header = make(2)
        with Connection(private_broker.url) as connection:
            connection.Producer().publish(
                b"\x80rubbish",
                routing_key=header.queue,
                content_type="application/x-python-serialize",
                content_encoding="binary",
                correlation_id=header.ids[0],
            )
        header.end(1, 1)
        error = header.result.get(timeout=WAIT, propagate=False)
        assert isinstance(error, ChordError)
        assert "ContentDisallowed" in str(error)

    def test_the_connection_that_looks_is_lost(self, chords, private_broker, tmp_path, monkeypatch):
        """Between the count and the parts, and between the body and the deletion."""
        app, make = chords
        header = make(2)
        failed = []

        def fail_once(name):
            usual = getattr(ChordConnection, name)

            def method(self, *args):
                if name not in failed:
                    failed.append(name)
                    self._connection.collect()
                return usual(self, *args)

            monkeypatch.setattr(ChordConnection, name, method)

        for name in ("count", "take", "delete"):
            fail_once(name)
        header.end(0, 1)
        header.end(1, 1)
        assert header.result.get(timeout=WAIT) == 2
        seen(app, chords_joined=1)
        assert sorted(failed) == ["count", "delete", "take"]
        header.wait_for_deletion(private_broker.url)
        # The body was sent before the deletion failed: only that is repeated.
        assert runs(tmp_path / "notes") == 1

    def test_a_consumer_that_holds_the_parts_dies(self, chords, private_broker):
        """Nobody else ends a part afterwards: the one that has looked meanwhile looks again."""
        app, make = chords
        header = make(2)
        header.end(0, 1)
        with Connection(private_broker.url) as dying:
            held: list[Any] = []
            dying.default_channel.basic_consume(header.queue, callback=held.append)
            while not held:
                dying.drain_events(timeout=WAIT)
            header.end(1, 1)
            time.sleep(0.5)
            assert app.backend.stats()["chords_joined"] == 0
            dying.collect()
        assert header.result.get(timeout=WAIT) == 2
        header.wait_for_deletion(private_broker.url)

    def test_the_broker_stalls_before_it_gives_out_the_parts(self, chords, monkeypatch):
        """No other process holds them: they are asked for once more."""
        _, make = chords
        take, takes = ChordConnection.take, []

        def stall(*args, **kwargs):
            monkeypatch.undo()
            raise TimeoutError

        def take_from_a_stalled_broker(self, *args):
            takes.append(args)
            monkeypatch.setattr(self._connection, "drain_events", stall)
            return take(self, *args)

        monkeypatch.setattr(ChordConnection, "take", take_from_a_stalled_broker)
        header = make(1)
        header.end(0, 1)
        assert header.result.get(timeout=WAIT) == 1
        assert takes


class TestBodies:
    """Bodies that the broker refuses."""

    def test_for_good(self, chords, private_broker):
        """A queue with other arguments here, a body larger than max_message_size elsewhere."""
        _, make = chords
        name = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
        with Connection(private_broker.url) as connection:
            connection.default_channel.queue_declare(name, durable=False)
        header = make(1, queue=name)
        header.end(0, 1)
        error = header.result.get(timeout=5, propagate=False)
        assert isinstance(error, ChordError)
        assert "PRECONDITION_FAILED" in str(error)
        header.wait_for_deletion(private_broker.url)

    def test_for_a_while(self, chords, private_broker, records):
        """By basic.nack, as a quorum queue does while it has no leader."""
        app, make = chords
        name = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
        arguments = {"x-max-length": 1, "x-overflow": "reject-publish"}
        full = app.amqp.queues.add(Queue(name, queue_arguments=arguments))
        with Connection(private_broker.url) as connection:
            bound = full(connection.default_channel)
            bound.declare()
            connection.Producer().publish(b"", routing_key=name)
            header = make(1, queue=name)
            header.end(0, 1)
            wait_until(lambda: "looking at chords" in records.text, WAIT, "it was refused")
            bound.purge()
            wait_until(lambda: bound.queue_declare(passive=True)[1] == 1, WAIT, "it is there")
        seen(app, chords_joined=1)
        header.wait_for_deletion(private_broker.url)

    def test_of_one_chord_while_others_are_due(self, chords, private_broker, monkeypatch):
        app, make = chords
        name = f"fastrpc-faults-{uuid.uuid4().hex[:8]}"
        both = threading.Event()
        count = ChordConnection.count

        def count_once_both_are_due(self, queue):
            both.wait(WAIT)
            return count(self, queue)

        monkeypatch.setattr(ChordConnection, "count", count_once_both_are_due)
        first, refused, other = make(2), make(1, exchange=name, routing_key=name), make(1)
        first.end(0, 1)  # while it is looked at, the others become due
        wait_until(lambda: app.backend.chords._joiner._current, WAIT, "the thread looks")
        refused.end(0, 1)
        other.end(0, 2)
        time.sleep(0.1)
        both.set()
        assert other.result.get(timeout=5) == 2
        with Connection(private_broker.url) as connection:
            connection.default_channel.exchange_declare(name, "direct", durable=True)
        refused.wait_for_deletion(private_broker.url)
        first.end(1, 1)
        assert first.result.get(timeout=WAIT) == 2


def test_an_abandoned_chord_leaves_no_queue(private_broker, make_client, tmp_path):
    app = make_client(private_broker.url, options=ON, result_expires=1)
    header = Header(app, 2, tmp_path / "notes")
    header.end(0, 1)
    assert header.count(private_broker.url) is not None
    wait_until(lambda: header.queue not in private_broker.queues(), WAIT, "it has expired")
    header.end(1, 1)
    seen(app, chord_late=1)


def test_a_chord_lasts_longer_than_its_expiry(private_broker, make_client, worker, tmp_path):
    """Each part renews it."""
    app = make_client(private_broker.url, "fastrpc-faults", options=ON, result_chord_expires=2)
    header = Header(app, 5, tmp_path / "notes")
    for index in range(5):
        header.end(index, 1)
        time.sleep(1)
    assert header.result.get(timeout=WAIT) == 5


def test_a_worker_that_shuts_down_has_looked_at_its_chords(private_broker, make_client, tmp_path):
    app = make_client(private_broker.url, "fastrpc-faults-nobody", options=ON)
    header = Header(app, 1, tmp_path / "notes")
    header.end(0, 1)
    app.backend.flush()
    assert app.backend.stats()["chords_joined"] == 1
