"""py-amqp's connection with our frame reader and our frame writer.

Handshake, SASL, TLS, heartbeats, channels and all methods are py-amqp's. Only the decoding of bytes
to frames and deliveries, and the encoding, is ours. Nothing but the frame reader may read the
socket, because it buffers; so it reads from the first byte on.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from ssl import SSLWantReadError, SSLWantWriteError
from time import monotonic
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

#: A read's timeout of this many seconds or more stays set on the socket.
STICKY_TIMEOUT = 1.0

#: Bounds the TLS shutdown handshake, in seconds: it would block for ever on a silent peer.
HANG_UP_TIMEOUT = 0.1

#: The exceptions of py-amqp's handlers for a method that is truncated, unknown, or on a channel
#: that is not open.
MALFORMED = (LookupError, TypeError, ValueError, struct.error)

#: What the transport option ``confirm_publish`` may be.
CONFIRMS = (None, False, True, "pipelined")

#: Errors of a read that only mean that there is nothing to read now.
NOT_NOW = frozenset({errno.EAGAIN, errno.EINTR, errno.ENOENT, errno.EWOULDBLOCK})


class Connection(pyamqp.Connection):
    """``amqp.Connection`` over :class:`FrameReader` and :class:`FrameWriter`."""

    Channel = Channel

    _transport: Any
    frame_writer: FrameWriter

    #: Whether a channel has begun to consume.
    consumed = False
    #: Whether a lost connection, which this one replaces, had consumers, and this one had none yet.
    lost_consumers = False

    #: How often drain_events() of any connection has handled something.
    served = 0

    #: Called when more was read than was handled. An event loop cannot see that at the socket.
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
        """``answer_timeout``: how long, in seconds, the broker may take to answer a method. None:
        as long as the socket's own timeout allows, as with py-amqp."""
        kwargs.setdefault("frame_writer", FrameWriter)
        super().__init__(*args, **kwargs)
        if self.confirm_publish not in CONFIRMS:
            raise ValueError(
                f"confirm_publish must be True, False or 'pipelined', not {self.confirm_publish!r}"
            )
        #: ``confirm_publish="pipelined"``: senders of tasks do not wait for confirms.
        self.pipelined = self.confirm_publish == "pipelined"
        self.answer_timeout = answer_timeout
        self.reader = FrameReader(self.frame_max, max_body)
        #: Held by the thread that reads. ``blocking_read`` returns it before it delivers. Handlers
        #: may read again, in the same thread.
        self.reading_lock = Lock()
        #: ``served`` at the end of our last drain_events().
        self._seen_served = 0
        #: The thread that drained events last: its deliveries are not given to consumers by others.
        self.consuming_thread = 0
        #: Deliveries that another thread has read and left to that thread.
        self.left_deliveries: deque[partial[None]] = deque()
        self._leaving: set[int] = set()

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, as py-amqp. Whatever fails or interrupts it, no socket stays open."""
        try:
            return super().connect(*args, **kwargs)
        except BaseException:
            self.collect()
            raise

    def _on_tune(self, channel_max: int, frame_max: int, *args: Any, **kwargs: Any) -> None:
        super()._on_tune(channel_max, frame_max, *args, **kwargs)
        self.reader.frame_max = self.frame_max

    def drain_events(self, timeout: float | None = None) -> None:
        """Handle what arrives, until something was for a consumer or a waiting method.

        If this connection awaits nothing, and another one has handled something since the last
        call, this method does not wait for more to arrive. Celery's workers on gevent and eventlet
        drain the connection of their events for 0.1 s after each task, which would slow them down.

        Heartbeats do not prolong the wait, as they do in py-amqp: Celery's worker on gevent or
        eventlet looks for its shutdown, and for the end of its connection, between two calls.

        Raises:
            socket.timeout: nothing was handled within ``timeout`` seconds.
        """
        this_thread = threading.get_ident()
        if this_thread not in self._leaving:
            self.consuming_thread = this_thread
            if self.left_deliveries:
                self.left_deliveries.popleft()()
                return
        if timeout and self._seen_served != Connection.served and not self.awaits():
            timeout = 0
        end = monotonic() + (timeout or 0)
        try:
            while not self.blocking_read(timeout):
                if timeout:
                    timeout = max(end - monotonic(), 0)
            Connection.served += 1
        finally:
            self._seen_served = Connection.served

    @contextmanager
    def leaving_deliveries(self) -> Iterator[None]:
        """In this context, deliveries that this thread reads are left to the thread that consumes.

        For threads that publish or wait for an answer: a consumer may wait for such a thread. On
        gevent and eventlet Celery's consumer waits for room in a pool whose greenlets restore the
        prefetch count.
        """
        this_thread = threading.get_ident()
        if this_thread in self._leaving:
            yield
            return
        try:
            self._leaving.add(this_thread)  # within: an exception may be thrown in after it
            yield
        finally:
            self._leaving.discard(this_thread)

    @property
    def consumed_elsewhere(self) -> bool:
        """Whether another thread drains the events of this connection."""
        return self.consuming_thread not in (0, threading.get_ident())

    def awaits(self) -> bool:
        """Whether a consumer, a listener, a method or the handshake waits for something."""
        channels: list[Any] = list((self.channels or {}).values())
        return not self._handshake_complete or any(
            channel._pending
            or getattr(channel, "callbacks", None)
            or any(getattr(channel, "events", {}).values())
            for channel in channels
        )

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Handle one frame or delivery; those in the buffer come before the socket.

        Raises:
            socket.timeout: no whole frame or delivery arrived within ``timeout`` seconds.
            ProtocolError: the peer does not speak AMQP 0-9-1.
        """
        if timeout is None:
            timeout = self.answer_timeout
        reading = self.reading_lock
        try:
            if reading.mine:
                served = self._read_one(timeout)
            else:
                was_read = reading.locked()
                with reading.within(timeout) as taken:
                    if not taken:
                        raise TimeoutError("another thread reads this connection")
                    if was_read:  # the other thread may have served what this one waits for
                        return True
                    served = self._read_one(timeout)
            if isinstance(served, partial):
                if threading.get_ident() in self._leaving and self.consumed_elsewhere:
                    self.left_deliveries.append(served)
                else:  # without the lock: the consumer may wait for a thread that needs it to read
                    served()
                return True
            return served
        finally:
            self.tell_of_rest()

    def _read_one(self, timeout: float | None) -> Any:
        while not (kind := self.reader.next()):
            # Celery bounds the socket itself before a shutdown and before it connects again, so
            # that no answer of a silent broker is waited for.
            self.fill(self.transport.sock.gettimeout() if timeout is None else timeout, stay=False)
        return self.dispatch(kind)

    def look_in(self) -> None:
        """Handle one frame or delivery if it has arrived and no other thread reads.

        Called before each publish: the broker may have blocked the connection or closed the
        channel.
        """
        reading = self.reading_lock
        if self.reader.receiving or (reading.locked() and not reading.mine):
            return
        if self.reader.buffered or self.readable():
            # TimeoutError: only part of a frame arrived, or another thread reads.
            with suppress(TimeoutError), self.leaving_deliveries():
                self.drain_events(timeout=0)

    def tell_of_rest(self) -> None:
        """Call ``on_rest`` if something was read and not handled."""
        if self.on_rest is not None and (self.reader.buffered or self.left_deliveries):
            self.on_rest()

    def fill(self, timeout: float | None = None, stay: bool = True) -> int:
        """Read once from the socket, as much as is there; return the number of bytes.

        With ``stay``, a timeout of ``STICKY_TIMEOUT`` seconds or more stays set on the socket. That
        saves two system calls for each read, but it also limits how long a write may make no
        progress.

        Raises:
            TimeoutError: nothing arrived within ``timeout`` seconds.
        """
        if timeout == 0:
            if got := self.fill_now():
                return got
            raise TimeoutError("nothing has arrived")
        return self._fill(timeout, stay)

    def fill_now(self) -> int:
        """Read what the socket has, without waiting; return the number of bytes."""
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
        except EOFError as exc:  # on eventlet: another greenlet has closed the socket
            transport.connected = False
            raise OSError(errno.EBADF, "the socket was closed") from exc
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
        """Whether ``fill`` would return at once. TLS may hold decrypted bytes.

        Polls for ``busy_wait`` seconds before it returns False.
        """
        sock = self.transport.sock
        pending = getattr(sock, "pending", None)
        return bool(pending and pending()) or readable(sock.fileno(), busy_wait)

    def collect(self) -> None:
        """Hang up without AMQP's handshake."""
        transport = self._transport
        if transport is not None and transport.sock is not None:
            _close_socket(transport)
            self._transport = None
        try:
            super().collect()
        except AttributeError:
            # An exception was thrown into the constructor of a channel, which lacks an attribute
            # now. The socket is already closed.
            self._transport = self.connection = self.channels = None
        self._end()

    def _end(self) -> None:
        on_collect, self.on_collect, self.on_rest = self.on_collect, None, None
        self.left_deliveries.clear()  # the broker delivers them again
        if on_collect is not None:
            on_collect()

    def abandon(self) -> None:
        """Close only this process's copy of the socket: the connection belongs to another one."""
        transport, self._transport = self._transport, None
        if transport is not None and transport.sock is not None:
            sock, transport.sock = transport.sock, None
            sock.close()
        self._end()

    def dispatch(self, kind: int) -> Any:
        """Handle the reader's current event: ``on_delivery`` for a delivery, else py-amqp.

        Of a delivery this returns a partial: calling it gives the delivery to its consumer.

        Raises:
            ProtocolError: py-amqp cannot handle the frame.
        """
        reader = self.reader
        if kind == DELIVERY:
            self.bytes_recv += 1
            return self.on_delivery()
        return self.serve((reader.frame_type, reader.channel, reader.payload))

    def serve(self, frame: tuple[int, int, bytes]) -> Any:
        """Give a frame (type, channel, payload) to py-amqp's handlers.

        Raises:
            ProtocolError: py-amqp cannot handle the frame.
        """
        try:
            return self.on_inbound_frame(frame)
        except MALFORMED as exc:
            raise ProtocolError(
                f"malformed frame of type {frame[0]} on channel {frame[1]}"
                f" ({type(exc).__name__}: {exc})"
            ) from exc

    def on_delivery(self) -> Any:
        """A call that gives the reader's current delivery to the consumers of its channel."""
        reader = self.reader
        if reader.body_dropped:
            raise ProtocolError(f"message of {reader.body_dropped} bytes, more than max_body")
        if self.channels is None:
            raise RecoverableConnectionError("Connection already closed")
        channel = self.channels.get(reader.channel)
        if channel is None:
            raise ProtocolError(f"delivery on channel {reader.channel}, which is not open")
        try:
            arguments, properties = reader.delivery_args, reader.properties
        except (*MALFORMED, OverflowError) as exc:  # a name that is not UTF-8, a date after 9999
            raise ProtocolError(
                f"malformed delivery on channel {reader.channel} ({type(exc).__name__}: {exc})"
            ) from exc
        return partial(channel.deliver, arguments, properties, reader.body)


def _close_socket(transport: Any) -> None:
    """Close the socket of a py-amqp transport, in whatever state its TLS is."""
    sock = transport.sock
    with suppress(OSError):  # the socket is already closed
        sock.settimeout(HANG_UP_TIMEOUT)
    # py-amqp ends TLS first. It cannot if an exception was thrown into the TLS handshake, or into
    # the end of TLS.
    with suppress(OSError, ValueError, AttributeError):
        transport.close()
    sock.close()
    transport.sock, transport.connected = None, False


class PendingAnswer:
    """The answer to a method that no thread waits for.

    RabbitMQ handles the methods of a channel one by one: no other answer arrives before this one.

    Args:
        channel: Where the method was sent.
        method: The method that is the answer.
        refusals: ``channel.refusals`` before the method was sent.
    """

    def __init__(self, channel: Any, method: tuple[int, int], refusals: int) -> None:
        self.channel = channel
        self._refusals = refusals
        self._promise = channel._pending[method] = promise()

    @property
    def came(self) -> bool:
        return bool(self._promise.ready)

    @property
    def refused(self) -> bool:
        """Whether the broker has closed the channel instead. The answer never comes."""
        return bool(self.channel.refusals != self._refusals)
