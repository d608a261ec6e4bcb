"""The thread that looks at the queues of chords, and joins the chords of which all parts are there.

It begins with the first part that this process sends, and ends once nothing happens any more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from .._lock import Lock, Signal, start_thread
from ..retry import backoff
from .body import BodySender
from .connection import ChordConnection
from .look import Look, queue_name
from .memory import Memory
from .parts import Parts

__all__ = ["Joiner"]

logger = logging.getLogger("fastrpc")

#: After how many seconds without a part the thread ends, and hangs up.
IDLE = 10.0

#: The next look at a chord is due after so many seconds for each part that is missing, and after
#: ``MOST_PAUSE`` at the latest: no cluster finishes tasks faster.
PAUSE_FOR_EACH, MOST_PAUSE = 100e-6, 0.05

#: A quorum queue takes a while to take back what was consumed: how long, in seconds, to wait
#: between two counts, and how often to count.
RETURN_INTERVAL, RETURN_TRIES = 0.01, 500

#: Pauses, in seconds, before a look is made again that could not be decided: the first, which is
#: doubled each time, and the longest.
FIRST_UNDECIDED_PAUSE, UNDECIDED_PAUSE = 0.01, 1.0

#: How often it is made again. The broker notices within a minute that the host of a consumer died.
MOST_UNDECIDED = 120


def pause_for(missing: int) -> float:
    """After how many seconds to look at a chord of which ``missing`` parts are missing."""
    return min(missing * PAUSE_FOR_EACH, MOST_PAUSE)


class Joiner:
    """The thread that joins chords, and the looks that it owes.

    Args:
        backend: The result backend.
        await_confirms: Waits until the broker has confirmed the parts that were sent. The count of
            a queue is wrong before.
    """

    def __init__(self, backend: Any, await_confirms: Callable[[], None]) -> None:
        self.backend = backend
        self.bodies = BodySender(backend)
        self._await_confirms = await_confirms
        self._begin()

    def _begin(self) -> None:
        #: Counted by the thread alone.
        self.joined = self.doubles = self.put_back = 0
        #: Used by the thread alone.
        self._connection: ChordConnection | None = None
        #: Wakes the thread.
        self._wake = Signal()
        #: Wakes ``close`` once no look is owed.
        self._done = Signal()
        #: Guards what follows.
        self._lock = Lock()
        #: By group id.
        self._looks: dict[str, Look] = {}
        #: Those that the thread is making.
        self._current: list[Look] = []
        #: When the next look at a chord is due at the earliest.
        self._next = Memory()
        self._running = False
        #: Whether the thread is to end as soon as no look is due.
        self._closing = False
        #: When the thread wakes up by itself.
        self._wakes_at = 0.0

    def after_fork(self) -> None:
        """Begin anew in a forked child; the connection is the parent's, and stays as it is."""
        connection = self._connection
        self._begin()
        if connection is not None:
            connection.abandon()

    def demand(self, look: Look) -> None:
        """Have the thread look at a chord: at once if a task waits for it."""
        with self._lock:
            known = self._looks.get(look.group_id)
            if known is not None:
                look.take_over(known)
                look.due = known.due
            if look.waiting:
                look.due = 0.0
            elif known is None:
                # The first part: as far as this process knows, all others are missing.
                soon = time.monotonic() + pause_for(look.size - 1)
                look.due = self._next.get(look.group_id, soon)
            # First, because the soft time limit of the task may strike at any line. The thread
            # finds it then at the latest when it would end.
            self._looks[look.group_id] = look
            if not self._running:
                start_thread(self._run)
            elif look.due < self._wakes_at:
                self._wake.set()

    def close(self, timeout: float) -> None:
        """Have the thread make all looks, hang up and end; wait ``timeout`` seconds at most."""
        if self._lock.mine:
            return  # this is a signal handler or a destructor that interrupts a task in demand()
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closing = True
            for look in self._looks.values():
                look.due = 0.0
            if self._looks and not self._running:
                start_thread(self._run)
            self._wake.set()
        while self._looks or self._current:
            if not self._done.wait(deadline - time.monotonic()):
                logger.error("chords were not looked at within %g s of shutting down", timeout)
                return

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        with self._lock:
            if self._running:  # another call of demand() has started a thread too
                return
            self._running = True
        pauses = backoff()
        while looks := self._await_looks():
            try:
                self._make(looks)
                pauses = backoff()
            except Exception as exc:  # the connection is lost, most likely
                self._again(looks, exc, next(pauses))
            except BaseException as exc:  # SystemExit, for example, from code of the application
                self._again(looks, exc, next(pauses))
                with self._lock:
                    self._running = False
                    start_thread(self._run)
                raise

    def _await_looks(self) -> list[Look]:
        """The looks that are due; none if nothing happened for long, and the thread is to end."""
        idle_at = time.monotonic() + IDLE
        while True:
            now = time.monotonic()
            with self._lock:
                self._current = [look for look in self._looks.values() if look.due <= now]
                for look in self._current:
                    del self._looks[look.group_id]
                if self._current:
                    self._wakes_at = 0.0
                    return self._current
                if not self._looks:
                    self._done.set()
                    if self._closing or now >= idle_at:
                        self._running = self._closing = False
                        connection, self._connection = self._connection, None
                        break
                self._wakes_at = min((look.due for look in self._looks.values()), default=idle_at)
            self._wake.wait(self._wakes_at - now)
        if connection is not None:
            connection.hang_up()
        return []

    def _make(self, looks: list[Look]) -> None:
        """Make these looks; removes from ``looks`` those that were made."""
        self._await_confirms()
        if self._connection is None:
            self._connection = ChordConnection(self.backend.app)
        connection = self._connection
        while looks:
            decided = True
            try:
                decided = self._look(connection, looks[0])
            except connection.errors:
                raise
            except Exception as exc:  # of one chord; the others must not suffer
                logger.error("chord %s cannot be joined", looks[0].group_id, exc_info=exc)
                connection.put_back()
            if decided or not self._look_later(looks[0]):
                for looked in looks[0].waiting:
                    looked.set()
            looks.pop(0)  # last: close() must find the look in one place or the other

    def _look_later(self, look: Look) -> bool:
        """Have an undecided look made once more, after a pause; return False if it is given up."""
        if look.undecided >= MOST_UNDECIDED:
            logger.error("chord %s cannot be joined: its parts do not come back", look.group_id)
            return False
        self._postpone([look], min(2**look.undecided * FIRST_UNDECIDED_PAUSE, UNDECIDED_PAUSE))
        look.undecided += 1
        return True

    def _again(self, looks: list[Look], exc: BaseException, pause: float) -> None:
        """Have these looks made over another connection, after a pause."""
        logger.warning("looking at chords (%d) failed, trying again: %r", len(looks), exc)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.hang_up()
        # The first one has failed, and may be to blame. It goes last, so that the others are made
        # before it fails again.
        self._postpone([*looks[1:], *looks[:1]], pause)

    def _postpone(self, looks: list[Look], pause: float) -> None:
        with self._lock:
            for look in looks:
                newer = self._looks.setdefault(look.group_id, look)
                if newer is not look:
                    newer.take_over(look)
                newer.due = time.monotonic() + pause

    def _look(self, connection: ChordConnection, look: Look) -> bool:
        """Count the parts of a chord; if all may be there, read them and join the chord.

        Returns:
            Whether that is decided. It is not while another consumer holds the parts: it joins the
            chord, or has died and the broker has not noticed. (It may be our own, of a connection
            that we have lost.) Nor if the queue seems empty, although it was given a part: so a
            quorum queue says while it elects a leader.
        """
        name = queue_name(look.group_id)
        read = 0
        while not look.body_sent:
            counted = connection.count(name)
            if counted is None:  # the body was sent by another process
                return True
            count, consumers = counted
            if count < look.size and (consumers or not count):
                return False
            if count < look.size or count <= read:
                with self._lock:
                    self._next[look.group_id] = time.monotonic() + pause_for(look.size - count)
                return True
            messages = connection.take(name, count)
            if messages is None:  # as above
                return True
            parts = Parts(look.size, messages, self.backend)
            if parts.whole:
                self.bodies.send(connection, look, parts)
                look.body_sent = True
                self.joined += 1
                self.doubles += parts.doubles
                break
            self.put_back += bool(messages)
            read = parts.read
            connection.put_back()
            # Read or not, the broker has sent what was counted.
            self._await_return(connection, name, max(count, read))
        # If the connection is lost in this line, the look is repeated, and comes here again.
        connection.delete(name)
        return True

    def _await_return(self, connection: ChordConnection, name: str, taken: int) -> None:
        """Wait until the queue has taken back what it gave, unless others take it meanwhile."""
        for _ in range(RETURN_TRIES):
            counted = connection.count(name)
            if counted is None or counted[0] >= taken:
                return
            time.sleep(RETURN_INTERVAL)
