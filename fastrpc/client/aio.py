"""Event loops that wait for results, beside the threads of reader.py.

An ``await`` is a ``Wait`` that is woken in its loop. A loop that waits alone reads the socket
itself: it watches it with ``add_reader`` and takes in what is there. As soon as anybody else
waits, a thread reads, as ever, and the loop is told: a thread in ``get()``, or the keeper.

A loop never writes, and never waits for the broker. What may do so is left to the keeper, one
thread that is there while anything is awaited: it connects, declares, acknowledges and sends
heartbeats. It also reads where a loop cannot: for several loops at once, so that none depends on
another, and over transports that have no socket to watch.
"""

from __future__ import annotations

import logging
import os
import threading
from asyncio import AbstractEventLoop, TimerHandle
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from celery.exceptions import TimeoutError

from .._lock import Lock, start_thread
from ._wait import LoopWait, Wait
from .intake import INTERVAL, Intake
from .reader import CONNECT_TIMEOUT
from .side import ClientSide

__all__ = ["LoopReader", "Loops"]

logger = logging.getLogger("fastrpc")


class Loops:
    """The event loops that wait for the results of one app, and their keeper.

    Args:
        side: What takes in the results.
    """

    def __init__(self, side: ClientSide) -> None:
        self.side = side
        self.consumer = side.reader
        self.role = side.role
        self._begin()

    def _begin(self) -> None:
        self._readers: dict[AbstractEventLoop, LoopReader] = {}
        #: What the keeper that is there was started with.
        self._keeper: object | None = None
        self._lock = Lock()
        #: Released, it wakes the keeper. No Event: that can be interrupted with its own lock held.
        self._bell = threading.Lock()
        self._bell.acquire()
        #: A connection that a loop has found lost, and why.
        self._lost: tuple[Intake, Exception] | None = None
        self.role.on_free = self._on_free

    def after_fork(self) -> None:
        """Begin anew in the child. The parent's loops are left alone: their epoll is shared."""
        for reader in self._readers.values():
            reader.close_watched()
        self._begin()

    def reader(self, loop: AbstractEventLoop) -> LoopReader:
        """What waits, and reads, in ``loop``. Called in it."""
        reader = self._readers.get(loop)
        if reader is None:
            reader = self._readers[loop] = LoopReader(self, loop)
        return reader

    def waiting(self) -> list[LoopReader]:
        """The loops in which something is awaited."""
        waiting = []
        for reader in list(self._readers.values()):
            if reader.loop.is_closed():
                self.forget(reader)
            elif reader.waits:
                waiting.append(reader)
        return waiting

    def forget(self, reader: LoopReader) -> None:
        """Nothing is awaited in its loop, or the loop is closed."""
        self._readers.pop(reader.loop, None)
        if reader.loop.is_closed():
            reader.abandon()

    def reads_itself(self, reader: LoopReader) -> bool:
        """Whether this loop is to read, which waits, and not the keeper."""
        intake = self.consumer.intake
        return intake is not None and intake.watchable and self.waiting() == [reader]

    def _on_free(self) -> None:
        # By who has just read. A keeper that reads comes back by itself, a loop does not.
        waiting = self.waiting()
        if len(waiting) == 1:
            intake = self.consumer.intake
            if intake is None:
                self.ring()
            elif intake.watchable:
                waiting[0].role_is_free(intake)

    def found_lost(self, intake: Intake, exc: Exception) -> None:
        """A loop cannot read from ``intake`` any more; closing it may take time."""
        self._lost = intake, exc
        self.ring()

    # -- the keeper ----------------------------------------------------------------------------

    def ensure_kept(self) -> None:
        """Have a keeper."""
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
        """Have the keeper look now."""
        if self._bell.locked():
            with suppress(RuntimeError):  # somebody else was faster
                self._bell.release()

    def _keep(self, me: object) -> None:
        """Look after the connection until nothing is awaited any more, and a while longer."""
        try:
            while self._keeper is me and self._keep_on():
                pass
        finally:  # also where a callback of a result has ended this thread
            if self._keeper is me:
                self._keeper = None
                if self._is_needed():
                    self.ensure_kept()
                for reader in list(self._readers.values()):
                    reader.ring()  # it lets go of the socket

    def _keep_on(self) -> bool:
        """One turn; returns whether there is to be another."""
        waiting = self.waiting()
        try:
            reads = self._look_after(waiting)
        except Exception as exc:
            reads = False
            self._fail(waiting, exc)
        for reader in waiting:
            reader.ring_again()
        return reads or self._bell.acquire(timeout=self._interval()) or self._is_needed()

    def _is_needed(self) -> bool:
        intake = self.consumer.intake
        owes = intake is not None and intake.owes_acknowledgement
        return owes or bool(self.waiting())

    def _interval(self) -> float:
        intake = self.consumer.intake
        return INTERVAL if intake is None else intake.interval

    def _look_after(self, waiting: list[LoopReader]) -> bool:
        """Returns whether it has read, as threads do, and is to come back at once."""
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
        """Whoever waits learns why it is no use, as a thread in ``get()`` does."""
        if not waiting:
            logger.error("cannot look after the connection for results", exc_info=exc)
        for reader in waiting:
            for wait in list(reader.waits):
                wait.fail(exc)


class LoopReader:
    """One event loop: what it waits for, and the socket while it watches it.

    All but ``ring`` and ``role_is_free`` are called in the loop.
    """

    def __init__(self, loops: Loops, loop: AbstractEventLoop) -> None:
        self.loop = loop
        #: What is awaited, and until when.
        self.waits: dict[LoopWait, TimerHandle | None] = {}
        self._loops = loops
        self._side = loops.side
        #: Waits with news, which are to go on.
        self._told: list[LoopWait] = []
        #: Whether ``_look`` is due, or at it.
        self._rung = False
        self._watched: Intake | None = None
        #: A descriptor of our own for the watched socket: whoever closes the connection would have
        #: the loop watch whatever gets its number next.
        self._fd = -1

    # -- waiting -------------------------------------------------------------------------------

    def begin(
        self,
        nodes: list[Any],
        timeout: float | None,
        parents: list[Any] | None = None,
        listens: bool = False,
    ) -> LoopWait:
        """A wait that hears of ``nodes`` and ``parents``; give it to ``end``, whatever happens.

        With ``listens`` it also hears of messages on the reply queues of the process.

        Raises:
            fastrpc.errors.ResultDropped: one of ``nodes`` came, but is no longer kept.
        """
        side = self._side
        if not len(side.queues):
            side.queues.use_at_least(side.names.lease().name)
        wait = LoopWait(self.loop, self._told, self.ring, True if listens else None)
        try:
            timer = None if timeout is None else self.loop.call_later(timeout, wait.expire)
            self.waits[wait] = timer
            side.begin(nodes, wait)
            if parents:
                side.begin(parents, wait, obtainable=False)
            self._loops.ensure_kept()
        except BaseException:
            self.end(nodes, wait, parents)
            raise
        intake = side.reader.intake
        if self._watched is None or intake is not self._watched or intake.behind:
            self.ring()
        return wait

    def end(self, nodes: list[Any], wait: LoopWait, parents: list[Any] | None = None) -> None:
        """The wait is over, also where it was cancelled: nothing of it is left."""
        timer = self.waits.pop(wait, None)
        if timer is not None:
            timer.cancel()
        self._side.matcher.fulfiller.give_up(nodes + parents if parents else nodes, wait)

    def take(self, wait: LoopWait) -> Sequence[Any]:
        """The results of ``wait`` that became ready since the last call.

        Raises:
            celery.exceptions.TimeoutError: there are none, and its time is up.
            Exception: waiting is no use, or a callback of a result has raised it.
        """
        if wait.failure is not None:
            raise wait.failure.with_traceback(None)
        wait.raise_errors()
        arrived = wait.take()
        if not arrived and not wait.metas and wait.expired:
            raise TimeoutError("The operation timed out.")
        return arrived

    # -- being told ----------------------------------------------------------------------------

    def ring(self) -> None:
        """Have the loop look soon. From any thread."""
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
        """An exception may have been thrown into who was to ring. From any thread."""
        if self._told:
            self._rung = False
            self.ring()

    def role_is_free(self, intake: Intake) -> None:
        """Nobody else reads from ``intake`` any more. From any thread."""
        # TLS, too, may hold what no socket tells of.
        if intake is not self._watched or intake.readers_only or intake.holds_some:
            self.ring()

    def _look(self) -> None:
        """Read, if that is for the loop to do, and have those go on who have news."""
        self._rung = True
        try:
            again = self._read_itself()
        finally:
            # In this order: who is told from here on rings anew.
            self._rung = False
            self._resume()
        if again:
            self.ring()

    def _resume(self) -> None:
        told = self._told
        while told:
            batch = told[:]
            del told[: len(batch)]
            for wait in batch:
                wait.resume()

    # -- reading -------------------------------------------------------------------------------

    def _read_itself(self) -> bool:
        """Returns whether it is to be called again soon."""
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
        # Who reads tells us when it is over; it may have been over before we did not watch.
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
            if intake.holds_some or intake.readable():
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
        """The loop is closed, and whoever awaits in it never goes on. From any thread."""
        while self.waits:
            wait, _ = self.waits.popitem()
            wait.drop()
        self.close_watched()

    def close_watched(self) -> None:
        """Close our descriptor of the socket, without a word to the loop."""
        fd, self._fd, self._watched = self._fd, -1, None
        if fd >= 0:
            os.close(fd)
