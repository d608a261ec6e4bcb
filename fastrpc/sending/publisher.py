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
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

from kombu.exceptions import OperationalError

from .._lock import Lock, start_thread
from ..options import Options
from ..retry import backoff
from ..stats import Stats
from ..transport.dial import is_refusal
from ._window import ConfirmWindow
from .link import Link, Lost, Silent
from .message import Message, Packed

__all__ = ["AMQPPublisher", "KombuPublisher"]

logger = logging.getLogger("fastrpc")

#: Seconds between two looks of the watching thread.
WATCH_INTERVAL = 0.2

#: How long, in seconds, a sender that waits for room waits for the socket before it looks again:
#: what it waits for may have been read meanwhile by another thread.
ROOM_INTERVAL = 0.1

#: While one thread waits for room, each other one may send a result at such intervals, in seconds,
#: until ``OVERDRAFT`` times as many results are in the window: one that sends now and then need not
#: wait because another one floods.
PASS_INTERVAL, OVERDRAFT = 0.005, 2

#: Of each thread: ``next``, when it may pass by. Not a publisher's: to free one that belongs to a
#: thread takes a lock of the interpreter, which sys._current_frames() may hold at a collection.
_passing = threading.local()

#: Sends between two looks for confirms.
SENDS_PER_LOOK = 32

#: Bytes in the window from which each send of a large result looks first: so that large bodies
#: which are confirmed already are not kept. A look is dear only beside a small result.
LOOK_BYTES, LARGE = 1 << 20, 1 << 16

#: How long, in seconds, a send of ``LOOK_BYTES`` or more waits for a confirm while twice as much as
#: its body is in the window: with a broker that keeps up few bodies are kept.
MOMENT = 0.02

#: After this many idle seconds the connection is looked at before it is written to.
IDLE = 1.0

#: Least time, in seconds, allowed for closing the connection in order.
LEAST_GOODBYE = 1.0

#: What the broker says when it closes the channel at a message over its ``max_message_size``.
TOO_LARGE = "message size"

#: Seconds without a word from the broker after which what is unconfirmed is sent again.
SILENCE = 30.0

#: Seconds between heartbeats on the connection that follows a silent one. RabbitMQ sends one each
#: half of that time, also while it blocks us, so that ``SILENCE`` means a dead path there. Other
#: connections have none: RabbitMQ expects ours in turn. From a worker that is idle between two
#: results nobody sends them, and RabbitMQ would hang up and log an error.
HEARTBEAT = 20

#: A connection of this age, in seconds, is replaced before what the broker refused is sent again.
#: RabbitMQ refuses all that comes for a quorum queue on a channel that was used for it first while
#: the queue had no leader, for ever; on the channels opened after the election it takes it.
#: The age is doubled each time, up to the second number, while the broker goes on refusing: then
#: it has other reasons.
REFUSED_FOR_GOOD, REFUSED_AT_MOST = 1.0, 8.0

#: Where ``confirm_window`` is not given: the first of these, and for persistent results as many as
#: the broker confirms in a second, up to the other one. It confirms them once they are on disk, and
#: that wait shall not slow down who sends. Transient results would only wait in the broker instead,
#: and results for other callers behind them.
LEAST_WINDOW, MOST_WINDOW = 1_000, 10_000

PERSISTENT = 2

#: Least time, in seconds, over which that rate is measured.
RATE_INTERVAL = 0.2

#: How many times ``confirm_window`` refused results are kept, or how many where it is not given:
#: enough for what a busy worker sends to a quorum queue in the seconds of an election.
REFUSED_WINDOWS, MOST_REFUSED = 10, 20_000

#: Refused messages, and their bytes, that are sent again in one go.
SLICE, SLICE_BYTES = 100, 1 << 20

#: Seconds until the next slice.
SLICE_INTERVAL = 0.05


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

    def drain(self, timeout: float) -> bool:
        """Nothing is held back."""
        return True

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
        substitute: Callable[[Message], Message | None],
    ) -> None:
        self.app = app
        self.delivery_mode = delivery_mode
        self.options = options
        self.stats = stats
        self.substitute = substitute
        self._begin()

    def _begin(self) -> None:
        self._lock = Lock()
        #: Held by the sender that waits for room, without the lock above; the next ones wait for
        #: it, in turn. Whoever takes both takes this one first.
        self._room = Lock()
        self._link: Link | None = None
        #: All that is not confirmed.
        self._window = ConfirmWindow()
        #: How many of them may be in flight.
        self._size = self.options.confirm_window or LEAST_WINDOW
        #: Confirms since the time by time.monotonic().
        self._confirms, self._confirms_since = 0, 0.0
        self._sent_at = 0.0
        #: What the next link asks for.
        self._heartbeat = 0
        #: The age at which a link is replaced on which the broker refuses results.
        self._patience = REFUSED_FOR_GOOD
        #: What the thread that looks for confirms while nobody sends was started with, if there
        #: is one.
        self._watcher: object = None
        #: Seconds until its next look.
        self._pause = WATCH_INTERVAL

    def after_fork(self) -> None:
        """Begin anew in the child: connection and window are the parent's."""
        if self._link is not None:
            self._link.abandon()
        self._begin()

    @property
    def unconfirmed(self) -> int:
        """Results that the broker has not confirmed yet."""
        return len(self._window)

    @property
    def is_mine(self) -> bool:
        """Whether the current thread is in the midst of a send: a signal handler finds it so."""
        return self._lock.mine or self._room.mine

    def holds(self, correlation_id: str) -> bool:
        """Whether a result of that task is not confirmed yet."""
        return self._window.holds(correlation_id)

    def look(self, timeout: float) -> None:
        """Read confirms, and wait ``timeout`` seconds at most until there are more to read."""
        with self._lock:
            self._tend()
        link = self._link
        if link is not None:
            link.wait(timeout)

    def publish(self, message: Message | Packed) -> None:
        """Send one message; returns when it is written, and keeps it until it is confirmed.

        Waits where the window is full, or where the broker asked us to (``connection.blocked``).

        Raises:
            kombu.exceptions.OperationalError: the retries of the retry policy are used up, or
                the broker refuses us.
        """
        if self.is_mine:
            # A signal handler or a destructor, called in the middle of a send of this thread.
            self._window.append(message)
            self.stats.published += 1
            self._ensure_watched()
            return
        delays = pauses = None
        while True:
            try:
                if self._room.locked():
                    sent = self._may_pass() and self._publish(message, OVERDRAFT)
                else:
                    sent = self._publish(message)
                if not sent:
                    self._publish_in_turn(message)
                return
            except Lost as exc:
                lost = exc
            delays = delays or self.options.retry_policy.delays()
            pauses = pauses or backoff()
            delay = next(delays if lost.in_vain else pauses, None)
            if delay is None or is_refusal(lost.__cause__):
                raise OperationalError(str(lost)) from lost.__cause__
            time.sleep(delay)

    def _may_pass(self) -> bool:
        now = time.monotonic()
        if now < getattr(_passing, "next", 0):
            return False
        _passing.next = now + PASS_INTERVAL
        return True

    def _publish_in_turn(self, message: Message | Packed) -> None:
        with self._room:
            while not self._publish(message):
                link = self._link
                if link is not None:
                    link.wait(ROOM_INTERVAL)

    def _publish(self, message: Message | Packed, windows: int = 1) -> bool:
        """Send ``message`` if fewer than so many windows are full; returns whether it was sent."""
        with self._lock:
            try:
                sent = self._send_new(message, windows)
            except Lost as exc:
                exc.in_vain = self._drop_link(exc)
                raise
        return sent

    # -- with the lock held --------------------------------------------------------------------

    def _send_new(self, message: Message | Packed, windows: int) -> bool:
        now = time.monotonic()
        link = self._open_link()
        # Before it is sent: once it is in the window a lost connection is no failure of it.
        size, kept = len(message.body), self._window.bytes
        if size >= LARGE and kept >= LOOK_BYTES:
            self._look(link, MOMENT if size >= LOOK_BYTES and kept >= 2 * size else 0)
        elif link.sent % SENDS_PER_LOOK == 0 or now - self._sent_at > IDLE:
            self._look(link)
        if not self._has_room(link, windows):
            self._look(link)
            self._check_heard(link)
            self._send_again(link)
            if not self._has_room(link, windows):
                return False
        self._send(link, message)
        self._sent_at = now
        self.stats.published += 1
        return True

    def _has_room(self, link: Link, windows: int) -> bool:
        window = self._window
        return not (window.again or link.blocked) and window.has_room(
            windows * self._size, self.options.confirm_window_bytes
        )

    def _open_link(self) -> Link:
        link = self._link
        if link is None:
            link = self._link = self._connect()
        if link.closed or link.busy:
            link.close()
            raise Lost("a previous send was interrupted")
        return link

    def _connect(self) -> Link:
        return Link(
            self.app.connection_for_write(heartbeat=self._heartbeat),
            self.delivery_mode,
            self.options.publisher_confirms,
            self.stats,
        )

    def _drop_link(self, lost: Lost) -> bool:
        """Have what was not confirmed on the link sent again, before anything new.

        Returns whether that uses up a retry: no link was made, or the broker never answered on it.
        """
        link = self._link
        if link is None:
            return True
        # Without heartbeats a blocked broker says nothing: no reason to worry anybody.
        as_expected = isinstance(lost, Silent) and link.blocked and not link.heartbeat
        logger.log(
            logging.WARNING if self.unconfirmed and not as_expected else logging.INFO,
            "lost the connection for sending results, %d are sent again: %s",
            self.unconfirmed,
            lost,
        )
        too_large = None
        if TOO_LARGE in str(lost):
            # What it does not take it does not confirm: the largest of these is such a one.
            too_large = max(self._window, key=lambda message: len(message.body), default=None)
        self._window.lose()
        if too_large is not None:
            self._replace(too_large)
        self._heartbeat = HEARTBEAT if isinstance(lost, Silent) else 0
        self._link = None
        self._ensure_watched()
        return not link.answered

    def _replace(self, too_large: Message) -> None:
        """Sent again, it would have the broker close every further connection."""
        logger.error(
            "the broker does not take the result of task %s, its %d bytes are too many",
            too_large.correlation_id,
            len(too_large.body),
        )
        substitute = self.substitute(too_large)
        if substitute is not None and len(substitute.body) >= len(too_large.body):
            substitute = None  # it is one already
        self._window.replace(too_large, substitute)

    def _send(self, link: Link, message: Message | Packed) -> None:
        if not self._window.in_flight:  # nothing was to be heard until now
            link.heard_at = time.monotonic()
        link.send(message, self._window)
        if self._watcher is None:
            self._ensure_watched()

    def _send_again(self, link: Link) -> None:
        """Send what was on a lost link, until the broker asks us to wait."""
        again = self._window.again
        while again and not link.blocked:
            self._send(link, again[0])
            self.stats.resent += 1
            self._look(link)

    def _look(self, link: Link, timeout: float = 0) -> None:
        window, options = self._window, self.options
        link.keep_alive(window)
        try:
            link.read(window, timeout)
        finally:
            self._confirms += window.confirmed
            window.count_into(self.stats)
        if options.confirm_window is None and self.delivery_mode == PERSISTENT:
            self._fit_window()
        most = REFUSED_WINDOWS * options.confirm_window if options.confirm_window else MOST_REFUSED
        while window.refused and (
            window.refused_count > most
            or (window.refused_bytes > options.confirm_window_bytes and window.refused_count > 1)
        ):
            self._give_up()

    def _fit_window(self) -> None:
        now = time.monotonic()
        elapsed = now - self._confirms_since
        if elapsed >= RATE_INTERVAL:
            rate = int(self._confirms / elapsed)
            self._size = min(max(rate, LEAST_WINDOW), MOST_WINDOW)
            self._confirms, self._confirms_since = 0, now

    def _check_heard(self, link: Link) -> None:
        expected = self._window.in_flight or link.blocked
        if expected and time.monotonic() - link.heard_at > SILENCE:
            link.close()
            raise Silent(f"the broker has said nothing for {SILENCE:g} seconds")

    # What the broker refused (basic.nack) is sent again by the watching thread alone: it holds up
    # nobody who sends.

    def _send_refused(self, link: Link) -> bool:
        """Send a slice of those that are due; returns whether there are more."""
        size = 0
        for _ in range(SLICE):
            if self._is_worn_out(link) or not self._can_send_refused(link):
                return False
            message = self._window.refused[0][2]
            self._send(link, message)
            self.stats.resent += 1
            size += len(message.body)
            if size > SLICE_BYTES:
                break
        return True

    def _can_send_refused(self, link: Link) -> bool:
        return not link.blocked and self._is_refused_due()

    def _is_refused_due(self) -> bool:
        """Whether the first one is due by the retry policy. Drops those out of retries first."""
        refused = self._window.refused
        while refused:
            refused_at, refusals, _ = refused[0]
            delay = next(islice(self.options.retry_policy.delays(), refusals - 1, None), None)
            if delay is not None:
                return time.monotonic() >= refused_at + delay
            self._give_up()
        return False

    def _give_up(self) -> None:
        refusals, message = self._window.give_up()
        logger.error(
            "the broker refused the result of task %s %d times, it is given up",
            message.correlation_id,
            refusals,
        )

    def _is_worn_out(self, link: Link) -> bool:
        return time.monotonic() - link.opened_at > self._patience

    # -- while nobody sends --------------------------------------------------------------------

    def _ensure_watched(self) -> None:
        if self._watcher is None and self.unconfirmed:
            watcher = object()
            with suppress(RuntimeError):  # no more threads: the next send, or close(), looks
                start_thread(self._watch, watcher)
                self._watcher = watcher

    def _watch(self, me: object) -> None:
        """Look for confirms, and mend the connection, until nothing is unconfirmed."""
        pauses = backoff()
        pause = WATCH_INTERVAL
        while True:
            time.sleep(pause)
            with self._lock:
                if self._watcher is None:  # who started us was interrupted before saying so
                    self._watcher = me
                if self._watcher is not me:
                    return
                if not self.unconfirmed:
                    self._watcher = None
                    unheeded = self._take_unheeded()
                    break
                confirmed = self.stats.confirmed
                try:
                    lost = self._tend()
                except Exception as exc:
                    lost = cannot_connect(exc)
            if lost is None:
                try:
                    lost = self._renew()
                except Exception as exc:
                    lost = cannot_connect(exc)
            if self.stats.confirmed != confirmed:
                pauses = backoff()
            pause = self._pause if lost is None else WATCH_INTERVAL + next(pauses)
        if unheeded is not None:
            unheeded.goodbye(LEAST_GOODBYE)

    def _take_unheeded(self) -> Link | None:
        """Take the link away if it has heartbeats: from now on nobody sends them."""
        link = self._link
        if link is None or not link.heartbeat:
            return None
        self._link = None
        return link

    def _tend(self, timeout: float = 0) -> Lost | None:
        """Send again what has to be, read confirms; says if the link was lost over it."""
        try:
            link = self._open_link()
            self._send_again(link)
            self._pause = SLICE_INTERVAL if self._send_refused(link) else WATCH_INTERVAL
            self._look(link, timeout)
            self._check_heard(link)
        except Lost as exc:
            self._drop_link(exc)
            return exc
        if not self._window.refused_count:
            self._patience = REFUSED_FOR_GOOD
        return None

    def _renew(self) -> Lost | None:
        """Replace a link on which the broker goes on refusing results; says if that failed.

        The new one is opened first, without the lock, so that nobody who sends waits for it.
        """
        if not self._window.refused:
            return None
        with self._lock:
            link = self._link
            if link is None or not self._is_worn_out(link) or not self._can_send_refused(link):
                return None
        try:
            fresh = self._connect()
        except Lost as exc:
            return exc
        with self._lock:
            if self._link is not link:
                fresh.close()
                return None
            with suppress(Lost):
                self._look(link)  # what is confirmed by now is not sent twice
            link.close()
            self._drop_link(Lost("the broker keeps refusing results on this connection"))
            self._link = fresh
            self._patience = min(2 * self._patience, REFUSED_AT_MOST)
        return None

    def drain(self, timeout: float) -> bool:
        """Wait until everything is confirmed, ``timeout`` seconds at most; says whether it is."""
        deadline = time.monotonic() + timeout
        pauses = backoff()
        while self.unconfirmed and (left := deadline - time.monotonic()) > 0:
            with self._lock.within(left) as taken:
                if not taken:
                    break
                lost = self._tend(timeout=min(left, 0.1))
                # To the end, so that nobody who sends without a pause keeps us waiting for ever.
                while lost is None and self._window.in_flight and time.monotonic() < deadline:
                    lost = self._tend(timeout=0.1)
                if not self.unconfirmed:
                    return True
            lost = lost or self._renew()
            if lost is not None:
                time.sleep(min(next(pauses), left))
        return not self.unconfirmed

    def close(self, timeout: float) -> None:
        """Wait until everything is confirmed, ``timeout`` seconds at most, and hang up."""
        deadline = time.monotonic() + timeout
        if not self.drain(timeout):
            logger.error(
                "%d results were not confirmed within %g s of shutting down and may be lost",
                self.unconfirmed,
                timeout,
            )
        with self._room.within(LEAST_GOODBYE) as alone, self._lock.within(LEAST_GOODBYE) as taken:
            if not (alone and taken):
                return  # it is not ours to close while somebody sends
            self._window = ConfirmWindow()  # with what is given up, the watching thread ends
            link, self._link = self._link, None
            if link is not None:
                link.goodbye(max(deadline - time.monotonic(), LEAST_GOODBYE))


def cannot_connect(exc: Exception) -> Lost:
    """Log what application code raised, for example a callable ``broker_password``."""
    logger.error("cannot connect to send results, trying again", exc_info=exc)
    return Lost(str(exc))
