"""py-amqp's connection, whose frames come through our reader and leave through our writer.

Handshake, SASL, TLS, heartbeats, channels and all methods stay py-amqp's; only how bytes
become frames and deliveries, and the other way round, is ours. Once the reader owns the bytes
nothing else may read the socket, so it does from the first one on.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from contextlib import suppress
from ssl import SSLWantReadError, SSLWantWriteError
from typing import Any

from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp
from vine import promise

from .._lock import Lock
from ..errors import ProtocolError
from ..wire._poll import readable
from ..wire._reader import DELIVERY, FrameReader
from .channel import Channel
from .writer import FrameWriter

__all__ = ["Connection", "PendingAnswer"]

#: From this many seconds on a read's timeout stays set on the socket.
STICKY_TIMEOUT = 1.0

#: Seconds that a TLS peer has to answer our goodbye.
HANG_UP_TIMEOUT = 0.1

#: What py-amqp's handlers raise of a method that is cut short, unknown, or for no channel.
MALFORMED = (LookupError, TypeError, ValueError, struct.error)

#: Errors of a read that only mean «not now».
NOT_NOW = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOENT, errno.EWOULDBLOCK})


class Connection(pyamqp.Connection):
    """``amqp.Connection`` over :class:`FrameReader` and :class:`FrameWriter`."""

    Channel = Channel

    _transport: Any
    frame_writer: FrameWriter

    #: How often drain_events() of any connection has served something.
    served = 0

    #: Called when more was read than was served: no readable socket will tell an event loop of it.
    on_rest: Callable[[], None] | None = None
    #: Called when the connection ends.
    on_collect: Callable[[], None] | None = None

    def __init__(
        self,
        *args: Any,
        max_body: int = 512 * 1024 * 1024,
        answer_timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """``answer_timeout``: seconds that the answer to a method may take; py-amqp waits for
        ever, and so does None."""
        kwargs.setdefault("frame_writer", FrameWriter)
        super().__init__(*args, **kwargs)
        #: ``confirm_publish="pipelined"``: tasks do not wait for their confirm.
        self.pipelined = self.confirm_publish == "pipelined"
        self.answer_timeout = answer_timeout
        self.reader = FrameReader(self.frame_max, max_body)
        #: Held by the thread that reads. Handlers may read again, in the same thread.
        self.reading_lock = Lock()
        #: ``served`` at the end of our last drain_events().
        self._seen_served = 0

    def _on_tune(self, channel_max: int, frame_max: int, *args: Any, **kwargs: Any) -> None:
        super()._on_tune(channel_max, frame_max, *args, **kwargs)
        self.reader.frame_max = self.frame_max

    def drain_events(self, timeout: float | None = None) -> None:
        """Serve what comes, until something was for a consumer or a waiting method.

        Where nothing is awaited on this connection, and another one has served something since the
        last call, only what has arrived is served. Celery's workers on gevent and eventlet look at
        the connection of their events between any two tasks, for 0.1 s.

        Raises:
            socket.timeout: nothing whole arrived in ``timeout`` seconds.
        """
        if timeout and self._seen_served != Connection.served and not self.awaits():
            timeout = 0
        try:
            super().drain_events(timeout)
            Connection.served += 1
        finally:
            self._seen_served = Connection.served

    def awaits(self) -> bool:
        """Whether a consumer, a listener, a method or the handshake waits for what comes."""
        channels: list[Any] = list((self.channels or {}).values())
        return not self._handshake_complete or any(
            channel._pending
            or getattr(channel, "callbacks", None)
            or any(getattr(channel, "events", {}).values())
            for channel in channels
        )

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Serve one frame or delivery, from the buffer before the socket.

        Raises:
            socket.timeout: nothing whole arrived in ``timeout`` seconds.
            ProtocolError: the peer does not speak AMQP 0-9-1.
        """
        if timeout is None:
            timeout = self.answer_timeout
        try:
            if self.reading_lock.mine:
                return self._read_one(timeout)
            with self.reading_lock.within(timeout) as taken:
                if not taken:
                    raise TimeoutError("another thread reads this connection")
                return self._read_one(timeout)
        finally:
            self.tell_of_rest()

    def _read_one(self, timeout: float | None) -> Any:
        while not (kind := self.reader.next()):
            self.fill(timeout, stay=False)
        return self.dispatch(kind)

    def look_in(self) -> None:
        """Serve one frame or delivery if one is there, and nobody else reads.

        Before each publish: the broker may have blocked the connection, or closed the channel.
        """
        reading = self.reading_lock
        if self.reader.receiving or (reading.locked() and not reading.mine):
            return
        if self.reader.buffered or self.readable():
            with suppress(TimeoutError):  # part of a frame, or another thread reads
                self.drain_events(timeout=0)

    def tell_of_rest(self) -> None:
        """Call ``on_rest`` if the buffer holds something."""
        if self.on_rest is not None and self.reader.buffered:
            self.on_rest()

    def fill(self, timeout: float | None = None, stay: bool = True) -> int:
        """Read once from the socket, as much as is there.

        With ``stay`` a timeout of ``STICKY_TIMEOUT`` seconds or more stays set on the socket, which
        saves two system calls for each read; writes then fail after that time without progress,
        too.

        Raises:
            TimeoutError: nothing came in ``timeout`` seconds.
        """
        if timeout == 0:
            if got := self.fill_now():
                return got
            raise TimeoutError("nothing has arrived")
        return self._fill(timeout, stay)

    def fill_now(self) -> int:
        """Read from the socket what is there, without waiting; returns how many bytes."""
        transport = self.transport
        sock = transport.sock
        try:
            if hasattr(sock, "pending"):  # TLS
                return self._fill(0, stay=False)
            return self.reader.recv_now(sock.fileno())
        except TimeoutError:
            return 0
        except OSError:
            transport.connected = False
            raise

    def _fill(self, timeout: float | None, stay: bool) -> int:
        transport = self.transport
        sock = transport.sock
        before = sock.gettimeout()
        try:
            if before != timeout:
                sock.settimeout(timeout)
            return self.reader.recv(sock.recv_into)
        except OSError as exc:
            if isinstance(exc, TimeoutError):
                raise
            if exc.errno in NOT_NOW or isinstance(exc, (SSLWantReadError, SSLWantWriteError)):
                raise TimeoutError(*exc.args) from exc
            transport.connected = False
            raise
        finally:
            if before != timeout and not (stay and timeout and timeout >= STICKY_TIMEOUT):
                sock.settimeout(before)

    def readable(self, busy_wait: float = 0) -> bool:
        """Whether ``fill`` would find bytes at once (TLS may hold some decrypted).

        Looks again and again for ``busy_wait`` seconds before it says no.
        """
        sock = self.transport.sock
        pending = getattr(sock, "pending", None)
        return bool(pending and pending()) or readable(sock.fileno(), busy_wait)

    def collect(self) -> None:
        """Hang up. The TLS goodbye is bounded: a silent peer would block it for ever."""
        transport = self._transport
        if transport is not None and transport.sock is not None:
            with suppress(OSError):  # it is closed already
                transport.sock.settimeout(HANG_UP_TIMEOUT)
        try:
            super().collect()
        except AttributeError:
            # An exception was thrown into the making of a channel. The socket is closed by now.
            self._transport = self.connection = self.channels = None
        self._end()

    def _end(self) -> None:
        on_collect, self.on_collect, self.on_rest = self.on_collect, None, None
        if on_collect is not None:
            on_collect()

    def abandon(self) -> None:
        """Close our copy of the socket and nothing else: it is another process's connection."""
        transport, self._transport = self._transport, None
        if transport is not None and transport.sock is not None:
            sock, transport.sock = transport.sock, None
            sock.close()
        self._end()

    def dispatch(self, kind: int) -> Any:
        """Serve what the reader shows: ``on_delivery``, or py-amqp's handlers for all else.

        Raises:
            ProtocolError: py-amqp can make nothing of it.
        """
        reader = self.reader
        if kind == DELIVERY:
            self.bytes_recv += 1
            return self.on_delivery()
        return self.serve((reader.frame_type, reader.channel, reader.payload))

    def serve(self, frame: tuple[int, int, bytes]) -> Any:
        """Give a frame (type, channel, payload) to py-amqp's handlers.

        Raises:
            ProtocolError: py-amqp can make nothing of it.
        """
        try:
            return self.on_inbound_frame(frame)
        except MALFORMED as exc:
            raise ProtocolError(
                f"malformed frame of type {frame[0]} on channel {frame[1]}"
                f" ({type(exc).__name__}: {exc})"
            ) from exc

    def on_delivery(self) -> Any:
        """Give the delivery that the reader shows to the consumers of its channel."""
        reader = self.reader
        if reader.body_dropped:
            raise ProtocolError(f"message of {reader.body_dropped} bytes, more than max_body")
        if self.channels is None:
            raise RecoverableConnectionError("Connection already closed")
        channel = self.channels.get(reader.channel)
        if channel is None:
            raise ProtocolError(f"delivery on channel {reader.channel}, which is not open")
        channel.deliver(reader.delivery_args, reader.properties, reader.body)
        return True


class PendingAnswer:
    """The answer to a method for which nobody waits.

    RabbitMQ serves the methods of a channel one by one: until it comes nothing else does.
    """

    def __init__(self, channel: Any, method: tuple[int, int]) -> None:
        self.channel = channel
        self._promise = channel._pending[method] = promise()

    @property
    def came(self) -> bool:
        return bool(self._promise.ready)
