"""Messages that are not results, not ours, or too large: they affect no other waiter."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from amqp.basic_message import Message
from celery import Celery, states
from celery.exceptions import TimeoutError

from fastrpc.errors import ResultTooLarge
from tests.support import inside
from tests.support.apps import client
from tests.support.resources import growth
from tests.support.results import answer, expect, meta, new_ids, publish
from tests.support.threads import Background
from tests.support.waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def app(private_broker) -> Iterator[Celery]:
    app = client(private_broker.url)
    yield app
    app.backend.close()


@pytest.fixture(scope="module")
def bystander(app, private_broker) -> Iterator[Background]:
    """Another task's waiter must get its own result; in the end the queue is empty."""
    sender = client(private_broker.url)
    [result] = expect(app, 1)
    oid = app.backend.oid
    waiting = Background(lambda: result.get(timeout=600))
    wait_until(lambda: inside.role_is_taken(app), 10, "it reads")
    yield waiting
    answer(sender, oid, [result], "undisturbed")
    assert waiting.result(20) == "undisturbed"
    assert app.backend.stats()["reconnects"] == 0
    assert_nothing_comes_back(app)
    sender.backend.close()


@pytest.fixture
def noticed_nothing(bystander):
    yield
    if not bystander.running:
        raise AssertionError(f"somebody else was disturbed: {bystander.result()}")


def assert_nothing_comes_back(app: Celery) -> None:
    """Check that everything was acknowledged: a new connection finds nothing."""
    wait_until(lambda: not inside.role_is_taken(app), 5, "nobody reads")
    wait_until(lambda: not inside.owes_acknowledgement(app), 5, "all is acknowledged")
    received = app.backend.stats()["received"]
    inside.hang_up(app)
    app.backend.result_consumer.look(app.backend.oid)  # connects, and waits for what is there
    with pytest.raises(TimeoutError):
        app.AsyncResult(new_ids(1)[0]).get(timeout=0.1)
    assert inside.intake(app) is not None
    assert app.backend.stats()["received"] == received


def bad_messages(app: Celery) -> list[int]:
    return list(app.backend.stats()["bad_messages"].values())


def nested(depth: int) -> dict:
    table: dict = {}
    for _ in range(depth):
        table = {"t": table}
    return table


BAD: dict[str, dict] = {
    "empty": {"body": b""},
    "not json": {"body": b"\xff\xfe{{{"},
    "deep json": {"body": b"[" * 100_000},
    "deep json in a result": {
        "body": b'{"task_id": "x", "status": "SUCCESS", "result": ' + b"[" * 50_000 + b"}"
    },
    "a number": {"body": b"17"},
    "an array": {"body": b"[1, 2]"},
    "no status": {"body": b'{"task_id": "x", "result": 1}'},
    "status of another kind": {"body": b'{"task_id": "x", "result": 1, "status": {"a": 1}}'},
    "task id of another kind": {"body": b'{"task_id": [1], "result": 1, "status": "SUCCESS"}'},
    "task id too long": {"body": meta("y" * 100_000)},
    "a surrogate in its id": {"body": b'{"task_id": "\\ud800", "result": 1, "status": "SUCCESS"}'},
    "unknown content type": {"body": b"x", "content_type": "application/x-evil"},
    "pickle": {
        "body": b"cos\nsystem\n(S'exit 1'\ntR.",
        "content_type": "application/x-python-serialize",
        "content_encoding": "binary",
    },
    "unknown encoding": {"body": meta("x"), "content_encoding": "no-such-encoding"},
    "utf-16 that is not": {"body": b"\x00\xd8", "content_encoding": "utf-16"},
    "encoding that is a codec of another kind": {"body": meta("x"), "content_encoding": "rot13"},
    "encoding of 255 bytes": {"body": meta("x"), "content_encoding": "e" * 255},
    "a zero in its type": {"body": meta("x"), "content_type": "application/\0json"},
    "an empty task id": {"body": b'{"task_id": "", "result": 1, "status": "SUCCESS"}'},
    "type of 255 bytes": {"body": meta("x"), "content_type": "t" * 255},
    "unknown compression": {
        "body": meta("x"),
        "application_headers": {"compression": "application/x-evil"},
    },
    "compression that is none": {
        "body": meta("x"),
        "application_headers": {"compression": "application/x-gzip"},
    },
    "compression that is no text": {
        "body": meta("x"),
        "application_headers": {"compression": "\ud800"},
    },
    "compression of another kind": {
        "body": meta("x"),
        "application_headers": {"compression": nested(3)},
    },
    "huge headers": {
        "body": meta("x"),
        "application_headers": {f"key{n}": "v" * 100 for n in range(1_000)},
    },
    "nested headers": {"body": meta("x"), "application_headers": nested(100)},
    "headers nested deeper than Python reads": {
        "body": meta("x"),
        "application_headers": nested(2_000),
    },
    "a correlation id that is no text": {"body": b"{", "correlation_id": b"\xff\xfe"},
    "an exception that is none": {
        "body": meta("x", status=states.FAILURE, result={"exc_type": 17, "exc_message": {}})
    },
}


@pytest.mark.parametrize("wanted", [False, True], ids=["unasked", "asked for"])
@pytest.mark.parametrize("what", BAD)
def test_one_bad_message(app, sender, noticed_nothing, what, wanted):
    [task_id] = new_ids(1)
    properties = {"correlation_id": task_id, **BAD[what]}
    body = properties.pop("body")
    received = app.backend.stats()["received"]
    if wanted:
        app.backend.add_pending_result(app.AsyncResult(task_id))
    publish(app, app.backend.oid, body, **properties)
    wait_until(lambda: app.backend.stats()["received"] == received + 1, 10, "it is received")
    app.AsyncResult(task_id).forget()


def test_rubbish_under_the_id_of_another_task_changes_no_result(app, noticed_nothing):
    """It can end a wait that is not over, but no more; `rpc://` raises there, too."""
    first, second = new_ids(2)
    received = app.backend.stats()["received"]
    publish(app, app.backend.oid, meta(first, result="there"), correlation_id=first)
    for task_id in (first, second, second):
        publish(app, app.backend.oid, b"{", correlation_id=task_id)
    publish(app, app.backend.oid, meta(second, result="late"), correlation_id=second)
    wait_until(lambda: app.backend.stats()["received"] == received + 5, 10, "all have come")
    assert app.AsyncResult(first).get(timeout=10) == "there"
    assert app.AsyncResult(second).get(timeout=10) == "late"  # nobody had asked before it came


def test_bad_messages_while_answers_are_awaited(private_broker, make_client, sender):
    """They take another path then, with the same outcome."""
    app = make_client(private_broker.url, options={"max_body": 90_000})
    results = expect(app, len(BAD) + 1)
    oid = app.backend.oid
    answer(sender, oid, results[:1])
    assert results[0].get(timeout=10) == 0
    intake = inside.intake(app)
    for result, (what, message) in zip(results[1:], BAD.items(), strict=True):
        properties = {"correlation_id": "x", **message}
        publish(app, oid, properties.pop("body"), **properties)
        wait_until(intake.readable, 5, f"{what}: it has come")
        assert not intake.holds_some, what
        intake._declaring_channel.basic_qos(0, 1, False)
        assert intake.holds_some, what  # it came before the answer
        answer(sender, oid, [result], what)
        assert result.get(timeout=10) == what
    stats = app.backend.stats()
    assert (stats["received"], stats["reconnects"]) == (2 * len(BAD) + 1, 0)
    assert stats["bad_messages"]["too large"] == 2
    assert_nothing_comes_back(app)


@pytest.mark.parametrize(
    "correlation_id", ["c" * 255, "", "\U0001f40d" * 60, "a\0b", "%s%n{0}"], ids=ascii
)
def test_any_correlation_id(app, noticed_nothing, correlation_id):
    task_id = correlation_id or new_ids(1)[0]
    result = app.AsyncResult(task_id)
    publish(app, app.backend.oid, meta(task_id), correlation_id=correlation_id)
    assert result.get(timeout=10) == 1


def test_a_long_correlation_id_that_is_not_utf8_and_no_task_id(app, noticed_nothing):
    publish(
        app, app.backend.oid, b'{"status": "SUCCESS", "result": 1}', correlation_id="\udcff" * 80
    )
    [task_id] = new_ids(1)
    publish(app, app.backend.oid, meta(task_id), correlation_id=task_id)
    assert app.AsyncResult(task_id).get(timeout=10) == 1


def test_no_correlation_id_at_all(app, noticed_nothing):
    [task_id] = new_ids(1)
    publish(app, app.backend.oid, meta(task_id))
    assert app.AsyncResult(task_id).get(timeout=10) == 1


def test_results_for_other_tasks(app, noticed_nothing):
    """The correlation id names one task and the body another: the body decides."""
    mine, other = new_ids(2)
    publish(app, app.backend.oid, meta(other, result="the other's"), correlation_id=mine)
    with pytest.raises(TimeoutError):
        app.AsyncResult(mine).get(timeout=0.5)
    assert app.AsyncResult(other).get(timeout=5) == "the other's"
    publish(app, app.backend.oid, meta(mine, result="mine"), correlation_id=mine)
    assert app.AsyncResult(mine).get(timeout=5) == "mine"


def test_a_result_twice_and_contradicting_itself(app, noticed_nothing):
    """The first one counts, also for who asks once all have come."""
    [task_id] = new_ids(1)
    received = app.backend.stats()["received"]
    result = app.AsyncResult(task_id)
    for value in ("first", "second", "third"):
        publish(app, app.backend.oid, meta(task_id, result=value), correlation_id=task_id)
        assert result.get(timeout=5) == "first"
    wait_until(lambda: app.backend.stats()["received"] >= received + 3, 5, "all have come")
    assert app.AsyncResult(task_id).get(timeout=5) == "first"


@pytest.mark.parametrize(
    "exception",
    [
        {"exc_type": "system", "exc_message": ["touch /tmp/evil"], "exc_module": "os"},
        {"exc_type": "Popen", "exc_message": ["true"], "exc_module": "subprocess"},
        {"exc_type": "print", "exc_message": ["x"], "exc_module": "builtins"},
        {"exc_type": "KeyError", "exc_message": {"a": "dict"}, "exc_module": "builtins"},
        {"exc_type": "No.Such", "exc_message": [], "exc_module": "no.such.module"},
    ],
    ids=lambda exception: exception["exc_type"],
)
def test_an_exception_that_names_what_it_should_not(app, noticed_nothing, exception):
    """Only exception classes are instantiated; the waiter gets an error, and no other does."""
    [task_id] = new_ids(1)
    body = meta(task_id, status=states.FAILURE, result=exception)
    publish(app, app.backend.oid, body, correlation_id=task_id)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        app.AsyncResult(task_id).get(timeout=10)
    assert not isinstance(raised.value, TimeoutError)


def test_a_flood_stays_within_the_caps(private_broker, make_client, sender, caplog):
    """Results of 50,000 tasks that were never sent arrive while one task is awaited."""
    caplog.set_level(logging.WARNING)
    app = make_client(
        private_broker.url, options={"max_unclaimed": 1_000, "max_unclaimed_bytes": 200_000}
    )
    [result] = expect(app, 1)
    oid = app.backend.oid
    waiting = Background(lambda: result.get(timeout=60))
    wait_until(lambda: inside.role_is_taken(app), 10, "it reads")
    answer(sender, oid, new_ids(5_000), "warm up")
    wait_until(lambda: app.backend.stats()["received"] >= 5_000, 20, "it has begun")

    def flood() -> None:
        for _ in range(5):
            answer(sender, oid, new_ids(5_000), "x" * 100)
            stats = app.backend.stats()
            assert stats["unclaimed"] <= 1_000
            assert stats["unclaimed_bytes"] <= 200_000

    assert growth(flood) < 8 * MIB
    answer(sender, oid, [result], "undisturbed")
    assert waiting.result(60) == "undisturbed"
    assert len(caplog.records) < 5


def test_a_flood_of_bad_messages_does_not_flood_the_log(app, sender, noticed_nothing, caplog):
    caplog.set_level(logging.WARNING)
    before = sum(bad_messages(app))
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        for _ in range(5_000):
            channel.basic_publish(Message(b"17"), routing_key=app.backend.oid)
        wait_until(lambda: sum(bad_messages(app)) - before >= 5_000, 60, "all are counted")
    assert len([r for r in caplog.records if r.name == "fastrpc"]) <= 5


class TestOversized:
    """A body larger than max_body must neither be accepted nor redelivered for ever."""

    @pytest.fixture
    def app(self, private_broker, make_client) -> Celery:
        return make_client(private_broker.url, options={"max_body": MIB})

    def test_at_the_limit(self, app, sender):
        [result] = expect(app, 1)
        value = "x" * (MIB - 1_000)
        answer(sender, app.backend.oid, [result], value)
        assert result.get(timeout=20) == value

    @pytest.mark.parametrize("connected", [True, False])
    def test_over_it(self, app, sender, private_broker, connected, caplog):
        large, *small = expect(app, 20)
        oid = app.backend.oid
        if connected:
            answer(sender, oid, small[:1])
            assert small.pop(0).get(timeout=10) == 0
        answer(sender, oid, small[:9])
        answer(sender, oid, [large], "x" * 2 * MIB)
        answer(sender, oid, small[9:])
        got = [result.get(timeout=10) for result in small]
        assert got == [*range(9), *range(len(small) - 9)]
        with pytest.raises(ResultTooLarge, match="raise max_body"):
            large.get(timeout=10)
        assert sum(bad_messages(app)) == 1
        assert len([r for r in caplog.records if r.levelno >= logging.ERROR]) <= 2
        assert_nothing_comes_back(app)
