"""One connection that sends results, or tasks, and reads their confirms.

A link lives as long as its socket. The window of unconfirmed messages must outlive it, so it
belongs to the publisher.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from contextlib import suppress
from selectors import EVENT_READ, EVENT_WRITE
from ssl import SSLWantReadError, SSLWantWriteError
from typing import Any

from amqp import spec
from amqp.exceptions import ChannelError, PreconditionFailed
from amqp.serialization import dumps

from ..stats import SentStats
from ..transport.dial import ANSWER_TIMEOUT, connect, errors_of, failure
from ..transport.transports import use_our_transport
from ..wire._encoder import PublishEncoder
from ..wire._frames import FrameBuffer
from ._window import ConfirmWindow
from .message import Message, Packed

__all__ = ["Link", "Lost", "Silent"]

logger = logging.getLogger("fastrpc")

#: How long, in seconds, a write may make no progress while the broker sends nothing either.
WRITE_TIMEOUT = 30

#: Socket options. PATIENT: the kernel must not give up a connection on which the broker reads
#: nothing, because the broker blocks publishers in that way for as long as its alarm lasts.
#: (py-amqp sets one second.) WATCHFUL: without confirms and heartbeats, only the kernel notices
#: that the path is dead.
PATIENT, WATCHFUL = (
    {socket.TCP_USER_TIMEOUT: milliseconds} if hasattr(socket, "TCP_USER_TIMEOUT") else {}
    for milliseconds in (0, WRITE_TIMEOUT * 1000)
)

#: How often, in seconds, a write that makes no progress checks the time.
STALLED_INTERVAL = 1.0

#: Bytes of one TLS write. TLS must be given the same bytes again if it did not take them all.
TLS_CHUNK = 1 << 16

#: The exceptions of a non-blocking socket that is not ready.
WOULD_BLOCK = (BlockingIOError, SSLWantReadError, SSLWantWriteError)

#: A result of this many bytes or more is sent without ``mandatory`` while its reply queue counts as
#: gone: the broker then drops it, instead of sending the whole body back only to be counted.
UNRETURNED_BYTES = 8 * 1024

#: For this many seconds after a returned result, its reply queue counts as gone.
GONE_FOR = 1.0

#: How many reply queues that are gone are remembered.
MAX_GONE = 1000

#: A part of the broker's text when it closes the channel over a message larger than its
#: ``max_message_size``.
TOO_LARGE = "message size"

NO_HEADERS = dumps("F", [{}])

HEARTBEAT_FRAME = b"\x08\x00\x00\x00\x00\x00\x00\xce"


def question(channel: int) -> bytes:
    """A method that changes nothing: ``basic.qos`` without a limit. RabbitMQ handles the methods of
    a channel one by one, so it answers once it has handled the messages before it."""
    frames = FrameBuffer()
    frames.method(channel, spec.Basic.Qos, dumps("lBb", (0, 0, False)))
    return bytes(frames.view())


class Lost(Exception):
    """The link is unusable; the cause says why."""

    #: No link was made, or the broker never answered on it: this uses up a retry.
    in_vain = False
    #: The broker closed the channel over a message that names its exchange, which may be missing.
    #: It does not say which; it is one of those in flight. Never over a result: they all have the
    #: default exchange.
    over_a_message = False
    #: The broker closed the channel over a message larger than its ``max_message_size``.
    too_large = False


class Silent(Lost):
    """The broker was silent for too long. There is no other sign of a lost connection."""


class Link:
    """An open connection for sending. Not thread-safe: the publisher's lock guards it.

    The socket is non-blocking, and an ordinary write is one system call. If the kernel does not
    take all bytes, the link waits until the socket takes more, and reads meanwhile: the broker may
    say that it blocks the connection.

    Args:
        connection: A kombu connection to an AMQP broker, not yet opened.
        delivery_mode: 1 transient, 2 persistent.
        confirms: Ask the broker to confirm.
        stats: Counts the results that were returned as unroutable.

    Raises:
        Lost: the broker cannot be reached, or refuses the connection.
    """

    def __init__(
        self, connection: Any, delivery_mode: int, confirms: bool, stats: SentStats
    ) -> None:
        self.stats = stats
        self.delivery_mode = delivery_mode
        #: The broker asked publishers to wait (``connection.blocked``).
        self.blocked = False
        #: Nothing may be sent or read any more.
        self.closed = False
        #: A write or a read has begun and is not complete. If the next user finds it set, an
        #: exception was thrown into the thread: half a frame may have been written, or a whole
        #: message that has no delivery tag here, or a frame was read and not handled.
        self.busy = False
        #: The broker has sent something since the link was opened.
        self.answered = False
        #: Messages sent; with confirms the delivery tag of the last one.
        self.sent = 0
        self._confirms = confirms
        #: Whether messages were sent that name their exchange.
        self._sent_packed = False
        self._in_frame = False
        self._encoders: dict[tuple[str, str, bool], PublishEncoder] = {}
        #: Reply queue that is gone -> the time, by time.monotonic(), until which it counts as gone.
        self._gone: dict[str, float] = {}
        transport_options = connection.transport_options
        self._write_timeout = transport_options.get("write_timeout") or WRITE_TIMEOUT
        settings = PATIENT if confirms or connection.heartbeat else WATCHFUL
        self._connection = use_our_transport(
            connection,
            write_timeout=self._write_timeout,
            answer_timeout=ANSWER_TIMEOUT,
            socket_settings={**settings, **(transport_options.get("socket_settings") or {})},
            confirm_publish=False,  # py-amqp would wait for the confirm of each message
        )
        self._errors = errors_of(connection)
        try:
            self._open()
        except BaseException as exc:
            self.close()  # nobody else has the link and could close it
            if not isinstance(exc, self._errors):
                raise
            raise Lost(failure(connection, exc)) from exc

    def _open(self) -> None:
        connect(self._connection)
        amqp = self._amqp = self._connection.connection
        amqp.on_blocked = self._on_blocked
        amqp.on_unblocked = self._on_unblocked
        self._channel = self._connection.default_channel
        self._channel.events["basic_return"].add(self._on_return)
        if self._confirms:
            self._channel.confirm_select()
        self._question = question(self._channel.channel_id)
        self._write_frame = amqp.frame_writer
        amqp.frame_writer = self._reply
        amqp.sock.settimeout(0)
        self._write = self._write_tls if hasattr(amqp.sock, "pending") else amqp.sock.send
        #: Seconds between heartbeats, 0 for none.
        self.heartbeat = amqp.heartbeat
        # A healthy broker may let this much time pass between two heartbeats.
        self._write_timeout = max(self._write_timeout, 1.5 * self.heartbeat)
        #: All three by time.monotonic().
        self.opened_at = self.heard_at = self._heartbeat_at = time.monotonic()

    def _lose(self, exc: BaseException) -> Lost:
        self.close()
        lost = Lost(str(exc) or repr(exc))
        lost.over_a_message = (
            self._sent_packed
            and isinstance(exc, ChannelError)
            and exc.method_sig == spec.Basic.Publish
        )
        lost.too_large = isinstance(exc, PreconditionFailed) and TOO_LARGE in str(exc)
        return lost

    def send(self, message: Message | Packed, window: ConfirmWindow) -> None:
        """Write ``message`` to the socket and add it to ``window``.

        If the write takes time, ``window`` gets the confirms that arrive meanwhile.

        Raises:
            Silent: for ``WRITE_TIMEOUT`` the write made no progress and nothing was received.
            Lost: the connection is gone; whether the broker got the message is not known.
        """
        mandatory = True
        if isinstance(message, Message):
            mandatory = not (
                self._gone and len(message.body) >= UNRETURNED_BYTES and self._is_gone(message)
            )
            key = (message.content_type, message.content_encoding, mandatory)
            encoder = self._encoders.get(key) or self._new_encoder(*key)
            frames: Any = encoder.encode(message.routing_key, message.correlation_id, message.body)
        else:
            frames = message.frames(self._channel.channel_id)
            self._sent_packed = True
        self.busy = True
        try:
            written = self._write(frames)
        except WOULD_BLOCK:
            written = 0
        except self._errors as exc:
            raise self._lose(exc) from exc
        if written < len(frames):
            self._finish(frames[written:], window)
            # The peer has taken bytes meanwhile, and cannot have answered before it had them all.
            self.heard_at = time.monotonic()
        self.sent += 1
        if not mandatory:
            self.stats.returned += 1
        if self._confirms:
            window.add(self.sent, message)
        elif window.forget(message, len(frames)):
            self._finish(self._question, window)
        self.busy = False

    def _is_gone(self, message: Message) -> bool:
        return time.monotonic() < self._gone.get(message.routing_key, 0)

    def _write_tls(self, data: Any) -> int:
        return int(self._amqp.sock.write(data[:TLS_CHUNK]))

    def _finish(self, rest: Any, window: ConfirmWindow) -> None:
        """Write the rest of a message as fast as the broker takes it.

        A broker that blocks the connection stops reading, even in the middle of a large message.
        The link is not lost, however long that takes, as long as the broker sends something.
        """
        self._in_frame = True
        moved_at = time.monotonic()
        try:
            while rest:
                try:
                    written = self._write(rest)
                except WOULD_BLOCK:
                    written = 0
                if written:
                    rest, moved_at = rest[written:], time.monotonic()
                    continue
                self._await(EVENT_READ | EVENT_WRITE, STALLED_INTERVAL)
                self._take_in(window)
                if time.monotonic() - max(moved_at, self.heard_at) > self._write_timeout:
                    self.close()
                    raise Silent(f"no progress and no word in {self._write_timeout:g} seconds")
        except self._errors as exc:
            raise self._lose(exc) from exc
        self._in_frame = False

    def wait(self, timeout: float) -> None:
        """Wait until there is something to read, at most ``timeout`` seconds.

        This is the only method that needs no lock: other threads may use, or close, the link
        meanwhile.
        """
        with suppress(*self._errors, ValueError):  # closed: the next user of the link notices
            self._await(EVENT_READ, timeout)

    def _await(self, events: int, timeout: float) -> bool:
        """Wait until the socket is ready for ``events``; False if it is not in time."""
        with selectors.DefaultSelector() as selector:  # gevent and eventlet patch `selectors`
            selector.register(self._amqp.sock, events)
            return bool(selector.select(timeout))

    def keep_alive(self, window: ConfirmWindow) -> None:
        """Send a heartbeat if one is due and the socket takes it.

        If the socket does not take it, earlier bytes are still leaving, and they serve as well.

        Raises:
            Lost: the connection is gone.
        """
        if not self.heartbeat:
            return
        now = time.monotonic()
        if now - self._heartbeat_at < self.heartbeat / 3:
            return
        self._heartbeat_at = now
        self.busy = True
        try:
            if self._await(EVENT_WRITE, 0):
                self._finish(HEARTBEAT_FRAME, window)
        except self._errors as exc:
            raise self._lose(exc) from exc
        self.busy = False

    def _reply(self, *frame: Any) -> None:
        """Write what py-amqp writes by itself: the answer to a close of the channel or connection.

        If the socket would block, or a frame of ours is half written, the answer is dropped: the
        exception that py-amqp raises next says why the broker closed, and must reach the caller.
        """
        if not self._in_frame:
            with suppress(*WOULD_BLOCK):
                self._write_frame(*frame)

    def _new_encoder(
        self, content_type: str, content_encoding: str, mandatory: bool
    ) -> PublishEncoder:
        encoder = PublishEncoder(
            self._channel.channel_id,
            "",
            content_type,
            content_encoding,
            NO_HEADERS,
            self.delivery_mode,
            0,
            mandatory,
            self._amqp.frame_max,
        )
        self._encoders[content_type, content_encoding, mandatory] = encoder
        return encoder

    def read(self, window: ConfirmWindow, timeout: float = 0) -> bool:
        """Read what the broker sent; False if nothing arrived within ``timeout`` seconds.

        Confirms go to ``window``.

        Raises:
            Lost: the connection is gone.
        """
        self.busy = True
        try:
            heard = self._take_in(window, timeout)
        except self._errors as exc:
            raise self._lose(exc) from exc
        self.busy = False
        return heard

    def _take_in(self, window: ConfirmWindow, timeout: float = 0) -> bool:
        amqp = self._amqp
        heard = False
        while timeout or amqp.readable():
            try:
                amqp.fill(timeout)
            except TimeoutError:
                break
            heard, timeout = True, 0
            while kind := window.read(amqp.reader):
                amqp.dispatch(kind)
        if heard:
            self.answered, self.heard_at = True, time.monotonic()
        return heard

    def close(self) -> None:
        """Hang up without waiting for an answer."""
        self.closed = True
        self._connection.collect(0.1)

    def goodbye(self, timeout: float) -> None:
        """Close with AMQP's handshake, so that the broker has processed everything sent before."""
        if self.busy or not self._connection.connected:
            self.close()
            return
        try:
            self._amqp.sock.settimeout(timeout)
            self._amqp.answer_timeout = timeout
            self._connection.close()
        except self._errors as exc:
            logger.debug("closing the connection for sending: %s", exc)

    def abandon(self) -> None:
        """Let go of the connection without writing to it: it belongs to the parent process."""
        self._amqp.abandon()

    def _on_blocked(self, reason: str) -> None:
        self.blocked = True
        logger.warning("the broker blocks publishing, messages wait: %s", reason)

    def _on_unblocked(self) -> None:
        self.blocked = False
        logger.warning("the broker takes messages again")

    def _on_return(self, exc: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self.stats.returned += 1
        if len(self._gone) >= MAX_GONE:
            self._gone.clear()
        self._gone[routing_key] = time.monotonic() + GONE_FOR
        logger.debug(
            "nobody gets the result of task %s: its reply queue %s is gone",
            message.properties.get("correlation_id"),
            routing_key,
        )
