"""Who reads the socket, and who sleeps until their result is there.

One connection serves the process. A waiting thread that finds no reader becomes the reader:
it reads, hands every result to whoever waits for it, and goes on until its own is there; then
it hands the role to one of the sleepers. A thread that finds a reader sleeps on its own event
and is woken when its own result is there, or to become the reader. There is no background
thread; the locks are ``threading``'s, so gevent and eventlet work once they have patched it.
Only among greenlets one of them reads for as long as anything is waited for, as Celery's own
backends do there: ``then`` calls back without anybody waiting.

A lost connection is the reader's business: it reconnects, within its caller's deadline, and
consumes the same queues again; what was not acknowledged comes a second time and is known.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from .intake import INTERVAL, Intake, make_intake
from .matching import ResultMatcher
from .options import Options
from .queues import ReplyQueues
from .retry import backoff
from .stats import Stats
from .transport import connect, errors_of, failure, is_amqp, is_refusal, use_our_transport

__all__ = ["ResultConsumer", "Wait"]

logger = logging.getLogger("fastrpc")

#: Least time allowed for connecting, even where the caller's own timeout is shorter.
LEAST_CONNECT_TIMEOUT = 0.2

#: A wait that is over sooner than this still tries to connect, where a pause is due until then.
LEAST_PAUSE = 0.01

#: Each attempt to connect may take this many seconds, less with a shorter timeout of the caller.
CONNECT_TIMEOUT = 10.0

#: What was handed over is acknowledged this many seconds later, if no reader did it before.
ACKNOWLEDGE_AFTER = 1.0

#: How long, in seconds, each answer may take when the connection is closed.
GOODBYE_TIMEOUT = 2.0

#: How long, in seconds, a first look waits for what the queues hold already.
BACKLOG_TIMEOUT = 2.0


class Wait:
    """One thread's wait for one result or for a set of them."""

    __slots__ = (
        "_event",
        "arrived",
        "deadline",
        "errors",
        "metas",
        "on_interval",
        "on_message",
        "queue",
    )

    def __init__(
        self,
        timeout: float | None,
        on_message: Callable[[dict[str, Any]], None] | None,
        queue: str,
        on_interval: Callable[[], Any] | None = None,
    ) -> None:
        self.deadline = math.inf if timeout is None else time.monotonic() + timeout
        self.on_message = on_message
        #: The reply queue whose messages ``on_message`` is to see.
        self.queue = queue
        #: Called each time that anything came, and where nothing did, once a while.
        self.on_interval = on_interval
        #: Results that became ready and were not looked at yet.
        self.arrived: deque[Any] = deque()
        #: What callbacks of those results raised, in the thread that read them.
        self.errors: deque[Exception] = deque()
        self.metas: deque[dict[str, Any]] = deque()
        self._event: threading.Event | None = None

    @property
    def news(self) -> bool:
        return bool(self.arrived or self.metas)

    def remaining(self, at_most: float = math.inf) -> float:
        """Seconds until the deadline, or ``at_most``; 0 when it has passed."""
        return max(min(self.deadline - time.monotonic(), at_most), 0.0)

    def prepare_to_sleep(self) -> None:
        """From here on, what wakes this wait is not forgotten."""
        if self._event is None:
            self._event = threading.Event()
        self._event.clear()

    def sleep(self, timeout: float) -> None:
        """Sleep until woken, for ``timeout`` seconds at most."""
        if not self.news:
            assert self._event is not None
            self._event.wait(timeout)

    def wake(self) -> None:
        if self._event is not None:
            self._event.set()

    def raise_errors(self) -> None:
        """Raise, in the thread that waits, what a callback of its result raised."""
        if self.errors:
            raise self.errors.popleft()

    def run_on_message(self) -> None:
        """Call ``on_message``, in the thread that gave it, for what came meanwhile."""
        while self.metas:
            assert self.on_message is not None
            self.on_message(self.metas.popleft())


class ResultConsumer:
    """Reads results for all threads of the process.

    Args:
        app: The Celery app; its broker settings are used.
        queues: The reply queues to consume.
        options: The settings of the backend.
        stats: Counters to keep.
    """

    #: Set by the backend, which needs a consumer to make one.
    matcher: ResultMatcher

    def __init__(self, app: Any, queues: ReplyQueues, options: Options, stats: Stats) -> None:
        self.app = app
        self.queues = queues
        self.options = options
        self.stats = stats
        self._begin()

    def after_fork(self) -> None:
        """Begin anew in the child, leaving the parent's connection alone."""
        if self._intake is not None:
            self._intake.abandon()
        self._begin()

    def _begin(self) -> None:
        self._intake: Intake | None = None
        self._reading = threading.RLock()
        self._reader = 0  # the thread that has the role …
        self._depth = 0  # … and how often
        # The collector may end an abandoned wait while its thread is in here for another.
        self._watching = threading.RLock()
        self._acknowledger: threading.Timer | None = None
        self._sleepers: dict[Wait, None] = {}
        self._listening: dict[Wait, None] = {}
        self._pauses = backoff()
        self._connect_at = 0.0
        self._background: threading.Thread | None = None

    # -- waiting -----------------------------------------------------------------------------

    # The reader takes entries out without the lock: whoever put one in looks at the result
    # once more afterwards, and takes out what is left of it in the end.

    def watch(self, results: list[Any], wait: Wait) -> None:
        """Have ``wait`` hear of each of ``results`` becoming ready, and of metas on its queue."""
        watched = self.matcher.fulfiller.watched
        with self._watching:
            for result in results:
                waits = watched.setdefault(id(result), wait)
                if waits is not wait:  # seldom; a list for each would keep the collector busy
                    others = waits if type(waits) is tuple else (waits,)
                    watched[id(result)] = (*others, wait)
        if wait.on_message is not None:
            self._listening[wait] = None

    def unwatch(self, results: list[Any], wait: Wait) -> None:
        """End what ``watch`` began."""
        watched = self.matcher.fulfiller.watched
        self._listening.pop(wait, None)
        with self._watching:
            for result in results:
                waits = watched.get(id(result))
                if waits is wait:
                    watched.pop(id(result), None)
                elif type(waits) is tuple:
                    watched[id(result)] = tuple(other for other in waits if other is not wait)

    def discard_unwatched(self, result: Any) -> None:
        """``result`` waits no longer, unless another thread waits for it."""
        with self._watching:
            if not self.matcher.fulfiller.watched.get(id(result)):
                self.matcher.discard(result)

    def until_news(self, wait: Wait) -> None:
        """Return once there is news for ``wait``.

        Raises:
            celery.exceptions.TimeoutError: its deadline passed.
            kombu.exceptions.OperationalError: the broker refuses us; trying again is no use.
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
        if not self._try_reading(wait):
            wait.prepare_to_sleep()
            self._sleepers[wait] = None
            try:
                # Tried again: a reader that left just now saw no sleeper to wake.
                if not self._try_reading(wait):
                    wait.sleep(wait.remaining(INTERVAL))
            finally:
                self._sleepers.pop(wait, None)
        self._hand_over()

    def _try_reading(self, wait: Wait) -> bool:
        if not self._become_reader():
            return False
        try:
            self._read(wait)
        finally:
            self._leave()
        return True

    def read_in_background(self, queue: str) -> None:
        """Have a thread, which should be a greenlet, read as long as anything is waited for."""
        if self._background is None:
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
            logger.warning("nobody reads results in the background: %s", exc)
        finally:
            self._background = None

    @property
    def reading(self) -> bool:
        """Whether some thread has the reading role."""
        return self._depth > 0

    def _become_reader(self, patience: float = 0.0) -> bool:
        """Take the reading role, unless another thread has it, for ``patience`` seconds more.

        The reader may take it again: it calls callbacks, and they may wait for other results.
        """
        if not self._reading.acquire(blocking=patience > 0, timeout=patience or -1):
            return False
        this = threading.get_ident()
        if self._depth and self._reader != this:
            # Two greenlets: the lock was made before gevent patched it, and knows real threads.
            self._reading.release()
            return False
        self._reader = this
        self._depth += 1
        return True

    def _leave(self) -> None:
        """Give up the reading role, and have what is not acknowledged yet be so soon."""
        intake = self._intake
        try:
            if intake is not None and intake.owes_acknowledgement and self._acknowledger is None:
                self._acknowledge_soon(intake)
        finally:
            self._depth -= 1
            self._reading.release()

    def _acknowledge_soon(self, intake: Intake) -> None:
        timer = threading.Timer(ACKNOWLEDGE_AFTER, self._acknowledge_later)
        timer.name = "fastrpc-acknowledge"
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:  # no more threads: the main thread has ended, and this one goes on
            self._acknowledge(intake)
        else:
            self._acknowledger = timer

    def _acknowledge_later(self) -> None:
        self._acknowledger = None
        if not self._become_reader():
            return  # the reader will, before it waits
        try:
            if self._intake is not None:
                self._acknowledge(self._intake)
        finally:
            self._leave()
            self._hand_over()

    def _acknowledge(self, intake: Intake) -> None:
        try:
            intake.acknowledge()
        except intake.errors as exc:
            self._lost(intake, exc)

    def _hand_over(self) -> None:
        """Wake one sleeper to become the reader, unless there is one."""
        if self._sleepers and not self.reading:
            for sleeper in list(self._sleepers)[:1]:
                sleeper.wake()

    def look(self, queue: str) -> int:
        """Take in what has arrived, without waiting for more.

        The first look connects, and does wait for what is in the queues already.

        Returns:
            How many messages waited in the queues at that first look, else 0.

        Raises:
            kombu.exceptions.OperationalError: the first look could not connect.
        """
        if not self._become_reader():
            return 0  # whoever reads takes in whatever arrives
        try:
            intake = self._intake
            if intake is None:
                return self._first_look(queue)
            try:
                if intake.readable():
                    self._take_in(intake, 0)
                intake.heartbeat()
            except intake.errors as exc:
                self._lost(intake, exc)
        finally:
            self._leave()
            self._hand_over()
        return 0

    # -- reading: only with the reading role --------------------------------------------------

    def _read(self, wait: Wait) -> None:
        """Read until there is news for ``wait``, or nothing more comes, for a while at most."""
        end = time.monotonic() + wait.remaining(INTERVAL)
        while not wait.news:
            intake = self._intake or self._connect(wait)
            if intake is None:
                return
            try:
                if intake.readers_only:
                    self._consume_all(intake)
                # The same time at each read, if it can be: one that changes costs system calls.
                arrived = self._take_in(intake, wait.remaining(intake.interval))
                intake.heartbeat()
                intake.look_for_away()
            except intake.errors as exc:
                self._lost(intake, exc)
                continue
            if wait.news or not arrived or time.monotonic() >= end:
                return
            if wait.on_interval is not None:
                wait.on_interval()

    def _take_in(self, intake: Intake, timeout: float) -> bool:
        """Deliver what is buffered, else what the socket has within ``timeout`` seconds."""
        woken = self.matcher.fulfiller.woken
        try:
            if intake.holds_some:  # what a reader before us left behind comes before the socket
                intake.pump(self._deliver, bool(self._listening))
            if woken or not intake.read(timeout):
                return bool(woken)
            intake.pump(self._deliver, bool(self._listening))
            self._pauses = backoff()
            return True
        finally:
            while woken:
                woken.pop().wake()
            self.matcher.tidy(time.monotonic())

    def _first_look(self, queue: str) -> int:
        self.queues.use_at_least(queue)
        intake = self._open(CONNECT_TIMEOUT)
        end = time.monotonic() + BACKLOG_TIMEOUT
        try:
            while intake.taken < intake.backlog and (left := end - time.monotonic()) > 0:
                self._take_in(intake, left)
        except intake.errors as exc:
            self._lost(intake, exc)
        return intake.backlog

    def _deliver(
        self, correlation_id: bytes | None, body: bytes, format: bytes, queue: str
    ) -> None:
        wanted = None
        if self._listening:
            listeners = [wait for wait in list(self._listening) if wait.queue == queue]
            if listeners:

                def wanted(meta: dict[str, Any]) -> None:
                    for wait in listeners:
                        wait.metas.append(meta)
                        self.matcher.fulfiller.woken.append(wait)

        self.matcher.deliver(correlation_id, body, format, wanted)

    # -- the connection -----------------------------------------------------------------------

    def consume_new(self) -> None:
        """Have the intake, if there is one, consume the queues that were declared since.

        Of all threads: the one that waits for a result need not be the one that sent the task.
        """
        intake = self._intake
        if intake is None or len(intake.consumed) == len(self.queues):
            return
        if not intake.readers_only:
            self._consume_all(intake)
        elif self._become_reader():
            try:
                self._consume_all(intake)
            finally:
                self._leave()
                self._hand_over()

    def _consume_all(self, intake: Intake) -> None:
        for name in self.queues.names:
            try:
                intake.consume(name)
            except intake.errors as exc:
                logger.debug("cannot consume from %s, the reader will reconnect: %s", name, exc)

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
                return self._open(timeout)
            except OperationalError as exc:
                if is_refusal(exc.__cause__):
                    raise
                logger.warning(
                    "no connection to the broker for results, trying again: %s", str(exc)
                )
            finally:
                self._connect_at = time.monotonic() + next(self._pauses)
            if not wait.remaining():
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
        self._consume_all(intake)
        return intake

    def _lost(self, intake: Intake, exc: Exception) -> None:
        logger.warning("lost the connection for results, reconnecting: %s", str(exc) or repr(exc))
        self.stats.reconnects += 1
        if self._intake is intake:  # else a callback that waited has reconnected already
            self._intake = None
        intake.close()

    def close(self, delete_queues: bool) -> None:
        """Hang up; with ``delete_queues`` the reply queues go, with all that is in them.

        Takes a few seconds at the most; what cannot be deleted is left to ``x-expires``.
        """
        if not self._become_reader(GOODBYE_TIMEOUT):
            logger.debug("not closing the connection for results: a thread waits on it")
            return
        try:
            intake, self._intake = self._intake, None
            if intake is not None:
                self._say_goodbye(intake, delete_queues)
            elif delete_queues and self.queues.names:
                self._delete_queues()
        finally:
            self._leave()

    def _say_goodbye(self, intake: Intake, delete_queues: bool) -> None:
        try:
            intake.goodbye(GOODBYE_TIMEOUT, delete_queues)
        except intake.errors as exc:
            logger.debug("closing the connection for results: %s", exc)

    def _delete_queues(self) -> None:
        """Delete the queues where tasks were sent and nobody waited for their results."""
        connection = self.app.connection_for_write()
        if is_amqp(connection):
            use_our_transport(connection, answer_timeout=GOODBYE_TIMEOUT)
        try:
            connect(connection, GOODBYE_TIMEOUT)
            self.queues.delete(connection.default_channel)
            connection.close()
        except errors_of(connection) as exc:
            logger.debug("cannot delete the reply queues: %s", exc)
