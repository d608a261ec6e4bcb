"""The app's own queues: its reply queue, and those that it sends tasks to."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import AccessRefused, NotFound, PreconditionFailed

from .findings import Checks, Verdict, fail, note, ok, warn
from .settings import is_fastrpc
from .subject import Subject
from .texts import counted

__all__ = ["QUEUE_CHECKS"]

QUEUE_CHECKS = Checks()


@QUEUE_CHECKS.add("reply queue", needs="publish")
def check_reply_queue(subject: Subject) -> Verdict | None:
    """Can the app's reply queue be made? One that was named: its arguments, and who consumes it."""
    if subject.app is None or not is_fastrpc(type(subject.backend)):
        return None
    queue = subject.backend.binding
    if name := subject.options.reply_queue:
        if name in subject.app.amqp.queues:
            return fail(
                f"{name} is a queue of tasks",
                "Name a reply queue, the app.backend.oid of a caller.",
            )
        queue.name = queue.routing_key = name
    with subject.connection.channel() as channel:
        bound = queue(channel)
        try:
            # Do not make one that is missing.
            found = bound.queue_declare(passive=True) if name else None
            bound.declare()
        except NotFound:
            return note(
                f"there is no queue {name}",
                "Take the name from the caller (app.backend.oid), or from rabbitmqctl list_queues.",
            )
        except PreconditionFailed as exc:
            return fail(
                f"{queue.name} exists with other arguments: {subject.reason(exc)}",
                "Give all processes the same result_expires and queue_type. If it is a reply "
                f"queue, it can also be deleted: rabbitmqctl delete_queue {queue.name}.",
            )
        except AccessRefused as exc:
            return subject.forbidden(exc, "configure")
        if found is None:
            bound.delete(if_unused=True, if_empty=True)
        elif found.message_count and not found.consumer_count:
            return warn(
                f"nobody consumes {name} ({counted(found.message_count, 'message')})",
                "If it is a reply queue, and its caller has ended (one that has not waited yet "
                f"does not consume either), delete it: rabbitmqctl delete_queue {name}. "
                "rabbitmqctl list_queues name consumers messages shows more like it.",
            )
    return ok(f"{queue.name}, {describe(queue)}")


@QUEUE_CHECKS.add("task queues", needs="publish")
def check_task_queues(subject: Subject) -> Verdict | None:
    """Does anybody consume the queues that the app sends its tasks to?"""
    if subject.app is None:
        return None
    missing = []
    # Queue -> its messages and consumers.
    present: dict[str, tuple[int, int]] = {}
    for name, queue in subject.app.amqp.queues.items():
        with subject.connection.channel() as channel:
            try:
                answer = queue(channel).queue_declare(passive=True)
            except subject.connection.channel_errors:
                missing.append(name)
                continue
        present[name] = (answer.message_count, answer.consumer_count)
    idle = [name for name, (_, consumers) in present.items() if not consumers]
    if missing or idle:
        parts = [f"{name} does not exist" for name in missing]
        parts += [
            f"nobody consumes {name} ({counted(present[name][0], 'message')})" for name in idle
        ]
        names = ",".join([*missing, *idle])
        return warn("; ".join(parts), f"Start a worker for it: celery -A proj worker -Q {names}.")
    return ok(
        ", ".join(
            f"{name}: {counted(messages, 'message')}, {counted(consumers, 'consumer')}"
            for name, (messages, consumers) in present.items()
        )
    )


def describe(queue: Any) -> str:
    """The type of a queue, and when it expires."""
    expires = f"expires after {queue.expires:g} s unused" if queue.expires else "never expires"
    return f"{(queue.queue_arguments or {}).get('x-queue-type', 'classic')}, {expires}"
