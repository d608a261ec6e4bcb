"""The connection over which a process reads the queues of chords, and sends bodies."""

from __future__ import annotations

from typing import Any

import kombu
from amqp.exceptions import NotFound

from ..transport.dial import connect, errors_of
from ..transport.transports import use_our_transport

__all__ = ["ANSWER_TIMEOUT", "ChordConnection"]

#: How long, in seconds, each answer of the broker may take.
ANSWER_TIMEOUT = 30.0

#: How long, in seconds, to wait for parts that another process holds. It gives them back, or
#: deletes the queue.
HELD_TIMEOUT = 15.0

#: Seconds. The heartbeat lets the broker notice that this host has died; it then gives back the
#: parts that we hold. It must be longer than the time without a part after which we hang up
#: (``joiner.IDLE``), because nobody sends heartbeats meanwhile.
HEARTBEAT = 20


class BodyProducer(kombu.Producer):
    """Every publish waits for the broker's confirm. Nothing is retried here."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        return super().publish(*args, **{**kwargs, "retry": False})


class ChordConnection:
    """One connection to the broker, used by one thread.

    Every method that talks to the broker raises one of ``errors`` if the connection is lost.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """

    def __init__(self, app: Any) -> None:
        self._connection = use_our_transport(
            app.connection_for_write(heartbeat=HEARTBEAT),
            answer_timeout=ANSWER_TIMEOUT,
            confirm_publish=True,
        )
        self._channel: Any = None
        self.errors = errors_of(self._connection)
        connect(self._connection)
        self._amqp = self._connection.connection
        #: Sends bodies.
        self.producer = BodyProducer(self._connection)

    def _open_channel(self) -> Any:
        if self._channel is None:
            self._channel = self._connection.channel()
        return self._channel

    def count(self, queue: str) -> tuple[int, int] | None:
        """How many messages are ready in ``queue``, and how many consumers it has.

        None if there is no such queue.
        """
        try:
            _, ready, consumers = self._open_channel().queue_declare(queue, passive=True)
            return int(ready), int(consumers)
        except NotFound as exc:
            _raise_unless_gone(exc)
            return None

    def take(self, queue: str, count: int) -> list[Any] | None:
        """Consume ``count`` messages of ``queue``, and whatever else comes with them.

        Fewer if nothing more comes for a while: another process holds them, or the broker stalls.
        None if the queue is gone.
        """
        channel = self._open_channel()
        messages: list[Any] = []
        gone: list[str] = []
        try:
            channel.basic_consume(queue, callback=messages.append, on_cancel=gone.append)
            while len(messages) < count and not gone:
                self._connection.drain_events(timeout=HELD_TIMEOUT)
        except NotFound as exc:
            _raise_unless_gone(exc)
            return None
        except TimeoutError:
            pass
        if gone:
            return None
        return messages

    def put_back(self) -> None:
        """Give back what was taken: the broker requeues it when the channel closes."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def delete(self, queue: str) -> None:
        """Delete ``queue`` with all that is in it, and what was taken from it."""
        self._open_channel().queue_delete(queue)

    def hang_up(self) -> None:
        """Close the connection without waiting for an answer."""
        self._connection.collect(0.1)

    def abandon(self) -> None:
        """Drop the connection in a forked child and send nothing: it is the parent's."""
        self._amqp.abandon()


def _raise_unless_gone(exc: NotFound) -> None:
    """Return if there is no queue (py-amqp has opened the channel again).

    The broker answers in the same way while the node of a classic queue is down.
    """
    if "no queue" not in exc.reply_text:
        raise exc
