"""A way in: one connection, and one consumer for each reply queue.

All queues are declared before the first is consumed: results that come while an answer of the
broker is awaited take a longer way. Only the thread that holds the reading role may call a way in,
but for ``catch_up``.
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

#: Longest time, in seconds, that a reader goes without looking after its connection.
INTERVAL = 1.0

#: The same where nobody but the reader may consume from the new queue of another thread.
READERS_ONLY_INTERVAL = 0.05

#: Least time, in seconds, allowed for each answer while a connection is being opened.
LEAST_ANSWER_TIMEOUT = 0.05

#: Seconds between two tries to get at a reply queue whose node is down.
DOWN_INTERVAL = 1.0

#: Seconds that the other queues wait for one whose declaration is not answered, while a connection
#: is opened.
OPENING_PATIENCE = 2.0

#: The same while somebody reads, whose own timeout must be kept.
READING_PATIENCE = 0.1


class Intake:
    """What both ways in share: the connection and the set of queues consumed."""

    #: Whether nobody but the reader may touch the connection.
    readers_only = True

    #: Longest time, in seconds, that the reader may go without looking after the connection.
    interval = READERS_ONLY_INTERVAL

    #: Whether an event loop can watch the socket, ``fileno()``, and read from it.
    watchable = False

    #: Set while an event loop reads, which serves deliveries only: called when there is something
    #: else to do, which ``tend`` and ``acknowledge`` do later, in a thread.
    put_off: Callable[[], None] | None = None

    @property
    def spoiled(self) -> bool:
        """Whether an exception parted something on the connection, which must be given up."""
        return False

    def __init__(
        self, connection: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher
    ) -> None:
        self.connection = connection
        self.matcher = matcher
        self.queues = queues
        self.options = options
        self.consumed: set[str] = set()
        #: Those that exist and cannot be had: on a node of the cluster that is down (None), or
        #: whose declaration has no answer yet.
        self.away: dict[str, PendingAnswer | None] = {}
        self._away_at = 0.0
        #: Messages that waited in the queues when they were opened, and that came since.
        self.backlog = 0
        self.taken = 0
        self._consume_lock = Lock()
        #: What a lost or refused connection raises.
        self.errors = errors_of(connection)

    def open(self, timeout: float) -> None:
        """Connect, within about ``timeout`` seconds, and have every reply queue exist."""
        end = time.monotonic() + timeout
        connect(self.connection, timeout)
        with self.answered_within(max(end - time.monotonic(), LEAST_ANSWER_TIMEOUT)):
            self._declaring = self.connection.default_channel
            self._open_channels()
            for name in self.queues.names:
                # Less for each further one: a node that went has taken all of its queues along.
                self._declare(name, OPENING_PATIENCE / (1 + len(self.away)))

    @property
    def behind(self) -> bool:
        """Whether there are queues that are not consumed, and could be."""
        return len(self.consumed) + len(self.away) != len(self.queues)

    def catch_up(self) -> None:
        """Consume all the queues that were declared since.

        A signal handler that interrupts this leaves them to the reader.
        """
        if self._consume_lock.mine:
            return
        for name in self.queues.names:
            try:
                self.consume(name)
            except self.errors as exc:
                logger.debug("cannot consume from %s, the reader will reconnect: %s", name, exc)

    def consume(self, name: str) -> None:
        """Let the results of queue ``name``, which exists, come this way too."""
        with self._consume_lock:
            if name not in self.consumed and name not in self.away:
                self._consume(name)
                self.consumed.add(name)

    def _declare_and_consume(self, name: str) -> None:
        if self._declare(name, READING_PATIENCE):
            self._consume_again(name)

    def _consume_again(self, name: str) -> None:
        self.away.pop(name, None)
        self.consume(name)

    def _declare(self, name: str, patience: float) -> bool:
        """Have ``name`` exist; one that cannot be had is set aside and must not stop the others."""
        try:
            self.backlog += self.queues.declare(name, self._declaring)
            return True
        except NotFound as exc:
            self._set_aside(name, exc)
            return False

    def _set_aside(self, name: str, why: Any, late: PendingAnswer | None = None) -> None:
        if name not in self.away:
            logger.warning("the reply queue %s is down, trying again: %s", name, why)
        self.away[name] = late
        self._away_at = time.monotonic() + DOWN_INTERVAL
        self.queues.doubt(name)

    def _look_for_away(self) -> None:
        """Consume the queues again that are back."""
        if not self.away:
            return
        due = time.monotonic() >= self._away_at
        for name, late in list(self.away.items()):
            if late is not None and late.came:
                late.channel.close()
                self._consume_again(name)
            elif late is None and due:
                self._declare_and_consume(name)

    def close(self) -> None:
        """Hang up; what was not acknowledged stays in the queues."""
        with suppress(*self.errors):  # it is lost already: that is why it is closed
            self.connection.collect(0.1)

    @contextmanager
    def answered_within(self, timeout: float) -> Iterator[None]:
        """Within, each answer of the broker may take ``timeout`` seconds, where we can say so."""
        yield

    def nudge(self) -> None:
        """Have the reader, another thread, return soon, where one read may be long."""

    def goodbye(self, timeout: float, delete_queues: bool) -> None:
        """Close in order, within ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self.answered_within(timeout):
            self.acknowledge()
            if delete_queues:
                self.queues.delete(self._declaring)
        with self.answered_within(max(end - time.monotonic(), LEAST_ANSWER_TIMEOUT)):
            self.connection.close()

    def abandon(self) -> None:
        """Let go of the connection without a word on it: it is the parent process's."""

    def _open_channels(self) -> None:
        raise NotImplementedError

    def _consume(self, name: str) -> None:
        raise NotImplementedError

    def read(self, timeout: float) -> bool:
        """Wait for something to arrive; False if nothing did within ``timeout`` seconds."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Whether ``read`` would find something at once."""
        raise NotImplementedError

    def fileno(self) -> int:
        """The descriptor of the socket that results come by, where it is ``watchable``."""
        raise NotImplementedError

    @property
    def holds_some(self) -> bool:
        """Whether something was read that was not handed over."""
        raise NotImplementedError

    def pump(self) -> None:
        """Hand all that was read to the matcher."""
        raise NotImplementedError

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether something was handed over and is not acknowledged yet."""
        return False

    def acknowledge(self) -> None:
        """Acknowledge all that was handed over."""

    def tend(self) -> None:
        """Look after the connection: heartbeats, and the queues that were away.

        Raises one of ``errors`` if the peer has been silent for too long.
        """
        self._heartbeat()
        self._look_for_away()

    def _heartbeat(self) -> None:
        """Send a heartbeat if one is due."""
