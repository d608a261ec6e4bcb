"""Queues of the broker, looked at over AMQP: rabbitmqctl takes seconds."""

from __future__ import annotations

from amqp.exceptions import NotFound
from kombu import Connection


def queue_exists(url: str, queue: str) -> bool:
    with Connection(url) as connection:
        try:
            connection.default_channel.queue_declare(queue, passive=True)
        except NotFound:
            return False
        return True
