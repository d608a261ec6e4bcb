"""Reads results from the socket: one thread reads, the others sleep until their result is there.

The process has one connection. A waiting thread that finds no reader becomes the reader. It reads,
delivers every result to its waiters, and continues until its own result is there. Then it hands the
role to a sleeping thread. A thread that finds a reader sleeps. It is woken when its own result is
there, or to become the reader. There is no background thread. The locks are ``threading``'s, so
gevent and eventlet can patch them. Under gevent and eventlet a greenlet reads for as long as any
result is waited for, as in Celery's own backends, so that ``then`` calls back without a ``get()``.

The reader replaces a lost connection: it reconnects, within its caller's deadline, and consumes the
same queues again. The broker then delivers unacknowledged results a second time, and the table
recognises them.
"""

from __future__ import annotations

import builtins
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from .._lock import start_thread
from ..options import Options
from ..retry import backoff
from ..stats import ReceivedStats
from ..transport.dial import ANSWER_TIMEOUT, failure, is_refusal
from ..transport.transports import is_amqp, use_our_transport
from ._wait import ReadingRole, Wait, Watchers
from .amqp_intake import AMQPIntake
from .intake import INTERVAL, Intake
from .kombu_intake import KombuIntake
from .matcher import ResultMatcher
from .queues import ReplyQueues

__all__ = ["ResultConsumer"]

logger = logging.getLogger("fastrpc")

#: Least time, in seconds, for an attempt to connect, even if the caller's timeout is shorter.
LEAST_CONNECT_TIMEOUT = 0.2

#: A back-off pause shorter than this never makes a wait give up before it has tried to connect.
LEAST_PAUSE = 0.01

#: How long, in seconds, an attempt to connect may take; less if the caller's timeout is shorter.
CONNECT_TIMEOUT = 10.0

#: Delivered results are acknowledged after this many seconds, if no reader has done it before.
ACKNOWLEDGE_AFTER = 1.0

#: How long, in seconds, closing the connection may take.
GOODBYE_TIMEOUT = 2.0

#: How long, in seconds, a look that connects waits for the messages that are already in the queues.
BACKLOG_TIMEOUT = 2.0


class ResultConsumer:
    """Reads results for all threads of the process.

    Args:
        app: The Celery app; its broker settings are used.
        queues: The reply queues to consume.
        options: The settings of the backend.
        stats: Counters to keep.
        matcher: Matches the messages with the results that wait.
        watchers: The waits that are told when a result is ready.
        role: The reading role.
    """

    def __init__(
        self,
        app: Any,
        queues: ReplyQueues,
        options: Options,
        stats: ReceivedStats,
        matcher: ResultMatcher,
        watchers: Watchers,
        role: ReadingRole,
    ) -> None:
        self.app = app
        self.queues = queues
        self.options = options
        self.stats = stats
        self.matcher = matcher
        self._watchers = watchers
        self._role = role
        self._begin()

    def after_fork(self) -> None:
        """Start afresh in the child: the open connection belongs to the parent."""
        if self._intake is not None:
            self._intake.abandon()
        self._begin()

    def _begin(self) -> None:
        self._intake: Intake | None = None
        #: Whether this process has ever connected for results.
        self._has_connected = False
        #: Until this time, by time.monotonic(), a thread that will acknowledge is taken to exist.
        self._acknowledger_until = 0.0
        self._pauses = backoff()
        self._connect_at = 0.0
        self._background: threading.Thread | None = None

    # -- waiting -----------------------------------------------------------------------------

    def until_news(self, wait: Wait) -> None:
        """Return once there is news for ``wait``.

        Raises:
            celery.exceptions.TimeoutError: its deadline passed.
            kombu.exceptions.OperationalError: the broker refuses the connection; a retry would fail
                too.
            RuntimeError: called in a signal handler or a destructor that interrupts a read.
        """
        self.queues.use_at_least(wait.queue)
        self.consume_new()
        looked = False
        while not wait.news:
            if looked and not wait.remaining():
                raise TimeoutError("The operation timed out.")
            self._read_or_sleep(wait)
            looked = True
            if wait.on_interval is not None:
                wait.on_interval()

    def _read_or_sleep(self, wait: Wait) -> None:
        try:
            self._role.run_or_sleep(wait, wait.remaining(INTERVAL), self.read, wait)
        finally:
            self._acknowledge_soon()

    def read_in_background(self, queue: str) -> None:
        """Start a thread, which should be a greenlet, that reads while any result is waited for."""
        if self._background is None or not self._background.is_alive():
            self._background = threading.Thread(
                target=self._read_while_waited_for,
                args=(queue,),
                name="fastrpc-results",
                daemon=True,
            )
            self._background.start()

    def _read_while_waited_for(self, queue: str) -> None:
        try:
            while self.matcher.table.waiting:
                with suppress(TimeoutError):
                    self.until_news(Wait(INTERVAL, None, queue))
        except OperationalError as exc:
            logger.warning("background result reader stopped: %s", exc)
        finally:
            self._background = None

    @property
    def intake(self) -> Intake | None:
        """The intake; None while there is no connection. Only the reader may change it."""
        return self._intake

    @property
    def reading(self) -> bool:
        """Whether some thread has the reading role."""
        return self._role.reading

    def look(self, queue: str) -> int:
        """Deliver what has arrived, without waiting for more.

        Without a connection, this connects, and waits for the messages that are already in the
        queues. In a signal handler or a destructor that interrupts a read, this does nothing.

        Returns:
            If this look made the process's first connection for results, how many messages were in
            the queues; else 0.

        Raises:
            kombu.exceptions.OperationalError: the connection failed.
        """
        if self._role.interrupted:
            return 0
        try:
            # If another thread reads, it delivers everything that arrives.
            return self._role.run(self._look, queue) or 0
        finally:
            self._acknowledge_soon()

    def _acknowledge_soon(self) -> None:
        """Start a thread that acknowledges delivered results, in case no thread reads soon."""
        intake = self._intake
        if self._role.reading or intake is None or not intake.owes_acknowledgement:
            return
        now = time.monotonic()
        if now < self._acknowledger_until:
            return
        self._acknowledger_until = now + 2 * ACKNOWLEDGE_AFTER
        try:
            # Not Thread.start(): that is Python code, which a thrown-in exception could interrupt.
            start_thread(self._acknowledge_later)
        except RuntimeError:  # no thread can start any more, because the main thread has ended
            self._role.run(self.acknowledge)

    def _acknowledge_later(self) -> None:
        time.sleep(ACKNOWLEDGE_AFTER)
        self._acknowledger_until = 0.0
        self._role.run(self.acknowledge)  # does nothing if a thread reads: that one acknowledges

    # -- Celery's API, for code that drives a consumer itself ------------------------------------

    def start(self, initial_task_id: str | None = None, **kwargs: Any) -> None:
        """Connect and consume the reply queue of this thread, unless that is done already.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached, or refuses the
                connection.
        """
        self.look(self.app.thread_oid)

    consume_from = start

    def cancel_for(self, task_id: str) -> None:
        """Nothing to cancel: the queue of a thread serves all of its results."""

    def stop(self) -> None:
        """Hang up. The reply queues stay, and the next wait connects again."""
        self.close(delete_queues=False)

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait until a message arrives, and deliver it. A ``timeout`` of None waits for ever.

        Raises:
            socket.timeout: nothing arrived within ``timeout`` seconds.
        """
        received = self.stats.received
        wait = Wait(timeout, None, self.app.thread_oid)
        self.queues.use_at_least(wait.queue)
        self.consume_new()
        looked = False
        while self.stats.received == received:
            if looked and not wait.remaining():
                raise builtins.TimeoutError("The operation timed out.")
            self._read_or_sleep(wait)
            looked = True

    def drain_events_until(
        self, p: Any, timeout: float | None = None, on_interval: Any = None
    ) -> Iterator[None]:
        """Deliver what arrives until the promise ``p`` is ready. Yields about once a second.

        Raises:
            socket.timeout: the promise is not ready within ``timeout`` seconds.
        """
        wait = Wait(timeout, None, self.app.thread_oid)
        while not p.ready:
            if not wait.remaining():
                raise builtins.TimeoutError("The operation timed out.")
            with suppress(socket.timeout):
                self.drain_events(wait.remaining(INTERVAL))
            yield
            if on_interval is not None:
                on_interval()

    # -- reading: only with the reading role --------------------------------------------------

    def read(self, wait: Wait, patience: float = INTERVAL) -> None:
        """Read until there is news for ``wait``, or nothing more arrives, or ``patience`` is over.

        Args:
            patience: Seconds, counted from the call. Connecting may take longer.
        """
        end = time.monotonic() + wait.remaining(patience)
        while not wait.news:
            intake = self._usable_intake() or self._connect(wait)
            if intake is None:
                return
            try:
                if intake.behind:
                    intake.catch_up()
                # The same timeout at each read where possible: a change costs system calls.
                arrived = self.take_in(intake, wait.remaining(min(patience, intake.interval)))
                if self._intake is intake:  # a callback may have reconnected, or forked
                    intake.tend()
            except intake.errors as exc:
                self.lost(intake, exc)
                continue
            if wait.news or not arrived or self._role.claimed or time.monotonic() >= end:
                return
            if wait.on_interval is not None:
                self._role.call_out(wait.on_interval)

    def _look(self, queue: str) -> int:
        intake = self._usable_intake()
        if intake is None:
            return self._connect_and_look(queue)
        try:
            if intake.has_some():
                self.take_in(intake, 0)
            if self._intake is intake:
                intake.tend()
        except intake.errors as exc:
            self.lost(intake, exc)
        return 0

    def _connect_and_look(self, queue: str) -> int:
        self.queues.use_at_least(queue)
        is_first = not self._has_connected
        intake = self._open(CONNECT_TIMEOUT)
        end = time.monotonic() + BACKLOG_TIMEOUT
        try:
            while intake.taken < intake.backlog and (left := end - time.monotonic()) > 0:
                self.take_in(intake, left)
        except intake.errors as exc:
            self.lost(intake, exc)
        return intake.backlog if is_first else 0

    def take_in(self, intake: Intake, timeout: float) -> bool:
        """Deliver what is buffered; if that is nothing, read once, for at most ``timeout`` seconds.

        Returns:
            Whether anything was delivered or read.
        """
        stats = self.stats
        received = stats.received
        try:
            if intake.holds_some:  # an earlier reader may have left something in the buffer
                intake.pump()
                if stats.received != received:
                    return True
            if not intake.read(timeout):
                return False
            intake.pump()
            self._pauses = backoff()
            return True
        finally:
            self._watchers.wake()
            self.matcher.tidy(time.monotonic())

    def acknowledge(self) -> None:
        """Acknowledge all delivered messages."""
        intake = self._usable_intake()
        if intake is None:
            return
        try:
            intake.acknowledge()
        except intake.errors as exc:
            self.lost(intake, exc)

    # -- the connection -----------------------------------------------------------------------

    def consume_new(self) -> None:
        """Consume the queues that were declared since the intake was opened, if there is one.

        This includes the queues of other threads: the thread that waits for a result need not be
        the one that sent the task.
        """
        intake = self._intake
        # If this is a signal handler that interrupts a read, the reader does it afterwards.
        if intake is None or not intake.behind or self._role.interrupted:
            return
        if intake.readers_only:
            self._role.run(intake.catch_up)
        else:
            intake.catch_up()

    def _usable_intake(self) -> Intake | None:
        intake = self._intake
        if intake is not None and intake.spoiled:
            self.lost(intake, "its use was interrupted")
            self._pauses, self._connect_at = backoff(), 0.0  # the broker is not at fault
            return None
        return intake

    def _connect(self, wait: Wait) -> Intake | None:
        """Connect, and retry until the deadline of ``wait``; return None if that has passed."""
        while True:
            remaining = wait.remaining()
            pause = max(self._connect_at - time.monotonic(), 0.0)
            if pause >= max(remaining, LEAST_PAUSE):
                # `_connect_at` stays as it is, so that one of many short waits does connect.
                time.sleep(remaining)
                return None
            time.sleep(pause)
            timeout = min(CONNECT_TIMEOUT, max(remaining - pause, LEAST_CONNECT_TIMEOUT))
            try:
                intake = self._open(timeout)
                self._connect_at = time.monotonic() + next(self._pauses)
                return intake
            except OperationalError as exc:
                self._connect_at = time.monotonic() + next(self._pauses)
                if is_refusal(exc.__cause__):
                    raise
                logger.warning(
                    "no connection to the broker for results, trying again: %s", str(exc)
                )
            if not wait.remaining() or self._role.claimed:
                return None

    def _open(self, timeout: float) -> Intake:
        """Connect once and consume the queues.

        Raises:
            kombu.exceptions.OperationalError: the connection failed, or the broker refused it.
        """
        intake = make_intake(self.app, self.queues, self.options, self.matcher)
        try:
            intake.open(timeout)
            self._intake, self._has_connected = intake, True
        except intake.errors as exc:
            raise OperationalError(failure(intake.connection, exc)) from exc
        finally:
            # After any exception: the broker would deliver results to a connection that no thread
            # reads.
            if self._intake is not intake:
                intake.close()
        intake.catch_up()
        return intake

    def lost(self, intake: Intake, why: Exception | str) -> None:
        """Give up a connection. The next reader opens another."""
        logger.warning("lost the connection for results, reconnecting: %s", str(why) or repr(why))
        intake.close()
        if self._intake is intake:  # else a callback has waited for a result and reconnected
            self._intake = None
        # Last, so that a thread that sees the new count finds the old connection gone.
        self.stats.reconnects += 1

    def close(
        self, delete_queues: bool, timeout: float = GOODBYE_TIMEOUT, for_good: bool = False
    ) -> bool:
        """Hang up; with ``delete_queues``, delete the reply queues and the messages in them.

        Takes at most ``timeout`` seconds. Queues that cannot be deleted expire (``x-expires``).
        With ``for_good`` no other thread can read afterwards, because it would declare the queues
        again.

        Returns:
            Whether everything was done.
        """
        role, wait = self._role, Wait(timeout)
        if role.interrupted:
            return False
        role.claim(wait)
        try:
            intake = self._intake
            if role.reading and intake is not None:
                with suppress(*intake.errors):  # the connection is lost; the reader notices it too
                    intake.nudge()
            while True:
                closed: list[bool] = []
                role.run_or_sleep(wait, wait.remaining(), self._close, delete_queues, wait, closed)
                if closed:
                    return closed[0]
                if not wait.remaining():
                    logger.debug("not closing the connection for results: a thread waits on it")
                    return False
        finally:
            if not for_good:
                role.end_claim()

    def _close(self, delete_queues: bool, wait: Wait, closed: list[bool]) -> None:
        intake, self._intake = self._usable_intake(), None
        in_order = intake is None or self._say_goodbye(intake, delete_queues, wait.remaining())
        # Queues are left if there was no connection, or if the goodbye failed.
        if delete_queues and (left := wait.remaining()):
            in_order = self.queues.leave(left)
        closed.append(in_order)

    def _say_goodbye(self, intake: Intake, delete_queues: bool, timeout: float) -> bool:
        try:
            intake.goodbye(timeout, delete_queues)
            return True
        except intake.errors as exc:
            logger.debug("closing the connection for results: %s", exc)
            intake.close()
            return False
        except BaseException:  # thrown into this thread; nobody else knows the intake now
            intake.close()
            raise


def make_intake(app: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher) -> Intake:
    """The intake that fits the broker of ``app``; not yet connected."""
    heartbeat = options.heartbeat if options.heartbeat is not None else app.conf.broker_heartbeat
    connection = app.connection_for_read(heartbeat=heartbeat)
    if is_amqp(connection):
        return AMQPIntake(
            use_our_transport(connection, max_body=options.max_body, answer_timeout=ANSWER_TIMEOUT),
            queues,
            options,
            matcher,
        )
    return KombuIntake(connection, queues, options, matcher)
