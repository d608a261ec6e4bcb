"""An intake: one connection with one consumer for each reply queue.

All queues are declared before the first is consumed, because results that arrive while py-amqp
waits for an answer cannot take the fast path. Except for ``catch_up``, only the thread with the
reading role may call an intake.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from amqp.exceptions import NotFound

from .._lock import Lock
from ..options import Options
from ..transport.connection import PendingAnswer
from ..transport.dial import connect, errors_of
from .matcher import ResultMatcher
from .queues import ReplyQueues

__all__ = ["Intake"]

logger = logging.getLogger("fastrpc")

#: The longest time, in seconds, between two calls of ``tend`` by a reader.
INTERVAL = 1.0

#: The same if only the reader may use the connection: no other thread can then consume its own new
#: queue.
READERS_ONLY_INTERVAL = 0.05

#: Least time, in seconds, allowed for each answer while a connection is being opened.
LEAST_ANSWER_TIMEOUT = 0.05

#: Seconds between two attempts to declare a reply queue whose node is down.
DOWN_INTERVAL = 1.0

#: How long, in seconds, the other queues wait for an unanswered declaration while a connection is
#: being opened.
OPENING_PATIENCE = 2.0

#: The same while a thread reads, which has its own deadline.
READING_PATIENCE = 0.1


class Intake:
    """The common part of both intakes: the connection, and which queues are consumed."""

    #: Whether only the reader may use the connection.
    readers_only = True

    #: The longest time, in seconds, between two calls of ``tend`` by the reader.
    interval = READERS_ONLY_INTERVAL

    #: Whether an event loop can watch the socket, ``fileno()``, and read from it.
    watchable = False

    #: Set while an event loop reads. The loop handles deliveries only. This is called if there is
    #: other work, which ``tend`` and ``acknowledge`` do later, in a thread.
    put_off: Callable[[], None] | None = None

    @property
    def spoiled(self) -> bool:
        """Whether an exception interrupted the use of the connection, which is now unusable."""
        return False

    def __init__(
        self, connection: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher
    ) -> None:
        self.connection = connection
        self.matcher = matcher
        self.queues = queues
        self.options = options
        self.consumed: set[str] = set()
        #: Unreachable queues. None: the node of the queue is down. Otherwise the broker had not yet
        #: answered the declaration when we stopped waiting.
        self.away: dict[str, PendingAnswer | None] = {}
        #: When the queues of dead nodes are tried again.
        self._away_at = 0.0
        #: Those in ``away`` that the log has been told of.
        self._told: set[str] = set()
        #: How many messages were in the queues when they were declared.
        self.backlog = 0
        #: How many messages were delivered.
        self.taken = 0
        self._consume_lock = Lock()
        #: The exceptions of a lost or refused connection.
        self.errors = errors_of(connection)

    def open(self, timeout: float) -> None:
        """Connect within about ``timeout`` seconds, and declare every reply queue."""
        end = time.monotonic() + timeout
        connect(self.connection, timeout)
        with self.answered_within(max(end - time.monotonic(), LEAST_ANSWER_TIMEOUT)):
            self._declaring_channel = self.connection.default_channel
            self._open_channels()
            for name in self.queues.names:
                # Less patience for each further one: all queues of a dead node are unreachable.
                self._declare(name, OPENING_PATIENCE / (1 + len(self.away)))

    @property
    def behind(self) -> bool:
        """Whether a reachable queue is not consumed yet."""
        return len(self.consumed) + len(self.away) != len(self.queues)

    def catch_up(self) -> None:
        """Consume the queues that were declared since the connection was opened.

        If a signal handler interrupts this method and calls it, the reader consumes them later.
        """
        if self._consume_lock.mine:
            return
        for name in self.queues.names:
            try:
                self.consume(name)
            except self.errors as exc:
                logger.debug("cannot consume from %s, the reader will reconnect: %s", name, exc)

    def consume(self, name: str) -> None:
        """Consume the queue ``name``, which exists."""
        with self._consume_lock:
            if name not in self.consumed and name not in self.away:
                # Before it is written: the broker may cancel it before we get to the next line.
                self.consumed.add(name)
                try:
                    self._consume(name)
                except BaseException:
                    self.consumed.discard(name)
                    raise

    def _declare_and_consume(self, name: str) -> None:
        if self._declare(name, READING_PATIENCE):
            self._consume_again(name)

    def _consume_again(self, name: str) -> None:
        self.away.pop(name, None)
        self._told.discard(name)
        self.consume(name)

    def _cancelled(self, name: str) -> None:
        """Have ``tend`` declare and consume ``name`` again: it was deleted, or its node is down.

        Not at once. This is called while an answer is awaited, and the broker may cancel many.
        """
        self.away[name] = None
        self._away_at = 0.0
        self.consumed.discard(name)

    def _declare(self, name: str, patience: float) -> bool:
        """Declare ``name``; return False if it is unreachable, which must not stop the others."""
        try:
            self.backlog += self.queues.declare(name, self._declaring_channel)
            return True
        except NotFound as exc:
            self._set_aside(name, exc)
            return False

    def _set_aside(self, name: str, why: Any, late: PendingAnswer | None = None) -> None:
        if name not in self._told:
            self._told.add(name)
            logger.warning("the reply queue %s is down, trying again: %s", name, why)
        self.away[name] = late
        self._away_at = time.monotonic() + DOWN_INTERVAL
        self.queues.doubt(name)

    def _look_for_away(self) -> None:
        """Consume the queues that are reachable again."""
        if not self.away:
            return
        due = time.monotonic() >= self._away_at
        for name, late in list(self.away.items()):
            if late is not None and late.came:
                late.channel.close()
                self._consume_again(name)
            elif due and (late is None or late.refused):
                if late is not None:
                    late.channel.close()
                self._declare_and_consume(name)

    def close(self) -> None:
        """Hang up. Unacknowledged messages stay in the queues."""
        with suppress(*self.errors):  # the connection may be lost already
            self.connection.collect(0.1)

    @contextmanager
    def answered_within(self, timeout: float) -> Iterator[None]:
        """In this context the broker may take ``timeout`` seconds for each answer.

        Has no effect on an intake that cannot limit that time.
        """
        yield

    def nudge(self) -> None:
        """Make the reader, which is another thread, return soon from a long read."""

    def goodbye(self, timeout: float, delete_queues: bool) -> None:
        """Close in order, within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self.answered_within(timeout):
            self.acknowledge()
            if delete_queues:
                self.queues.delete(self._declaring_channel)
        with self.answered_within(max(end - time.monotonic(), LEAST_ANSWER_TIMEOUT)):
            self.connection.close()

    def abandon(self) -> None:
        """Let go of the connection without writing to it: it belongs to the parent process."""

    def _open_channels(self) -> None:
        raise NotImplementedError

    def _consume(self, name: str) -> None:
        raise NotImplementedError

    def read(self, timeout: float) -> bool:
        """Read from the socket; return False if nothing arrived within ``timeout`` seconds."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Whether ``read`` would find something at once."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor of the socket, if the intake is ``watchable``."""
        raise NotImplementedError

    @property
    def holds_some(self) -> bool:
        """Whether something was read and not delivered yet."""
        raise NotImplementedError

    def has_some(self) -> bool:
        """Whether there is something to take in: on the socket, or left by an interrupted read."""
        return self.holds_some or self.readable()

    def pump(self) -> None:
        """Deliver everything that was read to the matcher."""
        raise NotImplementedError

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether a delivered message is not acknowledged yet."""
        return False

    def acknowledge(self) -> None:
        """Acknowledge all delivered messages."""

    def tend(self) -> None:
        """Maintain the connection: heartbeats, and queues that were unreachable.

        Raises one of ``errors`` if the broker has been silent for too long.
        """
        self._heartbeat()
        self._look_for_away()

    def _heartbeat(self) -> None:
        """Send a heartbeat if one is due."""
