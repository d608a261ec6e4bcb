"""Runs a connection in kombu's event loop, which sees the socket but not our read buffer."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

from amqp.exceptions import RecoverableConnectionError

__all__ = ["Alarm", "LoopReader"]

#: After this many seconds of deliveries the loop gets its turn, for its timers, its other sockets
#: and a request to shut down.
LONGEST_TURN = 0.01


class Alarm:
    """A file descriptor that is readable while the alarm is set: then the loop does not sleep.

    The pipe is the only state: a flag beside it could differ from it, if two threads meet.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        with suppress(OSError):  # the pipe is full, or closed
            os.write(self._write, b"!")

    def clear(self) -> None:
        with suppress(BlockingIOError):  # it is empty
            os.read(self._read, 1 << 16)

    def close(self) -> None:
        ends = self._read, self._write
        self._read = self._write = -1  # another thread must not write to a descriptor of others
        for end in ends:
            os.close(end)


class LoopReader:
    """Reads a connection when the loop calls it.

    A delivery may put callbacks on the loop: those of a solo pool acknowledge the task that ran.
    They run before the next delivery is handled, so no task begins before the last one is
    acknowledged.
    """

    def __init__(self, connection: Any, loop: Any) -> None:
        self.connection, self.loop = connection, loop
        self.alarm = Alarm()

    def on_readable(self) -> None:
        """Handle everything that has arrived.

        Raises:
            RecoverableConnectionError: the connection is lost. py-amqp raises other exceptions too.
        """
        connection = self.connection
        if not connection.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        connection.consuming_thread = threading.get_ident()
        with connection.reading_lock.within(0) as taken:
            some_are_left = taken and self._serve(monotonic() + LONGEST_TURN)
        if some_are_left:  # more than a part of a frame
            self.alarm.set()

    def on_alarm(self) -> None:
        """Handle what was read and not handled; see ``on_readable``."""
        # Before the turn: another thread may leave a delivery at its end, and set the alarm again.
        self.alarm.clear()
        self.on_readable()

    def _serve(self, until: float) -> bool:
        """Handle what arrives; return whether the time ``until`` came before all was handled."""
        connection, loop = self.connection, self.loop
        reader = connection.reader
        while True:
            if loop._ready:
                for callback in loop._pop_ready():
                    if callback:
                        callback()
            if connection.left_deliveries:
                connection.left_deliveries.popleft()()
            elif kind := reader.next():
                served = connection.dispatch(kind)
                if isinstance(served, partial):
                    served()
                if monotonic() >= until:
                    return bool(reader.buffered)
            elif not connection.fill_now():
                return False

    def close(self) -> None:
        """Remove the alarm from the loop: the connection has ended."""
        self.loop.remove(self.alarm.fileno())
        self.alarm.close()
