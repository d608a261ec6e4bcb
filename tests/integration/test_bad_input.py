"""Unusable messages on a reply queue are reported once, acknowledged, and affect no other task."""

from __future__ import annotations

import json
import logging
import pickle
import uuid

import kombu
import pytest
from celery import states
from celery.exceptions import SecurityError
from kombu.exceptions import ContentDisallowed, DecodeError

from fastrpc.errors import BadMessage
from tests.support.apps import make_app
from tests.support.backends import FAST
from tests.support.results import meta
from tests.support.waiting import wait_until

WAIT = 20
SECRET = "not-for-the-log"


#: name -> (body, properties, reason); the correlation id is that of a task that waits
BAD = {
    "malformed JSON": (f'{{"status": "{SECRET}'.encode(), {}, "undecodable"),
    "not UTF-8": (SECRET.encode() + b"\xff\xfe", {}, "undecodable"),
    "not a result": (json.dumps({"hello": SECRET}).encode(), {}, "not a result"),
    "a bare value": (json.dumps(SECRET).encode(), {}, "not a result"),
    "refused content type": (
        pickle.dumps(SECRET),
        {"content_type": "application/x-python-serialize", "content_encoding": "binary"},
        "content type not accepted",
    ),
    "no content type": (
        meta("x", SECRET),
        {"content_type": "", "content_encoding": ""},
        "not a result",
    ),
    "empty body": (b"", {}, "empty body"),
    "neither correlation id nor task id": (
        meta(None, SECRET),
        {"correlation_id": ""},
        "not a result",
    ),
    "unknown id, malformed": (
        f'{{"status": "{SECRET}'.encode(),
        {"correlation_id": "nobody knows this one"},
        "undecodable",
    ),
    "a correlation id with a line break": (
        b"",
        {"correlation_id": "one\nWARNING all is lost"},
        "empty body",
    ),
    "unknown compression": (
        meta("x", SECRET),
        {"compression": "application/x-no-such"},
        "undecodable",
    ),
}


@pytest.fixture(scope="module", params=["amqp", "redis"])
def url(request) -> str:
    server = "broker" if request.param == "amqp" else "redis_server"
    return request.getfixturevalue(server).url


@pytest.fixture
def app(url):
    app = make_app(url, FAST, "fastrpc-tests-nobody")
    yield app
    app.backend.close()
    app.close()


@pytest.fixture
def waiting(app):
    """Two tasks that no worker runs: the test answers for them."""
    return [app.tasks["tests.echo"].apply_async(("never",), expires=60) for _ in range(2)]


@pytest.fixture
def send(app, url):
    """send(correlation id, body, ...) puts a message on the reply queue, as any client can."""
    with kombu.Connection(url) as connection:
        producer = connection.Producer()

        def send(correlation_id: str, body: bytes, compression: str = "", **properties) -> None:
            given = {
                "content_type": "application/json",
                "content_encoding": "utf-8",
                "correlation_id": correlation_id,
                "headers": {"compression": compression} if compression else {},
                **properties,
            }
            producer.channel.basic_publish(
                producer.channel.prepare_message(
                    body,
                    None,
                    given.pop("content_type"),
                    given.pop("content_encoding"),
                    given.pop("headers"),
                    {"delivery_mode": 1, **given},
                ),
                exchange="",
                routing_key=app.thread_oid,
            )

        yield send


def left_in_queue(app) -> int:
    """How many messages are unacknowledged once the client has disconnected."""
    app.backend.result_consumer.close(delete_queues=False)
    with app.connection_for_read() as connection:
        bound = app.backend.binding(connection.default_channel)
        try:
            return bound.queue_declare(passive=True)[1]
        except connection.channel_errors:
            return 0  # Redis has no empty queues


#: Reason -> what `get()` raises.
RAISED = {
    "undecodable": DecodeError,
    "not a result": BadMessage,
    "content type not accepted": ContentDisallowed,
    "empty body": BadMessage,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_reported_once_and_affects_no_other_task(app, waiting, send, name, caplog):
    body, properties, reason = BAD[name]
    first, second = waiting
    properties = {"correlation_id": first.id, **properties}
    send(body=body, **properties)
    send(second.id, meta(second.id, "good"))
    assert second.get(timeout=WAIT) == "good"

    assert app.backend.stats()["bad_messages"] == {reason: 1}
    records = [r for r in caplog.records if r.name == "fastrpc"]
    assert [r.levelno for r in records] == [logging.WARNING]
    said = records[0].getMessage()
    assert reason in said
    shown = properties["correlation_id"] or "none"
    assert (shown if shown.isprintable() else repr(shown)) in said
    assert "\n" not in said
    assert SECRET not in caplog.text

    if properties["correlation_id"] == first.id:
        with pytest.raises(RAISED[reason]) as raised:
            first.get(timeout=WAIT)
        assert SECRET not in str(raised.value)
        assert app.backend.stats()["bad_messages"] == {reason: 1}
    else:
        assert not first.ready()
        send(first.id, meta(first.id, "after all"))
        assert first.get(timeout=WAIT) == "after all"
    assert left_in_queue(app) == 0


def test_all_of_them_at_once_delay_no_result(app, waiting, send):
    first, second = waiting
    for _ in range(20):
        for body, properties, _reason in BAD.values():
            send(body=body, **{"correlation_id": first.id, **properties})
    send(second.id, meta(second.id, "good"))
    assert second.get(timeout=WAIT) == "good"
    with pytest.raises((DecodeError, BadMessage, ContentDisallowed)):
        first.get(timeout=WAIT)
    assert sum(app.backend.stats()["bad_messages"].values()) == 20 * len(BAD)
    assert left_in_queue(app) == 0


LARGE = "ü" * (5 * 1024 * 1024)  # bodies of this size are decoded another way


def test_large_bodies_of_every_kind(app, waiting, send):
    first, second = waiting
    bad = [str(uuid.uuid4()) for _ in range(3)]
    send(bad[0], LARGE.encode() + b"\xff")
    send(bad[1], f'{{"status": "{LARGE}'.encode())
    send(bad[2], json.dumps(LARGE).encode())
    send(first.id, meta(first.id, LARGE, "PROGRESS"))
    send(first.id, meta(second.id, LARGE))
    assert second.get(timeout=WAIT) == LARGE
    assert (first.state, first.info) == ("PROGRESS", LARGE)
    assert app.backend.stats()["bad_messages"] == {"undecodable": 2, "not a result": 1}
    send(first.id, meta(first.id, [LARGE]))
    assert first.get(timeout=WAIT) == [LARGE]
    for task_id, expected in zip(bad, (DecodeError, DecodeError, BadMessage), strict=True):
        with pytest.raises(expected):
            app.AsyncResult(task_id).get(timeout=WAIT)
    assert left_in_queue(app) == 0


def test_a_result_of_an_unknown_task_is_kept_until_asked_for(app, waiting, send):
    unknown = str(uuid.uuid4())
    send(unknown, meta(unknown, "found"))
    send(waiting[0].id, meta(waiting[0].id, "good"))
    assert waiting[0].get(timeout=WAIT) == "good"
    assert app.backend.stats()["bad_messages"] == {}
    assert app.backend.stats()["unclaimed"] == 1
    assert left_in_queue(app) == 0
    assert app.AsyncResult(unknown).get(timeout=WAIT) == "found"


def test_a_result_for_another_task_than_its_correlation_id_says(app, waiting, send):
    first, second = waiting
    send(first.id, meta(second.id, "for the second"))
    assert second.get(timeout=WAIT) == "for the second"
    assert not first.ready()


def test_polling_survives_them_too(app, waiting, send):
    first, second = waiting
    send(first.id, b"{")
    send(second.id, meta(second.id, "good"))
    wait_until(second.ready, WAIT, "the second is ready")
    assert (first.ready(), first.state) == (True, states.FAILURE)
    assert app.backend.stats()["bad_messages"] == {"undecodable": 1}


def test_an_exception_that_is_none_is_not_built(app, waiting, send):
    first, second = waiting
    evil = {"exc_type": "system", "exc_message": [f"touch /tmp/{uuid.uuid4()}"], "exc_module": "os"}
    send(first.id, meta(first.id, evil, "FAILURE"))
    send(second.id, meta(second.id, "good"))
    assert second.get(timeout=WAIT) == "good"
    with pytest.raises(SecurityError):
        first.get(timeout=WAIT)
    assert left_in_queue(app) == 0
