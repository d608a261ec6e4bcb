"""Raw messages through a channel of kombu's, the same lines over every transport.

The measurements of `bench_messages`, in a client process (`bench.client`, or a peer's).
"""

from __future__ import annotations

from typing import Any

import kombu
from kombu.utils.uuid import uuid

from .serving import TIMEOUT, ClientProcess, values_of
from .wire import Wire, result_body

#: How many messages the broker sends ahead of their acknowledgements.
PREFETCH = 1_000


class Messages(ClientProcess):
    """Publishes and consumes without tasks: what a transport costs on its own."""

    #: The transport of kombu's that is measured.
    transport = "pyamqp"

    def publish(self, count: int) -> dict[str, Any]:
        """`count` calls of basic_publish, one by one, until all are in the queue."""
        queue, bodies = f"bench-messages-{uuid()}", bodies_of(count)
        self.wire.declare(queue)
        with kombu.Connection(self.config["broker"], transport=self.transport) as connection:
            channel = connection.default_channel
            with self.meter(count) as sample:
                for task_id, body in bodies:
                    message = channel.prepare_message(
                        body,
                        content_type="application/json",
                        content_encoding="utf-8",
                        headers={},
                        properties={"correlation_id": task_id, "delivery_mode": 1},
                    )
                    channel.basic_publish(message, exchange="", routing_key=queue)
                sample["not_counted"] = self.wire.wait_count(queue, count)
        check_published(self.config["broker"], queue, bodies)
        self.wire.delete(queue)
        return sample

    def consume(self, count: int) -> dict[str, Any]:
        """`count` waiting messages, each acknowledged, until the broker has read that."""
        queue, bodies = f"bench-messages-{uuid()}", bodies_of(count)
        self.wire.declare(queue)
        self.wire.fill(queue, bodies, count)
        received: list[Any] = []
        with kombu.Connection(self.config["broker"], transport=self.transport) as connection:
            channel = connection.default_channel
            channel.basic_qos(0, PREFETCH, False)

            def on_message(message: Any) -> None:
                received.append(message.body)
                channel.basic_ack(message.delivery_info["delivery_tag"])

            with self.meter(count) as sample:
                channel.basic_consume(queue, consumer_tag="raw", callback=on_message)
                while len(received) < count:
                    connection.drain_events(timeout=TIMEOUT)
                # It answers after it has read the acknowledgements ahead of this.
                channel.queue_declare(queue, passive=True)
        assert [_bytes(body) for body in received] == [body for _, body in bodies], "bodies differ"
        assert self.wire.count(queue) == 0, "not acknowledged"
        self.wire.delete(queue)
        return sample


def check_published(broker: str, queue: str, bodies: list[tuple[str, bytes]]) -> None:
    """Compare what is in the queue with what was sent, in its order."""
    reader = Wire(broker)
    found = [(i, bytes(body)) for i, _, body in reader.messages(queue, len(bodies))]
    reader.close()
    assert found == bodies, "messages differ"


def bodies_of(count: int) -> list[tuple[str, bytes]]:
    """Correlation ids, and bodies as those of small results."""
    ids = [uuid() for _ in range(count)]
    return [(i, result_body(i, v)) for i, v in zip(ids, values_of(count, None), strict=True)]


def _bytes(body: Any) -> bytes:
    return body.encode() if isinstance(body, str) else bytes(body)
