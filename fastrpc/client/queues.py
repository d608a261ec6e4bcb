"""The reply queues of this process: when each must be declared, and how they are deleted.

A declared queue may be gone at the next call: it expired unused, or was deleted, or the broker lost
it. So every call repeats the declaration ahead of the task, on the same channel. Only the first
call on a connection waits for the answer. The others ask for none (``no-wait``, AMQP 0-9-1
1.7.2.1), so they cost no round trip. But such a declaration does not renew RabbitMQ's
``x-expires``, so one that waits for the answer is due well before the queue expires.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from amqp import spec
from amqp.exceptions import PreconditionFailed, RecoverableConnectionError
from amqp.serialization import dumps
from kombu import Queue
from kombu.common import maybe_declare

from ..errors import ReplyQueueMismatch, ReplyQueueRefused
from ..transport.dial import connect, errors_of
from ..transport.transports import is_amqp, use_our_transport
from ..transport.writer import FrameWriter
from ..wire._poll import hung_up
from .names import is_unread

__all__ = ["ReplyQueues", "make_queue"]

logger = logging.getLogger("fastrpc")

#: After this part of ``x-expires`` a call waits for the answer to its declaration, which renews it.
RENEW_AFTER = 0.25

#: How often a quorum queue may deliver a result again before it drops it. Each reconnection of a
#: client is one, and RabbitMQ 4 allows 20 by default. Not -1: RabbitMQ 4 reads it as unlimited,
#: older versions as no redelivery at all.
DELIVERY_LIMIT = 2**31 - 1

#: For each this many queues, one more channel deletes them: RabbitMQ takes about a millisecond to
#: delete a durable queue, and deletes the queues of one channel one after the other.
DELETED_ON_ONE_CHANNEL = 32

#: At most this many channels delete queues.
MOST_DELETING_CHANNELS = 4

#: One of this many deletions waits for the broker's answer, which shows that the broker works.
DELETED_FOR_AN_ANSWER = 256


def make_queue(
    name: str,
    *,
    queue_class: type[Queue],
    exchange: Any,
    expires: float | None,
    queue_type: str,
    max_bytes: int | None,
    max_unread: int,
    max_unread_bytes: int,
) -> Queue:
    """The reply queue ``name``; ``expires`` in seconds, None or 0 for never."""
    arguments: dict[str, Any] = {"x-queue-type": queue_type}
    if queue_type == "quorum":
        arguments["x-delivery-limit"] = DELIVERY_LIMIT
    if is_unread(name):  # over the limit the broker drops the oldest results
        arguments["x-max-length"] = max_unread
        arguments["x-max-length-bytes"] = max_unread_bytes
    elif max_bytes is not None:  # over the limit the broker refuses results; workers keep them
        arguments["x-max-length-bytes"] = max_bytes
        arguments["x-overflow"] = "reject-publish"
    return queue_class(
        name,
        exchange,
        name,
        durable=True,
        auto_delete=False,
        expires=expires or None,
        queue_arguments=arguments,
    )


class ReplyQueues:
    """The reply queues of this process, one or two for each thread that sends tasks.

    Args:
        make: Makes the queue of a name, unbound.
        expires: Seconds after which the broker drops an unused queue, or None.
        connect: Makes an unopened kombu connection, over which the queues can be deleted.

    The object outlives its app, so it must not hold a reference to the app.
    """

    def __init__(
        self, make: Callable[[str], Queue], expires: float | None, connect: Callable[[], Any]
    ) -> None:
        self.make = make
        self.expires = expires
        self._connect = connect
        self._renew_at: dict[str, float] = {}
        self._encoded: dict[str, bytes] = {}

    @property
    def names(self) -> list[str]:
        return list(self._renew_at)

    def __len__(self) -> int:
        return len(self._renew_at)

    def __contains__(self, name: str) -> bool:
        return name in self._renew_at

    def clear(self) -> None:
        self._renew_at.clear()
        self._encoded.clear()

    def use_at_least(self, *names: str) -> None:
        """Use the queues ``names`` if this process has none, because it has sent no task yet."""
        if not self._renew_at:
            self._renew_at.update(dict.fromkeys(names, 0.0))

    def doubt(self, name: str) -> None:
        """Make the next call wait for the answer to its declaration of ``name``."""
        if name in self._renew_at:
            self._renew_at[name] = 0.0

    def declare_for_call(self, name: str, channel: Any, again: bool = True) -> None:
        """Declare ``name`` so that it exists when the next message on ``channel`` arrives.

        Without ``again``, a declaration that the broker has answered is not repeated.

        Raises:
            ReplyQueueMismatch: a queue of that name exists with other arguments.
            ReplyQueueRefused: the broker refuses to make it.
        """
        if channel.connection is None:  # closed in the pool; kombu raises the same error
            raise RecoverableConnectionError("channel disconnected")
        client = channel.connection.client
        if name in client.declared_entities and time.monotonic() < self._renew_at.get(name, 0.0):
            if not again or not speaks_amqp(channel):
                return
            # If the connection died in the pool, maybe_declare() below reconnects, as it does for
            # rpc://. Do not write the declaration to a connection that the peer has closed: the
            # kernel accepts the bytes and they are lost. The task is then published on the next
            # connection, without the declaration.
            with suppress(*client.recoverable_connection_errors):
                if not hung_up(channel.connection.sock.fileno()):
                    self._repeat(name, channel)
                    return
        queue = self.make(name)(channel)
        with explained_refusal(name):
            maybe_declare(queue, retry=True)
        self._declared(name, queue.channel)

    def _repeat(self, name: str, channel: Any) -> None:
        """Declare ``name`` again without waiting. The arguments are encoded only once."""
        arguments = self._encoded.get(name)
        if arguments is None:
            queue: Any = self.make(name)
            table = channel.prepare_queue_arguments(queue.queue_arguments, expires=queue.expires)
            passive, exclusive, auto_delete, nowait = False, False, queue.auto_delete, True
            arguments = self._encoded[name] = dumps(
                "BsbbbbbF", (0, name, passive, queue.durable, exclusive, auto_delete, nowait, table)
            )
        writer = channel.connection.frame_writer
        if isinstance(writer, FrameWriter):
            # The declaration leaves in one write with the task.
            writer.write_later(channel.channel_id, spec.Queue.Declare, arguments)
        else:
            writer(1, channel.channel_id, spec.Queue.Declare, arguments, None)

    def declare(self, name: str, channel: Any) -> int:
        """Declare ``name`` now; return the number of messages in it.

        Raises:
            ReplyQueueMismatch: a queue of that name exists with other arguments.
            ReplyQueueRefused: the broker refuses to make it.
        """
        with explained_refusal(name):
            _, messages, _ = self.make(name)(channel).queue_declare()
        self._declared(name, channel)
        return int(messages)

    def _declared(self, name: str, channel: Any) -> None:
        channel.connection.client.declared_entities.add(name)
        self._renew_at[name] = time.monotonic() + (self.expires or float("inf")) * RENEW_AFTER

    def delete(self, channel: Any) -> None:
        """Delete all queues of this process, and the messages in them."""
        names = self.names
        # Cleared first: the broker sends basic.cancel for each deleted queue that is consumed, and
        # a queue of this process would then be declared again.
        self.clear()
        try:
            channels = [channel]
            more = min(len(names) // DELETED_ON_ONE_CHANNEL, MOST_DELETING_CHANNELS - 1)
            if more and speaks_amqp(channel):
                channels += [channel.connection.channel() for _ in range(more)]
            for n, name in enumerate(names):
                # RabbitMQ handles a channel's methods in order, so the answer to the last deletion
                # is enough. A few more answers show that the broker works, however many there are.
                left = len(names) - n
                answered = left <= len(channels) or not left % DELETED_FOR_AN_ANSWER
                self.make(name)(channels[n % len(channels)]).delete(nowait=not answered)
        except BaseException:
            self._renew_at.update(dict.fromkeys(names, 0.0))
            raise

    def leave(self, timeout: float) -> bool:
        """Delete all queues over a new connection, within about ``timeout`` seconds.

        Returns:
            Whether the broker has deleted them. If not, they expire (``x-expires``).
        """
        if not self._renew_at:
            return True
        connection = self._connect()
        if is_amqp(connection):
            use_our_transport(connection, answer_timeout=timeout)
        try:
            connect(connection, timeout)
            self.delete(connection.default_channel)
            connection.close()
            return True
        except errors_of(connection) as exc:
            logger.debug("cannot delete the reply queues: %s", exc)
            return False


@contextmanager
def explained_refusal(name: str) -> Iterator[None]:
    try:
        yield
    except PreconditionFailed as exc:
        if exc.method_sig not in (None, spec.Queue.Declare):
            raise  # the error is about an earlier message on the channel
        if "inequivalent" not in exc.reply_text:
            raise ReplyQueueRefused(
                f"the broker refuses to make the reply queue {name}: {exc.reply_text}; "
                "see result_expires, and the limits of the virtual host"
            ) from exc
        raise ReplyQueueMismatch(
            f"the reply queue {name} exists on the broker with other arguments, as rpc:// or "
            "other settings of fastrpc:// make it; delete it, or restart this process to get "
            f"another name ({exc.reply_text})"
        ) from exc


def speaks_amqp(channel: Any) -> bool:
    """Whether ``channel`` is a real AMQP channel, not one that kombu emulates."""
    return bool(channel.connection.client.transport.driver_type == "amqp")
