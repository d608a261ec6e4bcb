"""Looks into the internals of fastrpc, one function each; whatever is renamed is renamed here.

They are for tests that check what an exception, a collection or a callback left behind. None of
them changes anything.
"""

from __future__ import annotations

import threading
from typing import Any

from celery import Celery

from fastrpc import backend as backend_module


def role_is_taken(app: Celery) -> bool:
    """Whether some thread has the reading role."""
    return app.backend.result_consumer.reading


def held_locks(app: Celery) -> list[str]:
    """Names of the locks, other than the reading role, that are held."""
    backend = app.backend
    intake, publisher = backend.result_consumer._intake, backend._publisher
    locks: dict[str, Any] = {"making backends": backend_module._making}
    if intake is not None:
        locks["consuming"] = intake._consume_lock
    if publisher is not None:
        locks["publisher"] = publisher._lock
    return [name for name, lock in locks.items() if lock.locked()]


def watched(app: Celery) -> int:
    """Results that are watched by a get()."""
    return len(app.backend._matcher.watchers)


def listening(app: Celery) -> int:
    """Whether a wait is to hear of every message (`on_message`)."""
    return int(app.backend._matcher.watchers.listening)


def sleepers(app: Celery) -> int:
    """Waits that are to be woken when the reading role is free."""
    return app.backend._matcher.role.sleeping


def acknowledgement_is_pending(app: Celery) -> bool:
    """Whether the timer is set that acknowledges what nobody has acknowledged a second later."""
    return app.backend.result_consumer._acknowledger is not None


def owes_acknowledgement(app: Celery) -> bool:
    """Whether results were handed over and not acknowledged to the broker."""
    intake = app.backend.result_consumer._intake
    return intake is not None and intake.owes_acknowledgement


def has_dead_watcher(app: Celery) -> bool:
    """Whether the publisher counts on a thread that does not run to look for confirms."""
    publisher = app.backend._publisher
    watcher = None if publisher is None else publisher._watcher
    return watcher is not None and not watcher.is_alive()


def threads_of_ours() -> list[str]:
    """Names of the running threads that fastrpc has started."""
    return [
        thread.name
        for thread in threading.enumerate()
        if thread.name.startswith("fastrpc-") and thread.is_alive()
    ]


def leftovers(app: Celery) -> dict[str, int]:
    """What should be gone while nobody waits or sends, by the name of the failure that it is."""
    stats = app.backend.stats()
    found = {
        "role": int(role_is_taken(app)),
        "locks": len(held_locks(app)),
        "watched": watched(app),
        "listening": listening(app),
        "sleepers": sleepers(app),
        "timers": int(acknowledgement_is_pending(app)),
        "unacknowledged": int(owes_acknowledgement(app)),
        "waiting": stats["waiting"],
        "unconfirmed": stats["unconfirmed"],
        "watchers": int(has_dead_watcher(app)),
        "threads": len(threads_of_ours()),
    }
    return {name: count for name, count in found.items() if count}
