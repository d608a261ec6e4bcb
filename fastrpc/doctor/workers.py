"""Do workers answer, and do their settings and clocks suit the app?"""

from __future__ import annotations

import time
from typing import Any

from .findings import Checks, Verdict, fail, note, ok, warn
from .settings import REPLYING, accepts, family, scheme_of
from .subject import Subject
from .texts import counted

__all__ = ["WORKER_CHECKS", "ask_fastrpc"]

WORKER_CHECKS = Checks()
#: Seconds that the clocks of two machines may differ before timings of tasks suffer.
CLOCK_DIFFERENCE = 2.0


@WORKER_CHECKS.add("workers", needs="login")
def ask_workers(subject: Subject) -> Verdict | None:
    """Does a worker answer?"""
    if not subject.options.workers:
        return None
    timeout = subject.control_timeout
    answers = subject.app.control.ping(timeout=timeout)
    subject.workers = sorted(name for answer in answers for name in answer)
    if not subject.workers:
        return warn(
            f"no worker answers within {timeout:g} s",
            "Start one: celery -A proj worker. A worker is silent while the broker accepts no "
            "messages, while a solo pool runs a task, and where its accept_content lacks the app's "
            "task_serializer.",
        )
    subject.worker_settings = subject.inspect(subject.workers).conf(with_defaults=True) or {}
    return ok(", ".join(subject.workers))


@WORKER_CHECKS.add("worker backends", needs="workers")
def compare_backends(subject: Subject) -> Verdict | None:
    """Do the workers send results to where the app waits for them?"""
    ours = scheme_of(subject.app.conf.result_backend)
    if not subject.worker_settings or ours == "disabled":
        return None
    theirs = {
        worker: str(conf.get("result_backend") or "disabled://")
        for worker, conf in subject.worker_settings.items()
    }
    wrong = [
        f"{worker} has {backend}"
        for worker, backend in theirs.items()
        if family(scheme_of(backend)) != family(ours)
    ]
    if wrong:
        return fail(
            f"the app waits at {ours}://, but {', '.join(wrong)}",
            "Give client and workers the same result_backend. Only rpc:// and fastrpc:// may be "
            "mixed.",
        )
    return ok(", ".join(f"{worker}: {backend}" for worker, backend in theirs.items()))


@WORKER_CHECKS.add("worker serializers", needs="workers")
def compare_serializers(subject: Subject) -> Verdict | None:
    """Does each side read what the other writes?"""
    if not subject.worker_settings:
        return None
    conf = subject.app.conf
    ours = conf.result_accept_content or conf.accept_content
    faults = []
    for worker, theirs in subject.worker_settings.items():
        if not accepts(theirs.get("accept_content") or ["json"], conf.task_serializer):
            faults.append(f"{worker} does not accept tasks in {conf.task_serializer}")
        if not accepts(ours, theirs.get("result_serializer") or "json"):
            faults.append(f"results of {worker} in {theirs['result_serializer']} are not accepted")
    if faults:
        return fail("; ".join(faults), "Give both sides the same serializers and accept_content.")
    return ok("each side reads what the other writes")


@WORKER_CHECKS.add("clocks", needs="workers")
def compare_clocks(subject: Subject) -> Verdict | None:
    """Do the clocks of the workers agree with ours?"""
    asked = [
        worker
        for worker, conf in subject.worker_settings.items()
        if scheme_of(str(conf.get("result_backend"))) in REPLYING
    ]
    if not asked:
        return None
    before = time.time()
    answers = ask_fastrpc(subject, asked)
    after = time.time()
    apart = {
        worker: max(before - said["time"], said["time"] - after, 0.0)
        for worker, said in answers.items()
    }
    if not apart:
        return note(
            "not known: no worker has the remote control command fastrpc_stats",
            "Install fastrpc in the workers, and import fastrpc.contrib.control where a worker is "
            "not started by the command celery.",
        )
    worst = max(apart, key=lambda worker: apart[worker])
    if apart[worst] > CLOCK_DIFFERENCE:
        return warn(
            f"the clock of {worst} differs by {apart[worst]:.1f} s",
            "Let both machines keep time (chrony, systemd-timesyncd): expires, eta and countdown "
            "compare their clocks.",
        )
    return ok(f"{counted(len(apart), 'worker')} within {CLOCK_DIFFERENCE:g} s")


def ask_fastrpc(subject: Subject, workers: list[str]) -> dict[str, dict[str, Any]]:
    """Worker -> its answer to ``fastrpc_stats``; workers without that command are left out.

    Each worker is asked once: one without the command logs an error.
    """
    known = subject.fastrpc_answers
    if new := [worker for worker in workers if worker not in known]:
        answers = subject.app.control.broadcast(
            "fastrpc_stats",
            destination=new,
            reply=True,
            timeout=subject.control_timeout,
            limit=len(new),
        )
        said = {worker: answer for reply in answers or () for worker, answer in reply.items()}
        known.update((worker, said.get(worker, {})) for worker in new)
    return {worker: known[worker] for worker in workers if "time" in known[worker]}
