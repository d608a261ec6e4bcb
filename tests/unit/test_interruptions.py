"""An exception is thrown into a thread that sends, at each point where Python allows it."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from fastrpc._lock import Signal
from fastrpc.chords import joiner as joiner_module
from fastrpc.chords.joiner import Joiner
from fastrpc.chords.look import Look
from fastrpc.options import Options
from fastrpc.sending import publisher as publisher_module
from fastrpc.sending.publisher import AMQPPublisher
from fastrpc.stats import SentStats
from tests.support.publishing import Broker, apology, connected_broker, message, send
from tests.support.threads import Background

#: The interpreter checks for signals and asynchronous exceptions only when it enters a frame and
#: after these instructions; not on the way out of a `with` block.
LETS_IN = (
    ("CALL", "JUMP_ABSOLUTE", "POP_JUMP_IF")
    if sys.version_info < (3, 11)
    else ("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD", "RESUME")
)
ENTERED = LETS_IN[0]


class Interrupter:
    """Throws SoftTimeLimitExceeded at point number `at` in the source of some modules."""

    def __init__(self, at: int, modules: tuple[ModuleType, ...]) -> None:
        self.left, self.files = at, {module.__file__ for module in modules}
        self.before: dict[FrameType, str] = {}

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            before, self.before[frame] = self.before.get(frame, ENTERED), name
            if before.startswith(LETS_IN):
                self.left -= 1
                if self.left == 0:
                    raise SoftTimeLimitExceeded
        return self


def interrupted(at: int, action: Callable[[], object], *modules: ModuleType) -> bool:
    """Whether the point was reached before `action` ended."""

    def act() -> bool:
        sys._getframe().f_trace_opcodes = True  # 3.12: not heeded in the frame that is first to ask
        sys.settrace(Interrupter(at, modules or (publisher_module,)))
        try:
            action()
        except SoftTimeLimitExceeded:
            return True
        finally:
            sys.settrace(None)
        return False

    # If a trace function raises in an `except` block, CPython holds what was caught there for the
    # current exception from then on, in this thread.
    return bool(Background(act).result())


def after_a_loss(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    broker.link.cut = True
    return lambda: send(publisher, "new")


def refused(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    broker.link.refuse(2)
    broker.link.confirm(1)
    return publisher._tend


def tried_again(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    broker.link.refuse(3, multiple=True)
    publisher._tend()
    return publisher._tend


def tried_again_elsewhere(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    broker.link.refuse(1)
    publisher._tend()
    broker.link.opened_at -= 10
    return publisher._renew


def too_large(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    publisher.publish(message("large", 99))
    broker.link.cut = broker.link.too_large = True
    return publisher._tend


def many(publisher: AMQPPublisher, broker: Broker) -> Callable[[], object]:
    broker.confirms_at_once = True
    broker.link.confirm(3, multiple=True)
    return lambda: send(publisher, *(str(n) for n in range(40)))


@pytest.fixture
def make(monkeypatch) -> Callable[[], tuple[AMQPPublisher, Broker]]:
    """A publisher that has sent three results, and their broker."""
    monkeypatch.setattr(AMQPPublisher, "_ensure_watched", lambda self: None)
    app = SimpleNamespace(connection_for_write=dict)
    policy = {"max_retries": 99, "interval_start": 0, "interval_max": 0}

    def make() -> tuple[AMQPPublisher, Broker]:
        broker = connected_broker(monkeypatch)
        options = Options.parse({"retry_policy": policy})
        publisher = AMQPPublisher(app, 1, options, SentStats(), apology)
        send(publisher, *"abc")
        return publisher, broker

    return make


@pytest.mark.parametrize(
    "prepare",
    [after_a_loss, refused, tried_again, tried_again_elsewhere, too_large, many],
    ids=lambda prepare: prepare.__name__,
)
def test_none_is_lost_or_doubled_wherever_it_strikes(make, prepare):
    came, at = True, 0
    while came:
        at += 1
        publisher, broker = make()
        came = interrupted(at, prepare(publisher, broker))
        assert not publisher._lock.locked(), at
        broker.confirms_at_once = True
        for _ in range(4):
            broker.link.confirm(broker.link.sent, multiple=True)
            publisher._tend()
            publisher._renew()
        window = publisher.window
        assert len(window) == window.bytes == window.refused_bytes == 0, at
        assert publisher.stats.confirmed == len(set(broker.got) - {"sorry, large"}), at
    assert at > 20, "it was never interrupted"


def test_no_lock_is_held_wherever_it_strikes_at_the_end(make):
    came, at = True, 0
    while came:
        at += 1
        publisher, broker = make()
        broker.link.confirm(3, multiple=True)
        came = interrupted(at, lambda: publisher.close(1))  # noqa: B023
        assert not publisher._lock.locked(), at
        send(publisher, "new")
        publisher.close(0)
        assert publisher.unconfirmed == 0
    assert at > 20, "it was never interrupted"


class Chords:
    """The connection of the thread that joins chords. All of them were joined elsewhere."""

    errors = (OSError,)

    def __init__(self, app: Any) -> None: ...

    def count(self, queue: str) -> None:
        """None: the queue is deleted."""

    def put_back(self) -> None: ...

    def hang_up(self) -> None: ...


@pytest.fixture
def joiner(monkeypatch) -> Callable[[], Joiner]:
    monkeypatch.setattr(joiner_module, "ChordConnection", Chords)
    return lambda: Joiner(SimpleNamespace(app=None), lambda: None)


def look(name: str, *waiting: Signal) -> Look:
    return Look(name, 2, {}, None, waiting=[*waiting])


def test_the_thread_that_joins_chords_goes_on_wherever_it_strikes_a_task(joiner):
    """Also if the task is the first, and starts the thread."""
    came, at = True, 0
    while came:
        at += 1
        one, looked = joiner(), Signal()
        came = interrupted(at, lambda: one.demand(look("struck")), joiner_module, threading)  # noqa: B023
        one.demand(look("next", looked))
        assert looked.wait(10), at
        one.close(10)
        assert not one._lock.locked(), at
        assert not one._looks, at
    assert at > 4, "it was never interrupted"


def test_chords_are_joined_after_an_exit_in_their_thread(joiner, monkeypatch):
    """``SystemExit`` from code of the application: it ends that thread, and the look is made."""
    one, looked, counted = joiner(), Signal(), []

    def count(self: Chords, queue: str) -> None:
        counted.append(queue)
        if len(counted) == 1:
            raise SystemExit

    monkeypatch.setattr(Chords, "count", count)
    one.demand(look("first", looked))
    assert looked.wait(10)
    one.close(10)
    assert counted == ["fastrpc.chord.first"] * 2


def test_looks_without_a_thread_are_made_when_it_closes(joiner, monkeypatch):
    one, looked = joiner(), Signal()

    def no_more(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(joiner_module, "start_thread", no_more)
        with pytest.raises(RuntimeError):
            one.demand(look("first", looked))
    one.close(10)
    assert looked.wait(0)
