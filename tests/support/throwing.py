"""Throws exceptions into threads from outside, but only while they are in an exposed call.

Each exception has a class of its own, with a serial number. So a test can tell which of them came
out of the call, and whether one was swallowed.
"""

from __future__ import annotations

import ctypes
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from celery.exceptions import SoftTimeLimitExceeded

__all__ = ["KINDS", "SHORTEST", "GaveUp", "Target", "Thrower", "is_thrown", "new_thrown"]

#: The exceptions that occur in practice: the soft time limit of a task, and Ctrl-C.
KINDS: tuple[type[BaseException], ...] = (SoftTimeLimitExceeded, KeyboardInterrupt)

#: Shortest time between two throws into one thread, in seconds.
SHORTEST = 20e-6

_serials = itertools.count(1)
_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc
_set_async_exc.argtypes = (ctypes.c_ulong, ctypes.py_object)
_NOTHING = ctypes.py_object()  # NULL: takes back what was not raised yet


class GaveUp(BaseException):
    """Thrown into a thread that does not end by itself."""


def new_thrown(rng: random.Random) -> type[BaseException]:
    """A subclass, with a serial number, of something in KINDS."""
    return type("Thrown", (rng.choice(KINDS),), {"serial": next(_serials)})


def is_thrown(exc: BaseException | None) -> bool:
    return hasattr(exc, "serial")


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    """`exc`, what was being handled when it was raised, and so on."""
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__context__


class Target:
    """The current thread, as a target for thrown exceptions."""

    #: By thread ident.
    all: ClassVar[dict[int, Target]] = {}

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        #: Whether it is in an exposed call.
        self.open = False
        #: If more than 0, it runs a finalizer or a signal handler, where a thrown exception ends.
        self.sheltered = 0
        #: Serial numbers that were seen on their way out, in the call that is exposed now.
        self.noted: list[int] = []
        #: How many were noted but did not come out of their call.
        self.swallowed = 0
        self._lock = threading.Lock()
        Target.all[self.thread] = self

    @classmethod
    def current(cls) -> Target | None:
        return cls.all.get(threading.get_ident())

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return (result of `function`, None), or (None, its exception).

        No exception is thrown into the thread any more when this returns.
        """
        self.sheltered, value, error = 0, None, None
        self.noted.clear()
        try:
            self.open = True
            value = function(*args, **kwargs)
            self.open = False
        except BaseException as exc:
            # No call may come before this: until it is done, an exception may be thrown into it.
            self.open = False
            error = exc
        try:
            self._end_throws()
        except BaseException as exc:
            # At most one can be under way: no throw has begun since the call was closed.
            self._end_throws()
            error = error or exc
        if isinstance(error, GaveUp):
            raise error
        out = {exc.serial for exc in _chain(error) if is_thrown(exc)}  # type: ignore[attr-defined]
        self.swallowed += len(set(self.noted) - out)
        return (value, None) if error is None else (None, error)

    def _end_throws(self) -> None:
        with self._lock:
            _set_async_exc(self.thread, _NOTHING)

    def throw(self, kind: type[BaseException]) -> bool:
        """Raise `kind` in the thread, if it is in an exposed call.

        If the thread is starting another one, `kind` may be raised there instead: CPython up to
        3.12 gives a new thread the ident of its creator until it runs.
        """
        with self._lock:
            if self.open:
                _set_async_exc(self.thread, kind)
                return True
            return False

    def give_up(self) -> None:
        """Raise GaveUp in the thread, wherever it is."""
        _set_async_exc(self.thread, GaveUp)

    def note(self, exc: BaseException) -> None:
        """Remember `exc`, which is on its way out, if it was thrown in."""
        if is_thrown(exc) and self.open and not self.sheltered:
            self.noted.append(exc.serial)  # type: ignore[attr-defined]


class Thrower:
    """A thread that throws exceptions into each target, on average every `pace` seconds."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.paces: dict[Target, float] = {}
        self.thrown = 0
        self._next: dict[Target, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="thrower")

    def add(self, target: Target, pace: float) -> None:
        self.paces[target] = pace

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop throwing; returns when no throw is under way."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.is_set():
            now = time.monotonic()
            for target, pace in list(self.paces.items()):
                if now >= self._next.get(target, now):
                    self.thrown += target.throw(new_thrown(self.rng))
                    self._next[target] = now + self.rng.expovariate(1 / pace)
            due = min(self._next.values(), default=now + 0.01)
            time.sleep(max(due - time.monotonic(), SHORTEST))
