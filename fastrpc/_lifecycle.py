"""Forks, the end of the process and Celery's shutdown signals, for all who have to hear of them."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from operator import methodcaller
from typing import Any, Protocol
from weakref import WeakSet

from celery.signals import worker_process_shutdown, worker_shutdown

from ._borrowed import forget_pools

__all__ = ["Closeable", "making", "register"]

logger = logging.getLogger("fastrpc")


class Closeable(Protocol):
    """What has something open."""

    def close(self) -> None:
        """The process ends: send what is to be sent, and hang up."""

    def flush(self) -> None:
        """A worker has stopped, its process may go on: send what is to be sent."""

    def after_fork(self) -> None:
        """Begin anew in the child; what is open belongs to the parent."""


_living: WeakSet[Closeable] = WeakSet()
_making_lock = threading.Lock()


def register(closeable: Closeable) -> None:
    """Tell ``closeable``, for as long as it lives, of forks and of the end."""
    _living.add(closeable)


def making() -> threading.Lock:
    """The lock under which what there is once in a process, or once for an app, is made."""
    return _making_lock


def _close_all(**kwargs: Any) -> None:
    _tell_all(methodcaller("close"))


def _flush_all(**kwargs: Any) -> None:
    _tell_all(methodcaller("flush"))


def _tell_all(tell: Callable[[Closeable], None]) -> None:
    for closeable in list(_living):
        try:
            tell(closeable)
        except Exception as exc:  # the others must not lose what they have not sent yet
            logger.error("a result backend was not closed in order", exc_info=exc)


def _after_fork_in_child() -> None:
    global _making_lock
    _making_lock = threading.Lock()
    forget_pools()
    for closeable in list(_living):
        try:
            closeable.after_fork()
        except Exception as exc:  # the others must not go on with the parent's connections
            logger.error("a result backend did not begin anew after a fork", exc_info=exc)


# A prefork child leaves without running atexit's; Celery tells it first. The process of a
# worker may live on, and wait for results, as it does in tests.
worker_process_shutdown.connect(_close_all, weak=False)
worker_shutdown.connect(_flush_all, weak=False)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
