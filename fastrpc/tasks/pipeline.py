"""``confirm_publish="pipelined"``: tasks that are kept until the broker has confirmed them.

The publisher of results does the work, with a connection and a window of its own.
"""

from __future__ import annotations

import threading
from typing import Any

from .._lifecycle import register
from ..options import Options
from ..sending.publisher import AMQPPublisher
from ..stats import Stats
from ..transport.writer import encoded_body
from ..wire._frames import FrameBuffer

__all__ = ["Pipeline"]

#: delivery_mode of results; the tasks bring theirs.
PERSISTENT = 2


class Task:
    """The message of a task, encoded."""

    __slots__ = ("_frames", "body", "correlation_id")

    def __init__(self, connection: Any, message: Any, exchange: Any, key: Any, mandatory: bool):
        """Raises TableError, struct.error: it cannot be encoded."""
        self.correlation_id = message.properties.get("correlation_id")
        self.body: Any = encoded_body(message)
        self._frames = FrameBuffer()
        properties, size = message.properties, len(self.body)
        self._frames.publish(1, exchange, key, mandatory, False, properties, size)
        self._frames.body(1, self.body, connection.frame_max)

    def frames(self, channel: int) -> bytes:
        """All of its frames, on that channel."""
        self._frames.set_channel(channel)
        with self._frames.view() as view:
            return bytes(view)  # an error's traceback may keep them


class Pipeline:
    """The tasks on their way to one broker. Makes its publisher when the first is sent.

    It knows no app: kombu's pools, which outlive apps, hold it.
    """

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._publisher: AMQPPublisher | None = None
        self._making = threading.Lock()

    def publish(self, channel: Any, message: Any, exchange: Any, key: Any, mandatory: bool) -> None:
        """Send a task, and keep it until it is confirmed; waits only where the window is full.

        Raises:
            kombu.exceptions.OperationalError: the broker cannot be reached, or refuses us.
            TableError, struct.error: a header or property cannot be encoded; nothing was sent.
        """
        task = Task(channel.connection, message, exchange, key, mandatory)
        channel.connection.frame_writer.flush()  # the declaration of the reply queue
        (self._publisher or self._make_publisher()).publish(task)

    def _make_publisher(self) -> AMQPPublisher:
        with self._making:
            if self._publisher is None:
                self._publisher = AMQPPublisher(
                    self, PERSISTENT, Options(), Stats(), lambda too_large: None
                )
                register(self)
            return self._publisher

    def connection_for_write(self, heartbeat: float) -> Any:
        """The publisher's own connection, not yet opened."""
        return self.connection.clone(heartbeat=heartbeat)

    def flush(self) -> None:
        """Wait until all is confirmed, as long as for results at most, and hang up."""
        if self._publisher is not None:
            self._publisher.close(Options.shutdown_timeout)

    def leave(self, timeout: float) -> bool:
        """The process ends: all is flushed, and nothing open."""
        return True

    def after_fork(self) -> None:
        """Begin anew in the child; what is open belongs to the parent."""
        self._making = threading.Lock()
        if self._publisher is not None:
            self._publisher.after_fork()
