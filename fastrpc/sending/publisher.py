"""Sends results to the broker and keeps them until it has confirmed them.

Tasks too, with ``confirm_publish="pipelined"``: they are packed already.

``AMQPPublisher`` packs a result into one buffer and writes it at once. The window keeps the result
until its confirm is read, which happens later and without waiting. When the connection is lost, the
publisher opens another and sends everything in the window again; callers drop the duplicates. While
results are unconfirmed and no thread sends, a watching thread reads the confirms. It ends when the
window is empty.

Without confirms nothing is kept. The window then counts bytes: now and then the broker is asked how
far it is, and a sender that is too far ahead waits for the answer.
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
from ..stats import SentStats
from ..transport.dial import is_refusal
from ._window import ConfirmWindow
from .link import Link, Lost, Silent
from .message import Message, Packed

__all__ = ["AMQPPublisher"]

logger = logging.getLogger("fastrpc")

#: Seconds between two rounds of the watching thread.
WATCH_INTERVAL = 0.2

#: How long, in seconds, a sender blocked by a full window waits for the socket before it checks the
#: window again: another thread may have read the confirms meanwhile.
ROOM_INTERVAL = 0.1

#: While one thread waits for room, every other thread may send one result at this interval, in
#: seconds: a thread that sends now and then need not wait because another one floods.
PASS_INTERVAL = 0.005

#: Such results are sent until the window holds this many times its usual number.
OVERDRAFT = 2

#: For each thread: ``next``, the time from which it may send past the waiting one. Not an attribute
#: of the publisher: freeing a thread-local takes a lock of the interpreter, and a garbage
#: collection inside sys._current_frames(), which holds that lock, may free a publisher.
_passing = threading.local()

#: Sends between two reads of confirms.
SENDS_PER_LOOK = 32

#: Once the window holds this many bytes, each send of a result of ``LOOK_FIRST_BYTES`` or more
#: reads confirms first, so that large bodies are not kept after their confirm has arrived.
MANY_BYTES = 1 << 20

#: The least size for which such a read is cheap, compared with the send itself.
LOOK_FIRST_BYTES = 1 << 16

#: While the window holds twice the size of a result of this many bytes or more, its send first
#: waits for a confirm. If the broker keeps up, few such bodies are in memory.
WAIT_FIRST_BYTES = 1 << 20

#: How long, in seconds, it waits.
MOMENT = 0.02

#: After this many idle seconds the connection is read before it is written to.
IDLE = 1.0

#: Least time, in seconds, allowed for closing the connection in order.
LEAST_GOODBYE = 1.0

#: If the broker sends nothing for this many seconds, unconfirmed results are sent again over a new
#: connection.
SILENCE = 30.0

#: Heartbeat, in seconds, of a connection that replaces a silent one. RabbitMQ then sends something
#: every half of that time, even while it blocks the connection, so ``SILENCE`` means a dead path.
#: Other connections have no heartbeats, because RabbitMQ would expect ours too. An idle worker has
#: no thread that sends them, and RabbitMQ would close the connection and log an error.
HEARTBEAT = 20

#: A connection of this age, in seconds, is replaced before refused results are sent again. If a
#: channel is first used for a quorum queue while the queue has no leader, RabbitMQ refuses every
#: later message to that queue on this channel; on channels opened after the election it accepts
#: them.
REFUSED_FOR_GOOD = 1.0

#: While the broker keeps refusing, for other reasons then, that age is doubled each time, up to
#: this one.
REFUSED_AT_MOST = 8.0

#: The size of the window unless ``confirm_window`` is given.
LEAST_WINDOW = 1_000

#: For persistent results it grows to what the broker confirms in a second, up to this number:
#: RabbitMQ confirms them once they are on disk, and senders should not wait for the disk. Transient
#: results would only queue up in the broker, ahead of the results for other callers.
MOST_WINDOW = 10_000

PERSISTENT = 2

#: Least time, in seconds, over which the rate of confirms is measured.
RATE_INTERVAL = 0.2

#: Without confirms, at this many bytes ahead of the broker the next send waits for room. If the
#: kernel's send buffer (4 MiB) filled up first, the write itself would wait until a third of it is
#: free, and would hold the lock.
MOST_AHEAD = 1 << 21

#: This many times ``confirm_window`` refused results are kept.
REFUSED_WINDOWS = 10

#: The same unless ``confirm_window`` is given: as many as a busy worker sends to a quorum queue
#: during the seconds of an election.
MOST_REFUSED = 20_000

#: How many refused messages, and how many bytes of them, are sent again in one slice.
SLICE, SLICE_BYTES = 100, 1 << 20

#: Seconds until the next slice.
SLICE_INTERVAL = 0.05


class AMQPPublisher:
    """Sends with pipelined publisher confirms over one connection. Thread-safe."""

    def __init__(
        self,
        app: Any,
        delivery_mode: int,
        options: Options,
        stats: SentStats,
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
        #: The sender that waits for room holds this lock, but not the one above; further senders
        #: queue up for it. A thread that takes both locks takes this one first.
        self._room = Lock()
        self._link: Link | None = None
        #: All unconfirmed messages. Without the lock, read it anew for each use: `close` and
        #: `after_fork` replace it.
        self.window = ConfirmWindow()
        #: How many messages may be in flight.
        self._size = self.options.confirm_window or LEAST_WINDOW
        #: Confirms since a time by time.monotonic(), to measure their rate.
        self._confirms, self._confirms_since = 0, 0.0
        self._sent_at = 0.0
        #: So many messages are sent again one at a time, because the broker closes the channel over
        #: one of them: the one that is alone in flight then.
        self._suspects = 0
        #: The heartbeat of the next link.
        self._heartbeat = 0
        #: If the broker refuses results on a link of this age, the link is replaced.
        self._patience = REFUSED_FOR_GOOD
        #: The argument that the watching thread was started with; None if there is no such thread.
        self._watcher: object = None
        #: Seconds until its next round.
        self._pause = WATCH_INTERVAL

    def after_fork(self) -> None:
        """Start afresh in the child: connection and window belong to the parent."""
        if self._link is not None:
            self._link.abandon()
        self._begin()

    @property
    def unconfirmed(self) -> int:
        """Results that the broker has not confirmed yet."""
        return len(self.window)

    @property
    def is_mine(self) -> bool:
        """Whether this thread is inside a send, which a signal handler or destructor interrupts."""
        return self._lock.mine or self._room.mine

    def look(self, timeout: float) -> None:
        """Read confirms; then wait until more can be read, at most ``timeout`` seconds."""
        with self._lock:
            self._tend()
        link = self._link
        if link is not None:
            link.wait(timeout)

    def publish(self, message: Message | Packed) -> None:
        """Send one message, and keep it until it is confirmed. Returns once it is written.

        Waits while the window is full or the broker blocks the connection (``connection.blocked``).

        Raises:
            kombu.exceptions.OperationalError: the retries of the retry policy are used up, or
                the broker refuses the connection.
        """
        if self._lock.mine or self._room.mine:  # `is_mine`, without a call for each result
            # Called by a signal handler or a destructor that interrupts a send of this thread.
            self.window.append(message)
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
            if lost.over_a_message:
                continue  # without a pause: each time fewer can be to blame
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
        """Send ``message`` if ``windows`` times the window has room; return whether it was sent."""
        with self._lock:
            try:
                sent = self._send_new(message, windows)
            except Lost as exc:
                exc.in_vain = self._drop_link(exc)
                raise
        return sent

    # -- with the lock held --------------------------------------------------------------------

    def _send_new(self, message: Message | Packed, windows: int) -> bool:
        now, window, link = time.monotonic(), self.window, self._link
        if link is None or link.closed or link.busy:  # else a call less for each result
            link = self._open_link()
        # Read before the send: once the message is in the window, a lost connection is not its
        # failure.
        size, kept = len(message.body), window.bytes
        if size >= LOOK_FIRST_BYTES and kept >= MANY_BYTES:
            self._look(link, MOMENT if size >= WAIT_FIRST_BYTES and kept >= 2 * size else 0)
        elif link.sent % SENDS_PER_LOOK == 0 or now - self._sent_at > IDLE:
            self._look(link)
        most_bytes, ahead = self.options.confirm_window_bytes, windows * MOST_AHEAD
        if link.blocked or not window.has_room(windows * self._size, most_bytes, ahead):
            self._look(link)
            self._check_heard(link)
            self._send_again(link)
            # The look may have fitted the size to the rate of confirms.
            if link.blocked or not window.has_room(windows * self._size, most_bytes, ahead):
                return False
        self._send(link, message)
        self._sent_at = now
        self.stats.published += 1
        return True

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
        """Give up the link; its unconfirmed messages will be sent again, before any new one.

        Returns:
            Whether that uses up a retry: no link was made, or the broker never answered on it.
        """
        link = self._link
        if link is None:
            return True
        # Without heartbeats a blocked broker sends nothing, so its silence deserves no warning.
        as_expected = isinstance(lost, Silent) and link.blocked and not link.heartbeat
        logger.log(
            logging.WARNING if self.unconfirmed and not as_expected else logging.INFO,
            "lost the connection for sending, %d messages are sent again: %s",
            self.unconfirmed,
            lost,
        )
        too_large = None
        if lost.too_large:
            # The broker does not say which message it was. It has not confirmed that message, so
            # the largest unconfirmed one is at least as large.
            too_large = max(self.window, key=lambda message: len(message.body), default=None)
        elif lost.over_a_message:
            self._single_out(lost)
        self.window.lose()
        if too_large is not None:
            self._replace(too_large)
        self._heartbeat = HEARTBEAT if isinstance(lost, Silent) else 0
        self._link = None
        self._ensure_watched()
        return not link.answered

    def _replace(self, too_large: Message) -> None:
        """Replace a message that the broker finds too large, or drop it.

        If it was sent again, the broker would close every further connection too.
        """
        logger.error(
            "the broker does not take the message of task %s, its %d bytes are too many",
            too_large.correlation_id,
            len(too_large.body),
        )
        substitute = self.substitute(too_large)
        if substitute is not None and len(substitute.body) >= len(too_large.body):
            substitute = None  # `too_large` is a substitute already
        self.window.replace(too_large, substitute)

    def _single_out(self, lost: Lost) -> None:
        """Have the messages in flight sent again one at a time. Drop one that was alone."""
        self._suspects = self.window.in_flight
        if self._suspects == 1:
            message = self.window.drop_only()
            # The next one may well have the same fault. If there is none, nobody is a suspect:
            # what the broker refused would wait until nothing else is in flight.
            self._suspects = int(bool(self.window.again))
            logger.error("the broker does not take task %s: %s", message.correlation_id, lost)

    def _send(self, link: Link, message: Message | Packed) -> None:
        if not self.window.in_flight:  # until now the broker had nothing to confirm
            link.heard_at = time.monotonic()
        link.send(message, self.window)
        if self._watcher is None:
            self._ensure_watched()

    def _send_again(self, link: Link) -> None:
        """Send the messages of a lost link again, until the broker blocks the connection."""
        again = self.window.again
        while again and not link.blocked and not self._must_wait():
            moment = MOMENT if self._suspects else 0
            self._resend(link, again[0])
            self._look(link, moment)

    def _resend(self, link: Link, message: Message | Packed) -> None:
        self._send(link, message)
        self.stats.resent += 1
        self._suspects = max(self._suspects - 1, 0)

    def _must_wait(self) -> bool:
        """Whether the next message is a suspect, which must be alone in flight, and cannot be."""
        return bool(self._suspects and self.window.in_flight)

    def _look(self, link: Link, timeout: float = 0) -> None:
        window, options = self.window, self.options
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
        expected = self.window.in_flight or link.blocked
        if expected and time.monotonic() - link.heard_at > SILENCE:
            link.close()
            raise Silent(f"the broker has said nothing for {SILENCE:g} seconds")

    # Only the watching thread sends again what the broker refused (basic.nack), so that no sender
    # waits for it.

    def _send_refused(self, link: Link) -> bool:
        """Send a slice of the refused messages that are due; return whether more may be due."""
        size = 0
        for _ in range(SLICE):
            if self._is_worn_out(link) or not self._can_send_refused(link):
                return False
            message = self.window.refused[0][2]
            self._resend(link, message)
            size += len(message.body)
            if size > SLICE_BYTES:
                break
        return True

    def _can_send_refused(self, link: Link) -> bool:
        return not link.blocked and not self._must_wait() and self._is_refused_due()

    def _is_refused_due(self) -> bool:
        """Drop messages that are out of retries; return whether the next one is due."""
        refused = self.window.refused
        while refused:
            refused_at, refusals, _ = refused[0]
            delay = next(islice(self.options.retry_policy.delays(), refusals - 1, None), None)
            if delay is not None:
                return time.monotonic() >= refused_at + delay
            self._give_up()
        return False

    def _give_up(self) -> None:
        refusals, message = self.window.give_up()
        logger.error(
            "the broker refused the message of task %s %d times, it is given up",
            message.correlation_id,
            refusals,
        )

    def _is_worn_out(self, link: Link) -> bool:
        return time.monotonic() - link.opened_at > self._patience

    # -- while nobody sends --------------------------------------------------------------------

    def _ensure_watched(self) -> None:
        if self._watcher is None and self.unconfirmed:
            watcher = object()
            # If no thread can start any more, the next send, or close(), reads the confirms.
            with suppress(RuntimeError):
                start_thread(self._watch, watcher)
                self._watcher = watcher

    def _watch(self, me: object) -> None:
        """Read confirms, and replace a lost connection, until nothing is unconfirmed."""
        pauses = backoff()
        pause = WATCH_INTERVAL
        while True:
            time.sleep(pause)
            with self._lock:
                if self._watcher is None:  # _ensure_watched was interrupted after the start
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
            if lost is None:
                pause = self._pause
            else:
                pause = 0 if lost.over_a_message else WATCH_INTERVAL + next(pauses)
        if unheeded is not None:
            unheeded.goodbye(LEAST_GOODBYE)

    def _take_unheeded(self) -> Link | None:
        """Remove a link with heartbeats and return it: from now on no thread sends them."""
        link = self._link
        if link is None or not link.heartbeat:
            return None
        self._link = None
        return link

    def _tend(self, timeout: float = 0) -> Lost | None:
        """Send again what is due, and read confirms. Returns the error if the link is lost."""
        try:
            link = self._open_link()
            self._send_again(link)
            goes_on = self._send_refused(link) or self._must_wait()
            self._pause = SLICE_INTERVAL if goes_on else WATCH_INTERVAL
            self._look(link, timeout)
            self._check_heard(link)
        except Lost as exc:
            self._drop_link(exc)
            return exc
        if not self.window.refused_count:
            self._patience = REFUSED_FOR_GOOD
        return None

    def _renew(self) -> Lost | None:
        """Replace a link on which the broker refuses message after message; return a failure.

        The new link is opened first and without the lock, so that no sender waits for it.
        """
        if not self.window.refused:
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
                self._look(link)  # so that messages confirmed by now are not sent twice
            link.close()
            self._drop_link(Lost("the broker keeps refusing messages on this connection"))
            self._link = fresh
            self._patience = min(2 * self._patience, REFUSED_AT_MOST)
        return None

    def drain(self, timeout: float) -> bool:
        """Wait until everything is confirmed, at most ``timeout`` seconds; return whether it is."""
        deadline = time.monotonic() + timeout
        pauses = backoff()
        while self.unconfirmed and (left := deadline - time.monotonic()) > 0:
            with self._lock.within(left) as taken:
                if not taken:
                    break
                lost = self._tend(timeout=min(left, 0.1))
                # Without releasing the lock: a thread that keeps sending would otherwise keep this
                # one waiting for ever.
                while lost is None and self.window.in_flight and time.monotonic() < deadline:
                    lost = self._tend(timeout=0.1)
                if not self.unconfirmed:
                    return True
            lost = lost or self._renew()
            if lost is not None and not lost.over_a_message:
                time.sleep(min(next(pauses), left))
        return not self.unconfirmed

    def close(self, timeout: float) -> None:
        """Wait until everything is confirmed, at most ``timeout`` seconds, and hang up."""
        deadline = time.monotonic() + timeout
        if not self.drain(timeout):
            logger.error(
                "%d messages were not confirmed within %g s of shutting down and may be lost",
                self.unconfirmed,
                timeout,
            )
        with self._room.within(LEAST_GOODBYE) as alone, self._lock.within(LEAST_GOODBYE) as taken:
            if not (alone and taken):
                return  # another thread still sends over the link
            self.window = ConfirmWindow()  # what is left is given up; the watching thread ends
            link, self._link = self._link, None
            if link is not None:
                link.goodbye(max(deadline - time.monotonic(), LEAST_GOODBYE))


def cannot_connect(exc: Exception) -> Lost:
    """Log what application code raised, for example a callable ``broker_password``."""
    logger.error("cannot connect to send, trying again", exc_info=exc)
    return Lost(str(exc))
