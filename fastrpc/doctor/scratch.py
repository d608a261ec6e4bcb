"""Sends to the scratch queue and consumes it."""

from __future__ import annotations

from typing import Any

import kombu

from .subject import Subject

__all__ = ["Receiver", "send"]


def send(
    subject: Subject, body: bytes, connection: Any = None, confirm_timeout: float | None = None
) -> None:
    """Publish to the scratch queue and wait for the confirm.

    Args:
        connection: the one to publish over; by default that of the subject.
        confirm_timeout: seconds that the confirm may take; by default as for any answer.

    Raises:
        TimeoutError: no confirm came in time.
        AccessRefused, PreconditionFailed: the broker refuses the message.
    """
    connection = connection or subject.connection
    connection.Producer(connection.default_channel).publish(
        body,
        exchange="",
        routing_key=subject.scratch.name,
        content_type="application/octet-stream",
        content_encoding="binary",
        delivery_mode=1,
        confirm_timeout=confirm_timeout or subject.options.timeout,
    )


class Receiver:
    """Consumes the scratch queue; each call waits for one message.

    Raises:
        TimeoutError: no message came in time.
        AccessRefused: the user may not read from the queue.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.arrived = 0
        self.consumer = kombu.Consumer(
            subject.connection.default_channel,
            [subject.scratch],
            on_message=self._on_message,
            no_ack=True,
        )

    def __enter__(self) -> Receiver:
        self.consumer.consume()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.consumer.cancel()

    def _on_message(self, message: Any) -> None:
        self.arrived += 1

    def __call__(self) -> None:
        while not self.arrived:
            self.subject.connection.drain_events(timeout=self.subject.options.timeout)
        self.arrived -= 1
