"""The names of the reply queues: for each thread, or greenlet, that runs.

Celery derives the name of a thread's reply queue from the thread's ident and keeps it in
``app._local``, which is thread-local. The idents of greenlets are hardly ever used again, so each
request of a server would leave a queue behind. Here the names of a thread that has ended go to the
next one that begins, with the queues: a process has as many as it has had threads at one time.
What was still on its way to the earlier thread arrives all the same.

A task that sends another has a second queue. Most such tasks never ask for the result, so what the
broker keeps in that queue is bounded.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu.utils.uuid import uuid

from .._borrowed import task_join_will_block

__all__ = ["Lease", "QueueNames", "is_unread", "owner_of"]

#: Ends the name of a queue for the results of tasks that were sent inside a task.
UNREAD = ".unread"


def is_unread(name: str) -> bool:
    """Whether the results in a queue of this name may never be asked for."""
    return name.endswith(UNREAD)


def owner_of(name: str) -> str:
    """The name of the thread's first queue, given that of either."""
    return name.removesuffix(UNREAD)


class Lease:
    """The names of one thread's reply queues; they are free again when the thread has ended."""

    __slots__ = ("_free", "handed_out", "lent", "name")

    def __init__(self, name: str, free: list[str]) -> None:
        self.name = name
        self._free = free
        #: Those that a task may have been sent with.
        self.handed_out: tuple[str, ...] = ()
        #: The queue of another, which what is sent now answers to.
        self.lent: str | None = None

    def hand_out(self) -> str:
        """The name of the queue for what is sent now."""
        if self.lent is not None:
            return self.lent
        name = self.name + UNREAD if task_join_will_block() else self.name
        if name not in self.handed_out:
            self.handed_out += (name,)
        return name

    def __del__(self) -> None:
        self._free.append(self.name)


class QueueNames:
    """Stands in for ``app._local``, and for ``app.thread_oid`` with it.

    Args:
        local: The thread-local object that Celery, or its tests, keep other things in.
    """

    def __init__(self, local: Any) -> None:
        vars(self).update(_local=local, _free=[])

    @classmethod
    def of(cls, app: Any) -> QueueNames:
        """Those of ``app``, for the life of the app."""
        if not isinstance(app._local, cls):
            app._local = cls(app._local)
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
            # The first task of an app is given its name before there is a backend.
            given = vars(local).pop("oid", None)
            lease = local.fastrpc_lease = Lease(given or self._next(), self._free)
            if given:
                lease.handed_out = (given,)
        return lease

    def _next(self) -> str:
        with suppress(IndexError):
            return str(self._free.pop())
        return str(uuid())

    def after_fork(self) -> None:
        """All names are the parent's."""
        vars(self)["_free"] = []
        for name in ("oid", "fastrpc_lease"):
            vars(self._local).pop(name, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._local, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._local, name, value)
