"""Many messages in one write: the batch protocol of kombu 5.7 and later (``Producer.batch()``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from struct import Struct
from typing import Any

import kombu.exceptions
from amqp.exceptions import RecoverableConnectionError

from ..wire._frames import FrameBuffer
from .writer import AT_ONCE, encodable_properties, encoded_body

__all__ = ["PublishBatch"]

#: kombu's exception; older versions than 5.7 do not have it.
BatchPublishError: type[Exception] = getattr(
    kombu.exceptions, "BatchPublishError", kombu.exceptions.KombuError
)

#: The head of a frame: type, channel, size of the payload.
HEAD = Struct(">BHI")


class PublishBatch:
    """Keeps the messages of one channel until there are ``max_size`` of them, or :data:`AT_ONCE`
    bytes.

    Not thread-safe: kombu gives each thread a batch of its own.
    """

    def __init__(self, channel: Any, max_size: int) -> None:
        self.channel, self.max_size = channel, max_size
        #: The correlation ids of the kept messages.
        self.kept: list[Any] = []
        #: Where the frames of each begin.
        self._starts: list[int] = []
        self._frames = FrameBuffer()
        self._pid = os.getpid()
        self._failed: Exception | None = None
        self._closed = ""

    def publish(
        self,
        message: Any,
        exchange: Any = "",
        routing_key: Any = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Encode a message; it is written by a later ``flush``.

        Raises:
            TableError, struct.error: the message cannot be encoded, and is not part of the batch.
        """
        self._check_usable()
        channel = self.channel.channel_id
        frame_max = self._connection().frame_max
        body = encoded_body(message)
        properties = encodable_properties(message)
        id = message.properties.get("correlation_id")
        count, before = len(self.kept), len(self._frames)
        try:
            self._frames.publish(
                channel, exchange, routing_key, mandatory, immediate, properties, len(body)
            )
            self._frames.body(channel, body, frame_max)
            self._starts.append(before)
            self.kept.append(id)
        except BaseException:
            # The three must agree, whatever was thrown in: confirms are counted by them.
            self._frames.truncate(before)
            del self.kept[count:], self._starts[count:]
            raise
        if len(self.kept) >= self.max_size or len(self._frames) >= AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Write the kept messages.

        Raises:
            kombu.exceptions.BatchPublishError: the write failed; which messages arrived is unknown.
        """
        self._check_usable()
        count = len(self.kept)
        if not count or self.is_inherited:
            return
        try:
            self.write()
        except Exception as exc:
            self._failed = exc
            raise BatchPublishError(f"{count} messages of a batch are in doubt: {exc}") from exc
        finally:
            self._forget()

    def write(self) -> None:
        """Write the kept messages, and keep them."""
        connection = self._connection()
        connection.look_in()
        connection.frame_writer.send(self._frames, self.channel.channel_id, len(self.kept))

    def move(self, channel: Any) -> None:
        """Use another channel from now on, for the kept messages too."""
        self.channel = channel
        self._frames.set_channel(channel.channel_id)

    def retain(self, places: Iterable[int]) -> None:
        """Forget all kept messages but those at these places in ``kept``."""
        ends, kept, starts, frames = [*self._starts[1:], len(self._frames)], [], [], FrameBuffer()
        with self._frames.view() as view:
            for place in places:
                kept.append(self.kept[place])
                starts.append(len(frames))
                at, end = self._starts[place], ends[place]
                while at < end:
                    type_, channel, size = HEAD.unpack_from(view, at)
                    at += HEAD.size + size + 1
                    frames.frame(type_, channel, view[at - size - 1 : at - 1])
        self.kept, self._starts, self._frames = kept, starts, frames

    def discard(self) -> None:
        """Forget the messages that were not written."""
        self._closed = "aborted"
        self._forget()

    def close(self) -> None:
        """Forget the messages that were not written, and take no more."""
        self.discard()
        self._closed = "closed"

    @property
    def is_inherited(self) -> bool:
        """Whether this is a forked child: its parent writes the messages."""
        return self._pid != os.getpid()

    def _forget(self) -> None:
        self.kept, self._starts = [], []
        self._frames.clear()

    def _connection(self) -> Any:
        if not self.channel.connection:
            raise RecoverableConnectionError("basic_publish: connection closed")
        return self.channel.connection

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError(f"publish batch is {self._closed}")
        if self._failed is not None:
            raise BatchPublishError("publish batch failed before") from self._failed
