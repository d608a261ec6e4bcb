"""Event loops that wait for results, beside the threads of reader.py.

An ``await`` is a ``Wait`` that is woken in its loop. If one loop waits and nobody else, the loop
reads the socket itself: it watches it with ``add_reader`` and takes in what is there. As soon as a
thread or a second loop waits too, a thread reads and tells the loops. It is a thread in ``get()``,
or the keeper.

A loop never writes, and never waits for the broker. The keeper does that: a thread that runs while
anything is awaited. It connects, declares, acknowledges and sends heartbeats. It also reads if no
loop can: for several loops, so that none depends on another, and over transports that have no
socket to watch.
"""

from __future__ import annotations

import logging
import os
import threading
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Generator, Sequence
from typing import Any

from celery.exceptions import TimeoutError

from .._lock import Lock, Signal, start_thread
from ._wait import LoopWait, Wait
from .intake import INTERVAL, Intake
from .reader import CONNECT_TIMEOUT
from .side import ClientSide

__all__ = ["LoopReader", "Loops", "ResultWait"]

logger = logging.getLogger("fastrpc")


class Loops:
    """The event loops that wait for the results of one app, and their keeper.

    Args:
        side: The client side of the app, which receives the results.
    """

    def __init__(self, side: ClientSide) -> None:
        self.side = side
        self.consumer = side.reader
        self.role = side.role
        self._begin()

    def _begin(self) -> None:
        self._readers: dict[AbstractEventLoop, LoopReader] = {}
        #: What the running keeper was started with, so that it notices a successor.
        self._keeper: object | None = None
        self._lock = Lock()
        #: Wakes the keeper.
        self._bell = Signal()
        #: A connection that a loop has found lost, and the exception.
        self._lost: tuple[Intake, Exception] | None = None

    def after_fork(self) -> None:
        """Begin anew in a forked child, without telling the loops: it shares their epoll."""
        for reader in self._readers.values():
            reader.close_watched()
        self._begin()

    def reader(self, loop: AbstractEventLoop) -> LoopReader:
        """The reader of ``loop``. Call it in that loop."""
        reader = self._readers.get(loop)
        if reader is None:
            self.role.on_free = self._on_free
            reader = self._readers[loop] = LoopReader(self, loop)
        return reader

    def waiting(self) -> list[LoopReader]:
        """The readers of the loops in which something is awaited."""
        waiting = []
        for reader in list(self._readers.values()):
            if reader.loop.is_closed():
                self.forget(reader)
            elif reader.waits:
                waiting.append(reader)
        return waiting

    def forget(self, reader: LoopReader) -> None:
        """Drop a reader in whose loop nothing is awaited, or whose loop is closed."""
        self._readers.pop(reader.loop, None)
        if reader.loop.is_closed():
            reader.abandon()

    def reads_itself(self, reader: LoopReader) -> bool:
        """Whether the loop of ``reader``, which waits, reads the socket, and not the keeper."""
        intake = self.consumer.intake
        return intake is not None and intake.watchable and self.waiting() == [reader]

    def _on_free(self) -> None:
        # Called by the thread that has just read. The keeper returns to read by itself, a loop does
        # not.
        waiting = self.waiting()
        if len(waiting) == 1:
            intake = self.consumer.intake
            if intake is None:
                self.ring()
            elif intake.watchable:
                waiting[0].role_is_free(intake)

    def found_lost(self, intake: Intake, exc: Exception) -> None:
        """Have the keeper close a connection that a loop has found lost: closing may take time."""
        self._lost = intake, exc
        self.ring()

    # -- the keeper ----------------------------------------------------------------------------

    def ensure_kept(self) -> None:
        """Start the keeper, unless it runs."""
        if self._keeper is not None:
            return
        with self._lock:
            if self._keeper is None:
                keeper = self._keeper = object()
                try:
                    start_thread(self._keep, keeper)
                except BaseException:
                    self._keeper = None
                    raise

    def ring(self) -> None:
        """Have the keeper look at the connection now."""
        self._bell.set()

    def _keep(self, me: object) -> None:
        """Look after the connection until nothing is awaited and nothing is to be acknowledged."""
        try:
            while self._keeper is me and self._keep_on():
                pass
        finally:  # also if a callback of a result has ended this thread
            if self._keeper is me:
                self._keeper = None
                if self._is_needed():
                    self.ensure_kept()
                for reader in list(self._readers.values()):
                    reader.ring()  # so that it stops watching the socket

    def _keep_on(self) -> bool:
        """Look after the connection once; return whether to do it again."""
        waiting = self.waiting()
        try:
            reads = self._look_after(waiting)
        except Exception as exc:
            reads = False
            self._fail(waiting, exc)
        for reader in waiting:
            reader.ring_again()
        return reads or self._bell.wait(self._interval()) or self._is_needed()

    def _is_needed(self) -> bool:
        intake = self.consumer.intake
        owes = intake is not None and intake.owes_acknowledgement
        return owes or bool(self.waiting())

    def _interval(self) -> float:
        intake = self.consumer.intake
        return INTERVAL if intake is None else intake.interval

    def _look_after(self, waiting: list[LoopReader]) -> bool:
        """Look after the connection; return whether the keeper reads, and is to return at once."""
        if not waiting:
            self.role.run(self.consumer.acknowledge)
            return False
        intake = self.consumer.intake
        reads = len(waiting) > 1 or (intake is not None and not intake.watchable)
        wait = Wait(CONNECT_TIMEOUT)
        self.role.run_or_sleep(wait, INTERVAL, self._read, wait, INTERVAL if reads else 0.0)
        return reads

    def _read(self, wait: Wait, patience: float) -> None:
        consumer = self.consumer
        lost, self._lost = self._lost, None
        if lost is not None and lost[0] is consumer.intake:
            consumer.lost(*lost)
        consumer.read(wait, patience)
        if not patience:
            consumer.acknowledge()

    def _fail(self, waiting: list[LoopReader], exc: Exception) -> None:
        """Make every await raise ``exc``, as ``get()`` does in a thread."""
        if not waiting:
            logger.error("cannot look after the connection for results", exc_info=exc)
        for reader in waiting:
            for wait in list(reader.waits):
                wait.fail(exc)


class ResultWait(LoopWait):
    """One wait of a coroutine for results. ``with`` begins it and ends it, however it ends.

    ``await wait`` returns the results that became ready since the last time. There may be none: it
    also returns because of a message, or without a reason.

    Raises:
        celery.exceptions.TimeoutError: from ``await``: nothing arrived, and the time is up.
        fastrpc.errors.ResultDropped: from ``with``: a result came, but is no longer kept.
        Exception: from ``await``: waiting is useless, or a callback of a result has raised it.
    """

    __slots__ = ("_nodes", "_parents", "_reader", "_timeout")

    def __init__(
        self,
        reader: LoopReader,
        nodes: list[Any],
        timeout: float | None,
        parents: list[Any] | None = None,
        listens: bool = False,
    ) -> None:
        """
        Args:
            nodes: The results to wait for.
            timeout: In seconds; None waits for ever.
            parents: More results that end the wait if they fail; they may be no longer kept.
            listens: Whether it is also told of the messages on the reply queues of the process.
        """
        super().__init__(reader.loop, reader.told, reader.ring, True if listens else None)
        self._reader = reader
        self._nodes = nodes
        self._timeout = timeout
        self._parents = parents

    def __enter__(self) -> ResultWait:
        try:
            self._reader.begin(self, self._nodes, self._timeout, self._parents)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        nodes, parents = self._nodes, self._parents
        self._reader.end(self, nodes + parents if parents else nodes)

    def __await__(self) -> Generator[Any, Any, Sequence[Any]]:
        late = self.expired
        yield from super().__await__()
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        self.raise_errors()
        arrived = self.take()
        # What is told when the time is up is taken once. Else messages could put the end off.
        if not arrived and self.expired and (late or not self.metas):
            raise TimeoutError("The operation timed out.")
        return arrived


class LoopReader:
    """One event loop: what is awaited in it, and the socket while the loop watches it.

    Call everything in the loop, except ``ring``, ``ring_again``, ``role_is_free``, ``abandon`` and
    ``close_watched``.
    """

    def __init__(self, loops: Loops, loop: AbstractEventLoop) -> None:
        self.loop = loop
        #: The waits that have begun, each with the timer of its timeout.
        self.waits: dict[ResultWait, TimerHandle | None] = {}
        #: Waits with news, to be resumed.
        self.told: list[LoopWait] = []
        self._loops = loops
        self._side = loops.side
        #: Whether ``_look`` is due, or runs.
        self._rung = False
        #: The thread of the last ``_look``, and whether another one has given the reading role back
        #: since it began.
        self._thread = 0
        self._role_was_freed = False
        self._watched: Intake | None = None
        #: A duplicate of the watched socket's descriptor. The connection closes its own one at any
        #: time, and the loop would go on to watch the next file that gets that number.
        self._fd = -1

    # -- waiting -------------------------------------------------------------------------------

    def begin(
        self,
        wait: ResultWait,
        nodes: list[Any],
        timeout: float | None,
        parents: list[Any] | None,
    ) -> None:
        """Have ``wait`` told of ``nodes`` and ``parents``, and the connection looked after.

        Raises:
            fastrpc.errors.ResultDropped: one of ``nodes`` came, but is no longer kept.
        """
        side = self._side
        if not len(side.queues):
            side.queues.use_at_least(side.names.lease().name)
        timer = None if timeout is None else self.loop.call_later(timeout, wait.expire)
        self.waits[wait] = timer
        side.begin(nodes, wait)
        if parents:
            side.begin(parents, wait, obtainable=False)
        self._loops.ensure_kept()
        intake = side.reader.intake
        if self._watched is None or intake is not self._watched or intake.behind:
            self.ring()

    def end(self, wait: ResultWait, nodes: list[Any]) -> None:
        """Undo ``begin``, also one that was interrupted."""
        timer = self.waits.pop(wait, None)
        if timer is not None:
            timer.cancel()
        self._side.matcher.fulfiller.give_up(nodes, wait)

    # -- being told ----------------------------------------------------------------------------

    def ring(self) -> None:
        """Have ``_look`` run in the loop soon. From any thread."""
        if self._rung:
            return
        self._rung = True
        try:
            self.loop.call_soon_threadsafe(self._look)
        except BaseException as exc:
            self._rung = False
            if not isinstance(exc, RuntimeError):
                raise
            self._loops.forget(self)  # the loop is closed

    def ring_again(self) -> None:
        """Repeat ``ring``, which an exception may have interrupted. From any thread."""
        if self.told:
            self._rung = False
            self.ring()

    def role_is_free(self, intake: Intake) -> None:
        """Nobody else reads from ``intake`` any more. From any thread."""
        # TLS, too, may hold data that the socket does not show.
        if intake is not self._watched or intake.readers_only or intake.holds_some:
            if threading.get_ident() != self._thread:
                self._role_was_freed = True  # a look that runs may have found it taken
            self.ring()

    def _look(self) -> None:
        """Read, if the loop is the one to read, and resume the waits that have news."""
        self._rung, self._role_was_freed = True, False
        self._thread = threading.get_ident()
        try:
            again = self._read_itself()
        finally:
            # In this order: a wait that is told from here on rings again.
            self._rung = False
            self._resume()
        if again or self._role_was_freed:
            self.ring()

    def _resume(self) -> None:
        told = self.told
        while told:
            batch = told[:]
            del told[: len(batch)]
            for wait in batch:
                wait.resume()

    # -- reading -------------------------------------------------------------------------------

    def _read_itself(self) -> bool:
        """Read if no other thread does; return whether to call it again soon."""
        loops = self._loops
        if not self.waits:
            self._unwatch()
            loops.forget(self)
            return False
        if not loops.reads_itself(self):
            self._unwatch()
            loops.ring()
            return False
        again: bool | None = loops.role.run(self._take_in)
        if again is not None:
            return again
        self._unwatch()
        # The thread that reads tells us when it has finished, but not if that was before _unwatch.
        return not (loops.role.reading or loops.role.claimed)

    def _take_in(self) -> bool:
        consumer = self._side.reader
        intake = consumer.intake
        if intake is None:
            return True
        if intake.spoiled or intake.behind:
            self._loops.ring()
            if intake.spoiled:
                return False
        intake.put_off = self._loops.ring
        try:
            self._watch(intake)
            if intake.has_some():
                consumer.take_in(intake, 0.0)
            return intake.readers_only and intake.readable()
        except intake.errors as exc:
            self._unwatch()
            self._loops.found_lost(intake, exc)
            return False
        finally:
            intake.put_off = None

    def _watch(self, intake: Intake) -> None:
        if self._watched is intake:
            return
        self._unwatch()
        self._fd = os.dup(intake.fileno())
        self._watched = intake
        self.loop.add_reader(self._fd, self._look)

    def _unwatch(self) -> None:
        if self._watched is not None:
            self.loop.remove_reader(self._fd)
            self.close_watched()

    def abandon(self) -> None:
        """Forget the waits of a closed loop: they never resume. From any thread."""
        while self.waits:
            wait, _ = self.waits.popitem()
            wait.drop()
        self.close_watched()

    def close_watched(self) -> None:
        """Close our descriptor of the socket without telling the loop. From any thread."""
        fd, self._fd, self._watched = self._fd, -1, None
        if fd >= 0:
            os.close(fd)
