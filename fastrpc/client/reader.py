"""Who reads the socket, and who sleeps until their result is there.

One connection serves the process. A waiting thread that finds no reader becomes the reader: it
reads, hands every result to whoever waits for it, and goes on until its own is there; then it hands
the role to one of the sleepers. A thread that finds a reader sleeps, and is woken when its own
result is there, or to become the reader. There is no background thread. Locks are ``threading``'s,
so gevent and eventlet work once they have patched it. Among greenlets one reads for as long as
anything is waited for, as Celery's own backends do there: ``then`` calls back without anybody
waiting.

The reader mends a lost connection: it reconnects, within its caller's deadline, and consumes the
same queues again. What was not acknowledged comes a second time and is known.
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
from ..stats import Stats
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

#: Least time allowed for connecting, even where the caller's own timeout is shorter.
LEAST_CONNECT_TIMEOUT = 0.2

#: A back-off pause shorter than this never makes a wait give up before it has tried to connect.
LEAST_PAUSE = 0.01

#: Each attempt to connect may take this many seconds, less with a shorter timeout of the caller.
CONNECT_TIMEOUT = 10.0

#: What was handed over is acknowledged this many seconds later, if no reader did it before.
ACKNOWLEDGE_AFTER = 1.0

#: How long, in seconds, closing the connection may take.
GOODBYE_TIMEOUT = 2.0

#: How long, in seconds, a first look waits for what the queues hold already.
BACKLOG_TIMEOUT = 2.0


class ResultConsumer:
    """Reads results for all threads of the process.

    Args:
        app: The Celery app; its broker settings are used.
        queues: The reply queues to consume.
        options: The settings of the backend.
        stats: Counters to keep.
        matcher: What takes in the messages.
        watchers: Who waits for which result.
        role: The right to read.
    """

    def __init__(
        self,
        app: Any,
        queues: ReplyQueues,
        options: Options,
        stats: Stats,
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
        """Begin anew in the child, leaving the parent's connection alone."""
        if self._intake is not None:
            self._intake.abandon()
        self._begin()

    def _begin(self) -> None:
        self._intake: Intake | None = None
        #: Until then a thread counts as being on its way to acknowledge, by time.monotonic().
        self._acknowledger_until = 0.0
        self._pauses = backoff()
        self._connect_at = 0.0
        self._background: threading.Thread | None = None

    # -- waiting -----------------------------------------------------------------------------

    def until_news(self, wait: Wait) -> None:
        """Return once there is news for ``wait``.

        Raises:
            celery.exceptions.TimeoutError: its deadline passed.
            kombu.exceptions.OperationalError: the broker refuses us; trying again is no use.
            RuntimeError: this thread is in the midst of a read (a signal handler, a destructor).
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
        """Have a thread, which should be a greenlet, read as long as anything is waited for."""
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
        """The way in; None while there is no connection. Its owner is who reads."""
        return self._intake

    @property
    def reading(self) -> bool:
        """Whether some thread has the reading role."""
        return self._role.reading

    def look(self, queue: str) -> int:
        """Take in what has arrived, without waiting for more.

        The first look connects, and does wait for what is in the queues already. In a signal
        handler or a destructor that interrupts a read it leaves the reading to what it interrupts.

        Returns:
            How many messages waited in the queues at that first look, else 0.

        Raises:
            kombu.exceptions.OperationalError: the first look could not connect.
        """
        if self._role.interrupted:
            return 0
        try:
            # Whoever reads takes in whatever arrives.
            return self._role.run(self._look, queue) or 0
        finally:
            self._acknowledge_soon()

    def _acknowledge_soon(self) -> None:
        """Have what was handed over be acknowledged also if nobody reads for a while."""
        intake, now = self._intake, time.monotonic()
        if self._role.reading or intake is None or not intake.owes_acknowledgement:
            return
        if now < self._acknowledger_until:
            return
        self._acknowledger_until = now + 2 * ACKNOWLEDGE_AFTER
        try:
            # Thread.start() is Python code, which an exception thrown in may part.
            start_thread(self._acknowledge_later)
        except RuntimeError:  # no more threads: the main thread has ended, and this one goes on
            self._role.run(self.acknowledge)

    def _acknowledge_later(self) -> None:
        time.sleep(ACKNOWLEDGE_AFTER)
        self._acknowledger_until = 0.0
        self._role.run(self.acknowledge)  # a reader does it itself, before it waits

    # -- Celery's names, for those who drive a consumer themselves ------------------------------

    def start(self, initial_task_id: str | None = None, **kwargs: Any) -> None:
        """Connect and consume the reply queue of this thread, if nobody does yet.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached, or refuses us.
        """
        self.look(self.app.thread_oid)

    consume_from = start

    def cancel_for(self, task_id: str) -> None:
        """Nothing to cancel: one queue serves the thread, whatever it waits for."""

    def stop(self) -> None:
        """Hang up; the reply queues stay, and whoever waits next connects again."""
        self.close(delete_queues=False)

    def drain_events(self, timeout: float | None = None) -> None:
        """Take in what arrives, waiting for it ``timeout`` seconds; None waits for ever.

        Raises:
            socket.timeout: nothing arrived.
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
        """Take in what arrives until the promise ``p`` is ready, and yield once in a while.

        Raises:
            socket.timeout: it is not ready within ``timeout`` seconds.
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
        """Read until there is news for ``wait``, or nothing more comes, for a while at most.

        Args:
            patience: How long it may take, in seconds, once there is a connection.
        """
        end = time.monotonic() + wait.remaining(patience)
        while not wait.news:
            intake = self._usable_intake() or self._connect(wait)
            if intake is None:
                return
            try:
                if intake.behind:
                    intake.catch_up()
                # The same time at each read, if it can be: one that changes costs system calls.
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
            return self._first_look(queue)
        try:
            # An exception that was thrown in may have left something that was read.
            if intake.holds_some or intake.readable():
                self.take_in(intake, 0)
            if self._intake is intake:
                intake.tend()
        except intake.errors as exc:
            self.lost(intake, exc)
        return 0

    def _first_look(self, queue: str) -> int:
        self.queues.use_at_least(queue)
        intake = self._open(CONNECT_TIMEOUT)
        end = time.monotonic() + BACKLOG_TIMEOUT
        try:
            while intake.taken < intake.backlog and (left := end - time.monotonic()) > 0:
                self.take_in(intake, left)
        except intake.errors as exc:
            self.lost(intake, exc)
        return intake.backlog

    def take_in(self, intake: Intake, timeout: float) -> bool:
        """Deliver what is buffered, else what the socket has within ``timeout`` seconds.

        Returns:
            Whether anything came.
        """
        stats = self.stats
        received = stats.received
        try:
            if intake.holds_some:  # what a reader before us left behind comes before the socket
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
        """Acknowledge all that was handed over."""
        intake = self._usable_intake()
        if intake is None:
            return
        try:
            intake.acknowledge()
        except intake.errors as exc:
            self.lost(intake, exc)

    # -- the connection -----------------------------------------------------------------------

    def consume_new(self) -> None:
        """Have the intake, if there is one, consume the queues that were declared since.

        Of all threads: the one that waits for a result need not be the one that sent the task.
        """
        intake = self._intake
        # A signal handler that interrupts a read leaves it to the reader.
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
        """Connect, trying until the deadline of ``wait``; None if that passed."""
        while True:
            remaining = wait.remaining()
            pause = max(self._connect_at - time.monotonic(), 0.0)
            if pause >= max(remaining, LEAST_PAUSE):
                # Kept for the next wait: one of many short waits must be the one that connects.
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
        """Connect once and consume, or raise OperationalError."""
        intake = make_intake(self.app, self.queues, self.options, self.matcher)
        try:
            intake.open(timeout)
            self._intake = intake
        except intake.errors as exc:
            raise OperationalError(failure(intake.connection, exc)) from exc
        finally:
            # However it ended: a connection that nobody reads would keep results to itself.
            if self._intake is not intake:
                intake.close()
        intake.catch_up()
        return intake

    def lost(self, intake: Intake, why: Exception | str) -> None:
        """Give up a connection; who reads next makes another."""
        logger.warning("lost the connection for results, reconnecting: %s", str(why) or repr(why))
        intake.close()
        if self._intake is intake:  # else a callback that waited has reconnected already
            self._intake = None
        self.stats.reconnects += 1  # last: who sees it finds the old connection gone

    def close(
        self, delete_queues: bool, timeout: float = GOODBYE_TIMEOUT, for_good: bool = False
    ) -> bool:
        """Hang up; with ``delete_queues`` the reply queues go, with all that is in them.

        Takes ``timeout`` seconds at the most; what cannot be deleted is left to ``x-expires``. With
        ``for_good`` no other thread reads from now on: it would make the queues again.

        Returns:
            Whether all was done.
        """
        role, wait = self._role, Wait(timeout)
        if role.interrupted:
            return False
        role.claim(wait)
        try:
            intake = self._intake
            if role.reading and intake is not None:
                with suppress(*intake.errors):  # lost: the reader learns of it, too
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
        if delete_queues and (left := wait.remaining()):  # nobody waited, or goodbye failed
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


def make_intake(app: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher) -> Intake:
    """The way in that fits the broker of ``app``; not yet connected."""
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
