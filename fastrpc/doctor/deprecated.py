"""Does the broker deny what Celery before 5.7 asks for?"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import celery
import kombu

from .findings import Checks, Verdict, fail, note, ok
from .scratch import send
from .subject import Subject
from .texts import version_in

__all__ = ["DEPRECATION_CHECKS"]

DEPRECATION_CHECKS = Checks()
#: Seconds after which a message that has not come is taken to be held back.
UNSEEN_SECONDS = 0.3


@DEPRECATION_CHECKS.add("deprecated features", needs="consume")
def check_deprecated_features(subject: Subject) -> Verdict:
    """Does the broker deny what Celery before 5.7 asks for?"""
    old = version_in(celery.__version__) < (5, 7)
    if error := refuses_transient_queues(subject):
        found = f"the broker denies transient queues: {error}"
        if not old:
            return note(
                found,
                f"Celery {celery.__version__} asks for none, but workers of older versions do.",
            )
        return fail(
            found,
            f"Workers of Celery {celery.__version__} do not start here: move to Celery 5.7, or put "
            "deprecated_features.permit.transient_nonexcl_queues = true into rabbitmq.conf.",
        )
    if not shares_prefetch(subject):
        found = "the broker applies a global prefetch to each consumer (global_qos is denied)"
        if not old:
            return note(found, f"Celery {celery.__version__} asks for no global prefetch.")
        return note(
            found, "A worker that consumes N queues prefetches N times worker_prefetch_multiplier."
        )
    return ok("transient queues and a global prefetch are permitted")


def refuses_transient_queues(subject: Subject) -> str:
    """Why the broker refuses a queue like those of older Celery's remote control; empty if not."""
    queue = kombu.Queue(f"fastrpc-doctor-{uuid4()}", kombu.Exchange(None), durable=False)
    with subject.connect(subject.reached) as connection:
        bound = queue(connection.default_channel)
        try:
            bound.declare()
            bound.delete()
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            return subject.reason(exc).splitlines()[0]
    return ""


def shares_prefetch(subject: Subject) -> bool:
    """Whether two consumers of a channel share a global prefetch of one message.

    RabbitMQ 4.3 accepts the request, but applies the prefetch to each of them.
    """
    arrived: list[Any] = []
    with subject.connect(subject.reached) as connection:
        channel = connection.default_channel
        channel.basic_qos(0, 1, True)
        queue = kombu.Queue(subject.scratch.name, kombu.Exchange(None))
        options = {"on_message": arrived.append, "auto_declare": False}
        consumers = [kombu.Consumer(channel, [queue], **options) for _ in range(2)]
        for consumer in consumers:
            consumer.consume()
        for _ in range(2):
            send(subject, b"x")
        end = time.monotonic() + UNSEEN_SECONDS
        while len(arrived) < 2 and (left := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                connection.drain_events(timeout=left)
        for consumer in consumers:
            consumer.cancel()
        for message in arrived:
            message.ack()
    subject.scratch.purge()
    return len(arrived) < 2
