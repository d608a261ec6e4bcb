"""kombu's channel, publishing and acknowledging through our writer instead of py-amqp's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import MessageNacked, RecoverableConnectionError
from kombu.transport import pyamqp
from vine import promise

from .batch import PublishBatch

__all__ = ["Channel"]


def fulfilled() -> Any:
    """A promise that is already fulfilled."""
    result = promise()
    result()
    return result


class Channel(pyamqp.Channel):
    """``kombu.transport.pyamqp.Channel`` that encodes and writes a message in one step."""

    connection: Any
    _confirm_selected: bool

    #: py-amqp warns of any other method that arrives while it closes the channel. Nobody waits for
    #: this one then.
    _ALLOWED_METHODS_WHEN_CLOSING = (
        *pyamqp.Channel._ALLOWED_METHODS_WHEN_CLOSING,
        spec.Basic.QosOk,
    )

    #: If set, it collects the messages that are published.
    batch: PublishBatch | None = None
    #: Messages written before confirm_select().
    _unconfirmed = 0
    #: How often the broker has closed it, to refuse a method. py-amqp opens it again each time.
    refusals = 0
    #: Nobody waits for what it answers any more: if the broker closes it, it stays closed.
    unattended = False

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
        """Send a message: the same bytes and the same errors as with py-amqp.

        If the socket has something to read, that is handled first.

        Raises:
            RecoverableConnectionError: the connection is closed, or the write made no progress for
                ``timeout`` seconds.
            TableError, struct.error: a header or property cannot be encoded; nothing was sent.
        """
        if self.batch is not None:
            self.batch.publish(msg, exchange, routing_key, mandatory, immediate)
            return fulfilled()
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
        return fulfilled()

    basic_publish = _basic_publish

    def _on_close(self, *args: Any) -> None:
        self.refusals += 1
        if self.unattended:
            self.send_method(spec.Channel.CloseOk)
            self.collect()
        else:
            super()._on_close(*args)

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for an answer, as py-amqp. Deliveries are left to the thread that consumes.

        Raises:
            RecoverableConnectionError: the connection is closed.
        """
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection already closed")
        with connection.leaving_deliveries():
            return super().wait(*args, **kwargs)

    def basic_qos(
        self, prefetch_size: int, prefetch_count: int, a_global: bool, argsig: str = "lBb"
    ) -> Any:
        """Set the prefetch count. Only the thread that consumes waits for the answer.

        After a lost connection, threads of Celery's pools restore the prefetch count too. py-amqp
        loses an answer for which two threads wait, or which another thread reads before the wait
        has begun.
        """
        connection = self.connection
        if connection is None or not connection.consumed_elsewhere:
            return super().basic_qos(prefetch_size, prefetch_count, a_global, argsig)
        return self.send_method(spec.Basic.Qos, argsig, (prefetch_size, prefetch_count, a_global))

    def basic_consume(self, *args: Any, **kwargs: Any) -> Any:
        """Begin to consume, as py-amqp."""
        connection = self.connection
        answer = super().basic_consume(*args, **kwargs)
        if connection is not None:  # not before: the broker may refuse the consumer
            connection.consumed, connection.lost_consumers = True, False
        return answer

    def confirm_select(self, *args: Any, **kwargs: Any) -> Any:
        """Turn on confirm mode, in which delivery tags count from 1."""
        self._unconfirmed = self._written()  # not after the wait, which may be interrupted
        return super().confirm_select(*args, **kwargs)

    @property
    def published(self) -> int:
        """Messages written since confirm_select(): the delivery tag of the last one."""
        return self._written() - self._unconfirmed

    def _written(self) -> int:
        connection = self.connection
        return connection.frame_writer.published.get(self.channel_id, 0) if connection else 0

    def confirm_mode(self) -> None:
        """Turn on confirm mode, unless it is already on."""
        if not self._confirm_selected:
            self._confirm_selected = True
            self.confirm_select()

    def basic_publish_confirm(self, *args: Any, **kwargs: Any) -> Any:
        """Publish and wait for the confirm, as py-amqp does. A batch waits once for all of its
        messages."""
        if self.batch is None:
            try:
                return super().basic_publish_confirm(*args, **kwargs)
            except MessageNacked:  # py-amqp's says nothing
                raise MessageNacked("the broker refused the message (basic.nack)") from None
        self.confirm_mode()
        return self._basic_publish(*args, **kwargs)

    @property
    def supports_batch_publish(self) -> bool:
        """False with ``confirm_publish``: kombu then waits for the confirm of each message."""
        return self.connection is not None and not self.connection.confirm_publish

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """A batch for kombu's ``Producer.batch()``."""
        return PublishBatch(self, max_size)

    def deliver(
        self, arguments: tuple[str, int, bool, str, str], properties: dict[str, Any], body: bytes
    ) -> None:
        """Give a delivery to its consumer's callback, as py-amqp's dispatch does."""
        if self.is_closing:
            self.dispatch_method(spec.Basic.Deliver, b"", None)  # logs that it is ignored
            return
        message = Message(body)
        message.frame_method = spec.Basic.Deliver
        message.properties = properties
        message.body_size = message.body_received = len(body)
        message.ready = True
        if self.auto_decode and "content_encoding" in properties:
            # The body stays as it is if the encoding is not one of text, for example "binary".
            with suppress(LookupError, TypeError, ValueError):
                message.body = body.decode(properties["content_encoding"])
        self._on_basic_deliver(*arguments, message)

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge one delivery, or all deliveries up to it.

        Raises:
            RecoverableConnectionError: the connection is closed.
        """
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection already closed")
        connection.frame_writer.acknowledge(self.channel_id, delivery_tag, multiple)
