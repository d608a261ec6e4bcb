"""A cluster of three nodes that loses the one we use; broker URLs that do not answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from celery.exceptions import TimeoutError
from kombu import Connection

from fastrpc.chords.connection import ChordConnection
from fastrpc.client import intake
from tests.support import inside
from tests.support.broker import Cluster, RabbitMQ, settle
from tests.support.headers import Header
from tests.support.installed import installed
from tests.support.results import answer, await_confirms, expect
from tests.support.threads import Background
from tests.support.waiting import LATE, stopwatch, wait_until
from tests.support.worker import Worker

COUNT = 1_000
TASKS = 300

#: The broker's errors for a queue whose node is down; from 4.0 on, the second after a clean stop.
DOWN = "is down or inaccessible|is stopped by supervisor"


@pytest.fixture(scope="module")
def cluster(broker) -> Iterator[Cluster]:
    del broker  # its fixture has said what to install where there is none
    with Cluster(3) as cluster:
        yield cluster


@contextlib.contextmanager
def gone(node: RabbitMQ, go: Callable[[RabbitMQ], None]) -> Iterator[None]:
    """Stop the node by `go` inside the block, and start it again afterwards."""
    go(node)
    try:
        yield
    finally:
        node.start()


@contextlib.contextmanager
def dying(node: RabbitMQ) -> Iterator[None]:
    """Kill the node while the block runs, and start it again afterwards."""
    killing = Background(node.kill)
    try:
        yield
    finally:
        killing.result(10)
        node.start()


@pytest.fixture(params=[RabbitMQ.stop, RabbitMQ.kill], ids=["stopped", "killed"])
def goes(request):
    """`with goes(node)` stops the node, cleanly or by kill -9."""
    return partial(gone, go=request.param)


def use_queue_on(node: RabbitMQ, app: Celery, oid: str) -> None:
    """Put a classic queue on this node: it lives on the node that declared it first."""
    with Connection(node.url) as connection:
        app.backend.client.queues.declare(oid, connection.default_channel)


class Stream:
    """A wait for COUNT results, of which some have arrived."""

    def __init__(self, app: Celery, sender: Celery) -> None:
        self.app, self.sender = app, sender
        self.results = expect(app, COUNT)
        self.heard: list[str] = []
        for result in self.results:
            result.then(lambda result: self.heard.append(result.id))
        self.waiting = Background(lambda: app.ResultSet(self.results, app=app).get(timeout=60))
        self.node_gone = threading.Event()
        oid = app.backend.oid
        self.sending = Background(lambda: self.send(oid))
        wait_until(lambda: len(self.heard) >= COUNT // 10, 30, "it streams")

    def send(self, oid: str) -> None:
        answer(self.sender, oid, self.results[: COUNT // 2], "first half")
        self.node_gone.wait(30)
        answer(self.sender, oid, self.results[COUNT // 2 :], "second half")

    def check(self) -> None:
        """Check that nothing is lost and nothing arrives twice."""
        self.node_gone.set()
        self.sending.result(30)
        halves = ["first half"] * (COUNT // 2) + ["second half"] * (COUNT // 2)
        assert self.waiting.result(30) == halves
        assert sorted(self.heard) == sorted(result.id for result in self.results)
        await_confirms(self.sender)
        assert self.sender.backend.stats()["returned"] == 0


@pytest.mark.slow
def test_quorum_queue_outlives_the_connected_node(cluster, make_client, goes):
    conf = {"options": {"queue_type": "quorum"}}
    app, sender = make_client(cluster.urls(), **conf), make_client(";".join(cluster.urls()))
    stream = Stream(app, sender)
    with goes(cluster.nodes[0]):
        # Everything goes on while it is away: calls, results sent, results awaited.
        app.tasks["tests.add"].delay(1, 2)
        stream.check()
        [new] = expect(app, 1)
        answer(sender, app.backend.oid, [new], "new")
        assert new.get(timeout=10) == "new"
    assert app.backend.stats()["reconnects"] >= 1


@pytest.mark.slow
def test_quorum_queue_is_sent_to_while_it_has_no_leader(cluster, make_client):
    """RabbitMQ (seen with 3.10) then refuses for ever on a channel first used for the queue."""
    app = make_client(cluster.urls(), options={"queue_type": "quorum"})
    senders = [make_client(cluster.urls(n)) for n in (1, 2)]
    halves = [expect(app, COUNT // 2) for _ in senders]
    oid = app.backend.oid
    with gone(cluster.nodes[0], RabbitMQ.kill):
        for sender, half in zip(senders, halves, strict=True):
            answer(sender, oid, half, "elected")
        for half in halves:
            # After an election of more than seven seconds they are sent again at 15.
            assert app.ResultSet(half, app=app).get(timeout=30) == ["elected"] * len(half)
        for sender in senders:
            await_confirms(sender)


@pytest.mark.slow
def test_classic_queue_on_another_node_than_the_connected_one(cluster, make_client, goes):
    app, sender = make_client(cluster.urls()), make_client(cluster.urls())
    use_queue_on(cluster.nodes[1], app, app.backend.oid)
    stream = Stream(app, sender)
    with goes(cluster.nodes[0]):
        app.tasks["tests.add"].delay(1, 2)
        stream.check()
    assert app.backend.stats()["reconnects"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "patience", [intake.READING_PATIENCE, 0.0005], ids=["patient", "impatient"]
)
def test_classic_queue_comes_back_with_its_node(
    request, cluster, make_client, goes, patience, monkeypatch
):
    """Meanwhile nothing hangs, and the queues of other threads work.

    With little patience the refusal of a declaration comes when nobody waits for it any more.
    """
    monkeypatch.setattr(intake, "READING_PATIENCE", patience)
    home, other = cluster.nodes[0], cluster.nodes[1]
    # RabbitMQ 4 may leave the declaration of a queue whose node was killed unanswered for 64 s.
    is_told = "killed" not in request.node.name or home.ctl("version").startswith("3.")
    app = make_client(cluster.urls(), result_persistent=True)
    sender = make_client(cluster.urls(2), result_persistent=True)
    oid = app.backend.oid
    use_queue_on(home, app, oid)
    first, *results = expect(app, 101)
    answer(sender, oid, [first], "connected")
    assert first.get(timeout=10) == "connected"
    # One that reads nothing, and so does not hear that the node is down.
    sure = make_client(cluster.urls(2), broker_transport_options={"confirm_publish": True})
    use_queue_on(home, sure, sure.backend.oid)
    sure.tasks["tests.add"].delay(1, 2)

    elsewhere: list[str] = []
    sent = threading.Event()

    def wait_in_another_thread() -> str:
        elsewhere.append(app.backend.oid)
        use_queue_on(other, app, app.backend.oid)
        [result] = expect(app, 1)
        elsewhere.append(result.id)
        sent.wait(30)
        return result.get(timeout=30)

    # The caller is away, so that its results lie in the queue when the node goes.
    inside.hang_up(app)
    answer(sender, oid, results)
    await_confirms(sender)
    thread = Background(wait_in_another_thread)
    wait_until(lambda: len(elsewhere) == 2, 10, "the other thread has its queue")
    with goes(home):
        if is_told:
            wait_until(lambda: is_down(other, app, oid), 10, "its queue is down")
            with stopwatch(2, "a call"), pytest.raises(NotFound, match=DOWN):
                sure.tasks["tests.add"].delay(1, 2)
        with stopwatch(1 + LATE, "get(1)"), pytest.raises(TimeoutError):
            results[0].get(timeout=1)
        for _ in range(3 if is_told else 0):
            with stopwatch(2, "a call"), pytest.raises(NotFound, match=DOWN):
                app.tasks["tests.add"].delay(1, 2)
        waiting = Background(lambda: [result.get(timeout=60) for result in results])
        answer(sender, elsewhere[0], elsewhere[1:], "elsewhere")
        sent.set()
        assert thread.result(10) == "elsewhere"
        assert waiting.running
    assert waiting.result(30 if is_told else 60) == list(range(100))
    [new] = expect(app, 1)
    answer(sender, oid, [new], "new")
    assert new.get(timeout=10) == "new"


def is_down(node: RabbitMQ, app: Celery, queue: str) -> bool:
    """Whether this node knows that the queue is unavailable."""
    with Connection(node.url) as connection:
        try:
            app.backend.client.queues.make(queue)(connection.default_channel).queue_declare()
        except NotFound:
            return True
        return False


@pytest.fixture(params=[True, False], ids=["installed", "stock transport"])
def transport_is_ours(request) -> Iterator[bool]:
    with installed() if request.param else contextlib.nullcontext():
        yield request.param


@pytest.mark.slow
def test_tasks_go_on_while_the_connected_node_is_killed(cluster, make_client, transport_is_ours):
    """Each is sent with a confirm and acknowledged late; the results come over fastrpc://.

    With quorum queues Celery's worker asks each URL for its exchanges before it goes on, and one
    that does not answer four times: most of the time here is its pauses.
    """
    queue = f"fastrpc-cluster-{transport_is_ours}"
    conf = {
        "task_default_queue_type": "quorum",
        "broker_transport_options": {"confirm_publish": True},
        # The broker refuses tasks until the queue has a new leader, and kombu does not pause
        # between two refusals: it repeats a task hundreds of times in a second.
        "task_publish_retry_policy": {"max_retries": 5_000, "interval_max": 0.3},
    }
    options = {"queue_type": "quorum"}
    with Worker(
        ";".join(cluster.urls()),
        "fastrpc://",
        queues=(queue,),
        conf={
            **conf,
            "task_acks_late": True,
            "result_backend_transport_options": options,
            "broker_channel_error_retry": True,  # its own queue may still be locked
        },
        install=transport_is_ours,
    ):
        app = make_client(cluster.urls(), queue, options=options, **conf)
        task = app.tasks["tests.started_then"]
        results = [task.apply_async((n, 0.01)) for n in range(TASKS // 3)]
        assert results[0].get(timeout=30) == 0
        # The worker is busy, and the other two thirds are sent while the node goes: by this thread,
        # because a new quorum reply queue may not outlive its node ("What is not promised").
        with dying(cluster.nodes[0]):
            results += [task.apply_async((n, 0.01)) for n in range(len(results), TASKS)]
            assert [result.get(timeout=60) for result in results] == list(range(TASKS))
    assert app.backend.stats()["reconnects"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_the_node_of_the_queue_of_a_chord_is_killed_before_the_count(
    cluster, make_client, monkeypatch, tmp_path, queue_type
):
    """A quorum queue then seems empty, and a classic one gone: the parts are counted once more."""
    conf = {"options": {"chords": True, "queue_type": queue_type}}
    # Of this node alone: kombu's pools remember to which node they went over in another test.
    header = Header(make_client(cluster.nodes[0].url, **conf), 1, tmp_path / "notes")
    settle()
    backend = header.backend = make_client(cluster.urls(1), **conf).backend
    node, count, counts = cluster.nodes[0], ChordConnection.count, []

    def kill_and_count(self, queue):
        if not counts:
            node.kill()
        counts.append(queue)
        return count(self, queue)

    monkeypatch.setattr(ChordConnection, "count", kill_and_count)
    header.end(0, 1)
    try:
        wait_until(lambda: len(counts) > 1, 35, "it is counted once more")
        if queue_type == "quorum":
            wait_until(lambda: backend.stats()["chords_joined"], 10, "the chord is joined")
    finally:
        node.start()
    wait_until(lambda: backend.stats()["chords_joined"], 40, "the chord is joined")
    header.wait_for_deletion(cluster.nodes[1].url)


class TestSilentNodes:
    """The kernel accepts connections to them, but no server answers."""

    @pytest.fixture
    def silent(self) -> Iterator[list[str]]:
        with contextlib.ExitStack() as stack:
            socks = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            yield [f"amqp://127.0.0.1:{sock.getsockname()[1]}//" for sock in socks]

    def test_they_do_not_use_up_the_time_of_the_others(
        self, silent, private_broker, sender, make_client
    ):
        app = make_client(
            None,
            broker_write_url=private_broker.url,
            broker_read_url=[*silent, private_broker.url],
        )
        [result] = expect(app, 1)
        answer(sender, app.backend.oid, [result], "found")
        with stopwatch(2 + LATE, "get(2)"):
            assert result.get(timeout=2) == "found"

    @pytest.mark.parametrize("timeout", [0.5, 1.5])
    def test_timeouts_are_kept_where_all_are_silent(
        self, silent, private_broker, make_client, timeout
    ):
        app = make_client(None, broker_write_url=private_broker.url, broker_read_url=silent)
        [result] = expect(app, 1)
        with stopwatch(timeout + LATE, f"get({timeout})"), pytest.raises(TimeoutError):
            result.get(timeout=timeout)
