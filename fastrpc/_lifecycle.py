"""Tells backends of forks, of the end of the process, and of a worker that begins or stops.

Backends are held weakly, so an app that was used for a moment can be collected. The reply queues
that it leaves at the broker are its estate: they are deleted once the app is collected, and at the
end of the process at the latest.
"""

from __future__ import annotations

import _thread
import atexit
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet, finalize

from celery.signals import (
    worker_before_create_process,
    worker_process_init,
    worker_process_shutdown,
    worker_shutdown,
)

from ._borrowed import end_threads, forget_pools

__all__ = ["Closeable", "Estate", "bequeath", "register"]

logger = logging.getLogger("fastrpc")

#: How long, in seconds and for all backends together, a process that ends waits for brokers that do
#: not answer.
PATIENCE = 0.6

#: How long, in seconds, removing one estate may take while the process goes on.
ESTATE_TIMEOUT = 5.0


class Estate(Protocol):
    """The reply queues that a collected app has left at the broker."""

    def __len__(self) -> int:
        """The number of queues."""

    def leave(self, timeout: float) -> bool:
        """Delete the queues, within ``timeout`` seconds; return whether the broker answered."""


class Closeable(Protocol):
    """An object that opens connections."""

    def load(self) -> None:
        """Make what tasks will need: this process runs tasks, or is about to fork those that do."""

    def flush(self) -> None:
        """Send everything that is outstanding: a worker has stopped, or the process ends."""

    def leave(self, timeout: float) -> bool:
        """Close the connections, within ``timeout`` seconds, because the process ends.

        Returns:
            Whether the broker answered.
        """

    def after_fork(self) -> None:
        """Start afresh in a forked child: the open connections belong to the parent."""


_closeables: WeakSet[Closeable] = WeakSet()
#: Estates of collected apps that are still to be removed.
_estates: deque[Estate] = deque()
#: Idents of the threads that are removing an estate.
_removing: set[int] = set()
#: Whether multiprocessing tells us when a child begins; its children inherit that.
_multiprocessing_knows = False


def register(closeable: Closeable) -> None:
    """Tell ``closeable``, as long as it lives, of forks and of the end of the process."""
    _closeables.add(closeable)


def _registered() -> list[Closeable]:
    while True:
        try:
            return list(_closeables)
        except RuntimeError:  # another thread has registered one meanwhile
            continue


def bequeath(owner: Any, estate: Estate) -> None:
    """Remove ``estate``, which must not refer to ``owner``, once ``owner`` is collected."""
    finalize(owner, _inherit, estate).atexit = False  # _close_all tells the owner itself


def _inherit(estate: Estate) -> None:
    if not len(estate):
        return
    _estates.append(estate)
    if _removing:
        return  # the running thread will remove it
    # Garbage collection may run this anywhere, with any lock held, so it must not wait; and
    # Thread.start() waits.
    with suppress(RuntimeError):  # no thread can start any more, because the process ends
        _thread.start_new_thread(_remove_estates, ())


def _remove_estates() -> None:
    this_thread = _thread.get_ident()
    while _estates:
        _removing.add(this_thread)
        try:
            estate = _estates.popleft()
        except IndexError:  # another thread was faster
            return
        else:
            _call_and_log(estate.leave, ESTATE_TIMEOUT)
        finally:
            # Before _estates is checked again: _inherit does the two steps in the reverse order.
            _removing.discard(this_thread)


def _close_all(**kwargs: Any) -> None:
    # Results first, each backend within its own ``shutdown_timeout``.
    _flush_all()
    patience = PATIENCE
    everyone: list[Closeable | Estate] = [*_registered(), *_estates]
    for leaving in everyone:
        began = time.monotonic()
        if not _call_and_log(leaving.leave, max(patience, 0.0)):
            # Only brokers that do not answer use up the patience: a process may have many apps.
            patience -= time.monotonic() - began
    _estates.clear()
    end = time.monotonic() + max(patience, 0.0)
    while _removing and time.monotonic() < end:
        time.sleep(0.01)


def _load_all(**kwargs: Any) -> None:
    # A soft time limit that strikes the first import in a task can leave the import lock taken, and
    # the process of the pool hangs.
    for closeable in _registered():
        try:
            closeable.load()
        except Exception as exc:  # for example a bad broker URL of one of several apps
            logger.error("preparing a result backend for the pool failed", exc_info=exc)


def _flush_all(**kwargs: Any) -> None:
    for closeable in _registered():
        _call_and_log(closeable.flush)


def _call_and_log(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, or None if it raises: that is logged."""
    try:
        return function(*args)
    except Exception as exc:  # the other backends must still send what is outstanding
        logger.error("closing a result backend failed", exc_info=exc)
    return None


def _after_fork_in_child() -> None:
    forget_pools()
    _estates.clear()
    _removing.clear()
    _close_in_multiprocessing_children()
    for closeable in _registered():
        try:
            closeable.after_fork()
        except Exception as exc:  # the others must not keep using the parent's connections
            logger.error("resetting a result backend after a fork failed", exc_info=exc)


def _close_in_multiprocessing_children() -> None:
    """Close the backends in multiprocessing's children too: they run no atexit handlers."""
    global _multiprocessing_knows
    util = sys.modules.get("multiprocessing.util")
    if util is None or _multiprocessing_knows:
        return
    _multiprocessing_knows = True
    # A child that begins forgets the finalizers of its parent, and calls what is registered here.
    util.register_after_fork(_close_all, _finalize_multiprocessing_child)
    if sys.modules["multiprocessing.process"].parent_process() is not None:
        _finalize_multiprocessing_child(_close_all)  # this one has begun, and imports us only now


def _finalize_multiprocessing_child(close_all: Callable[[], None]) -> None:
    def close() -> None:
        # Threads may still call tasks. The interpreter, too, waits for them before it calls atexit
        # handlers.
        end_threads()
        close_all()

    # A negative priority: after the child has waited for children of its own.
    sys.modules["multiprocessing.util"].Finalize(None, close, exitpriority=-1)


# Only the prefork pool of an event loop sends worker_before_create_process, and a process that is
# spawned inherits nothing: those load when they begin.
# A prefork child ends without running atexit handlers, but sends worker_process_shutdown before.
# worker_shutdown only flushes: the process of a worker may live on and wait for results, as it does
# in tests.
worker_before_create_process.connect(_load_all, weak=False)
worker_process_init.connect(_load_all, weak=False)
worker_process_shutdown.connect(_close_all, weak=False)
worker_shutdown.connect(_flush_all, weak=False)
atexit.register(_close_all)
_close_in_multiprocessing_children()
os.register_at_fork(after_in_child=_after_fork_in_child)
