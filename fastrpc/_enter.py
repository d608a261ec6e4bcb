"""How ``with`` takes a lock on Python 3.14.

There an asynchronous exception may be raised after the call of a compiled ``__enter__``, before the
block is entered that releases the lock (https://github.com/python/cpython/issues/148874; mended in
3.15). It is not raised where a function written in Python returns: so these take the lock, and
release it if an exception comes after that.
"""

from __future__ import annotations

from typing import Any


def enter_lock(lock: Any) -> Any:
    """``Lock.__enter__``."""
    turn = lock.within(None)
    try:
        turn._enter()
        return lock
    except BaseException:
        turn.__exit__(None, None, None)  # which does nothing if it was not taken
        raise


def enter_turn(turn: Any) -> bool:
    """``__enter__`` of what ``Lock.within()`` returns."""
    try:
        return turn._enter()  # type: ignore[no-any-return]
    except BaseException:
        turn.__exit__(None, None, None)  # which does nothing if it was not taken
        raise
