"""The fast path and the reference implementation treat every delivery alike.

A story is a list of steps: messages that arrive, and actions of the application before, in
callbacks and afterwards. Each story is played over each path, with real frames and a whole backend.
The tables, the results, the order of callbacks, the counters, the log and the acknowledgements must
be the same at the end. A new trap is one line in TRAPS.
"""

from __future__ import annotations

import json
import logging
import pickle
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from amqp.serialization import dumps
from celery import Celery, states
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import AsyncResult
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrpc.client.amqp_intake import AMQPIntake
from tests.support import inside
from tests.support.amqp_bytes import delivery
from tests.support.fake_amqp import FakeAMQP, FakeConnection
from tests.support.results import meta

MIB = 1024 * 1024
MAX_BODY = 50_000
READY = sorted(states.READY_STATES)


class PromptIntake(AMQPIntake):
    """Acknowledges after each read, not by the clock, and asks for no answers."""

    def tend(self) -> None:
        self.acknowledge()

    def _ask_channel(self) -> None:
        pass


class ReferenceIntake(PromptIntake):
    """Passes every delivery to ResultMatcher.deliver."""

    fast_path = False


#: The paths of a delivery: name -> (the intake, whether it arrives while an answer is awaited).
WAYS: dict[str, tuple[type[AMQPIntake], bool]] = {
    "reference": (ReferenceIntake, False),
    "fast": (PromptIntake, False),
    "kept": (PromptIntake, True),
}


# ---------------------------------------------------------------- the language of the stories


class Step(NamedTuple):
    verb: str
    args: tuple[Any, ...] = ()


Story = list[Step]


def verb(name: str) -> Callable[..., Step]:
    return lambda *args: Step(name, args)


#: A new AsyncResult of a task waits; weakly; as one of an application's own class.
wait, wait_weakly, wait_own = verb("wait"), verb("wait_weakly"), verb("wait_own")
#: then(id, *steps): a new AsyncResult waits and calls back; the callback takes the steps.
then = verb("then")
#: The AsyncResults of a task are dropped; the last of them stops waiting.
let_go, discard = verb("let_go"), verb("discard")
#: Actions of an application that has a task's id.
poll, get, forget, call_again = verb("poll"), verb("get"), verb("forget"), verb("call_again")
#: Only in callbacks: raise this exception.
throw = verb("throw")
#: Read what has arrived.
read = Step("read")


def send(
    correlation_id: str | bytes | None,
    result: Any = 1,
    status: str = states.SUCCESS,
    *,
    body: bytes | None = None,
    **properties: Any,
) -> Step:
    """A message arrives but is not read yet; ``properties`` are those of amqp_bytes.delivery."""
    if body is None:
        assert isinstance(correlation_id, str)
        body = meta(correlation_id, result, status)
    if isinstance(correlation_id, str):
        correlation_id = correlation_id.encode()
    return Step("send", (body, correlation_id, tuple(properties.items())))


def deliver(*args: Any, **kwargs: Any) -> Step:
    """A single message arrives and is read."""
    return together(send(*args, **kwargs))


def together(*sent: Step) -> Step:
    """Several messages arrive at once and are read."""
    return Step("together", sent)


class OwnResult(AsyncResult):
    """An application's own subclass of AsyncResult."""

    def _maybe_set_cache(self, meta: dict[str, Any]) -> Any:
        return super()._maybe_set_cache({**meta, "seen by": type(self).__name__})


class Player:
    """Plays stories over one path."""

    def __init__(self, way: str, max_body: int = MAX_BODY, **options: Any) -> None:
        way_in, keeps = WAYS[way]
        self.app = Celery(broker="memory://", backend="fastrpc://", set_as_current=False)
        self.app.conf.result_backend_transport_options = {
            "prefetch": 12,  # acknowledged after three, so in the midst of a batch
            "max_unclaimed": 5,
            "max_unclaimed_bytes": 20_000,
            **options,
        }
        self.app.conf.result_accept_content = ["json", "yaml"]
        self.amqp = FakeAMQP(max_body, keeps)
        self.intake = inside.connect_to(self.app, FakeConnection(self.amqp), way_in)
        self.results: list[Any] = []
        self.ids: set[str] = set()
        self.tag = 0
        #: What happened, in order, as the application saw it.
        self.seen: list[Any] = []

    def play(self, story: Story) -> dict[str, Any]:
        handler = logging.Handler()
        handler.emit = lambda record: self.seen.append(  # type: ignore[method-assign]
            (record.name, record.getMessage())
        )
        logger = logging.getLogger("fastrpc")
        level, logger.propagate = logger.level, False
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
        try:
            for step in [*story, read]:
                self.do(step)
            return self.outcome()
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = True
            inside.disconnect(self.app)

    def do(self, step: Step) -> None:
        if step.verb == "throw":
            raise step.args[0]
        try:
            getattr(self, step.verb)(*step.args)
        except AssertionError:
            raise
        except (Exception, KeyboardInterrupt) as exc:
            self.seen.append((step.verb, repr(exc)))

    def outcome(self) -> dict[str, Any]:
        table = inside.table(self.app)
        return {
            "seen": self.seen,
            "table": {
                task_id: (table.state(task_id), table.peek(task_id), len(table.waiters(task_id)))
                for task_id in sorted(self.ids)
            },
            "waiting": sorted(table.waiting_ids()),
            "counts": (table.waiting, table.unclaimed, table.done, table.lost),
            "results": [
                (result.id, repr(result._cache), result.on_ready.ready)
                for result in self.results
                if result is not None
            ],
            "stats": self.app.backend.stats(),
            "acknowledged": self.intake.channel.acknowledged,
        }

    # -- what arrives

    def frames(self, sent: Step) -> bytes:
        body, correlation_id, properties = sent.args
        self.tag += 1
        self.ids.add((correlation_id or b"").decode(errors="surrogateescape"))
        channel = self.intake.channel.channel_id
        return delivery(self.tag, body, correlation_id, channel=channel, **dict(properties))

    def send(self, *args: Any) -> None:
        self.amqp.arriving.append(self.frames(Step("send", args)))

    def read(self) -> None:
        for _ in range(100):  # a read ends at the first exception thrown in
            if not self.amqp.arriving and not self.intake.holds_some:
                return
            inside.read(self.app)
        raise AssertionError("what was read is never delivered")

    def together(self, *sent: Step) -> None:
        self.amqp.arriving.append(b"".join(map(self.frames, sent)))
        self.read()

    # -- what the application does

    def result(self, task_id: str, cls: type[Any] = AsyncResult) -> Any:
        self.ids.add(task_id)
        self.results.append(cls(task_id, backend=self.app.backend, app=self.app))
        return self.results[-1]

    def wait(self, task_id: str) -> None:
        self.app.backend.add_pending_result(self.result(task_id))

    def wait_weakly(self, task_id: str) -> None:
        self.app.backend.add_pending_result(self.result(task_id), weak=True)

    def wait_own(self, task_id: str) -> None:
        self.app.backend.add_pending_result(self.result(task_id, OwnResult))

    def then(self, task_id: str, *steps: Step) -> None:
        number = len(self.results)

        def callback(result: Any) -> None:
            self.seen.append(("called back", number, result.id, result.state, repr(result.result)))
            for step in steps:
                self.do(step)
            self.seen.append(("returns", number))

        self.result(task_id).then(callback)

    def let_go(self, task_id: str) -> None:
        self.results = [r if r is None or r.id != task_id else None for r in self.results]

    def discard(self, task_id: str) -> None:
        for result in reversed(self.results):
            if result is not None and result.id == task_id:
                self.app.backend.remove_pending_result(result)
                break

    def poll(self, task_id: str) -> None:
        meta = self.app.backend.get_task_meta(task_id)
        self.seen.append(("polled", task_id, repr(meta)))

    def get(self, task_id: str) -> None:
        value = self.result(task_id).get(timeout=0, disable_sync_subtasks=False)
        self.seen.append(("got", task_id, repr(value)))

    def forget(self, task_id: str) -> None:
        self.app.AsyncResult(task_id).forget()

    def call_again(self, task_id: str) -> None:
        inside.table(self.app).reset(task_id)


def assert_same(story: Story, **options: Any) -> dict[str, Any]:
    """Play ``story`` over all paths, which must end alike; return the outcome."""
    reference, *others = [Player(way, **options).play(story) for way in WAYS]
    for way, outcome in zip(list(WAYS)[1:], others, strict=True):
        assert outcome == reference, way
    assert reference["stats"]["reconnects"] == 0
    return reference


# ---------------------------------------------------------------- the traps

LONGEST = "l" * 255
TOO_LONG = "l" * 256
UNICODE = "zürich ☃"

EXCEPTION = {"exc_type": "KeyError", "exc_message": ["k"], "exc_module": "builtins"}
EVIL = {"exc_type": "system", "exc_message": ["true"], "exc_module": "os"}
CHILDREN = [[["child", None], None]]


def text(task_id: str, result: str, status: str = '"SUCCESS"') -> bytes:
    """A body with ``result`` as raw JSON text."""
    return f'{{"status": {status}, "result": {result}, "task_id": "{task_id}"}}'.encode()


def table(**headers: Any) -> bytes:
    return bytes(dumps("F", [headers]))


#: Bodies, and properties, of which each is a trap: for the id "a".
MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "progress": {"status": "PROGRESS"},
    "an exception": {"status": states.FAILURE, "result": EXCEPTION},
    "an exception that names what it should not": {"status": states.FAILURE, "result": EVIL},
    "an exception that is none": {"status": states.FAILURE, "result": {"exc_type": 17}},
    "an exception that is a text": {"status": states.FAILURE, "result": "text"},
    "a retry": {"status": states.RETRY, "result": EXCEPTION},
    "revoked": {"status": states.REVOKED, "result": None},
    "ignored": {"status": states.IGNORED},
    "children": {"body": meta("a", 1, children=CHILDREN)},
    "children of a failure": {"body": meta("a", EXCEPTION, states.FAILURE, children=CHILDREN)},
    "children that are none": {"body": meta("a", 1, children={"x": [17]})},
    "progress with children": {"body": meta("a", 1, "PROGRESS", children=CHILDREN)},
    "empty": {"body": b""},
    "too large": {"body": meta("a", "x" * MAX_BODY)},
    "larger than what may be kept": {"body": meta("a", "x" * 30_000)},
    "no JSON": {"body": b'{"task_id": "a"'},
    "no JSON that ends with its id": {"body": b'{"task_id": "a'},
    "only its id": {"body": b"a"},
    "shorter than its id": {"correlation_id": "abcdef", "body": b"a"},
    "not UTF-8": {"body": b'{"status": "\xff", "task_id": "a"}'},
    "UTF-8 of a surrogate": {"body": text("a", '"\udc80"'.encode(errors="replace").decode())},
    "a byte order mark": {"body": b"\xef\xbb\xbf" + meta("a")},
    "spaces around": {"body": b" \n" + meta("a") + b"\n "},
    "a tail of 24 bytes": {"body": meta("a") + b" " * 22},
    "a tail of 25 bytes": {"body": meta("a") + b" " * 23},
    "no JSON and a tail of 24 bytes": {"body": b'{"a' + b" " * 24},
    "no JSON and a tail of 25 bytes": {"body": b'{"a' + b" " * 25},
    "no spaces": {"body": json.dumps(json.loads(meta("a")), separators=(",", ":")).encode()},
    "the id first": {"body": b'{"task_id": "a", "result": 1, "status": "SUCCESS", "x": [0, 1]}'},
    "a number": {"body": b"17"},
    "null": {"body": b"null"},
    "an array that ends with its id": {"body": b'["a"]'},
    "a text": {"body": b'"a"'},
    "deep": {"body": b"[" * 10_000},
    "deep in a result": {"body": text("a", "[" * 200 + "]" * 200)},
    "deeper in a result": {"body": text("a", "[" * 20_000 + "]" * 20_000)},
    "no result": {"body": b'{"status": "SUCCESS", "task_id": "a"}'},
    "no status": {"body": b'{"result": 1, "task_id": "a"}'},
    "a status that is no text": {"body": text("a", "1", '{"a": 1}')},
    "an empty status": {"body": text("a", "1", '""')},
    "a status in small letters": {"body": text("a", "1", '"success"')},
    "no task id": {"body": b'{"status": "SUCCESS", "result": "a"}'},
    "no task id, progress": {"body": b'{"status": "PROGRESS", "result": "a"}'},
    "a task id of null": {"body": b'{"status": "SUCCESS", "result": "a", "task_id": null}'},
    "a task id of another kind": {"body": b'{"status": "SUCCESS", "result": "a", "task_id": [1]}'},
    "an empty task id": {"body": b'{"status": "SUCCESS", "result": "a", "task_id": ""}'},
    "half of a surrogate pair in its id": {"body": text("\\ud800", '"a"')},
    "a task id written with escapes": {"body": text("\\u0061", '"a"')},
    "a task id that is too long": {"body": text(TOO_LONG, '"a"')},
    "another's": {"body": meta("b")},
    "another's that ends with this id": {"body": meta("ba")},
    "another's progress": {"body": meta("b", 1, "PROGRESS")},
    "another's, of an id that is not ASCII": {"body": meta(UNICODE)},
    "the id twice": {"body": b'{"task_id": "b", "status": "SUCCESS", "result": 1, "task_id": "a"}'},
    "the status twice": {
        "body": b'{"status": "SUCCESS", "result": 1, "status": "PROGRESS", "task_id": "a"}'
    },
    "no correlation id": {"correlation_id": None, "body": meta("a")},
    "no correlation id, no task id": {
        "correlation_id": None,
        "body": b'{"status": "SUCCESS", "result": 1}',
    },
    "an empty correlation id": {"correlation_id": b"", "body": meta("a")},
    "an empty correlation id, no task id": {
        "correlation_id": b"",
        "body": b'{"status": "SUCCESS", "result": 1}',
    },
    "a correlation id that is no text": {"correlation_id": b"\xff\xfe", "body": meta("a")},
    "a correlation id that is no text, and no task id": {
        "correlation_id": b"\xff\xfe",
        "body": b'{"status": "SUCCESS", "result": 1}',
    },
    "a correlation id that is no text, at the end of no text": {
        "correlation_id": b"\xff\xfe",
        "body": b'{"status": "SUCCESS", "result": 1, "task_id": "\xff\xfe"}',
    },
    "a zero in its correlation id": {"correlation_id": b"a\0", "body": meta("a")},
    "a line end in its correlation id": {"correlation_id": b"a\nERROR", "body": b"{"},
    "no content type": {"content_type": None},
    "an empty content type": {"content_type": b""},
    "an unknown content type": {"content_type": b"application/x-evil"},
    "JSON in capitals": {"content_type": b"application/JSON"},
    "JSON with a charset": {"content_type": b"application/json; charset=utf-8"},
    "a content type of 255 bytes": {"content_type": b"t" * 255},
    "a zero in its content type": {"content_type": b"application/\0json"},
    "a content type that is no text": {"content_type": b"\xff"},
    "yaml": {"body": b"{status: SUCCESS, result: 1, task_id: a}", "content_type": b"text/yaml"},
    "pickle": {
        "body": pickle.dumps({"status": "SUCCESS", "result": 1, "task_id": "a"}),
        "content_type": b"application/x-python-serialize",
        "content_encoding": b"binary",
    },
    "no encoding": {"content_encoding": None},
    "an empty encoding": {"content_encoding": b""},
    "UTF-8 in capitals": {"content_encoding": b"UTF-8"},
    "utf8": {"content_encoding": b"utf8"},
    "utf-16": {"body": meta("a").decode().encode("utf-16"), "content_encoding": b"utf-16"},
    "latin-1": {"body": meta("a", "ü"), "content_encoding": b"latin-1"},
    "UTF-8 that says it is latin-1": {
        "body": text("a", '"\u00fc"'),
        "content_encoding": b"latin-1",
    },
    "an unknown encoding": {"content_encoding": b"no-such-encoding"},
    "an encoding of another kind": {"content_encoding": b"rot13"},
    "binary": {"content_encoding": b"binary"},
    "empty headers": {"headers": table()},
    "headers": {"headers": table(key="value")},
    "compressed": {
        "body": zlib.compress(meta("a")),
        "headers": table(compression="application/x-gzip"),
    },
    "compressed, progress": {
        "body": zlib.compress(meta("a", 1, "PROGRESS")),
        "headers": table(compression="application/x-gzip"),
    },
    "not compressed after all": {"headers": table(compression="application/x-gzip")},
    "an unknown compression": {"headers": table(compression="application/x-evil")},
    "an empty compression": {"headers": table(compression="")},
    "a compression of another kind": {"headers": table(compression={"a": 1})},
    "a compression of nothing": {"headers": table(compression=None)},
    "headers that are none": {"headers": b"\0\0\0\x03abc"},
    **{
        f"JSON that is read in two ways: {result[:40]}": {"body": text("a", result)}
        for result in (
            '{"__type__": "uuid", "__value__": "x"}',
            '{"__type__": "uuid", "__value__": "00000000000000000000000000000001"}',
            '{"__\\u0074ype__": "decimal", "__value__": "1.5"}',
            '["__type__"]',
            "18446744073709551616",
            "-9223372036854775809",
            "9999999999999999999",
            "1" * 5000,
            "-0",
            "-0.0",
            "NaN",
            "[Infinity, -Infinity]",
            "1e400",
            "0." + "1" * 40,
            '"\\ud800"',
            '"\\ud83d\\ude00"',
            '"\\u0000"',
            '"\x01"',
            "01",
            "[1,]",
            "1.",
            '{"a": 1, "a": 2}',
            "[" * 129 + "]" * 129,
        )
    },
}

#: Steps before and after a message.
BEFORE: dict[str, Story] = {
    "nobody waits": [],
    "somebody waits": [wait("a")],
    "two wait": [wait("a"), then("a"), wait("b")],
    "weakly": [wait_weakly("a")],
    "one waited and was let go of": [wait_weakly("a"), let_go("a")],
    "a class of its own": [wait_own("a")],
    "progress is kept": [deliver("a", 0, "PROGRESS")],
    "progress came to who waits": [wait("a"), deliver("a", 0, "PROGRESS")],
    "the end is kept": [deliver("a", "end")],
    "it was handed out": [wait("a"), deliver("a", "end")],
    "it was dropped": [deliver("a", "end"), *(deliver(f"more {n}") for n in range(5))],
}
AFTER: Story = [poll("a"), get("a"), poll("b"), get("b"), deliver("a", "late"), get("a")]


def named(message: dict[str, Any]) -> Step:
    return deliver(**{"correlation_id": "a", **message})


TRAPS: dict[str, Story] = {
    "an id that is not ASCII": [wait(UNICODE), deliver(UNICODE), get(UNICODE)],
    "… and that nobody waits for": [deliver(UNICODE), get(UNICODE)],
    "… written without escapes": [
        deliver(UNICODE, body=text(UNICODE, "1")),
        poll(UNICODE),
        deliver(UNICODE, body=text(UNICODE, "2")),
    ],
    "the longest id": [wait(LONGEST), deliver(LONGEST)],
    "… that nobody waits for": [deliver(LONGEST), get(LONGEST)],
    "a longer one in the body": [wait(LONGEST), deliver(LONGEST, body=meta(TOO_LONG))],
    "… that nobody waits for, either": [deliver(LONGEST, body=meta(TOO_LONG)), poll(LONGEST)],
    "another's, kept under a wrong id": [deliver("a", body=meta("ba")), poll("a"), get("ba")],
    "another's, and its own after it": [
        wait("a"),
        wait("b"),
        deliver("a", body=meta("b", "b's")),
        deliver("a", "a's"),
    ],
    "the end, then progress": [wait("a"), deliver("a"), deliver("a", 2, "PROGRESS")],
    "… kept": [deliver("a"), deliver("a", 2, "PROGRESS"), get("a")],
    "progress, the end, progress in one": [
        together(send("a", 1, "PROGRESS"), send("a", "end"), send("a", 2, "PROGRESS")),
        get("a"),
    ],
    "twice in one": [wait("a"), together(send("a"), send("a"))],
    "twice, kept": [together(send("a", "first"), send("a", "second")), get("a")],
    "called again after it was handed out": [
        wait("a"),
        deliver("a", "first"),
        call_again("a"),
        wait("a"),
        deliver("a", "second"),
    ],
    "more than may be kept": [together(*(send(f"t{n}") for n in range(9))), get("t0"), get("t8")],
    "more bytes than may be kept": [
        together(*(send(f"t{n}", "x" * 6_000) for n in range(5))),
        get("t0"),
        get("t4"),
    ],
    "progress of many that wait": [
        *(wait(f"t{n}") for n in range(5)),
        together(*(send(f"t{n}", "x" * 6_000, "PROGRESS") for n in range(5))),
        deliver("other"),
        deliver("t3"),
    ],
    "who waits no longer": [wait("a"), discard("a"), deliver("a"), get("a")],
    "… with progress": [wait("a"), deliver("a", 0, "PROGRESS"), discard("a"), deliver("a")],
    "forgotten": [deliver("a"), forget("a"), get("a"), deliver("a")],
    "forgotten while it is waited for": [wait("a"), forget("a"), deliver("a")],
    "seen by polling, then got": [deliver("a"), poll("a"), poll("a"), get("a"), poll("a")],
    "acknowledged in the midst": [
        wait("t4"),
        together(*(send(f"t{n}", n, ["SUCCESS", "PROGRESS"][n % 2]) for n in range(12))),
    ],
    # Callbacks.
    "called back in the order of waiting": [
        then("a"),
        wait("a"),
        then("a"),
        then("b"),
        together(send("b"), send("a")),
    ],
    "a callback that raises": [then("a", throw(ValueError("x"))), then("a"), deliver("a")],
    "a callback that waits for the same": [then("a", wait("a"), then("a")), deliver("a")],
    "a callback that waits weakly for the same, and lets go": [
        then("a", wait_weakly("a"), let_go("a")),
        deliver("a"),
    ],
    "a callback that gets the same": [then("a", get("a")), wait("a"), deliver("a")],
    "a callback that polls the same": [then("a", poll("a")), wait("a"), deliver("a")],
    "a callback that forgets the same": [then("a", forget("a")), wait("a"), deliver("a")],
    "a callback that lets go of all": [
        wait_weakly("a"),
        then("a", let_go("a")),
        wait("a"),
        deliver("a"),
        deliver("a"),
    ],
    "a callback that discards the other": [then("a", discard("a")), wait("a"), deliver("a")],
    "a callback that gets what comes next": [
        then("a", get("b")),
        together(send("a"), send("b"), send("c")),
    ],
    "… which is still at the broker": [then("a", get("b")), send("b"), deliver("a")],
    "… and was kept before": [deliver("b"), then("a", get("b")), deliver("a")],
    "… and never comes": [then("a", get("b")), deliver("a"), deliver("b")],
    "… and is progress": [
        then("a", get("b"), poll("b")),
        together(send("a"), send("b", 0, "PROGRESS"), send("b", 1)),
    ],
    "a callback in which a copy comes": [
        then("a", get("b")),
        wait("a"),
        together(send("a", "first"), send("a", "second"), send("b")),
    ],
    "a callback in which a copy comes, of a failure": [
        then("a", get("b")),
        then("a"),
        together(
            send("a", EXCEPTION, states.FAILURE), send("a", EXCEPTION, states.FAILURE), send("b")
        ),
    ],
    "callbacks in callbacks": [
        then("a", then("b", then("c", poll("a")), read), get("c")),
        together(send("a"), send("b"), send("c"), send("d")),
        send("e"),
    ],
    "a callback that reads until more must be acknowledged": [
        then("t0", read),
        together(*(send(f"t{n}") for n in range(8))),
    ],
    "a callback that sends and reads": [then("a", deliver("b"), deliver("a")), deliver("a")],
    "a callback after progress and bad messages": [
        then("a", deliver("a", 1, "PROGRESS"), deliver("a", body=b"{")),
        together(send("a", body=b"["), send("a", 0, "PROGRESS"), send("a")),
    ],
    "a callback of a class of its own's neighbour": [wait_own("a"), then("a"), deliver("a")],
    "a failure with callbacks": [then("a"), wait("a"), deliver("a", EXCEPTION, states.FAILURE)],
    "children with callbacks": [
        then("a"),
        wait("a"),
        deliver("a", body=meta("a", 1, children=CHILDREN)),
    ],
    # Thrown into a callback: the reader raises it.
    "Ctrl-C in a callback": [
        then("a", throw(KeyboardInterrupt())),
        then("a"),
        together(send("a"), send("b"), send("b")),
    ],
    "Ctrl-C in the second callback": [
        then("a"),
        then("a", throw(KeyboardInterrupt())),
        together(send("a"), send("b"), send("b")),
    ],
    "a soft time limit in a callback": [
        then("a", throw(SoftTimeLimitExceeded())),
        then("a"),
        together(send("a"), send("b")),
        get("b"),
    ],
    "Ctrl-C in a callback that reads": [
        then("a", get("b"), throw(KeyboardInterrupt())),
        then("b", throw(KeyboardInterrupt())),
        together(send("a"), send("b"), send("c")),
        get("c"),
    ],
    "Ctrl-C in a callback of one that begins to wait in another": [
        then("a", then("a", throw(KeyboardInterrupt()))),
        together(send("a"), send("b")),
    ],
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap(trap):
    assert_same(TRAPS[trap])


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("message", MESSAGES)
def test_a_message(message, before):
    assert_same([*BEFORE[before], named(MESSAGES[message]), *AFTER])


def test_all_messages_one_after_the_other():
    """In one buffer, and over one connection, which remembers formats."""
    story = [wait("a"), together(*(s for m in MESSAGES.values() for s in named(m).args))]
    outcome = assert_same(story)
    assert outcome["stats"]["received"] == len(MESSAGES)


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
    "body",
    [
        meta("a", "x" * 4 * MIB),
        meta("a", "x" * 4 * MIB, "PROGRESS"),
        text("a", f'["{"x" * 4 * MIB}", {{"__type__": "decimal", "__value__": "1.5"}}]'),
        text("a", '"' + "x" * 4 * MIB),
        text("a", f'"{"x" * 4 * MIB}"').replace(b"x", b"\xff", 1),
        text("b", f'"{"x" * 4 * MIB}"'),
        text("\\ud800", f'"{"x" * 4 * MIB}"'),
    ],
    ids=["plain", "progress", "kombu's", "no JSON", "not UTF-8", "another's", "a surrogate's"],
)
def test_a_large_body(body, before):
    assert_same(
        [*BEFORE[before], deliver("a", body=body), *AFTER],
        max_body=8 * MIB,
        max_unclaimed_bytes=16 * MIB,
    )


# ---------------------------------------------------------------- any story

ids = st.sampled_from(["a", "b", "ba", UNICODE, LONGEST])
statuses = st.sampled_from([*READY, "STARTED", "RETRY", "PROGRESS"])
values = st.sampled_from([1, None, "x" * 3_000, EXCEPTION, [], {"a": [1.5]}])
messages = st.one_of(
    st.builds(send, ids, values, statuses),
    st.builds(send, ids, values),
    st.builds(lambda task_id, other: send(task_id, body=meta(other)), ids, ids),
    st.sampled_from(sorted(MESSAGES)).map(lambda name: named(MESSAGES[name]).args[0]),
)
simple = st.one_of(
    st.builds(wait, ids),
    st.builds(wait_weakly, ids),
    st.builds(let_go, ids),
    st.builds(discard, ids),
    st.builds(poll, ids),
    st.builds(get, ids),
    st.builds(forget, ids),
    st.builds(call_again, ids),
    messages,
    st.just(read),
)
thrown = st.sampled_from([ValueError("x"), KeyboardInterrupt(), SoftTimeLimitExceeded()])
in_callback = st.recursive(
    simple | st.builds(throw, thrown),
    lambda steps: st.builds(lambda task_id, more: then(task_id, *more), ids, st.lists(steps)),
    max_leaves=4,
)
arriving = st.lists(messages, min_size=1, max_size=6).map(lambda sent: together(*sent))
calling_back = st.builds(
    lambda task_id, steps: then(task_id, *steps), ids, st.lists(in_callback, max_size=4)
)
stories = st.lists(st.one_of(simple, calling_back, arriving), max_size=12)


@given(stories)
@settings(max_examples=300, deadline=None)
def test_any_story(story):
    assert_same(story)
