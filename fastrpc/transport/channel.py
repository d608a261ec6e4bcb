"""kombu's channel over our writer: publishing and acknowledging without py-amqp's detours."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp
from vine import promise

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

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge one delivery, or all up to it.

        Raises:
            RecoverableConnectionError: the connection is closed.
        """
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection already closed")
        connection.frame_writer.acknowledge(self.channel_id, delivery_tag, multiple)
