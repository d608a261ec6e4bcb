"""Sends the body of a chord its results, or reports that the chord has failed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amqp.exceptions import AccessRefused, PreconditionFailed
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError

from .._borrowed import running
from .connection import ANSWER_TIMEOUT, ChordConnection
from .look import Look
from .parts import Parts

__all__ = ["BodySender", "reply_queue_of"]

logger = logging.getLogger("fastrpc")

#: How many connections may be lost while a body is sent before its chord fails.
MOST_SENDS = 20

#: The broker will never take such a body: it is larger than ``max_message_size``, its queue exists
#: with other arguments, or we may not send there.
FINAL = (PreconditionFailed, AccessRefused)


def parent_of(body: Any, request: Any) -> Context:
    """The request of the task that sends ``body``, made from that of the last header task."""
    return Context(
        id=request.id,
        root_id=request.root_id or request.id,
        reply_to=reply_queue_of(body) or request.reply_to,
        delivery_info=request.delivery_info or {},
        called_directly=False,
    )


def reply_queue_of(sig: Any) -> str | None:
    """The reply queue of the last task of a frozen signature."""
    own: str | None = sig.options.get("reply_to")
    if own or not sig.subtask_type:
        return own
    last = sig.kwargs.get("body") or next(iter(reversed(sig.kwargs.get("tasks") or ())), None)
    return last and reply_queue_of(maybe_signature(last))


class BodySender:
    """Sends the bodies of the chords of one backend.

    Args:
        backend: The result backend.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.app = backend.app
        #: ``producer``: the one that everything that this thread sends goes out over.
        self._local = threading.local()
        self._lends = False

    def send(self, connection: ChordConnection, look: Look, parts: Parts) -> None:
        """Send the body its results, confirmed; or report to it and its errbacks what failed.

        Raises:
            Exception: one of ``connection.errors``; the body is to be sent over another one.
        """
        body = maybe_signature(look.body, app=self.app)
        parent = parent_of(body, look.request)
        with running(self.app, parent), self._sending_over(connection.producer, parent.reply_to):
            try:
                values = parts.values()
            except ChordError as exc:
                self._report(look, body, exc)
                return
            try:
                body.delay(values)
            except Exception as exc:
                may_pass = isinstance(exc, connection.errors) and not isinstance(exc, FINAL)
                look.failures += may_pass
                if may_pass and look.failures < MOST_SENDS:
                    raise
                self._report(look, body, ChordError(f"Callback error: {exc!r}"))

    @contextmanager
    def _sending_over(self, producer: Any, reply_to: str) -> Iterator[None]:
        """What this thread sends goes out over ``producer``, and answers to ``reply_to``."""
        if not self._lends:
            self._lend_producer()
        self._local.producer = producer
        try:
            with self.backend.answering_to(reply_to):
                yield
        finally:
            self._local.producer = None

    def _lend_producer(self) -> None:
        """Let ``app.producer_or_acquire`` return this thread's own producer, if it has one.

        Celery passes a producer only to a task and to the tasks of a group. A chain and a chord
        take one from ``app.producer_or_acquire``, and its messages would not be confirmed.
        """
        self._lends = True
        usual = self.app.producer_or_acquire

        def producer_or_acquire(producer: Any = None) -> Any:
            return usual(producer or getattr(self._local, "producer", None))

        self.app.producer_or_acquire = producer_or_acquire

    def _report(self, look: Look, body: Any, exc: ChordError) -> None:
        """Store the failure of the chord as the body's result, and call the errbacks."""
        logger.error("Chord %r raised: %r", look.group_id, exc, exc_info=exc)
        self.backend.chord_error_from_stack(body, exc)
        self.backend.drain(ANSWER_TIMEOUT)
