"""Results on their way to the broker, kept until it has confirmed them.

``AMQPPublisher``: a result is packed into one buffer and written at once; its confirm is read
later, without waiting, and until then it is kept in the window. When the connection dies,
another is made and what is in the window is sent again: the caller drops what it has already.
While something is unconfirmed and nobody sends, a small thread watches; it ends when the
window is empty.

``KombuPublisher``: through the app's producer pool, for every other kombu transport.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

from kombu.exceptions import OperationalError

from ..options import Options
from ..retry import backoff
from ..stats import Stats
from ..transport.dial import is_refusal
from ..transport.transports import is_amqp
from ._window import ConfirmWindow
from .link import Link, Lost, Message

__all__ = ["AMQPPublisher", "KombuPublisher", "Message", "make_publisher"]

logger = logging.getLogger("fastrpc")

#: Seconds between two looks of the watching thread.
WATCH_INTERVAL = 0.2

#: Seconds that who waits for room in the window waits for a confirm, before looking further.
ROOM_INTERVAL = 0.5

#: Sends between two looks for confirms.
SENDS_PER_LOOK = 32

#: After this many idle seconds the connection is looked at before it is written to.
IDLE = 1.0

#: Least time, in seconds, allowed for closing the connection in order.
LEAST_GOODBYE = 1.0

#: What the broker says when it closes the channel at a message over its ``max_message_size``.
TOO_LARGE = "message size"

#: Seconds without a word from the broker after which what is unconfirmed is sent again.
SILENCE = 30.0

#: A connection of this age, in seconds, is given up before what the broker refused is sent again.
#: RabbitMQ refuses all that comes for a quorum queue on a channel that was used for it first while
#: the queue had no leader, for ever; on the channels opened after the election it takes it.
REFUSED_FOR_GOOD = 1.0


def make_publisher(
    app: Any,
    exchange: Any,
    delivery_mode: int,
    options: Options,
    stats: Stats,
    apologize: Callable[[Message], Message | None],
) -> AMQPPublisher | KombuPublisher:
    """The way out that fits the broker of ``app``; not yet connected.

    ``apologize`` makes what is sent, if anything, in place of one that is too large for the broker.
    """
    if is_amqp(app.connection_for_write()):
        return AMQPPublisher(app, delivery_mode, options, stats, apologize)
    return KombuPublisher(app, exchange, delivery_mode, options, stats)


class KombuPublisher:
    """One publish through kombu for each result, retried under the retry policy."""

    #: Nothing is held back.
    unconfirmed = 0

    def __init__(
        self, app: Any, exchange: Any, delivery_mode: int, options: Options, stats: Stats
    ) -> None:
        self.app = app
        self.exchange = exchange
        self.delivery_mode = delivery_mode
        self.retry_policy = options.retry_policy.as_dict()
        self.stats = stats

    def publish(self, message: Message) -> None:
        """Send one result; returns when it is on its way.

        Raises:
            kombu.exceptions.OperationalError: the retries are used up.
        """
        with self.app.amqp.producer_pool.acquire(block=True) as producer:
            producer.publish(
                message.body,
                exchange=self.exchange,
                routing_key=message.routing_key,
                correlation_id=message.correlation_id,
                content_type=message.content_type,
                content_encoding=message.content_encoding,
                retry=True,
                retry_policy=self.retry_policy,
                delivery_mode=self.delivery_mode,
            )
        self.stats.published += 1

    def close(self, timeout: float) -> None:
        """The pool is the app's."""

    def after_fork(self) -> None:
        """The pool is the app's."""


class AMQPPublisher:
    """Pipelined publisher confirms over one connection of the process; thread-safe."""

    def __init__(
        self,
        app: Any,
        delivery_mode: int,
        options: Options,
        stats: Stats,
        apologize: Callable[[Message], Message | None],
    ) -> None:
        self.app = app
        self.delivery_mode = delivery_mode
        self.options = options
        self.stats = stats
        self.apologize = apologize
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._link: Link | None = None
        #: What was sent and is not confirmed.
        self._window = ConfirmWindow()
        #: To be sent again: their link was lost, or the broker refused them.
        self._again: deque[Message] = deque()
        self._again_at = 0.0
        self._sent_at = self._heard_at = 0.0
        self._watcher: threading.Thread | None = None

    def after_fork(self) -> None:
        """Begin anew in the child: connection and window are the parent's."""
        if self._link is not None:
            self._link.abandon()
        self._begin()

    @property
    def unconfirmed(self) -> int:
        """Results that the broker has not confirmed yet."""
        return len(self._window) + len(self._again)

    def publish(self, message: Message) -> None:
        """Send one result; returns when it is written, and keeps it until it is confirmed.

        Waits where the window is full, or where the broker asked us to (``connection.blocked``).

        Raises:
            kombu.exceptions.OperationalError: the retries of the retry policy are used up, or
                the broker refuses us.
        """
        delays = None
        while True:
            with self._lock:
                try:
                    self._publish(message)
                    return
                except Lost as exc:
                    self._drop_link(exc)
                    lost = exc
            delays = delays or self.options.retry_policy.delays()
            delay = next(delays, None)
            if delay is None or is_refusal(lost.__cause__):
                raise OperationalError(str(lost)) from lost.__cause__
            time.sleep(delay)

    # -- with the lock held --------------------------------------------------------------------

    def _publish(self, message: Message) -> None:
        now = time.monotonic()
        link = self._open_link()
        # Before it is sent: once it is in the window a lost connection is no failure of it.
        if link.sent % SENDS_PER_LOOK == 0 or now - self._sent_at > IDLE:
            self._look(link)
        self._send_again(link)
        self._make_room(link)
        self._send(link, message)
        self._sent_at = now
        self.stats.published += 1

    def _open_link(self) -> Link:
        link = self._link or self._connect()
        if link.closed:
            raise Lost("it was interrupted")
        return link

    def _connect(self) -> Link:
        link = Link(
            self.app.connection_for_write(heartbeat=0),
            self.delivery_mode,
            self.options.publisher_confirms,
            self.stats,
        )
        self._link = link
        self._heard_at = self._sent_at = time.monotonic()
        return link

    def _drop_link(self, lost: Lost) -> None:
        """What was not confirmed on it is to be sent again, before anything new."""
        if self._link is not None:
            logger.warning(
                "lost the connection for sending results, %d are sent again: %s",
                self.unconfirmed,
                lost,
            )
        too_large = None
        if TOO_LARGE in str(lost):
            # What it does not take it does not confirm: the largest of these is such a one.
            too_large = max(self._window, key=lambda message: len(message.body), default=None)
        self._window.drain_into(self._again)
        if too_large is not None:
            self._replace(too_large)
        self._link = None
        self._ensure_watched()

    def _replace(self, too_large: Message) -> None:
        """Sent again, it would have the broker close every further connection."""
        logger.error(
            "the broker does not take the result of task %s, its %d bytes are too many",
            too_large.correlation_id,
            len(too_large.body),
        )
        place = self._again.index(too_large)
        del self._again[place]
        apology = self.apologize(too_large)
        if apology is not None and len(apology.body) < len(too_large.body):  # else it is one
            self._again.insert(place, apology)

    def _send(self, link: Link, message: Message) -> None:
        tag = link.send(message)
        if self.options.publisher_confirms:
            if not self._window:  # nothing was to be heard until now
                self._heard_at = time.monotonic()
            self._window.add(tag, message)
            if self._watcher is None:
                self._ensure_watched()

    def _send_again(self, link: Link) -> None:
        again = self._again
        if not again or link.blocked or time.monotonic() < self._again_at:
            return
        self._check_refused(link)
        while again:
            self._send(link, again[0])
            again.popleft()
            self.stats.resent += 1

    def _make_room(self, link: Link) -> None:
        """Wait while the window is full or the broker asked us to wait."""
        while not self._has_room(link):
            self._look(link, timeout=ROOM_INTERVAL)
            self._check_heard(link)
            self._send_again(link)

    def _has_room(self, link: Link) -> bool:
        options, window, again = self.options, self._window, self._again
        size = window.bytes
        if again:
            size += sum(len(message.body) for message in again)
        return (
            len(window) + len(again) < options.confirm_window
            and size < options.confirm_window_bytes
            and not link.blocked
        )

    def _look(self, link: Link, timeout: float = 0) -> None:
        window = self._window
        try:
            if link.read(window, timeout):
                self._heard_at = time.monotonic()
        finally:
            self.stats.confirmed += window.confirmed
            window.confirmed = 0
            while window.refused:
                self._refused(window.refused[0])
                del window.refused[0]

    def _check_heard(self, link: Link) -> None:
        if self._window and not link.blocked and time.monotonic() - self._heard_at > SILENCE:
            link.close()
            raise Lost(f"{len(self._window)} results not confirmed in {SILENCE:g} seconds")

    def _check_refused(self, link: Link) -> None:
        is_old = time.monotonic() - link.opened_at > REFUSED_FOR_GOOD
        if is_old and any(message.refusals for message in self._again):
            link.close()
            raise Lost("the broker refused some of them on it")

    def _refused(self, message: Message) -> None:
        """The broker did not take ``message`` (``basic.nack``): again, under the retry policy."""
        policy = self.options.retry_policy
        delay = next(islice(policy.delays(), message.refusals, None), None)
        if delay is None:
            logger.error(
                "the broker refused the result of task %s %d times, it is given up",
                message.correlation_id,
                message.refusals + 1,
            )
            return
        self._again.append(message._replace(refusals=message.refusals + 1))
        # One that is refused for the first time must not hasten those that wait already.
        self._again_at = max(self._again_at, time.monotonic() + delay)

    # -- while nobody sends --------------------------------------------------------------------

    def _ensure_watched(self) -> None:
        if self._watcher is None and self.unconfirmed:
            watcher = threading.Thread(target=self._watch, name="fastrpc-confirms", daemon=True)
            with suppress(RuntimeError):  # no more threads: the next send, or close(), looks
                watcher.start()
                self._watcher = watcher

    def _watch(self) -> None:
        """Look for confirms, and mend the connection, until nothing is unconfirmed."""
        pauses = backoff()
        while True:
            time.sleep(WATCH_INTERVAL)
            with self._lock:
                if not self.unconfirmed:
                    self._watcher = None
                    return
                confirmed = self.stats.confirmed
                try:
                    lost = self._tend() is not None
                except Exception as exc:  # the application's, which may make the password
                    logger.error("cannot connect to send results, trying again", exc_info=exc)
                    lost = True
            if self.stats.confirmed != confirmed:
                pauses = backoff()
            if lost:
                time.sleep(next(pauses))

    def _tend(self, timeout: float = 0) -> Lost | None:
        """Send again what has to be, read confirms; says if the link was lost over it."""
        try:
            link = self._open_link()
            self._send_again(link)
            self._look(link, timeout)
            self._check_heard(link)
        except Lost as exc:
            self._drop_link(exc)
            return exc
        return None

    def close(self, timeout: float) -> None:
        """Wait until everything is confirmed, ``timeout`` seconds at most, and hang up."""
        deadline = time.monotonic() + timeout
        pauses = backoff()
        while self.unconfirmed and (left := deadline - time.monotonic()) > 0:
            # A send that waits for room holds the lock, and reads confirms itself.
            if not self._lock.acquire(timeout=left):
                break
            try:
                lost = self._tend(timeout=min(left, 0.1))
            finally:
                self._lock.release()
            if lost is not None:
                time.sleep(min(next(pauses), left))
        if self.unconfirmed:
            logger.error(
                "%d results were not confirmed within %g s of shutting down and may be lost",
                self.unconfirmed,
                timeout,
            )
        if not self._lock.acquire(timeout=LEAST_GOODBYE):
            return  # it is not ours to close while somebody sends
        try:
            self._window = ConfirmWindow()  # with what is given up, the watching thread ends
            self._again.clear()
            link, self._link = self._link, None
            if link is not None:
                link.goodbye(max(deadline - time.monotonic(), LEAST_GOODBYE))
        finally:
            self._lock.release()
