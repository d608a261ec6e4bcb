"""Kills a worker at one step of joining a chord, once; for worker_app.py.

FASTRPC_TEST_KILL holds the name of a step and the path of a file. The process that makes the file
dies.
"""

from __future__ import annotations

import os
import signal
from functools import wraps
from typing import Any

from fastrpc.chords.body import BodySender
from fastrpc.chords.chords import Chords
from fastrpc.chords.connection import ChordConnection

__all__ = ["KILL_POINTS", "arm"]

#: Step -> (class, method, whether it dies before the method, not after it).
KILL_POINTS: dict[str, tuple[type, str, bool]] = {
    "before the part is sent": (Chords, "return_part", True),
    "before the count": (ChordConnection, "count", True),
    "after the count": (ChordConnection, "take", True),
    "with the parts in hand": (ChordConnection, "take", False),
    "before the body is sent": (BodySender, "send", True),
    "after the body is sent": (BodySender, "send", False),
    "before the queue is deleted": (ChordConnection, "delete", True),
    "after the queue is deleted": (ChordConnection, "delete", False),
}


def arm(step: str, path: str) -> None:
    """Have the first process that comes to ``step`` die of kill -9."""
    cls, name, before = KILL_POINTS[step]
    method = getattr(cls, name)

    @wraps(method)
    def die_once(*args: Any, **kwargs: Any) -> Any:
        if before:
            _die_once(path)
        result = method(*args, **kwargs)
        if not before:
            _die_once(path)
        return result

    setattr(cls, name, die_once)


def _die_once(path: str) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
