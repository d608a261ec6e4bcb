"""``fastrpc.batch()`` collects the tasks that a thread sends, and writes many at a time."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from contextvars import ContextVar, Token
from typing import Any

from ..errors import NotAllSent
from ..sending._window import ConfirmWindow
from ..transport.batch import PublishBatch
from ..transport.channel import Channel
from .producer import Producer

__all__ = ["Batch", "batch", "current_producers"]

#: The largest number of messages in one write, by default.
MAX_SIZE = 1000

#: The end of the name of an exchange for remote control; see ``kombu.pidbox``.
REMOTE_CONTROL = ".pidbox"

_current: ContextVar[Batch | None] = ContextVar("fastrpc_batch", default=None)


NOT_INSTALLED = (
    "batch() and apply_many() send each task by itself for this app: call fastrpc.install() before "
    "the app is made"
)


def batch(app: Any, max_size: int = MAX_SIZE) -> Batch:
    """Collect the tasks that this thread sends with ``app``, and send many in one write.

    For loops of ``apply_async`` and for groups:

        with fastrpc.batch(app):
            results = [add.apply_async((n, n)) for n in range(1000)]

    The collected messages are written when there are ``max_size`` of them, or 128 KiB, and at the
    end of the ``with`` block; before a ``get()`` inside it call ``flush()``, or the result never
    comes. An exception in the block discards the rest. With
    ``confirm_publish`` there is one wait for all messages of a write. If the connection is lost,
    they are sent again as ``task_publish_retry`` and its policy say, or ``retry`` and
    ``retry_policy`` of the calls: once one of them says ``retry=False``, no write is repeated.

    Without confirms, a message to an exchange that does not exist closes the channel, and those
    after it in the same write are lost without an error.

    Needs ``fastrpc.install()`` before the app is made. Otherwise each task is sent by itself, as
    without a batch, nothing is gained, and a ``RuntimeWarning`` says so.

    Raises:
        NotAllSent: the messages of one write may not have arrived.
        TypeError: after ``install()``, the broker of the app is not AMQP.
    """
    return Batch(app, max_size)


def current_producers(app: Any) -> Any:
    """The pool of the batch that this thread collects for ``app``, or None.

    Threads, tasks of asyncio and forked children may run in a copy of the context of a batch, and
    outlive it.
    """
    batch = _current.get()
    while batch is not None and not (batch.app is app and batch.is_mine):
        batch = batch.outer
    return None if batch is None else batch.producers


def callers_level() -> int:
    """The ``stacklevel`` at which a function that calls this warns about the line outside fastrpc.

    Not a number: ``apply_many()`` enters a batch some frames deeper than a ``with`` block does.
    ``skip_file_prefixes`` needs Python 3.12.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_globals.get("__name__", "").startswith("fastrpc.") and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level


class Batch:
    """The context manager that ``batch()`` returns."""

    def __init__(self, app: Any, max_size: int = MAX_SIZE) -> None:
        if max_size < 1:
            raise ValueError(f"max_size is {max_size}")
        self.app, self.max_size = app, max_size
        self.outer: Batch | None = None
        self.connection: Any = None
        self.producer: Any = None
        self._token: Token[Batch | None] | None = None
        #: The process and the thread that collect, as long as they do.
        self._collects: tuple[int, int] | None = None

    @property
    def is_mine(self) -> bool:
        """Whether what this thread sends belongs to the batch."""
        return self._collects == (os.getpid(), threading.get_ident())

    def __enter__(self) -> Batch:
        if self._token is not None:
            raise RuntimeError("a batch can be entered only once")
        if not getattr(self.app.amqp, "collects_batches", False):
            warnings.warn(NOT_INSTALLED, RuntimeWarning, stacklevel=callers_level())
        pool = self.app.amqp.producer_pool
        self.outer = _current.get()
        try:
            self.connection = pool.connections.acquire(block=True)
            self.producer = BatchProducer(self)
            self.producers = OneProducer(self.producer, pool)
            self._token = _current.set(self)
            # Last: whatever strikes before, no batch collects that nobody ends.
            self._collects = os.getpid(), threading.get_ident()
        except BaseException:
            _current.set(self.outer)
            if self.connection is not None:
                self.connection.release()
            raise
        return self

    def __exit__(self, exc_type: Any, *exc_info: Any) -> None:
        collects, self._collects = self._collects, None
        assert collects is not None
        assert self._token is not None
        is_parent = True
        try:
            is_parent = collects[0] == os.getpid()
            if exc_type is None:
                self.flush()
        finally:
            collected = self.producer.collected
            try:
                if collected is not None:  # first: the pool gives the channel to others
                    collected.channel.batch = None
                _current.reset(self._token)
                if collected is not None:
                    collected.close()
            finally:
                if is_parent:  # not the connection of a forked child's parent
                    self.connection.release()

    def flush(self) -> None:
        """Send the collected messages.

        Raises:
            NotAllSent: they may not have arrived.
        """
        if self.producer.collected is not None:
            self.producer.collected.flush()


class BatchProducer(Producer):
    """The producer of a batch, on a connection of its own."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.collected: Collected | None = None
        #: How a write is retried: the options of ``ensure()`` that the last call gave, or None once
        #: a call said that it is not.
        self.retry_policy: dict[str, Any] | None = dict(batch.app.conf.task_publish_retry_policy)
        super().__init__(batch.connection, auto_declare=False)

    def _get_channel(self) -> Any:
        channel = super()._get_channel()
        if not isinstance(channel, Channel):
            raise TypeError("fastrpc.batch() needs AMQP, and fastrpc.install() before it")
        if self.collected is None:
            self.collected = Collected(channel, self)
        if channel.batch is not self.collected:
            self.collected.move(channel)
            channel.batch = self.collected
        return channel

    channel = property(_get_channel, Producer._set_channel)

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """Collect a message. A command of remote control leaves at once, with what was collected
        before: its sender waits for replies."""
        if not options.get("retry", True):
            self.retry_policy = None
        elif self.retry_policy is not None and options.get("retry_policy"):
            self.retry_policy = options["retry_policy"]
        answer = super().publish(body, *args, **options)
        exchange = options.get("exchange")
        if type(exchange) is str and exchange.endswith(REMOTE_CONTROL):
            self.batch.flush()
        return answer

    def __exit__(self, *exc_info: Any) -> None:
        """Keep the connection: the batch releases it."""


class OneProducer:
    """A pool that holds nothing but the batch's producer."""

    def __init__(self, producer: BatchProducer, pool: Any) -> None:
        self._producer, self._pool = producer, pool

    def acquire(self, block: bool = False, timeout: float | None = None) -> BatchProducer:
        """The batch's producer, which need not be released."""
        return self._producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


class Sent:
    """A message in the window that waits for its confirm."""

    __slots__ = ("place",)
    body = b""

    def __init__(self, place: int) -> None:
        #: Its place in the batch.
        self.place = place


class Collected(PublishBatch):
    """The messages of a batch."""

    def __init__(self, channel: Channel, producer: BatchProducer) -> None:
        super().__init__(channel, producer.batch.max_size)
        self.producer = producer
        #: The last message, and the arguments with which it was published.
        self.last: tuple[Any, tuple[Any, ...]] | None = None

    def publish(self, message: Any, *options: Any) -> None:
        """Collect a message."""
        self.last = message, options
        super().publish(message, *options)

    def flush(self) -> None:
        """Write the collected messages, and write them again if the connection is lost.

        Raises:
            NotAllSent: they may not have arrived.
        """
        if not self.kept or self.is_inherited:
            return
        write, policy = self.write_and_confirm, self.producer.retry_policy
        if policy is not None:
            write = self.producer.connection.ensure(self.producer, write, **policy)
        try:
            write()
        except NotAllSent:
            raise
        except Exception as exc:
            raise NotAllSent(
                f"{len(self.kept)} tasks may not have arrived: {exc}", in_doubt=self.kept
            ) from exc
        finally:
            self._forget()

    def write_and_confirm(self) -> None:
        """Write the collected messages; with ``confirm_publish`` wait for all of their confirms."""
        channel = self.producer.channel
        if not self._connection().confirm_publish:
            self.write()
            return
        channel.confirm_mode()
        window = ConfirmWindow()
        for place in range(len(self.kept)):
            window.add(channel.published + 1 + place, Sent(place))

        def ack(tag: int, multiple: bool) -> None:
            window.confirm(tag, multiple, True)

        def nack(tag: int, multiple: bool) -> None:
            window.confirm(tag, multiple, False)

        channel.events["basic_ack"].add(ack)
        channel.events["basic_nack"].add(nack)
        try:
            self.write()
            while window.in_flight:
                self._connection().drain_events()
        except BaseException as exc:
            # The others are confirmed, and must not be sent again.
            refused = [sent for _, _, sent in window.refused]
            self.retain(sorted(sent.place for sent in (*window, *refused)))
            # Confirms that are still due would be taken for those of the next user's tasks. If the
            # broker has closed the channel, none is due.
            if channel.connection and not isinstance(exc, self.producer.connection.channel_errors):
                channel.connection.collect()
            raise
        finally:
            channel.events["basic_ack"].discard(ack)
            channel.events["basic_nack"].discard(nack)
        if window.refused:
            refused = [self.kept[sent.place] for _, _, sent in window.refused]
            raise NotAllSent(f"the broker refused {len(refused)} tasks", in_doubt=refused)
