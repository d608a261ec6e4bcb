"""Chords without a broker: what is refused, when to look, what the parts make, who is answered."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError

from fastrpc.chords import joiner
from fastrpc.chords.body import reply_queue_of
from fastrpc.chords.look import Look
from fastrpc.chords.parts import Parts, flat, leaves
from tests.support.apps import make_app


@pytest.fixture(scope="module")
def app():
    return make_app("amqp://nowhere:1//", "fastrpc://?chords=1")


def message(task_id: str, **content):
    return SimpleNamespace(
        body=json.dumps(content),
        properties={
            "correlation_id": task_id,
            "content_type": "application/json",
            "content_encoding": "utf-8",
        },
    )


def part(task_id: str, index, value=None, status=states.SUCCESS):
    return message(task_id, index=index, status=status, result=value)


class TestRefused:
    def test_without_the_option(self):
        app = make_app("amqp://nowhere:1//", "fastrpc://")
        with pytest.raises(NotImplementedError, match="chords=1"):
            app.backend.ensure_chords_allowed()
        with pytest.raises(NotImplementedError, match="chords=1"):
            app.backend.apply_chord(("id", []), app.tasks["tests.total"].s())

    def test_over_another_broker(self):
        app = make_app("memory://", "fastrpc://?chords=1")
        with pytest.raises(NotImplementedError, match="does not speak AMQP"):
            app.backend.ensure_chords_allowed()

    def test_saved_groups(self, app):
        with pytest.raises(NotImplementedError, match="save_group is not supported"):
            app.GroupResult("id", []).save()


class TestParts:
    def test_they_are_in_the_order_of_the_header(self, app):
        parts = Parts(3, [part("c", 2, 30), part("a", 0, 10), part("b", 1, 20)], app.backend)
        assert parts.whole
        assert parts.values() == [10, 20, 30]

    def test_those_without_a_place_come_last(self, app):
        parts = Parts(2, [part("x", None, "x"), part("a", 0, "a")], app.backend)
        assert parts.values() == ["a", "x"]

    def test_of_doubles_the_first_counts(self, app):
        parts = Parts(2, [part("a", 0, 1), part("a", 0, 2)], app.backend)
        assert (parts.whole, parts.doubles, parts.read) == (False, 1, 2)
        assert parts.values() == [1]

    def test_what_was_added_must_come_too(self, app):
        messages = [message("b", added=1), part("a", 0, 1)]
        assert not Parts(1, messages, app.backend).whole
        assert not Parts(1, [*messages, message("b", added=1)], app.backend).whole
        assert Parts(1, [*messages, part("b", 0, 2)], app.backend).whole

    def test_the_queue_may_say_how_many_and_in_which_groups(self, app):
        head = message("", size=3, shape=["a", ["b", "c"]])
        messages = [head, part("b", 0, 2), part("a", 0, 1)]
        assert not Parts(4, messages, app.backend).whole
        parts = Parts(4, [*messages, part("c", 1, 3)], app.backend)
        assert parts.whole
        assert parts.values() == [1, [2, 3]]

    def test_a_group_that_lacks_a_part_is_an_error(self, app):
        parts = Parts(1, [message("", size=1, shape=["a"]), part("b", 0, 1)], app.backend)
        with pytest.raises(ChordError, match="Join error: KeyError"):
            parts.values()

    @pytest.mark.parametrize("state", [states.FAILURE, states.REVOKED])
    def test_the_first_that_failed_is_the_error_and_its_cause(self, app, state):
        error = app.backend.encode_result(ValueError("late"), state)
        first = app.backend.encode_result(KeyError("k"), state)
        parts = Parts(2, [part("b", 1, error, state), part("a", 0, first, state)], app.backend)
        with pytest.raises(ChordError, match=r"Dependency a raised KeyError\('k'\)") as raised:
            parts.values()
        assert isinstance(raised.value.__cause__, KeyError)

    @pytest.mark.parametrize("body", ["rubbish", "[]", "1", "{}", '{"index": 1}'])
    def test_what_is_no_part_has_failed(self, app, body):
        bad = part("a", 0)
        bad.body = body
        parts = Parts(1, [bad], app.backend)
        assert parts.whole
        with pytest.raises(ChordError, match="Dependency a raised"):
            parts.values()


@pytest.mark.parametrize(("size", "pause"), [(1, 0.0), (11, 0.001), (10_000, 0.05)])
def test_the_first_part_gives_the_others_time_to_come(app, monkeypatch, size, pause):
    monkeypatch.setattr(joiner, "start_thread", lambda function: None)
    look = Look("group", size, {}, None)
    before = time.monotonic()
    joiner.Joiner(app.backend, lambda: None).demand(look)
    assert before + pause <= look.due <= time.monotonic() + pause


def test_the_leaves_of_results_keep_their_groups(app):
    a, b, c = (app.AsyncResult(name) for name in "abc")
    tree = leaves([a, app.GroupResult("g", [b, app.GroupResult("h", [c])])])
    assert tree == ["a", ["b", ["c"]]]
    assert flat(tree) == ["a", "b", "c"]


def test_whose_queue_a_canvas_answers_to(app):
    def echo():
        return app.tasks["tests.echo"].s().set(reply_to="there")

    for canvas in (
        echo(),
        chain(app.tasks["tests.echo"].s(), echo()),
        group(echo(), echo()),
        chord([app.tasks["tests.echo"].s()], echo()),
        chord([app.tasks["tests.echo"].s()], chain(app.tasks["tests.echo"].s(), echo())),
    ):
        assert reply_queue_of(canvas) == "there"
    assert reply_queue_of(app.tasks["tests.echo"].s()) is None
