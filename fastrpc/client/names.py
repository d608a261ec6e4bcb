"""The names of the reply queues, one set for each running thread or greenlet.

Celery derives the name of a thread's reply queue from the thread's ident, and keeps it in the
thread-local ``app._local``. Idents of greenlets are hardly ever used again, so each request of a
server would leave a queue behind. Here a new thread takes the names, and the queues, of a thread
that has ended. A process thus has as many queues as it had threads at one time, and results for the
ended thread still arrive.

A thread that runs a task has a second queue, for the results of tasks that it sends from there.
Most tasks never ask for these results, so the broker keeps only a limited number.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

from kombu.utils.uuid import uuid

from .._borrowed import task_join_will_block

__all__ = ["Lease", "QueueNames", "is_unread", "owner_of"]

#: The end of the name of a queue for the results of tasks that were sent inside a task.
UNREAD = ".unread"


def is_unread(name: str) -> bool:
    """Whether the results in a queue of this name may never be asked for."""
    return name.endswith(UNREAD)


def owner_of(name: str) -> str:
    """The name of a thread's first queue, given the name of its first or second one."""
    return name.removesuffix(UNREAD)


class Lease:
    """The names of one thread's reply queues. They become free when the thread has ended."""

    __slots__ = ("_free", "handed_out", "lent", "name")

    def __init__(self, name: str, free: list[str]) -> None:
        self.name = name
        self._free = free
        #: The names that tasks may have been sent with.
        self.handed_out: tuple[str, ...] = ()
        #: The reply queue of another process, if tasks sent now shall be answered there.
        self.lent: str | None = None

    def hand_out(self) -> str:
        """The name of the reply queue for a task that is sent now."""
        if self.lent is not None:
            return self.lent
        name = self.name + UNREAD if task_join_will_block() else self.name
        if name not in self.handed_out:
            self.handed_out += (name,)
        return name

    def __del__(self) -> None:
        self._free.append(self.name)


class QueueNames:
    """Replaces ``app._local``, and so decides what ``app.thread_oid`` returns.

    It is what all backends of an app share: Celery makes a second one when two threads ask for the
    first at the same time, or when a result is unpickled. So it also holds the client's side.

    Args:
        local: The former ``app._local``, in which Celery, or its tests, keep other things.
    """

    #: The client's side of the app; None until the app needs it.
    side: Any = None
    #: The thread that ends the process, once it has begun to.
    ending_thread: int | None

    def __init__(self, local: Any) -> None:
        vars(self).update(_local=local, _free=[], ending_thread=None)

    @classmethod
    def of(cls, app: Any) -> QueueNames:
        """The names of ``app``, for the life of the app."""
        if not isinstance(app._local, cls):
            # No lock: a destructor or a signal handler that interrupts this may do the same.
            app._local = vars(app).setdefault("_fastrpc_names", cls(app._local))
        names: QueueNames = app._local
        return names

    @property
    def oid(self) -> str:
        """What ``app.thread_oid`` returns."""
        return self.lease().hand_out()

    def lease(self) -> Lease:
        """The names of the current thread."""
        local = self._local
        try:
            lease: Lease = local.fastrpc_lease
        except AttributeError:
            # The first task of an app gets its reply queue before Celery makes the backend.
            given = vars(local).pop("oid", None)
            lease = local.fastrpc_lease = Lease(given or self._next(), self._free)
            if given:
                lease.handed_out = (given,)
        return lease

    def _next(self) -> str:
        with suppress(IndexError):
            return str(self._free.pop())
        return str(uuid())

    def keep(self, side: Any) -> Any:
        """Keep ``side`` as the client's side of the app, unless there is one; return the kept."""
        return vars(self).setdefault("side", side)

    def end(self) -> None:
        """The process ends, in this thread: from now on no other thread declares a queue."""
        vars(self)["ending_thread"] = threading.get_ident()

    @property
    def may_declare(self) -> bool:
        """Whether this thread may still declare a queue: it would be deleted at the end."""
        return self.ending_thread in (None, threading.get_ident())

    def after_fork(self) -> None:
        """Forget all names: they belong to the parent."""
        vars(self).update(_free=[], ending_thread=None)
        for name in ("oid", "fastrpc_lease"):
            vars(self._local).pop(name, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._local, name, value)
