"""The whole canvas over the broker: each shape ends as it does with the redis backend."""

from __future__ import annotations

import json
import uuid

import pytest
from celery import chain, chord, group, signature
from celery.exceptions import ChordError

from tests.support.reference import WAIT, value_of
from tests.support.waiting import wait_until

FAST = "fastrpc://?chords=1"


@pytest.fixture(scope="module", params=["fast", "redis"])
def backend(request):
    return FAST if request.param == "fast" else request.getfixturevalue("redis_server").url


@pytest.fixture(scope="module")
def worker(backend, make_worker):
    return make_worker(backend, "prefork", concurrency=4)


@pytest.fixture(scope="module")
def app(backend, worker, make_client):
    return make_client(backend, worker)


@pytest.fixture(scope="module")
def s(app):
    """s("add", 1, 2) is the signature of tests.add."""
    return lambda name, *args, **kwargs: app.tasks[f"tests.{name}"].s(*args, **kwargs)


@pytest.fixture(scope="module")
def si(app):
    return lambda name, *args, **kwargs: app.tasks[f"tests.{name}"].si(*args, **kwargs)


def ends_with(canvas):
    return value_of(canvas.apply_async())


def error_of(result):
    return value_of(result, propagate=False)


class TestShapes:
    def test_a_chord_in_a_header(self, s):
        inner = chord([s("add", 1, 1), s("add", 2, 2)], s("total"))
        assert ends_with(chord([inner, s("add", 3, 3)], s("collect"))) == [[6, 6]]

    def test_chords_three_deep(self, s):
        canvas = s("echo", 1)
        for _ in range(3):
            canvas = chord([canvas, s("echo", 1)], s("total"))
        assert ends_with(canvas) == 4

    def test_a_chord_of_chains(self, s):
        header = [chain(s("echo", n), s("add", 1), s("add", 10)) for n in range(4)]
        assert ends_with(chord(header, s("collect"))) == [[11, 12, 13, 14]]

    def test_a_chord_of_groups_is_flattened(self, s):
        header = [group(s("echo", 1), s("echo", 2)), s("echo", 3)]
        assert sorted(ends_with(chord(header, s("collect")))[0]) == [1, 2, 3]

    def test_a_chain_in_the_header_that_ends_with_a_group(self, s):
        header = [chain(s("echo", 1), group(s("add", 1), s("add", 2))), s("echo", 5)]
        assert ends_with(chord(header, s("collect"))) == [[[2, 3], 5]]

    def test_a_chord_in_the_header_whose_body_is_a_group(self, s):
        inner = chord([s("echo", 1), s("echo", 2)], group(s("total"), s("total")))
        assert ends_with(chord([inner, s("echo", 5)], s("collect"))) == [[[3, 3], 5]]

    def test_a_chord_in_a_chain(self, s):
        canvas = chain(s("echo", 1), chord([s("add", 1), s("add", 2)], s("total")), s("add", 100))
        assert ends_with(canvas) == 105

    def test_groups_one_after_the_other(self, s):
        canvas = chain(
            group(s("echo", n) for n in range(3)),
            group(s("collect"), s("total")),
            s("collect"),
        )
        assert ends_with(canvas) == [[[[0, 1, 2]], 3]]

    def test_a_group_of_chords(self, s):
        one = chord([s("echo", 1), s("echo", 2)], s("total"))
        assert ends_with(group(one, one, s("echo", 9))) == [3, 3, 9]

    def test_a_body_that_is_a_chain(self, s):
        body = s("total") | s("add", 1) | s("add", 1)
        assert ends_with(chord([s("echo", 1), s("echo", 2)], body)) == 5

    def test_a_body_that_is_a_group(self, s):
        body = group(s("total"), s("collect"))
        assert ends_with(chord([s("echo", 1), s("echo", 2)], body)) == [3, [[1, 2]]]

    def test_a_body_that_is_a_chord(self, s):
        body = chord([s("total"), s("total")], s("collect"))
        assert ends_with(chord([s("echo", 1), s("echo", 2)], body)) == [[3, 3]]

    def test_an_immutable_body(self, s, si):
        assert ends_with(chord([s("echo", 1), s("echo", 2)], si("echo", "alone"))) == "alone"

    def test_an_empty_chain_of_nothing_in_a_header(self, s):
        assert ends_with(chord([group(), s("echo", 2)], s("collect"))) == [[2]]

    def test_a_callback_of_the_chord(self, s):
        canvas = chord([s("echo", 1), s("echo", 2)], s("total"))
        canvas.link(s("add", 10))
        result = canvas.apply_async()
        assert value_of(result) == 3
        wait_until(lambda: result.children, WAIT, "the callback was sent")

    def test_from_json(self, s, app):
        canvas = chord([chain(s("echo", 1), group(s("add", 1), s("add", 2)))], s("collect"))
        rebuilt = signature(json.loads(json.dumps(canvas)), app=app)
        assert ends_with(rebuilt) == [[[2, 3]]]

    def test_a_header_of_two_hundred(self, s):
        assert ends_with(chord([s("echo", n) for n in range(200)], s("total"))) == 19_900

    def test_the_same_signature_twice(self, s):
        canvas = chord([s("echo", 1), s("echo", 2)], s("total"))
        assert [ends_with(canvas), ends_with(canvas)] == [3, 3]

    def test_a_result_of_none_and_of_falsehood(self, s):
        assert ends_with(chord([s("echo", None), s("echo", 0), s("echo", "")], s("collect"))) == [
            [None, 0, ""]
        ]

    def test_a_header_that_ignores_its_results(self, s):
        header = [s("ignored", 1), s("echo", 2).set(ignore_result=True)]
        assert ends_with(chord(header, s("collect"))) == [[1, 2]]

    def test_stamps_reach_header_and_body(self, s):
        header, body = s("about_me"), s("about_me")
        header.stamp(ticket="header")
        body.stamp(ticket="body")
        told = ends_with(chord([header], body))
        assert told["stamps"] == {"ticket": "body"}
        assert told["args"][0][0]["stamps"] == {"ticket": "header"}

    def test_the_body_knows_its_parent_and_root(self, s):
        body = ends_with(chord([s("about_me")], s("about_me")))
        [header] = body["args"][0]
        assert (body["parent_id"], body["root_id"]) == (header["id"], header["root_id"])

    def test_a_retried_part(self, s):
        assert ends_with(chord([s("flaky", 1), s("echo", 5)], s("collect"))) == [[1, 5]]


class TestReplace:
    def test_a_part_by_a_task(self, s):
        header = [s("replaced_by", s("add", 1, 2)), s("echo", 5)]
        assert ends_with(chord(header, s("collect"))) == [[3, 5]]

    def test_a_part_by_a_chain(self, s):
        header = [s("replaced_by", s("add", 1, 2) | s("add", 3)), s("echo", 5)]
        assert ends_with(chord(header, s("collect"))) == [[6, 5]]

    def test_a_part_by_a_group(self, s):
        header = [s("replaced_by", group(s("echo", 1), s("echo", 2))), s("echo", 5)]
        assert ends_with(chord(header, s("collect"))) == [[[1, 2], 5]]

    def test_a_part_by_a_chord(self, s):
        inner = chord([s("echo", 1), s("echo", 2)], s("total"))
        assert ends_with(chord([s("replaced_by", inner), s("echo", 5)], s("collect"))) == [[3, 5]]

    def test_a_task_by_a_group(self, s):
        by = group(s("echo", 1), s("echo", 2))
        assert value_of(s("replaced_by", by).delay()) == [1, 2]

    def test_a_body_by_a_chord(self, s, si):
        inner = chord([s("echo", 1), s("echo", 2)], s("total"))
        assert ends_with(chord([s("echo", 7)], si("replaced_by", inner))) == 3

    def test_within_a_chain_by_a_chain_that_ends_with_a_group(self, s, si):
        by = chain(s("echo", 1), group(s("add", 1), s("add", 2)))
        assert ends_with(chain(s("echo", 0), si("replaced_by", by), s("collect"))) == [[2, 3]]

    def test_add_to_chord(self, s):
        result = ends_with(chord([s("grow_chord", [7, 8, 9]), s("echo", 1)], s("collect")))
        assert sorted(result[0]) == [1, 3, 7, 8, 9]


class TestFailures:
    def test_the_first_part_in_order_that_failed(self, s):
        header = [s("echo", 1), s("fail", "one"), s("fail", "two")]
        error = error_of(chord(header, s("collect")).apply_async())
        assert isinstance(error, ChordError)
        assert "ValueError('one')" in str(error)

    def test_in_a_chain_of_the_header(self, s):
        header = [chain(s("fail", "first"), s("add", 1), s("add", 2)), s("echo", 1)]
        error = error_of(chord(header, s("collect")).apply_async())
        assert isinstance(error, ChordError)
        assert "ValueError('first')" in str(error)

    def test_in_a_group_of_the_header(self, s, si):
        header = [chain(s("echo", 1), group(si("fail_key", "k"), s("add", 1))), s("echo", 1)]
        error = error_of(chord(header, s("collect")).apply_async())
        assert str(error) == "Join error: KeyError('k')"

    def test_of_a_chord_in_a_chain_reaches_its_end(self, s, si):
        middle = chord([si("fail", "mid"), s("echo")], s("total"))
        error = error_of(chain(s("echo", 1), middle, s("add", 1)).apply_async())
        assert isinstance(error, ChordError)
        assert "ValueError('mid')" in str(error)

    def test_each_task_of_a_body_that_is_a_group_fails(self, s):
        result = chord([s("fail", "x")], group(s("total"), s("collect"))).apply_async()
        for member in result.results:
            assert isinstance(error_of(member), (ChordError, ValueError))

    def test_of_the_body(self, s, si):
        error = error_of(chord([s("echo", 1)], si("fail", "body")).apply_async())
        assert repr(error) == "ValueError('body')"

    @pytest.mark.parametrize("where", ["header", "body"])
    def test_errbacks(self, s, tmp_path, where):
        path = tmp_path / "errors"
        errback = s("note_errback", str(path))
        part, body = s("fail", "x"), s("total")
        (part if where == "header" else body).link_error(errback)
        result = chord([part, s("echo", 1)], body).apply_async()
        assert isinstance(error_of(result), ChordError)
        wait_until(lambda: path.exists() and path.read_text(), WAIT, "the errback ran")
        expected = result.parent.results[0].id if where == "header" else result.id
        assert path.read_text() == f"{expected}\n"

    def test_a_revoked_part(self, s, app, worker):
        part_id = str(uuid.uuid4())
        replies = app.control.revoke(part_id, reply=True, destination=[worker.name], timeout=10)
        assert replies
        header = [s("echo", 1).set(task_id=part_id), s("echo", 2)]
        error = error_of(chord(header, s("collect")).apply_async())
        assert isinstance(error, ChordError)
        assert "TaskRevokedError" in str(error)


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_any_serializer(serializer, backend, make_worker, make_client):
    conf = {
        "task_serializer": serializer,
        "result_serializer": serializer,
        "accept_content": ["json", "pickle"],
    }
    client = make_client(backend, make_worker(backend, "solo", conf=conf), **conf)
    tasks = client.tasks
    header = [
        chain(tasks["tests.echo"].s(1), group(tasks["tests.add"].s(1), tasks["tests.add"].s(2))),
        tasks["tests.echo"].s("ä"),
    ]
    assert ends_with(chord(header, tasks["tests.collect"].s())) == [[[2, 3], "ä"]]
    failing = chord([tasks["tests.fail"].s("x")], tasks["tests.collect"].s()).apply_async()
    assert "ValueError('x')" in str(error_of(failing))
