"""``Task.replace()``: the replacement answers to the caller of the task that it replaces.

Celery freezes the replacement in the worker. ``Signature.freeze`` then gives it the reply queue of
the worker's thread, and a caller that waits on ``rpc://`` waits for ever.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from celery.app.task import Task

__all__ = ["keep_reply_queue"]


def keep_reply_queue() -> None:
    """Let every task of this process keep its caller's reply queue in ``replace()``.

    All signatures that are frozen meanwhile get that queue: those of a chain, of a chord, and of a
    header that is a generator. Tasks whose backend is not one of ours are left alone, and so is
    eager mode. A second call changes nothing.
    """
    original = Task.replace
    if getattr(original, "keeps_reply_queue", False):
        return

    @wraps(original)
    def replace(self: Any, sig: Any) -> Any:
        request = self.request
        if request.is_eager or not request.reply_to:
            return original(self, sig)
        answering_to = getattr(self.backend, "answering_to", None)
        if answering_to is None:
            return original(self, sig)
        with answering_to(request.reply_to):
            return original(self, sig)

    replace.keeps_reply_queue = True  # type: ignore[attr-defined]
    Task.replace = replace
