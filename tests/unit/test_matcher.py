"""fastrpc.client.matcher without a server or a socket.

`Result` stands in for AsyncResult and has only what the matcher uses.
"""

from __future__ import annotations

import gc
import json
import logging
import pickle
import zlib
from types import SimpleNamespace

import pytest
from celery import Celery, states
from celery.exceptions import SecurityError, SoftTimeLimitExceeded
from kombu.serialization import registry

from fastrpc import ResultDropped
from fastrpc.client import matcher as matching_module
from fastrpc.client._matcher import Fulfiller
from fastrpc.client._pending import DONE, LOST, UNCLAIMED, UNKNOWN, WAITING, PendingTable
from fastrpc.client._wait import ReadingRole, Wait, Watchers
from fastrpc.client.matcher import JSON, ResultMatcher, body_format, load_large
from fastrpc.errors import BadMessage
from fastrpc.stats import ReceivedStats
from tests.support.results import meta

READY = states.READY_STATES


class Result:
    def __init__(self, task_id: str, callback=None, fulfilled: list | None = None) -> None:
        self.id = task_id
        self.callback = callback
        self.fulfilled = [] if fulfilled is None else fulfilled
        self.on_ready = SimpleNamespace(ready=False)
        self._cache = None

    def _maybe_set_cache(self, meta) -> None:
        if meta["status"] in READY:
            self._cache = meta
            self.on_ready.ready = True
            self.fulfilled.append(self)
            if self.callback is not None:
                self.callback(self)


class Matching:
    """A matcher, and a record of its actions."""

    def __init__(
        self,
        accept=("application/json",),
        max_age=None,
        to_python=dict,
        max_claimed=100,
        max_claimed_bytes=10_000,
        **limits,
    ):
        self.table = PendingTable(**limits)
        self.stats = ReceivedStats()
        self.fulfilled: list = []
        self.errors: list = []
        self.watchers = watchers = Watchers()
        self.role = role = ReadingRole(watchers)
        self.matcher = ResultMatcher(
            self.table,
            watchers,
            role,
            accept=None if accept is None else frozenset(accept),
            to_python=to_python,
            stats=self.stats,
            max_age=max_age,
            max_claimed=max_claimed,
            max_claimed_bytes=max_claimed_bytes,
        )
        self.matcher.fulfiller = Fulfiller(
            self.table,
            self.matcher.claimed,
            watchers,
            role,
            is_plain=lambda cls: False,
            as_python=self.matcher._as_python,
            on_error=lambda result, error: self.errors.append(error),
            thrown_in=(SoftTimeLimitExceeded,),
        )

    def wait_for(self, task_id: str, **options) -> Result:
        result = Result(task_id, options.pop("callback", None), self.fulfilled)
        self.matcher.add(result, **options)
        return result

    def listen(self) -> list:
        """Record messages on the reply queue "queue" from now on."""
        wait = Wait(None, lambda meta: None, "queue")
        self.watchers.watch([], wait)
        return wait.metas

    def deliver(self, task_id, body, format=JSON) -> None:
        correlation_id = task_id.encode() if isinstance(task_id, str) else task_id
        self.matcher.deliver(correlation_id, body, format, "queue")
        self.matcher.tidy(matching_module.time.monotonic())  # as after each batch


@pytest.fixture
def m() -> Matching:
    return Matching()


@pytest.fixture
def clock(monkeypatch):
    """The matcher's clock, under the control of the test."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(matching_module, "time", clock)
    return clock


class TestMatching:
    def test_the_waiter_gets_the_result(self, m):
        result = m.wait_for("a")
        m.deliver("a", meta("a", 42))
        assert result._cache["result"] == 42
        assert m.fulfilled == [result]
        assert m.table.state("a") == DONE
        assert m.matcher.fulfiller.fulfilled == 1

    def test_no_other_waiter_gets_it(self, m):
        other = m.wait_for("b")
        m.deliver("a", meta("a"))
        assert other._cache is None
        assert m.table.state("b") == WAITING

    def test_each_waiter_of_a_task_gets_its_own_meta(self, m):
        first, second = m.wait_for("a"), m.wait_for("a")
        m.deliver("a", meta("a", [1]))
        assert first._cache == second._cache
        assert first._cache is not second._cache
        assert m.fulfilled == [first, second]

    def test_a_result_without_waiters_is_kept_until_asked_for(self, m):
        m.deliver("a", meta("a", 42))
        assert m.table.state("a") == UNCLAIMED
        assert m.matcher.fulfiller.fulfilled == 0
        result = m.wait_for("a")
        assert result._cache["result"] == 42
        assert m.table.state("a") == DONE
        assert m.table.unclaimed_bytes == 0

    def test_a_kept_body_is_not_decoded(self, m, monkeypatch):
        monkeypatch.setattr(matching_module, "decode", lambda *args: pytest.fail("decoded"))
        m.deliver("a", meta("a"))

    def test_newest_leaves_it_there(self, m):
        m.deliver("a", meta("a", 42))
        assert m.matcher.newest("a")["result"] == 42
        assert m.matcher.newest("a")["result"] == 42
        assert m.table.state("a") == UNCLAIMED
        assert m.matcher.newest("b") is None

    def test_a_discarded_waiter_gets_nothing_and_the_result_is_kept(self, m):
        result = m.wait_for("a")
        m.matcher.discard(result)
        m.deliver("a", meta("a"))
        assert result._cache is None
        assert m.table.state("a") == UNCLAIMED

    def test_a_weak_waiter_is_served_while_it_lives(self, m):
        result = m.wait_for("a", weak=True)
        m.deliver("a", meta("a"))
        assert result._cache is not None

    def test_a_weak_waiter_can_stop_waiting(self, m):
        result = m.wait_for("a", weak=True)
        m.matcher.discard(result)
        assert m.table.state("a") == UNKNOWN

    def test_a_collected_weak_waiter_does_no_harm(self, m):
        result = m.wait_for("a", weak=True)
        other = m.wait_for("a")
        del result
        gc.collect()
        m.deliver("a", meta("a"))
        assert m.fulfilled == [other]
        assert other._cache is not None

    def test_a_weak_waiter_in_a_collected_cycle_does_no_harm(self, m):
        result = m.wait_for("a", weak=True)
        result.callback = result  # a cycle: the garbage collector clears the weak reference
        del result
        gc.collect()
        m.deliver("a", meta("a", 1))
        assert m.wait_for("a")._cache["result"] == 1

    def test_one_that_is_ready_does_not_wait_again(self, m):
        """As in a ResultSet whose results were fetched before."""
        result = m.wait_for("a")
        m.deliver("a", meta("a", 1))
        m.table.clear()
        assert m.matcher.add(result)
        assert m.table.waiting == 0

    def test_an_id_that_is_not_ascii(self, m):
        result = m.wait_for("zürich ☃")
        m.deliver("zürich ☃", meta("zürich ☃", 1))
        assert result._cache["result"] == 1

    @pytest.mark.parametrize("spacing", [(",", ":"), (", ", ": ")])
    def test_the_task_id_in_the_body_beats_the_correlation_id(self, m, spacing):
        """For example if a caller chose the correlation id; rpc:// uses the body too."""
        result = m.wait_for("a")
        body = json.dumps(json.loads(meta("a", 1)), separators=spacing).encode()
        m.deliver("chosen by the caller", body)
        assert result._cache["result"] == 1

    def test_it_does_not_reach_the_waiter_of_the_correlation_id(self, m):
        wrong = m.wait_for("wrong")
        m.deliver("wrong", meta("a", 1))
        assert wrong._cache is None
        assert m.wait_for("a")._cache["result"] == 1

    def test_it_is_also_found_when_it_was_kept_under_the_correlation_id(self, m):
        m.deliver("wrong", meta("a", 1))
        assert m.matcher.newest("wrong") is None
        assert m.wait_for("a")._cache["result"] == 1

    def test_without_a_correlation_id_the_task_id_in_the_body_counts(self, m):
        result = m.wait_for("a")
        m.deliver(None, meta("a", 1))
        assert result._cache["result"] == 1

    def test_without_a_task_id_in_the_body_the_correlation_id_counts(self, m):
        result = m.wait_for("a")
        m.deliver("a", json.dumps({"status": "SUCCESS", "result": 1}).encode())
        assert result._cache["result"] == 1

    def test_a_kombu_message_is_taken_too(self, m):
        class Message:
            body = meta("a", 5).decode()
            content_type = "application/json"
            content_encoding = "utf-8"

        m.matcher.deliver_message("a", Message())
        assert m.wait_for("a")._cache["result"] == 5


class TestStates:
    def test_progress_is_kept_and_a_final_state_ends_the_wait(self, m):
        result = m.wait_for("a")
        m.deliver("a", meta("a", {"step": 1}, "PROGRESS"))
        m.deliver("a", meta("a", {"step": 2}, "PROGRESS"))
        assert result._cache is None
        assert m.table.state("a") == WAITING
        assert m.matcher.newest("a")["result"] == {"step": 2}
        m.deliver("a", meta("a", "end"))
        assert result._cache["result"] == "end"

    def test_unclaimed_progress_is_replaced_by_the_final_state(self, m):
        m.deliver("a", meta("a", 1, "PROGRESS"))
        m.deliver("a", meta("a", "end"))
        assert m.matcher.newest("a")["result"] == "end"
        assert m.stats.duplicates == 0

    def test_a_wait_that_begins_after_progress_lasts_until_the_final_state(self, m):
        m.deliver("a", meta("a", 1, "PROGRESS"))
        result = m.wait_for("a")
        assert result._cache is None
        assert m.matcher.newest("a")["result"] == 1
        m.deliver("a", meta("a", "end"))
        assert result._cache["result"] == "end"

    @pytest.mark.parametrize("late", ["STARTED", "RETRY", "PROGRESS"])
    def test_a_state_after_the_final_one_is_dropped(self, m, late):
        m.deliver("a", meta("a", "end"))
        m.deliver("a", meta("a", None, late))
        assert m.stats.duplicates == 1
        assert m.wait_for("a")._cache["result"] == "end"
        m.deliver("a", meta("a", None, late))
        assert m.stats.duplicates == 2
        assert m.table.state("a") == DONE

    @pytest.mark.parametrize("end", sorted(READY))
    def test_every_final_state_ends_the_wait(self, m, end):
        result = m.wait_for("a")
        m.deliver("a", meta("a", None, end))
        assert result._cache["status"] == end

    def test_a_listener_is_told_of_every_state(self, m):
        seen = m.listen()
        result = m.wait_for("a")
        for body in (meta("a", 1, "PROGRESS"), meta("b", "other"), meta("a", "end")):
            m.deliver(json.loads(body)["task_id"], body)
        assert [s["result"] for s in seen] == [1, "other", "end"]
        assert result._cache["result"] == "end"
        assert m.wait_for("b")._cache["result"] == "other"


class TestDuplicates:
    def test_a_result_that_comes_twice_is_handed_out_once(self, m):
        m.wait_for("a")
        m.deliver("a", meta("a"))
        m.deliver("a", meta("a"))
        assert len(m.fulfilled) == 1
        assert m.stats.duplicates == 1
        assert m.table.unclaimed == 0

    def test_one_without_waiters_is_kept_once(self, m):
        m.deliver("a", meta("a"))
        m.deliver("a", meta("a"))
        assert m.table.unclaimed == 1
        m.wait_for("a")
        assert len(m.fulfilled) == 1

    def test_getting_a_handed_out_result_again_fails_at_once(self, m):
        m.wait_for("a")
        m.deliver("a", meta("a"))
        with pytest.raises(ResultDropped, match="a was handed out already"):
            m.matcher.check_obtainable("a")

    @pytest.mark.parametrize("waits", [True, False], ids=["waited for", "kept"])
    def test_a_listener_is_told_of_it_once(self, m, waits):
        """As after a lost connection: on_message is not called again."""
        heard = m.listen()
        result = m.wait_for("a") if waits else None
        for _ in range(3):
            m.deliver("a", meta("a", 1))
        assert [message["result"] for message in heard] == [1]
        assert result is None or m.fulfilled == [result]


class TestEviction:
    def test_the_oldest_is_dropped_and_getting_it_fails_at_once(self, caplog):
        m = Matching(max_unclaimed=2)
        for task_id in ("a", "b", "c"):
            m.deliver(task_id, meta(task_id))
        assert m.table.state("a") == LOST
        with pytest.raises(ResultDropped, match=r"task a arrived but was dropped.*max_unclaimed"):
            m.matcher.check_obtainable("a")
        m.matcher.check_obtainable("b")
        m.matcher.check_obtainable("never heard of")
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "1 unclaimed results were dropped" in record.getMessage()

    def test_by_their_bytes_too(self):
        body = meta("a", "x" * 1000)
        m = Matching(max_unclaimed_bytes=2500)
        for task_id in ("a", "b", "c"):
            m.deliver(task_id, body.replace(b'"a"', f'"{task_id}"'.encode()))
        assert [m.table.state(i) for i in "abc"] == [LOST, UNCLAIMED, UNCLAIMED]

    def test_the_log_is_not_flooded_but_the_numbers_are_right(self, caplog, clock):
        m = Matching(max_unclaimed=1)
        for n in range(100):
            m.deliver(f"t{n}", meta(f"t{n}"))
        assert len(caplog.records) == 1
        clock.now += 61
        m.deliver("last", meta("last"))
        assert len(caplog.records) == 2
        assert "99 unclaimed results" in caplog.records[1].getMessage()
        assert m.table.evicted == 100

    def test_a_waiter_is_never_evicted(self):
        m = Matching(max_unclaimed=1)
        result = m.wait_for("a")
        for n in range(10):
            m.deliver(f"t{n}", meta(f"t{n}"))
        m.deliver("a", meta("a", 1))
        assert result._cache["result"] == 1

    def test_an_unclaimed_result_expires(self, monkeypatch):
        m = Matching(max_age=5)
        now = [1000.0]
        monkeypatch.setattr(matching_module.time, "monotonic", lambda: now[0])
        m.deliver("a", meta("a"))
        now[0] += 10
        m.deliver("b", meta("b"))
        assert m.table.state("a") == LOST
        assert m.table.state("b") == UNCLAIMED

    def test_a_dropped_one_that_arrives_again_is_kept(self):
        m = Matching(max_unclaimed=1)
        m.deliver("a", meta("a", 1))
        m.deliver("b", meta("b"))
        m.deliver("a", meta("a", 1))
        assert m.wait_for("a")._cache["result"] == 1


def kombu_json(value) -> bytes:
    return json.dumps(value).encode()


PICKLE = body_format("application/x-python-serialize", "binary")

#: name -> (body, format, correlation id, reason)
BAD = {
    "malformed JSON": (b'{"status": "SUCC', JSON, "id-a", "undecodable"),
    "not UTF-8": (b'{"status": "\xff"}', JSON, "id-a", "undecodable"),
    "empty": (b"", JSON, "id-a", "empty body"),
    "a number": (b"42", JSON, "id-a", "not a result"),
    "a list": (b"[1, 2]", JSON, "id-a", "not a result"),
    "null": (b"null", JSON, "id-a", "not a result"),
    "a dict that is no meta": (b'{"hello": "world"}', JSON, "id-a", "not a result"),
    "no result": (
        kombu_json({"status": "SUCCESS", "task_id": "id-a"}),
        JSON,
        "id-a",
        "not a result",
    ),
    "no status": (kombu_json({"result": 1, "task_id": "id-a"}), JSON, "id-a", "not a result"),
    "a status that is no text": (
        kombu_json({"status": 1, "result": 1, "task_id": "id-a"}),
        JSON,
        "id-a",
        "not a result",
    ),
    "a task id that is no text": (
        kombu_json({"status": "SUCCESS", "result": 1, "task_id": 5}),
        JSON,
        "id-a",
        "not a result",
    ),
    "refused content type": (pickle.dumps({}), PICKLE, "id-a", "content type not accepted"),
    "unknown content type": (
        b"x",
        body_format("x/y", "utf-8"),
        "id-a",
        "content type not accepted",
    ),
    "unknown compression": (
        meta("id-a"),
        body_format("application/json", "utf-8", "x/y"),
        "id-a",
        "undecodable",
    ),
    "not compressed after all": (
        meta("id-a"),
        body_format("application/json", "utf-8", "application/x-gzip"),
        "id-a",
        "undecodable",
    ),
    "neither correlation id nor task id": (
        kombu_json({"status": "SUCCESS", "result": 1}),
        JSON,
        None,
        "not a result",
    ),
    "empty correlation id and no task id": (
        kombu_json({"status": "SUCCESS", "result": 1}),
        JSON,
        "",
        "not a result",
    ),
}


NO_ID = ("neither correlation id nor task id", "empty correlation id and no task id")

#: Reason -> the exception of its task.
EXCEPTIONS = {
    "content type not accepted": ("ContentDisallowed", "kombu.exceptions", "result_accept_content"),
    "undecodable": ("DecodeError", "kombu.exceptions", "result_serializer"),
    "empty body": ("BadMessage", "fastrpc.errors", "other than a Celery worker"),
    "not a result": ("BadMessage", "fastrpc.errors", "other than a Celery worker"),
}


def assert_refused(told, task_id: str, reason: str) -> None:
    """Check that ``told`` is a FAILURE with the reason and advice."""
    name, module, advice = EXCEPTIONS[reason]
    assert (told["status"], told["task_id"]) == (states.FAILURE, task_id)
    assert (told["result"]["exc_type"], told["result"]["exc_module"]) == (name, module)
    (text,) = told["result"]["exc_message"]
    assert text.startswith(f"the result of task {task_id} arrived and cannot be used: {reason}")
    assert advice in text


class TestBadMessages:
    @pytest.mark.parametrize("name", [name for name in BAD if name not in NO_ID])
    def test_it_ends_the_wait_for_its_task_and_no_other(self, m, name, caplog):
        body, format, correlation_id, reason = BAD[name]
        results, other = [m.wait_for("id-a"), m.wait_for("id-a")], m.wait_for("id-b")
        m.deliver(correlation_id, body, format)
        for result in results:
            assert_refused(result._cache, "id-a", reason)
        assert m.table.state("id-a") == DONE
        self.assert_reported_once(m, caplog, reason, correlation_id)
        assert other._cache is None
        m.deliver("id-b", meta("id-b", 2))
        assert other._cache["result"] == 2

    @pytest.mark.parametrize("name", NO_ID)
    def test_one_that_names_no_task_ends_no_wait(self, m, name, caplog):
        body, format, correlation_id, reason = BAD[name]
        result = m.wait_for("id-a")
        m.deliver(correlation_id, body, format)
        self.assert_reported_once(m, caplog, reason, "none")
        assert result._cache is None
        assert m.table.unclaimed == 0

    def assert_reported_once(self, m, caplog, reason, correlation_id):
        assert m.stats.bad_messages == {reason: 1}
        assert m.stats.duplicates == 0
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert reason in record.getMessage()
        assert record.getMessage().endswith(f"correlation id {correlation_id}")

    @pytest.mark.parametrize("name", [name for name in BAD if name not in NO_ID])
    @pytest.mark.parametrize("looks", [0, 2])
    def test_a_later_get_gets_the_reason_too(self, m, name, looks, caplog):
        body, format, correlation_id, reason = BAD[name]
        m.deliver(correlation_id, body, format)
        for _ in range(looks):
            assert_refused(m.matcher.newest("id-a"), "id-a", reason)
        assert m.table.state("id-a") == UNCLAIMED
        assert_refused(m.wait_for("id-a")._cache, "id-a", reason)
        self.assert_reported_once(m, caplog, reason, correlation_id)
        assert m.table.unclaimed_bytes == 0

    def test_nothing_of_the_body_is_kept(self, m):
        for n, body in enumerate((b"secret" * 1000, b'{"secret"', b'"secret"', b"")):
            m.deliver(f"t{n}", body)
            m.deliver(f"u{n}", body, PICKLE)
            for task_id in (f"t{n}", f"u{n}"):
                assert b"secret" not in b"".join(m.table.peek(task_id))
                assert "secret" not in str(m.wait_for(task_id)._cache)
        assert m.table.unclaimed_bytes < 1000

    def test_one_that_is_too_large_counts_as_one(self, m):
        result = m.wait_for("a")
        m.matcher.refuse(b"a", BadMessage("too large", "99 bytes, see max_body"))
        assert result._cache["result"]["exc_type"] == "ResultTooLarge"
        assert "max_body" in result._cache["result"]["exc_message"][0]
        assert m.stats.bad_messages == {"too large": 1}

    @pytest.mark.parametrize("id", [b"\xff\xfe", "x" * 300, None], ids=str)
    def test_an_invalid_id_is_not_kept(self, m, id):
        m.deliver(id, b"")
        assert m.stats.bad_messages == {"empty body": 1}
        assert m.table.unclaimed == 0

    @pytest.mark.parametrize("bad", [b"{", b'{"status" "a"}', b'{"x": 1, "task_id": "a"}'])
    def test_it_replaces_no_result(self, m, bad):
        """Rubbish arrives under the id of a task whose result is unclaimed."""
        m.deliver("a", meta("a", 1))
        m.deliver("a", bad)
        assert sum(m.stats.bad_messages.values()) == 1
        assert m.matcher.newest("a")["result"] == 1
        assert m.wait_for("a")._cache["result"] == 1

    def test_it_changes_no_result_that_was_handed_out(self, m):
        result = m.wait_for("a")
        m.deliver("a", meta("a", 1))
        m.deliver("a", b"{")
        assert result._cache["result"] == 1
        assert m.table.state("a") == DONE
        assert (m.stats.bad_messages, m.stats.duplicates) == ({"undecodable": 1}, 0)

    def test_it_ends_a_wait_once(self, m):
        result = m.wait_for("a")
        m.deliver("a", b"{")
        told = result._cache
        m.deliver("a", b"")
        m.deliver("a", meta("a", 1))
        assert result._cache is told
        assert m.fulfilled == [result]

    @pytest.mark.parametrize("later", ["SUCCESS", "PROGRESS"])
    def test_a_later_result_replaces_it_while_unclaimed(self, m, later):
        m.deliver("a", b"{")
        m.deliver("a", meta("a", 1, later))
        expected = states.SUCCESS if later == states.SUCCESS else states.FAILURE
        assert m.matcher.newest("a")["status"] == expected

    def test_it_replaces_progress(self, m):
        m.deliver("a", meta("a", 1, "PROGRESS"))
        m.deliver("a", b"{")
        assert_refused(m.wait_for("a")._cache, "a", "undecodable")

    def test_listeners_are_not_told_of_it(self, m):
        seen = m.listen()
        result = m.wait_for("a")
        m.deliver("a", b"{")
        assert list(seen) == []
        assert_refused(result._cache, "a", "undecodable")
        m.deliver("b", b"{")
        m.deliver("b", meta("b", 1))
        assert [told["result"] for told in seen] == [1]

    def test_a_result_that_arrives_while_it_is_decoded_is_not_lost(self, m):
        m.deliver("a", b'{"x": 1, "task_id": "a"}')  # kept undecoded
        decode = m.matcher._decode

        def decode_slowly(*args):
            m.matcher._decode = decode
            m.deliver("a", meta("a", 1))
            return decode(*args)

        m.matcher._decode = decode_slowly
        assert m.wait_for("a")._cache["result"] == 1

    @pytest.mark.parametrize("reason", sorted(EXCEPTIONS))
    def test_each_waiter_gets_its_own_exception(self, reason):
        app = Celery(broker="memory://", backend="fastrpc://", set_as_current=False)
        m = Matching(to_python=app.backend.meta_from_decoded)
        results = [m.wait_for("a"), m.wait_for("a")]
        m.matcher.refuse(b"a", BadMessage(reason, "why"))
        first, second = (result._cache["result"] for result in results)
        assert f"{type(first).__module__}.{type(first).__name__}" == (
            ".".join(reversed(EXCEPTIONS[reason][:2]))
        )
        assert f"{reason} (why)" in str(first)
        assert first is not second

    def test_the_log_never_shows_the_body(self, m, caplog):
        caplog.set_level(logging.DEBUG)
        for n, body in enumerate((b'{"secret', b'"secret"', b'{"secret": 1}', b"secret\xff")):
            m.wait_for(f"t{n}")
            m.deliver(f"t{n}", body)
            m.deliver(f"t{n}", body, PICKLE)
        assert len(caplog.records) == 8
        assert "secret" not in caplog.text

    def test_the_log_shows_a_hostile_correlation_id_harmlessly(self, m, caplog):
        m.deliver(b"\xff\x00\nERROR all is lost", b"")
        (record,) = caplog.records
        assert "\n" not in record.getMessage()
        assert "\\xff" in record.getMessage()

    def test_a_flood_is_counted_but_logged_once_a_second_for_each_reason(self, m, caplog, clock):
        caplog.set_level(logging.DEBUG)
        m.wait_for("id-a")
        for _ in range(50):
            m.deliver("id-a", b"{")
            m.deliver("id-a", b"")
        assert m.stats.bad_messages == {"undecodable": 50, "empty body": 50}
        assert [r.levelno for r in caplog.records].count(logging.WARNING) == 2
        assert len(caplog.records) == 100
        clock.now += 1.1
        m.deliver("id-a", b"{")
        assert caplog.records[-1].levelno == logging.WARNING

    def test_a_refused_type_is_refused_before_it_is_decompressed(self, m, monkeypatch):
        monkeypatch.setattr(matching_module, "decompress", lambda *a: pytest.fail("decompressed"))
        m.wait_for("id-a")
        format = body_format("application/x-python-serialize", "binary", "application/x-gzip")
        m.deliver("id-a", b"x", format)
        assert m.stats.bad_messages == {"content type not accepted": 1}


class TestFormats:
    def test_plain_json_needs_no_room(self):
        assert body_format("application/json", "utf-8") == b""

    def test_accepted_types_are_decoded(self):
        m = Matching(accept=["application/x-python-serialize"])
        result = m.wait_for("a")
        m.deliver(
            "a", pickle.dumps({"status": "SUCCESS", "result": {1, 2}, "task_id": "a"}), PICKLE
        )
        assert result._cache["result"] == {1, 2}

    def test_without_a_list_kombus_own_decides(self):
        m = Matching(accept=None)
        m.wait_for("a")
        m.deliver("a", pickle.dumps({"status": "SUCCESS", "result": 1, "task_id": "a"}), PICKLE)
        refused = "application/x-python-serialize" in registry._disabled_content_types
        assert bool(m.stats.bad_messages) == refused

    def test_a_compressed_body_is_decompressed(self, m):
        result = m.wait_for("a")
        format = body_format("application/json", "utf-8", "application/x-gzip")
        m.deliver("a", zlib.compress(meta("a", 7)), format)
        assert result._cache["result"] == 7

    def test_the_format_is_kept_with_the_body(self):
        m = Matching(accept=["application/x-python-serialize"])
        m.deliver("a", pickle.dumps({"status": "SUCCESS", "result": {1}, "task_id": "a"}), PICKLE)
        assert m.wait_for("a")._cache["result"] == {1}


class Interrupted:
    """A table that calls `then` once between two calls, as if another thread ran there."""

    def __init__(self, table, after: str, then) -> None:
        self._table, self._after, self._then = table, after, then

    def __getattr__(self, name):
        value = getattr(self._table, name)
        if name != self._after or self._then is None:
            return value

        def call(*args):
            outcome = value(*args)
            then, self._then = self._then, None
            if then is not None:
                then()
            return outcome

        return call


class TestOtherThreads:
    """Each call of the table is atomic; a change by another thread between two loses nothing."""

    def interrupt(self, m, after, then):
        m.matcher.table = Interrupted(m.table, after, then)

    @pytest.mark.parametrize("body", [meta("id-a", 1), meta("id-a", 1) + b" " * 100])
    def test_waiting_begins_while_the_result_is_being_kept(self, m, body):
        results: list = []
        self.interrupt(m, "waiters", lambda: results.append(m.wait_for("id-a")))
        m.deliver("id-a", body)
        assert results[0]._cache["result"] == 1
        assert m.table.waiting == 0

    def test_waiting_begins_while_others_are_told(self, m):
        results = [m.wait_for("a")]
        self.interrupt(m, "waiters", None)
        results[0].callback = lambda result: results.append(m.wait_for("a"))
        m.deliver("a", meta("a", 1))
        assert [r._cache["result"] for r in results] == [1, 1]
        assert len(m.fulfilled) == 2

    def test_the_result_comes_while_waiting_begins_on_progress(self, m):
        m.deliver("a", meta("a", 1, "PROGRESS"))
        self.interrupt(m, "drop", lambda: m.deliver("a", meta("a", "end")))
        result = m.wait_for("a")
        assert result._cache["result"] == "end"

    @pytest.mark.parametrize("where", ["_decode", "fulfiller.hand_out"])
    def test_an_exception_thrown_in_while_a_wait_begins_loses_no_kept_result(
        self, m, monkeypatch, where
    ):
        """Ctrl-C in a `get()`: the next one finds the result."""
        m.deliver("a", meta("a", 1))

        def thrown_in(*args):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if where == "_decode":
                patch.setattr(m.matcher, where, thrown_in)
            else:
                patch.setattr(m.matcher, "fulfiller", SimpleNamespace(hand_out=thrown_in))
            with pytest.raises(KeyboardInterrupt):
                m.wait_for("a")
        assert m.wait_for("a")._cache["result"] == 1

    def test_newer_progress_comes_while_waiting_begins_on_older(self, m):
        m.deliver("a", meta("a", 1, "PROGRESS"))
        self.interrupt(m, "drop", lambda: m.deliver("a", meta("a", 2, "PROGRESS")))
        m.wait_for("a")
        assert m.matcher.newest("a")["result"] == 2

    def test_two_threads_wait_at_once_for_a_kept_result(self, m):
        m.deliver("a", meta("a", 1))
        others: list = []
        self.interrupt(m, "peek", lambda: others.append(m.wait_for("a")))
        result = m.wait_for("a")
        assert result._cache["result"] == others[0]._cache["result"] == 1
        assert m.table.waiting == 0

    def test_another_takes_it_first(self, m):
        m.deliver("a", meta("a", 1))
        self.interrupt(m, "add", lambda: m.table.forget("a"))
        result = m.wait_for("a")
        m.deliver("a", meta("a", 2))
        assert result._cache["result"] == 2


class TestCallbacks:
    def test_a_callback_that_raises_harms_no_other_waiter(self, m):
        def fails(result):
            raise RuntimeError("from the application")

        first = m.wait_for("a", callback=fails)
        second, other = m.wait_for("a"), m.wait_for("b")
        m.deliver("a", meta("a", 1))
        m.deliver("b", meta("b", 2))
        assert (first._cache["result"], second._cache["result"], other._cache["result"]) == (
            1,
            1,
            2,
        )
        assert [str(e) for e in m.errors] == ["from the application"]
        assert m.fulfilled == [first, second, other]

    def test_one_that_was_kept_reports_it_too(self, m):
        m.deliver("a", meta("a"))
        m.wait_for("a", callback=lambda result: 1 / 0)
        assert [type(e) for e in m.errors] == [ZeroDivisionError]

    def test_a_callback_may_wait_for_more(self, m):
        more: list = []
        m.wait_for("a", callback=lambda result: more.append(m.wait_for("b")))
        m.deliver("b", meta("b", 2))
        m.deliver("a", meta("a"))
        assert more[0]._cache["result"] == 2

    @pytest.mark.parametrize("thrown", [KeyboardInterrupt, SoftTimeLimitExceeded])
    def test_an_exception_thrown_into_one_is_raised_after_all_have_the_result(self, m, thrown):
        def interrupted(result):
            raise thrown

        first, second = m.wait_for("a", callback=interrupted), m.wait_for("a")
        with pytest.raises(thrown):
            m.deliver("a", meta("a", 1))
        assert m.fulfilled == [first, second]
        assert m.table.state("a") == DONE
        assert not m.errors

    def test_the_reader_counts_the_delivery_before_it_is_raised(self, m):
        """Otherwise it would deliver it again, and count a duplicate that was never sent."""

        def interrupted(result):
            raise KeyboardInterrupt

        m.wait_for("a", callback=interrupted)
        m.role.run(m.deliver, "a", meta("a", 1))
        with pytest.raises(KeyboardInterrupt):
            m.matcher.fulfiller.raise_thrown()
        m.matcher.fulfiller.raise_thrown()  # once

    def test_also_for_a_kept_result(self, m):
        def interrupted(result):
            raise SoftTimeLimitExceeded

        m.deliver("a", meta("a", 1))
        with pytest.raises(SoftTimeLimitExceeded):
            m.wait_for("a", callback=interrupted)
        assert m.table.state("a") == DONE

    def test_a_failure_is_rebuilt_again_if_that_was_interrupted(self):
        """The soft time limit is neither a fault of the message nor the result of the task."""
        interruptions = [SoftTimeLimitExceeded()]

        def to_python(meta):
            if interruptions:
                raise interruptions.pop()
            return meta

        m = Matching(to_python=to_python)
        result = m.wait_for("a")
        with pytest.raises(SoftTimeLimitExceeded):
            m.deliver("a", meta("a", 1))
        assert result._cache["result"] == 1


class TestUntrustedExceptions:
    """An exception that Celery refuses to rebuild fails its own task only."""

    @pytest.fixture
    def app(self):
        return Celery(broker="memory://", backend="fastrpc://", set_as_current=False)

    @pytest.fixture
    def backend(self, app):
        return app.backend

    def test_a_class_that_is_no_exception_is_a_security_error(self, backend):
        m = Matching(to_python=backend.meta_from_decoded)
        result, other = m.wait_for("a"), m.wait_for("b")
        evil = {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"}
        m.deliver("a", meta("a", evil, states.FAILURE))
        m.deliver("b", meta("b", 2))
        assert result._cache["status"] == states.FAILURE
        assert isinstance(result._cache["result"], SecurityError)
        assert other._cache["result"] == 2

    def test_so_is_a_kept_one(self, backend):
        m = Matching(to_python=backend.meta_from_decoded)
        evil = {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"}
        m.deliver("a", meta("a", evil, states.FAILURE))
        assert isinstance(m.matcher.newest("a")["result"], SecurityError)
        assert isinstance(m.wait_for("a")._cache["result"], SecurityError)

    CHILDREN = (17, [17], "ab", [None], [["id"]], [[["id", None]]], [[["", None], None]])

    @pytest.mark.parametrize("children", [*CHILDREN, [[["id", [17, None]], None]]], ids=repr)
    def test_malformed_children_end_the_wait(self, app, children):
        m = Matching(to_python=app.backend.meta_from_decoded)
        result, other = m.wait_for("a"), m.wait_for("b")
        m.deliver("a", meta("a", 1, children=children))
        m.deliver("b", meta("b", 2))
        assert result._cache["status"] == states.FAILURE
        assert isinstance(result._cache["result"], BadMessage)
        assert other._cache["result"] == 2
        m.deliver("c", meta("c", 1, children=children))
        assert m.matcher.newest("c")["status"] == states.FAILURE

    def test_children_of_every_kind(self, app):
        m = Matching(to_python=app.backend.meta_from_decoded)
        one = app.AsyncResult("one", parent=app.AsyncResult("parent"))
        children = [one.as_tuple(), app.GroupResult("g", [one], app=app).as_tuple()]
        result = m.wait_for("a")
        m.deliver("a", meta("a", 1, children=children))
        assert result._cache["result"] == 1

    def test_an_honest_exception_is_rebuilt(self, backend):
        m = Matching(to_python=backend.meta_from_decoded)
        honest = {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}
        result = m.wait_for("a")
        m.deliver("a", meta("a", honest, states.FAILURE))
        assert isinstance(result._cache["result"], KeyError)
        assert result._cache["result"].args == ("k",)

    def test_one_that_cannot_be_rebuilt_fails_the_task_and_nothing_else(self):
        def to_python(meta):
            raise RuntimeError("cannot")

        m = Matching(to_python=to_python)
        result = m.wait_for("a")
        m.deliver("a", meta("a"))
        assert result._cache["status"] == states.FAILURE
        assert str(result._cache["result"]) == "cannot"


class Slow:
    """Raises a soft time limit while it is unpickled."""

    def __reduce__(self):
        return _hit, ()


def _hit():
    raise SoftTimeLimitExceeded


class TestSoftTimeLimit:
    """It is thrown into a thread that decodes; kombu reports it as a fault of the message."""

    def test_it_is_raised_and_the_message_does_not_count_as_bad(self):
        m = Matching(accept=["application/x-python-serialize"])
        result = m.wait_for("a")
        format = body_format("application/x-python-serialize", "binary")
        with pytest.raises(SoftTimeLimitExceeded):
            m.deliver("a", pickle.dumps({"result": Slow()}), format)
        assert not m.stats.bad_messages
        m.deliver("a", pickle.dumps(json.loads(meta("a", 1))), format)
        assert result._cache["result"] == 1

    def test_also_in_a_large_body(self, monkeypatch):
        monkeypatch.setattr(matching_module, "kombu_loads", lambda text: _hit())
        with pytest.raises(SoftTimeLimitExceeded):
            load_large("{}")
