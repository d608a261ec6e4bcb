"""kombu's channel over our writer: publishing and acknowledging without py-amqp's detours."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp
from vine import promise

from .batch import PublishBatch

__all__ = ["Channel"]


class Channel(pyamqp.Channel):
    """``kombu.transport.pyamqp.Channel`` whose messages are packed and written at once."""

    connection: Any

    def _basic_publish(
        self,
        msg: Any,
        exchange: Any = "",
        routing_key: Any = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        argsig: str = "Bssbb",
    ) -> Any:
        """Send a message, as py-amqp's: the same bytes, the same errors.

        What the broker has said is read first, where the socket says that there is something.

        Raises:
            RecoverableConnectionError: the connection is closed, or took nothing for ``timeout``
                seconds.
            TableError, struct.error: a header or property cannot be encoded; nothing was sent.
        """
        connection = self.connection
        if not connection:
            raise RecoverableConnectionError("basic_publish: connection closed")
        connection.look_in()
        arguments = (self.channel_id, exchange, routing_key, mandatory, immediate, msg)
        try:
            if timeout is None:
                connection.frame_writer.publish(*arguments)
            else:
                with connection.transport.having_timeout(timeout):
                    connection.frame_writer.publish(*arguments)
        except TimeoutError as exc:
            raise RecoverableConnectionError("basic_publish: timed out") from exc
        sent = promise()
        sent()
        return sent

    basic_publish = _basic_publish

    @property
    def supports_batch_publish(self) -> bool:
        """Not with ``confirm_publish``: each message is waited for, as on stock."""
        return self.connection is not None and not self.connection.confirm_publish

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """What kombu's ``Producer.batch()`` collects messages in."""
        return PublishBatch(self, max_size)

    def deliver(
        self, arguments: tuple[str, int, bool, str, str], properties: dict[str, Any], body: bytes
    ) -> None:
        """Give a delivery to its consumer's callback, as py-amqp's dispatch does."""
        if self.is_closing:
            self.dispatch_method(spec.Basic.Deliver, b"", None)  # logs that it is ignored
            return
        message = Message(body)
        message.properties = properties
        message.body_size = message.body_received = len(body)
        message.ready = True
        if self.auto_decode and "content_encoding" in properties:
            # What has no such encoding, as "binary" is none, stays as it is.
            with suppress(LookupError, TypeError, ValueError):
                message.body = body.decode(properties["content_encoding"])
        self._on_basic_deliver(*arguments, message)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge one delivery, or all up to it.

        Raises:
            RecoverableConnectionError: the connection is closed.
        """
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection already closed")
        connection.frame_writer.acknowledge(self.channel_id, delivery_tag, multiple)
