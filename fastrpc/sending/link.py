"""One connection on which results are sent, and on which their confirms come back.

It lives as long as the socket: what must outlive it, the window, is the publisher's.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any, NamedTuple

from amqp.serialization import dumps

from ..stats import Stats
from ..transport.dial import ANSWER_TIMEOUT, connect, errors_of, failure
from ..transport.transports import use_our_transport
from ..wire._encoder import PublishEncoder
from ._window import ConfirmWindow

__all__ = ["Link", "Lost", "Message"]

logger = logging.getLogger("fastrpc")

#: Seconds after which a write that makes no progress means that the connection is lost.
WRITE_TIMEOUT = 30

#: py-amqp has the kernel give up a connection on which the broker reads nothing for one second;
#: a busy broker may well take longer.
PATIENT_SOCKET = (
    {socket.TCP_USER_TIMEOUT: WRITE_TIMEOUT * 1000} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
)

NO_HEADERS = dumps("F", [{}])


class Lost(Exception):
    """The link cannot be used any more; the cause says why."""


class Message(NamedTuple):
    """A result on its way."""

    routing_key: str
    correlation_id: str
    body: bytes
    content_type: str
    content_encoding: str
    #: How often the broker has refused it (``basic.nack``).
    refusals: int = 0


class Link:
    """An open connection for sending results. Not thread-safe: the publisher's lock guards it.

    Args:
        connection: A kombu connection to an AMQP broker, not yet opened.
        delivery_mode: 1 transient, 2 persistent.
        confirms: Ask the broker to confirm.
        stats: Counts the results that were returned as unroutable.

    Raises:
        Lost: the broker cannot be reached, or refuses us.
    """

    def __init__(self, connection: Any, delivery_mode: int, confirms: bool, stats: Stats) -> None:
        self.stats = stats
        self.delivery_mode = delivery_mode
        #: The broker asked us to wait (``connection.blocked``).
        self.blocked = False
        #: Nothing may be sent or read any more.
        self.closed = False
        #: Messages sent; with confirms the delivery tag of the last one.
        self.sent = 0
        self._encoders: dict[tuple[str, str], PublishEncoder] = {}
        given = connection.transport_options
        self._connection = use_our_transport(
            connection,
            write_timeout=given.get("write_timeout") or WRITE_TIMEOUT,
            answer_timeout=ANSWER_TIMEOUT,
            socket_settings={**PATIENT_SOCKET, **(given.get("socket_settings") or {})},
            confirm_publish=False,  # py-amqp's own way waits for each message
        )
        self._errors = errors_of(connection)
        try:
            self._open(confirms)
        except self._errors as exc:
            self.close()
            raise Lost(failure(connection, exc)) from exc

    def _open(self, confirms: bool) -> None:
        connect(self._connection)
        self._amqp = self._connection.connection
        self._amqp.on_blocked = self._on_blocked
        self._amqp.on_unblocked = self._on_unblocked
        self._channel = self._connection.default_channel
        self._channel.events["basic_return"].add(self._on_return)
        if confirms:
            self._channel.confirm_select()
        # What is left of waiting for answers; SO_SNDTIMEO bounds a write without progress.
        self._amqp.sock.settimeout(None)
        #: By time.monotonic().
        self.opened_at = time.monotonic()

    def _lose(self, exc: BaseException) -> Lost:
        self.close()
        return Lost(str(exc) or repr(exc))

    def send(self, message: Message) -> int:
        """Write ``message`` to the socket, in one write; returns its delivery tag.

        Raises:
            Lost: the connection is gone; whether the broker got the message is not known.
        """
        key = (message.content_type, message.content_encoding)
        encoder = self._encoders.get(key) or self._new_encoder(*key)
        frames = encoder.encode(message.routing_key, message.correlation_id, message.body)
        try:
            self._amqp.transport.write(frames)
        except self._errors as exc:
            raise self._lose(exc) from exc
        except BaseException:
            # Thrown into this thread, as a soft time limit is: half of a frame may be on its way,
            # or a whole message that has no delivery tag here.
            self.close()
            raise
        self.sent += 1
        return self.sent

    def _new_encoder(self, content_type: str, content_encoding: str) -> PublishEncoder:
        encoder = PublishEncoder(
            self._channel.channel_id,
            "",
            content_type,
            content_encoding,
            NO_HEADERS,
            self.delivery_mode,
            0,
            True,
            self._amqp.frame_max,
        )
        self._encoders[content_type, content_encoding] = encoder
        return encoder

    def read(self, window: ConfirmWindow, timeout: float = 0) -> bool:
        """Take in what the broker sent, waiting for it ``timeout`` seconds; False if nothing.

        Its confirms go to ``window``.

        Raises:
            Lost: the connection is gone.
        """
        amqp = self._amqp
        heard = False
        try:
            while timeout or amqp.readable():
                try:
                    amqp.fill(timeout)
                except TimeoutError:
                    break
                heard, timeout = True, 0
                while kind := window.read(amqp.reader):
                    amqp.dispatch(kind)
        except self._errors as exc:
            raise self._lose(exc) from exc
        except BaseException:
            # As above: nobody would look at what was read and not served.
            self.close()
            raise
        return heard

    def close(self) -> None:
        """Hang up without waiting for an answer."""
        self.closed = True
        self._connection.collect(0.1)

    def goodbye(self, timeout: float) -> None:
        """Close in order, so that the broker has taken in all that was sent."""
        if not self._connection.connected:
            return
        try:
            self._amqp.sock.settimeout(timeout)
            self._amqp.answer_timeout = timeout
            self._connection.close()
        except self._errors as exc:
            logger.debug("closing the connection for sending results: %s", exc)

    def abandon(self) -> None:
        """Let go of the connection without a word on it: it is the parent process's."""
        self._amqp.abandon()

    def _on_blocked(self, reason: str) -> None:
        self.blocked = True
        logger.warning("the broker blocks publishing, results wait: %s", reason)

    def _on_unblocked(self) -> None:
        self.blocked = False
        logger.warning("the broker takes results again")

    def _on_return(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self.stats.returned += 1
        logger.debug(
            "nobody gets the result of task %s: its reply queue %s is gone",
            message.properties.get("correlation_id"),
            routing_key,
        )
