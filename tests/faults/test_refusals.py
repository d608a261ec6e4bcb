"""The broker refuses us: a clear error at once, no retry storm, no password anywhere."""

from __future__ import annotations

import re

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from fastrpc import ReplyQueueMismatch, ReplyQueueRefused
from tests.support import inside
from tests.support.apps import client
from tests.support.proxy import Proxy
from tests.support.results import answer, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import stopwatch

SECRET = "s3cr3t-p4ssw0rd"
USER = "restricted"


@pytest.fixture(scope="module")
def refusing(private_broker):
    """A user without permissions in / and with all in /mine; and a missing vhost."""
    private_broker.ctl("add_user", USER, SECRET)
    private_broker.ctl("add_vhost", "/mine")
    private_broker.ctl("set_permissions", "-p", "/", USER, "^$", "^$", "^$")
    private_broker.ctl("set_permissions", "-p", "/mine", USER, ".*", ".*", ".*")
    yield private_broker
    private_broker.ctl("delete_user", USER)
    private_broker.ctl("delete_vhost", "/mine")


@pytest.fixture
def counting(refusing):
    with Proxy(refusing.host, refusing.port) as proxy:
        yield proxy


def url_of(case: str, port: int) -> str:
    return {
        "wrong password": f"amqp://{USER}:not-{SECRET}@127.0.0.1:{port}//mine",
        "unknown user": f"amqp://nobody:{SECRET}@127.0.0.1:{port}//",
        "missing vhost": f"amqp://{USER}:{SECRET}@127.0.0.1:{port}/no-such-vhost",
        "forbidden vhost": f"amqp://nobody-there:{SECRET}@127.0.0.1:{port}//mine",
        "missing permission": f"amqp://{USER}:{SECRET}@127.0.0.1:{port}//",
    }[case]


CASES = ["wrong password", "unknown user", "missing vhost", "forbidden vhost", "missing permission"]
WORDS = "(?i)access.?refused|not.?allowed|refused|not found"


def texts_of(app: Celery) -> str:
    """Every text that may end up in a log, an error report or a debugger's window."""
    backend = app.backend
    seen = [
        app,
        backend,
        backend.result_consumer,
        backend.worker.publisher,
        backend.options,
        backend.stats(),
    ]
    seen += [inside.intake(app), inside.link(app)]
    return "\n".join([*map(repr, seen), backend.as_uri(), backend.as_uri(include_password=False)])


@pytest.mark.parametrize("case", CASES)
def test_waiting_fails_at_once(counting, make_client, records, case):
    app = make_client(url_of(case, counting.port))
    with (
        stopwatch(3, "get()"),
        pytest.raises(OperationalError, match=WORDS) as raised,
    ):
        app.AsyncResult("some-id").get()
    assert counting.stats["accepted"] <= 3, "a storm of retries"
    assert SECRET not in str(raised.value) + repr(raised.value)
    assert SECRET not in records.text
    assert SECRET not in texts_of(app)


@pytest.mark.parametrize("case", CASES)
def test_looking_fails_at_once(counting, make_client, records, case):
    app = make_client(url_of(case, counting.port))
    with stopwatch(3, "ready()"), pytest.raises(OperationalError, match=WORDS):
        app.AsyncResult("some-id").ready()
    assert counting.stats["accepted"] <= 3
    assert SECRET not in records.text


@pytest.mark.parametrize("case", CASES[:-1])
def test_sending_fails_at_once(counting, make_client, records, case):
    """Whatever the retry policy says: a retry would be refused as well."""
    sender = make_client(url_of(case, counting.port))
    with stopwatch(3, "store_result"), pytest.raises(OperationalError, match=WORDS) as raised:
        answer(sender, "some-queue", ["some-id"])
    assert counting.stats["accepted"] <= 3
    assert SECRET not in str(raised.value) + repr(raised.value)
    assert SECRET not in records.text
    assert SECRET not in texts_of(sender)


def test_sending_without_permission_is_noticed(counting, make_client, records):
    """Publishing is refused by closing the channel, after the send has returned."""
    sender = make_client(
        url_of("missing permission", counting.port), options={"shutdown_timeout": 1}
    )
    answer(sender, "some-queue", ["some-id"])
    with stopwatch(10, "close()"):
        sender.backend.close()
    assert "refused" in records.text.lower()
    assert SECRET not in records.text
    assert counting.stats["accepted"] <= 20
    # Nothing is left to be tried again by whoever closes it once more.
    inside.publisher(sender)._begin()


def test_every_waiting_thread_gets_the_error(counting, make_client):
    app = make_client(url_of("wrong password", counting.port))

    def wait(n: int) -> str:
        with pytest.raises(OperationalError, match=WORDS):
            app.AsyncResult(f"some-id-{n}").get(timeout=10)
        return "heard"

    with stopwatch(8, "all of them"):
        assert run_threads(8, wait) == ["heard"] * 8


class TestReplyQueue:
    """The broker accepts us but does not declare our queue, which does not exist yet."""

    @pytest.fixture(params=["max-queues", -1, 0.0001, 1e10])
    def app(self, request, refusing, make_client):
        """A client whose reply queue is refused for a limit, or for such a result_expires."""
        url = f"amqp://{USER}:{SECRET}@{refusing.host}:{refusing.port}//mine"
        if request.param != "max-queues":
            yield make_client(url, result_expires=request.param)
            return
        refusing.ctl("set_vhost_limits", "-p", "/mine", '{"max-queues": 0}')
        yield make_client(url)
        refusing.ctl("clear_vhost_limits", "-p", "/mine")

    def check(self, refused) -> None:
        assert not isinstance(refused.value, ReplyQueueMismatch)
        assert re.search("queue limit .* is reached|invalid arg 'x-expires'", str(refused.value))

    def test_a_call_says_why(self, app):
        with stopwatch(5, "apply_async"), pytest.raises(ReplyQueueRefused) as refused:
            app.tasks["tests.echo"].delay(1)
        self.check(refused)

    def test_waiting_says_why(self, app):
        with stopwatch(5, "get"), pytest.raises(ReplyQueueRefused) as refused:
            app.AsyncResult("some-id").get(timeout=3)
        self.check(refused)


def test_it_works_once_it_is_allowed(refusing, make_client):
    """A process that was refused need not be restarted."""
    name, password = "latecomer", SECRET
    url = f"amqp://{name}:{password}@127.0.0.1:{refusing.port}//mine"
    app = make_client(url)
    with pytest.raises(OperationalError):
        app.AsyncResult("some-id").get(timeout=5)
    refusing.ctl("add_user", name, password)
    refusing.ctl("set_permissions", "-p", "/mine", name, ".*", ".*", ".*")
    try:
        results = expect(app, 3)
        answer(app, app.backend.oid, results)
        assert [result.get(timeout=10) for result in results] == [0, 1, 2]
    finally:
        app.backend.close()
        refusing.ctl("delete_user", name)


def test_no_password_in_a_log_when_all_goes_well_or_breaks(refusing, counting, records):
    app = client(url_of("wrong password", counting.port).replace("not-", ""))
    results = expect(app, 5)
    answer(app, app.backend.oid, results)
    assert [result.get(timeout=10) for result in results] == list(range(5))
    texts = texts_of(app)
    counting.refuse()
    counting.cut()
    later = app.AsyncResult("some-other-id")
    waiting = Background(lambda: later.get(timeout=1))
    with pytest.raises(Exception):  # noqa: B017, PT011
        waiting.result(5)
    counting.listen()
    app.backend.close()
    assert SECRET not in texts + texts_of(app) + records.text
