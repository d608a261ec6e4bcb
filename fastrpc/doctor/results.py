"""Does the result of a task come back, and that of a chord?"""

from __future__ import annotations

import time

import celery

from .findings import Checks, Verdict, fail, note, ok, warn
from .settings import is_fastrpc, scheme_of
from .subject import Subject
from .texts import milliseconds_since
from .workers import ask_fastrpc

__all__ = ["RESULT_CHECKS"]

RESULT_CHECKS = Checks()

#: The queue of a chord, by its group id; see docs/canvas.md.
CHORD_QUEUE = "fastrpc.chord.{}"

MOVE_THEM = (
    "A worker with stock rpc:// returns no parts, and the body never runs: move all workers that "
    "run header tasks to fastrpc."
)


@RESULT_CHECKS.add("task", needs="worker backends")
def send_task(subject: Subject) -> Verdict | None:
    """Does the result of a task come back? It is one of Celery's own, which does nothing."""
    if not subject.workers or gets_no_results(subject):
        return None
    timeout = subject.options.timeout
    started = time.perf_counter()
    result = subject.app.send_task(
        "celery.accumulate", ("fastrpc",), {"index": 0}, expires=timeout, ignore_result=False
    )
    try:
        result.get(timeout=timeout)
    except celery.exceptions.TimeoutError:
        queue = subject.app.conf.task_default_queue
        return fail(
            f"no result within {timeout:g} s",
            f"Check that a worker consumes {queue} and is not busy, and that clients and workers "
            "have the same result_backend. Look at the worker's log too.",
        )
    except Exception as exc:
        return fail(
            f"get() raises {type(exc).__name__}: {subject.reason(exc)}",
            "Compare the settings of both sides: result_backend, serializers, accept_content. Look "
            "at the worker's log too.",
        )
    return ok(f"a result came back after {milliseconds_since(started):.1f} ms")


@RESULT_CHECKS.add("chord", needs="task")
def send_chord(subject: Subject) -> Verdict | None:
    """Does a chord work, if the backend supports them?"""
    if not subject.workers or gets_no_results(subject):
        return None
    try:
        subject.backend.ensure_chords_allowed()
    except NotImplementedError:
        return note("the backend supports no chords", "fastrpc://?chords=1 switches them on.")
    timeout = subject.options.timeout
    part = subject.app.signature("celery.accumulate", (1,), {"index": 0})
    body = subject.app.signature("celery.accumulate", kwargs={"index": 0})
    result = celery.chord([part.clone(), part.clone()], app=subject.app)(body)
    others = workers_without_fastrpc(subject)
    beside = f"; perhaps without fastrpc: {', '.join(others)}" if others else ""
    try:
        result.get(timeout=timeout)
    except celery.exceptions.TimeoutError:
        delete_queue(subject, CHORD_QUEUE.format(result.parent.id))
        advice = MOVE_THEM if others else "Look at the logs of the workers."
        return fail(f"no result within {timeout:g} s{beside}", advice)
    found = f"a chord of two tasks came back{beside}"
    return warn(found, MOVE_THEM) if others else ok(found)


def gets_no_results(subject: Subject) -> bool:
    """Whether the app has no result backend, or sends no tasks: the check "backend" says so."""
    conf = subject.app.conf
    return (
        subject.backend is None
        or scheme_of(conf.result_backend) == "disabled"
        or bool(conf.task_always_eager)
    )


def workers_without_fastrpc(subject: Subject) -> list[str]:
    """The workers that may return no parts: neither settings nor counters show our backend."""
    if not is_fastrpc(type(subject.backend)):
        return []
    unsure = [
        worker
        for worker, conf in subject.worker_settings.items()
        if scheme_of(str(conf.get("result_backend"))) != "fastrpc"
    ]
    answers = ask_fastrpc(subject, unsure)
    return [worker for worker in unsure if not answers.get(worker, {}).get("stats")]


def delete_queue(subject: Subject, name: str) -> None:
    """Delete what the chord leaves behind: nothing, if it was none of ours."""
    with subject.connection.channel() as channel:
        channel.queue_delete(name)
