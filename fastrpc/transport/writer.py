"""Writes all frames of a connection through one buffer, under one lock."""

from __future__ import annotations

import errno
from traceback import clear_frames
from typing import Any

from amqp.exceptions import RecoverableConnectionError
from amqp.serialization import GenericContent

from .._lock import Lock
from ..wire._frames import FrameBuffer

__all__ = ["FrameWriter", "encodable_properties", "encoded_body"]

#: A body is copied into the buffer in parts of this many bytes.
AT_ONCE = 128 * 1024

METHOD = 1


class FrameWriter:
    """Replaces py-amqp's ``frame_writer``: the same bytes, but a message leaves in one write.

    A write that fails or is interrupted may have sent half of a message. The connection then counts
    as lost, and later writes raise :class:`BrokenPipeError`. An exception before the write leaves
    nothing behind, even if it was thrown into the thread. A write that interrupts another one of
    its thread raises :class:`RecoverableConnectionError`.
    """

    def __init__(self, connection: Any, transport: Any) -> None:
        self._connection = connection
        self._transport = transport
        self._frames = FrameBuffer()
        self._lock = Lock()
        #: A write has begun and is not complete. If the next writer finds it set, the write failed.
        self._writing = False
        #: Messages that were written, by channel. Counted before the write counts as complete: no
        #: exception can come between, after which the delivery tags of confirms would differ.
        self.published: dict[int, int] = {}
        #: Bytes of whole methods at the start of the buffer, which leave with the next write.
        self._waiting = 0
        #: The arguments of the last of these methods.
        self._later: bytes | None = None

    def __call__(
        self,
        type_: int,
        channel: int,
        method_sig: tuple[int, int] | None,
        args: bytes | str | None,
        content: Any,
    ) -> None:
        """Write one frame, or one method and its content."""
        body = encoded_body(content) if content else b""
        properties = encodable_properties(content) if content else {}
        with self._turn:
            frames = self._begin()
            if type_ == METHOD:
                assert method_sig is not None
                frames.method(channel, method_sig, args if isinstance(args, bytes) else b"")
            else:
                frames.frame(type_, channel, b"")
            if content:
                frames.header(channel, method_sig[0], properties, len(body))  # type: ignore[index]
            self._finish(channel, body)

    def write_later(self, channel: int, method_sig: tuple[int, int], args: bytes) -> None:
        """Write a method frame ahead of the next write; a repeated call with the same ``args``
        object adds nothing."""
        with self._turn:
            frames = self._begin()
            if not frames or self._later is not args:
                frames.method(channel, method_sig, args)
                self._later, self._waiting = args, len(frames)

    def publish(
        self,
        channel: int,
        exchange: Any,
        routing_key: Any,
        mandatory: bool,
        immediate: bool,
        message: Any,
    ) -> None:
        """Write ``basic.publish`` and its content.

        Raises:
            TableError, struct.error: a header or property cannot be encoded; nothing was written.
        """
        body = encoded_body(message)
        properties = encodable_properties(message)
        with self._turn:
            self._begin().publish(
                channel, exchange, routing_key, mandatory, immediate, properties, len(body)
            )
            self._finish(channel, body, messages=1)

    def acknowledge(self, channel: int, delivery_tag: int, multiple: bool) -> None:
        """Write ``basic.ack``."""
        with self._turn:
            self._begin().ack(channel, delivery_tag, multiple)
            self._finish(channel, b"")

    def flush(self) -> None:
        """Write the methods of ``write_later`` now."""
        with self._turn:
            waiting = self._begin()
            if waiting:
                self._writing = True
                self._write(waiting)
                self._done()

    def send(self, frames: FrameBuffer, channel: int = 0, messages: int = 0) -> None:
        """Write whole frames that were encoded elsewhere, in one write. Does not change them.

        They hold this many ``messages``, for that channel.
        """
        with self._turn:
            waiting = self._begin()
            self._writing = True
            if waiting:
                self._write(waiting)
            self._write(frames)
            self._done(channel, messages)

    @property
    def _turn(self) -> Lock:
        """The lock, for ``with``.

        Raises:
            RecoverableConnectionError: this thread holds it, and would wait for itself: a signal
                handler has interrupted a write, as Celery's for a cold shutdown may, which
                acknowledges tasks. The interrupted write goes on afterwards.
        """
        if self._lock.mine:
            raise RecoverableConnectionError("a write on this connection is interrupted by another")
        return self._lock

    def _begin(self) -> FrameBuffer:
        """The buffer, with nothing in it but the methods of ``write_later``."""
        if self._writing:
            self._transport.connected = False
            raise BrokenPipeError(errno.EPIPE, "a write on this connection has failed before")
        self._frames.truncate(self._waiting)
        return self._frames

    def _finish(self, channel: int, body: Any, messages: int = 0) -> None:
        """Write the buffer and then ``body``, in body frames."""
        frame_max = self._connection.frame_max
        if len(body) <= AT_ONCE:
            self._frames.body(channel, body, frame_max)
            self._writing = True
            self._write(self._frames)
        else:
            self._writing = True
            self._write_parts(channel, memoryview(body), frame_max)
        self._done(channel, messages)

    def _write_parts(self, channel: int, body: memoryview, frame_max: int) -> None:
        chunk = frame_max - 8
        step = max(AT_ONCE // chunk, 1) * chunk
        for start in range(0, len(body), step):
            self._frames.body(channel, body[start : start + step], frame_max)
            self._write(self._frames)
            self._frames.clear()

    def _write(self, frames: FrameBuffer) -> None:
        try:
            with frames.view() as view:
                self._transport.write(view)
        except BaseException as exc:
            self._transport.connected = False
            # TLS is written in parts: the frames of the traceback keep views of the buffer, which a
            # batch has to change before it is sent again.
            clear_frames(exc.__traceback__)
            raise

    def _done(self, channel: int = 0, messages: int = 0) -> None:
        self._waiting = 0
        self._frames.clear()
        # Counts writes, not bytes: heartbeat_tick() needs only to see a change.
        self._connection.bytes_sent += 1
        if messages:
            self.published[channel] = self.published.get(channel, 0) + messages
        self._writing = False


def encodable_properties(message: Any) -> Any:
    """The properties of a message; in bytes if its class encodes them in its own way."""
    if type(message)._serialize_properties is GenericContent._serialize_properties:
        return message.properties
    return message._serialize_properties()


def encoded_body(message: Any) -> bytes | bytearray | memoryview:
    """The body as bytes. Text is encoded as the message says, or in UTF-8, as in py-amqp."""
    body = message.body
    if isinstance(body, str):
        encoding = message.properties.setdefault("content_encoding", "utf-8")
        return body.encode(encoding)
    return body if isinstance(body, (bytes, bytearray)) else memoryview(body).cast("B")
