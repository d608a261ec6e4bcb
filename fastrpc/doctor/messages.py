"""Does a message come back over a scratch queue, how fast, and how large may it be?"""

from __future__ import annotations

import statistics
import time
from uuid import uuid4

import kombu
from amqp.exceptions import AccessRefused, MessageNacked, PreconditionFailed

from .findings import Checks, Verdict, fail, note, ok
from .scratch import Receiver, send
from .server import broker_version
from .subject import Subject
from .texts import milliseconds_since

__all__ = ["MESSAGE_CHECKS"]

MESSAGE_CHECKS = Checks()
#: Milliseconds from which a round trip is worth a note.
SLOW_ROUND_TRIP = 20.0
ROUND_TRIPS = 100
#: Seconds after which the broker deletes a scratch queue that nobody uses.
SCRATCH_SECONDS = 60


@MESSAGE_CHECKS.add("declare")
def declare(subject: Subject) -> Verdict:
    """May the user make a queue like a reply queue?"""
    name = f"fastrpc-doctor-{uuid4()}"
    queue = kombu.Queue(
        name,
        kombu.Exchange(None),
        name,
        durable=True,
        expires=SCRATCH_SECONDS,
        queue_arguments={"x-queue-type": "classic"},
    )
    channel = subject.connection.default_channel
    try:
        queue(channel).declare()
    except AccessRefused as exc:
        return subject.forbidden(exc, "configure")
    except PreconditionFailed as exc:
        return fail(
            subject.reason(exc),
            "Delete queues that nobody needs, or raise the limit (rabbitmqctl set_vhost_limits).",
        )
    subject.scratch = queue(channel)
    return ok("a durable queue, as for replies")


@MESSAGE_CHECKS.add("publish", needs="declare")
def publish(subject: Subject) -> Verdict:
    """Does the broker confirm a message?"""
    started = time.perf_counter()
    try:
        send(subject, b"x")
    except AccessRefused as exc:
        return subject.forbidden(exc, "write")
    except MessageNacked:
        return fail(
            "the broker refuses the message (nack)",
            "Look at the policies (rabbitmqctl list_policies): one with overflow reject-publish "
            "refuses messages for a full queue. Look at the broker's log too.",
        )
    except TimeoutError:
        return fail(
            f"no confirm within {subject.options.timeout:g} s",
            "The broker blocks publishers while memory or disk run out: look for alarms "
            "(rabbitmq-diagnostics alarms) and free what is short.",
        )
    return ok(f"confirmed after {milliseconds_since(started):.1f} ms")


@MESSAGE_CHECKS.add("consume", needs="publish")
def consume(subject: Subject) -> Verdict:
    """Does a message come back?"""
    try:
        with Receiver(subject) as receive:
            receive()
    except AccessRefused as exc:
        return subject.forbidden(exc, "read")
    except TimeoutError:
        return fail(
            f"the message does not come back within {subject.options.timeout:g} s",
            "Look at the policies (rabbitmqctl list_policies): max-length or message-ttl may drop "
            "it. Look at the broker's log and load too (rabbitmq-diagnostics status).",
        )
    return ok("the message came back")


@MESSAGE_CHECKS.add("round trip", needs="consume")
def measure_round_trips(subject: Subject) -> Verdict:
    """How long does a message take there and back?"""
    taken = []
    with Receiver(subject) as receive:
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            send(subject, b"x")
            receive()
            taken.append(milliseconds_since(started))
    centiles = statistics.quantiles(taken, n=100)
    median = statistics.median(taken)
    found = f"p50 {median:.2f} ms, p99 {centiles[98]:.2f} ms, with confirms"
    if median > SLOW_ROUND_TRIP:
        return note(found, "The broker is far away or busy: send many tasks at once (apply_many).")
    return ok(found)


@MESSAGE_CHECKS.add("message size", needs="consume")
def send_large_message(subject: Subject) -> Verdict:
    """How large may a message be? AMQP has no way to ask, so one of the wanted size is sent."""
    wanted = subject.options.message_size
    default = "16 MiB" if broker_version(subject) >= (4, 0) else "128 MiB"
    if not wanted:
        return ok(f"{default} unless max_message_size is set (--message-size tries a size)")
    with subject.connect(subject.reached, confirm_publish=True) as connection:
        try:
            # A second for each megabyte, over a slow network.
            send(subject, bytes(wanted), connection, max(subject.options.timeout, wanted / 1e6))
        except PreconditionFailed as exc:
            return fail(
                subject.reason(exc),
                "Send a reference to large data in place of the data, or raise max_message_size "
                "in rabbitmq.conf.",
            )
    subject.scratch.purge()
    return ok(f"a message of {wanted:,} bytes is accepted")
