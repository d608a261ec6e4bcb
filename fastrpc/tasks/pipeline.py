"""``confirm_publish="pipelined"``: each task is kept until the broker has confirmed it.

An ``AMQPPublisher``, which also sends results, does the work. This one has its own connection and
window.
"""

from __future__ import annotations

from typing import Any

from .._lifecycle import register
from ..options import Options
from ..sending.publisher import AMQPPublisher
from ..stats import SentStats
from ..transport.writer import encoded_body
from ..wire._frames import FrameBuffer

__all__ = ["Pipeline"]

#: Tasks carry their own delivery mode. The publisher's makes its window follow the rate at which
#: the broker confirms.
PERSISTENT = 2


class Task:
    """The encoded message of a task."""

    __slots__ = ("_frames", "body", "correlation_id")

    def __init__(self, connection: Any, message: Any, exchange: Any, key: Any, mandatory: bool):
        """
        Raises:
            TableError, struct.error: the message cannot be encoded.
        """
        self.correlation_id = message.properties.get("correlation_id")
        self.body: Any = encoded_body(message)
        self._frames = FrameBuffer()
        properties, size = message.properties, len(self.body)
        self._frames.publish(1, exchange, key, mandatory, False, properties, size)
        self._frames.body(1, self.body, connection.frame_max)

    def frames(self, channel: int) -> bytes:
        """All frames of the message, for that channel."""
        self._frames.set_channel(channel)
        with self._frames.view() as view:
            return bytes(view)  # a copy: the traceback of a failed write may keep it


class Pipeline:
    """Sends tasks to one broker with pipelined confirms. Makes its publisher for the first task.

    It holds no reference to an app, because kombu's pools hold it and outlive apps.
    """

    _publisher: AMQPPublisher | None = None

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def publish(self, channel: Any, message: Any, exchange: Any, key: Any, mandatory: bool) -> None:
        """Send a task, and keep it until it is confirmed. Waits only while the window is full.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached, or refuses the
                connection.
            TableError, struct.error: a header or property cannot be encoded; nothing was sent.
        """
        task = Task(channel.connection, message, exchange, key, mandatory)
        # Writes the declaration of the reply queue, which must reach the broker before the task.
        channel.connection.frame_writer.flush()
        (self._publisher or self._make_publisher()).publish(task)

    def _make_publisher(self) -> AMQPPublisher:
        made = AMQPPublisher(self, PERSISTENT, Options(), SentStats(), lambda too_large: None)
        # First: what interrupts this must not leave a publisher that is never flushed.
        register(self)
        # No lock: a destructor or a signal handler that interrupts this may send a task too.
        publisher: AMQPPublisher = self.__dict__.setdefault("_publisher", made)
        return publisher

    def connection_for_write(self, heartbeat: float) -> Any:
        """The publisher's own connection, not yet opened."""
        return self.connection.clone(heartbeat=heartbeat)

    def load(self) -> None:
        """Nothing to make: it registers itself when it has made its publisher."""

    def flush(self) -> None:
        """Wait until all tasks are confirmed, at most for ``shutdown_timeout``, and hang up."""
        if self._publisher is not None:
            self._publisher.close(Options().shutdown_timeout)

    def leave(self, timeout: float) -> bool:
        """Nothing to do at the end of the process: ``flush`` has closed the connection."""
        return True

    def after_fork(self) -> None:
        """Start afresh in the child: the open connection belongs to the parent."""
        if self._publisher is not None:
            self._publisher.after_fork()
