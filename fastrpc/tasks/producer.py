"""kombu's producer with a fast path from a message to the channel."""

from __future__ import annotations

from types import FunctionType
from typing import Any

import kombu
import kombu.messaging
from kombu import Exchange, Queue

from .._borrowed import TRIED
from ..serialization import encode
from .pipeline import Pipeline

__all__ = ["Producer", "is_replaced"]

#: The arguments of ``publish()`` itself; all others are properties of the message.
OPTIONS = frozenset(
    {
        *("routing_key", "delivery_mode", "mandatory", "immediate", "priority", "content_type"),
        *("content_encoding", "serializer", "headers", "compression", "exchange", "retry"),
        *("retry_policy", "declare", "expiration", "timeout", "confirm_timeout"),
    }
)
#: kombu's methods that the fast path replaces.
METHODS = ("publish", "_publish", "_prepare", "_delivery_details", "maybe_declare")
STOCK = {name: vars(kombu.Producer).get(name) for name in METHODS}
PROVED = f"{kombu.VERSION.major}.{kombu.VERSION.minor}" in TRIED["kombu"] and all(
    type(method) is FunctionType and method.__globals__ is vars(kombu.messaging)
    for method in STOCK.values()
)


def is_replaced() -> bool:
    """Whether a method of kombu's producer was replaced, as tracing tools do.

    Also true for a version of kombu that the fast path was not tried with.
    """
    methods = vars(kombu.Producer)
    return not PROVED or any(methods.get(name) is not STOCK[name] for name in METHODS)


class DefaultExchange(Exchange):
    """The default exchange, owned by one producer.

    A pool binds it at each loan of the producer. kombu would copy it each time.
    """

    def bind(self, channel: Any) -> DefaultExchange:
        """Bind this instance, not a copy."""
        self._is_bound = False
        self.maybe_bind(channel)
        return self


class Producer(kombu.Producer):
    """``kombu.Producer`` that writes a message at once if it needs nothing but a write.

    The message is the same. kombu's own ``publish`` sends a message that needs more, for example an
    entity to be declared. It also retries a message whose connection was lost.
    """

    def __init__(
        self,
        channel: Any,
        exchange: Any = None,
        *args: Any,
        pipeline: Pipeline | None = None,
        **kwargs: Any,
    ) -> None:
        """``pipeline`` sends the messages if the connection has ``confirm_publish="pipelined"``."""
        exchange = DefaultExchange("") if exchange is None else exchange
        super().__init__(channel, exchange, *args, **kwargs)
        self.pipeline = pipeline

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        """Publish a message; see ``kombu.Producer.publish``."""
        channel = None if args or is_replaced() else self._ready_channel(options)
        if channel is None:
            return super().publish(body, *args, **options)
        try:
            return self._publish_on(channel, body, options)
        except Exception as exc:
            if not options.get("retry") or not isinstance(exc, self._recoverable_errors()):
                raise
        return super().publish(body, *args, **options)

    def _recoverable_errors(self) -> tuple[type[BaseException], ...]:
        connection = self.connection
        return (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors)

    def _ready_channel(self, options: dict[str, Any]) -> Any:
        """An open channel on which a message with these options can be written at once, or None."""
        if (
            options.get("content_type")
            or options.get("compression")
            or self.compression
            or (self.auto_declare and self.exchange.name)
            or getattr(getattr(self, "_batch_local", None), "current", None) is not None
            or not (self.connection and self.connection.connected)
        ):
            return None
        channel = self.channel
        if channel.connection is None:
            return None
        declared = channel.connection.client.declared_entities
        for entity in options.get("declare") or ():
            if not entity.can_cache_declaration or hash(entity) not in declared:
                return None
        return channel

    def _publish_on(self, channel: Any, body: Any, options: dict[str, Any]) -> Any:
        get = options.get
        properties = {name: value for name, value in options.items() if name not in OPTIONS}
        exchange, properties["delivery_mode"] = self._delivery_details(
            get("exchange") or self.exchange, get("delivery_mode")
        )
        expiration, routing_key = get("expiration"), get("routing_key")
        if expiration is not None:
            properties["expiration"] = str(int(expiration * 1000))
        if isinstance(get("reply_to"), Queue):
            properties["reply_to"] = properties["reply_to"].name
        content_type, content_encoding, data = encode(body, get("serializer") or self.serializer)
        headers = get("headers")
        message = channel.prepare_message(
            data,
            get("priority", 0),
            content_type,
            content_encoding,
            {} if headers is None else headers,
            properties,
        )
        routing_key = self.routing_key if routing_key is None else routing_key
        if self.pipeline is not None and getattr(channel.connection, "pipelined", False):
            return self.pipeline.publish(
                channel, message, exchange, routing_key, get("mandatory", False)
            )
        return channel.basic_publish(
            message,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=get("mandatory", False),
            immediate=get("immediate", False),
            timeout=get("timeout"),
            **({"confirm_timeout": get("confirm_timeout")} if "confirm_timeout" in options else {}),
        )
