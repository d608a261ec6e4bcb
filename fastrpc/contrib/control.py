"""The remote control command ``fastrpc_stats``: what a worker says of itself.

Importing this module adds the command to the worker in this process. Where fastrpc is installed, a
worker that the command ``celery`` starts does it by itself.

    >>> app.control.broadcast("fastrpc_stats", reply=True)  # doctest: +SKIP
    [{'celery@host': {'backend': 'fastrpc.backend:RPCBackend', 'stats': {...}, ...}}]

The counters are those of the process that answers. With the pool prefork that is the main process,
not its children, which send the results; ``tasks`` counts what all of them have started.
"""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import celery
from celery.worker.control import inspect_command
from celery.worker.state import total_count

from .. import __version__

__all__ = ["fastrpc_stats"]


@inspect_command()  # type: ignore[untyped-decorator,unused-ignore]
def fastrpc_stats(state: Any, **kwargs: Any) -> dict[str, Any]:
    """Backend, versions, clock, pool, started tasks and the counters of the backend.

    ``events`` says whether the worker has a connection for events.
    """
    app, backend, pool = state.app, state.app.backend, state.consumer.pool
    stats = getattr(backend, "stats", None)
    transport = app.connection_for_read().get_transport_cls()
    return {
        "pid": os.getpid(),
        "time": time.time(),
        "fastrpc": __version__,
        "celery": celery.__version__,
        "python": platform.python_version(),
        "backend": f"{type(backend).__module__}:{type(backend).__name__}",
        "transport": f"{transport.__module__}:{transport.__name__}",
        "pool": f"{type(pool).__module__}:{type(pool).__name__}",
        "events": bool(state.consumer.event_dispatcher),
        "tasks": sum(total_count.values()),
        "stats": stats() if callable(stats) else {},
    }
