"""A connection under kombu's event loop, which looks at sockets and not into our read buffer."""

from __future__ import annotations

import os
from time import monotonic
from typing import Any

from amqp.exceptions import RecoverableConnectionError

__all__ = ["Alarm", "LoopReader"]

#: Seconds after which no other delivery is served before the loop has looked at its timers, its
#: other sockets and whether to shut down.
AT_MOST = 0.01


class Alarm:
    """A file descriptor that is readable while set: the loop does not sleep then."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        self._is_set = False

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            os.write(self._write, b"!")

    def clear(self) -> None:
        if self._is_set:
            self._is_set = False
            os.read(self._read, 1)

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


class LoopReader:
    """Serves a connection in the loop's turns.

    What a delivery asks the loop for is done before the next one is served: of a solo pool that is
    the acknowledgement of the task that ran. So no task begins before the last is acknowledged.
    """

    def __init__(self, connection: Any, loop: Any) -> None:
        self.connection, self.loop = connection, loop
        self.alarm = Alarm()

    def on_readable(self) -> None:
        """Serve what is there.

        Raises:
            RecoverableConnectionError: the connection is lost, as whatever py-amqp raises.
        """
        connection = self.connection
        if not connection.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        with connection.reading_lock.within(0) as taken:
            some_are_left = taken and self._serve(monotonic() + AT_MOST)
        if some_are_left:
            self.alarm.set()
        else:  # what is left is part of a frame, if anything
            self.alarm.clear()

    def _serve(self, until: float) -> bool:
        """Returns whether it has stopped, at the time ``until``, before all was served."""
        connection, loop = self.connection, self.loop
        reader = connection.reader
        while True:
            if loop._ready:
                for item in loop._pop_ready():
                    if item:
                        item()
            if kind := reader.next():
                connection.dispatch(kind)
                if monotonic() >= until:
                    return bool(reader.buffered)
            elif not connection.fill_now():
                return False

    def close(self) -> None:
        """The connection has ended."""
        self.loop.remove(self.alarm.fileno())
        self.alarm.close()
