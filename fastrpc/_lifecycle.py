"""Forks, the end of the process and Celery's shutdown signals, for all who have to hear of them.

Backends are held weakly, so an app that was used for a moment can be collected. What it leaves at
the broker, its reply queues, is inherited: it is deleted as soon as the app is gone, and at the end
of the process at the latest.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet, finalize

from celery.signals import worker_process_shutdown, worker_shutdown

from ._borrowed import forget_pools

__all__ = ["Closeable", "Estate", "bequeath", "making", "register"]

logger = logging.getLogger("fastrpc")

#: How long, in seconds, a process that ends waits for brokers that do not answer.
PATIENCE = 0.6

#: The same, while the process goes on.
ESTATE_TIMEOUT = 5.0


class Estate(Protocol):
    """What an app may leave at the broker."""

    def __len__(self) -> int:
        """How much of it there is."""

    def leave(self, timeout: float) -> bool:
        """Remove it, within ``timeout`` seconds; whether the broker answered."""


class Closeable(Protocol):
    """What has something open."""

    def flush(self) -> None:
        """A worker has stopped, or the process ends: send what is to be sent."""

    def leave(self, timeout: float) -> bool:
        """The process ends: hang up, within ``timeout`` seconds; whether the broker answered."""

    def after_fork(self) -> None:
        """Begin anew in the child; what is open belongs to the parent."""


_living: WeakSet[Closeable] = WeakSet()
_making_lock = threading.Lock()
#: What collected apps have left, and what of it is being removed.
_estates: deque[Estate] = deque()
_under_way: set[int] = set()


def register(closeable: Closeable) -> None:
    """Tell ``closeable``, for as long as it lives, of forks and of the end."""
    _living.add(closeable)


def making() -> threading.Lock:
    """The lock under which what there is once in a process, or once for an app, is made."""
    return _making_lock


def bequeath(owner: Any, estate: Estate) -> None:
    """Have ``estate``, which must not lead back to ``owner``, removed once that is collected."""
    finalize(owner, _inherit, estate).atexit = False  # _close_all tells the owner itself


def _inherit(estate: Estate) -> None:
    if not len(estate):
        return
    _estates.append(estate)
    if _under_way:
        return  # that thread goes on with it
    # A collection may strike anywhere, whatever lock is held: nothing can be waited for here, and
    # Thread.start() waits.
    with suppress(RuntimeError):  # no more threads: the process ends
        _thread.start_new_thread(_remove_estates, ())


def _remove_estates() -> None:
    me = _thread.get_ident()
    while _estates:
        _under_way.add(me)
        try:
            estate = _estates.popleft()
        except IndexError:  # another thread was faster
            return
        else:
            _told(estate.leave, ESTATE_TIMEOUT)
        finally:
            _under_way.discard(me)  # before _estates is looked at again: _inherit does the reverse


def _close_all(**kwargs: Any) -> None:
    # Results first, each backend within its own time.
    _flush_all()
    patience = PATIENCE
    everyone: list[Closeable | Estate] = [*_living, *_estates]
    for leaving in everyone:
        began = time.monotonic()
        if not _told(leaving.leave, max(patience, 0.0)):
            # Only silence uses it up: a process may have many apps.
            patience -= time.monotonic() - began
    _estates.clear()
    end = time.monotonic() + max(patience, 0.0)
    while _under_way and time.monotonic() < end:
        time.sleep(0.01)


def _flush_all(**kwargs: Any) -> None:
    for closeable in list(_living):
        _told(closeable.flush)


def _told(tell: Callable[..., Any], *args: Any) -> Any:
    try:
        return tell(*args)
    except Exception as exc:  # the others must not lose what they have not sent yet
        logger.error("a result backend was not closed in order", exc_info=exc)
    return None


def _after_fork_in_child() -> None:
    global _making_lock
    _making_lock = threading.Lock()
    forget_pools()
    _estates.clear()
    _under_way.clear()
    _hear_of_multiprocessing()
    for closeable in list(_living):
        try:
            closeable.after_fork()
        except Exception as exc:  # the others must not go on with the parent's connections
            logger.error("a result backend did not begin anew after a fork", exc_info=exc)


def _hear_of_multiprocessing() -> None:
    """Its children leave without running atexit's, and forget what was registered with it."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.register_after_fork(_close_all, _register_with_multiprocessing)


def _register_with_multiprocessing(close_all: Callable[[], None]) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, close_all, exitpriority=0)


# A prefork child leaves without running atexit's; Celery tells it first. The process of a
# worker may live on, and wait for results, as it does in tests.
worker_process_shutdown.connect(_close_all, weak=False)
worker_shutdown.connect(_flush_all, weak=False)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
