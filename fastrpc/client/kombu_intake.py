"""Receives results through a kombu consumer, for every kombu transport that does not speak AMQP."""

from __future__ import annotations

from collections import deque
from typing import Any

from .intake import Intake
from .matcher import body_format

__all__ = ["KombuIntake"]


class KombuIntake(Intake):
    """Receives results through a kombu consumer, and acknowledges each one."""

    def _open_channels(self) -> None:
        self.channel = self.connection.default_channel
        self._messages: deque[tuple[str, Any]] = deque()
        self._consumers: list[Any] = []

    def _consume(self, name: str) -> None:
        consumer = self.connection.Consumer(
            [self.queues.make(name)],
            channel=self.channel,
            auto_declare=False,
            on_message=lambda message: self._messages.append((name, message)),
            # kombu cannot decompress the message. If this raised, it would be redelivered for ever.
            on_decode_error=lambda message, exc: self._messages.append((name, message)),
        )
        consumer.consume()
        self._consumers.append(consumer)

    def read(self, timeout: float) -> bool:
        if not self._messages:
            try:
                self.connection.drain_events(timeout=timeout)
            except TimeoutError:
                return False
        return True

    def readable(self) -> bool:
        return self.read(timeout=0.001)

    @property
    def holds_some(self) -> bool:
        return bool(self._messages)

    def pump(self) -> None:
        while self._messages:
            name, message = self._messages.popleft()
            try:
                self._deliver(name, message)
            except BaseException:  # thrown into this thread: the message must not be lost
                self._messages.appendleft((name, message))
                raise
            message.ack()
            self.matcher.stats.received += 1
            self.taken += 1
            self.matcher.fulfiller.raise_thrown()

    def _deliver(self, name: str, message: Any) -> None:
        body = message.body
        correlation_id = message.properties.get("correlation_id")
        self.matcher.deliver(
            correlation_id.encode("utf-8", "surrogatepass") if correlation_id else None,
            body.encode() if isinstance(body, str) else bytes(body),
            body_format(
                message.content_type or "",
                message.content_encoding or "utf-8",
                # kombu has decompressed the body, unless there are errors.
                str(message.headers.get("compression") or "") if message.errors else "",
            ),
            name,
        )
