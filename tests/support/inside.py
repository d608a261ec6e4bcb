"""Access to the internals of fastrpc, one function each; a rename there changes only this file.

Only hang_up(), connect_to() and disconnect() change anything.
"""

from __future__ import annotations

import gc
import socket
import sys
import time
from types import FrameType
from typing import Any

from celery import Celery

from fastrpc.aio import _Sender
from fastrpc.chords.joiner import Joiner
from fastrpc.client.aio import Loops
from fastrpc.sending.lanes import Lanes
from fastrpc.sending.publisher import AMQPPublisher


def role_is_taken(app: Celery) -> bool:
    """Whether some thread has the reading role."""
    return app.backend.result_consumer.reading


def held_locks(app: Celery) -> list[str]:
    """Names of the locks, other than the reading role, that are held."""
    intake = app.backend.result_consumer._intake
    locks: dict[str, Any] = {}
    if intake is not None:
        locks["consuming"] = intake._consume_lock
    for publisher in publishers(app):
        locks[f"publisher {id(publisher)}"] = publisher._lock
        locks[f"room {id(publisher)}"] = publisher._room
    if app.backend._chords is not None:
        locks["joiner"] = app.backend._chords._joiner._lock
    return [name for name, lock in locks.items() if lock.locked()]


def watched(app: Celery) -> int:
    """Results that are watched by a get()."""
    return len(app.backend.client.watchers)


def listening(app: Celery) -> int:
    """Whether a wait is told of every message (`on_message`)."""
    return int(app.backend.client.watchers.listening)


def sleepers(app: Celery) -> int:
    """Waits that sleep until the reading role is free."""
    return app.backend.client.role.sleeping


def acknowledgement_is_pending(app: Celery) -> bool:
    """Whether the timer runs that acknowledges outstanding deliveries after a second."""
    return app.backend.result_consumer._acknowledger_until > time.monotonic()


def owes_acknowledgement(app: Celery) -> bool:
    """Whether results were delivered and not yet acknowledged to the broker."""
    current = intake(app)
    return current is not None and current.owes_acknowledgement


def intake(app: Celery) -> Any:
    """The intake of results, which owns its connection; None while there is none."""
    return app.backend.result_consumer._intake


def connect_to(app: Celery, connection: Any, way_in: type[Any]) -> Any:
    """Make a ``way_in`` over ``connection``, which the test feeds, the intake of results."""
    backend = app.backend
    intake = way_in(connection, backend.client.queues, backend.options, backend.client.matcher)
    intake.open(1.0)
    backend.result_consumer._intake = intake
    return intake


def disconnect(app: Celery) -> None:
    """Drop the intake without closing it: a fake one cannot be closed."""
    app.backend.result_consumer._intake = None


def read(app: Celery) -> None:
    """Deliver what has arrived."""
    app.backend.result_consumer.look(app.backend.oid)


def table(app: Celery) -> Any:
    """The table of waiters and kept bodies."""
    return app.backend.client.table


def intake_socket(app: Celery) -> socket.socket:
    """The socket that receives results."""
    return intake(app).connection.connection.sock


def reply_queues(app: Celery) -> list[str]:
    """Names of the reply queues, one for each thread that has sent a task."""
    return app.backend.client.queues.names


def hang_up(app: Celery) -> None:
    """Close the connection for results, and leave the reply queues at the broker.

    The next wait connects again.
    """
    intake(app).goodbye(5, delete_queues=False)
    app.backend.result_consumer._intake = None


def publishers(sender: Celery) -> list[AMQPPublisher]:
    """That of the small results, and that of the large ones."""
    lanes = sender.backend.worker.publisher
    return [lanes.small, lanes.large] if isinstance(lanes, Lanes) else []


def publisher(sender: Celery) -> AMQPPublisher:
    """The publisher of small results."""
    return publishers(sender)[0]


def link(sender: Celery, *, large: bool = False) -> Any:
    """The link that sends results, which owns its connection; None while there is none."""
    made = publishers(sender)
    return made[large]._link if made else None


def link_amqp(sender: Celery) -> Any:
    """py-amqp's connection that results are sent over."""
    return link(sender)._amqp


def refused(sender: Celery) -> int:
    """How many results the broker has refused and not taken yet."""
    return sum(publisher.window.refused_count for publisher in publishers(sender))


def unconfirmed_bytes(sender: Celery) -> int:
    """Bytes of the results that are kept until they are confirmed."""
    return sum(publisher.window.bytes for publisher in publishers(sender))


def is_watched(sender: Celery) -> bool:
    """Whether a publisher relies on a helper thread to read confirms while no send runs."""
    return any(publisher._watcher is not None for publisher in publishers(sender))


def watching_publishers() -> list[AMQPPublisher]:
    """The publishers whose helper thread, which reads confirms, is running."""
    return [frame.f_locals["self"] for frame in frames_of(AMQPPublisher._watch)]


def frames_of(*functions: Any) -> list[FrameType]:
    """The frames in which a thread runs one of ``functions``."""
    codes = {function.__code__ for function in functions}
    found = []
    enabled = gc.isenabled()
    interval = sys.getswitchinterval()
    gc.disable()  # a collection that frees a threading.local would wait for ever for its lock
    # If another thread runs and returns while its frames are walked, CPython 3.11 may follow a
    # pointer to a frame that is gone. This makes it unlikely that one runs.
    try:
        sys.setswitchinterval(0.5)
        time.sleep(0)  # threads that wait for their turn now wait with the new interval
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_code in codes:
                    found.append(frame)
                frame = frame.f_back
    finally:
        sys.setswitchinterval(interval)
        if enabled:
            gc.enable()
    return found


def has_dead_watcher(sender: Celery) -> bool:
    """Whether a publisher relies on a helper thread that is not running."""
    counting = [publisher for publisher in publishers(sender) if publisher._watcher is not None]
    return not {*counting} <= {*watching_publishers()}


def threads_of_ours() -> list[str]:
    """Whose the running threads are that fastrpc has started."""
    frames = frames_of(AMQPPublisher._watch, Loops._keep, _Sender._run, Joiner._run)
    return [type(frame.f_locals["self"]).__name__ for frame in frames]


def leftovers(app: Celery) -> dict[str, int]:
    """Things that must not exist while nothing waits or sends, by the name of the failure."""
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


def loops(app: Celery) -> list[Any]:
    """The event loops that wait, or watch the socket."""
    loops = app.backend.client.loops
    return [] if loops is None else list(loops._readers)
