"""One run over all checks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .app import SETUP_CHECKS
from .connection import CONNECTION_CHECKS, explain_url
from .deprecated import DEPRECATION_CHECKS
from .findings import Check, Finding, Mark, Verdict, fail
from .green_workers import GREEN_WORKER_CHECKS
from .messages import MESSAGE_CHECKS
from .queues import QUEUE_CHECKS
from .results import RESULT_CHECKS
from .server import SERVER_CHECKS
from .subject import Node, Subject
from .texts import mask_urls
from .workers import WORKER_CHECKS

__all__ = ["APP_CHECKS", "BROKER_CHECKS", "NODE_CHECKS", "examine"]

#: For each node of the broker.
NODE_CHECKS: list[Check] = CONNECTION_CHECKS
#: Over the first connection that could be opened.
BROKER_CHECKS: list[Check] = [
    *SERVER_CHECKS,
    *MESSAGE_CHECKS,
    *DEPRECATION_CHECKS,
    *QUEUE_CHECKS,
]
#: If the app is known.
APP_CHECKS: list[Check] = [*SETUP_CHECKS, *WORKER_CHECKS, *GREEN_WORKER_CHECKS, *RESULT_CHECKS]


class Examination:
    """One run over all checks; knows what failed, and masks the URLs in the texts."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        #: Check -> the check that caused its failure: itself, or one that it needs.
        self.failed: dict[str, str] = {}

    def run(self) -> Iterator[Finding]:
        """Yield the finding of each check that applies."""
        subject = self.subject
        yield from self._run_for_nodes()
        if subject.connection is not None:
            self.failed.clear()  # of the other nodes
            yield from self._run(BROKER_CHECKS, subject)
        if subject.app is not None:
            yield from self._run(APP_CHECKS, subject)

    def _run_for_nodes(self) -> Iterator[Finding]:
        urls = self.subject.urls()
        for number, url in enumerate(urls, 1):
            self.failed.clear()
            label = f" {number}/{len(urls)}" if len(urls) > 1 else ""
            try:
                node = Node(self.subject, url)
            except Exception as exc:
                self.failed = {"url": "url", "login": "url"}
                yield Finding("url" + label, Mark.FAIL, *explain_url(exc))
            else:
                yield from self._run(NODE_CHECKS, node, label)

    def _run(self, checks: list[Check], target: Any, label: str = "") -> Iterator[Finding]:
        for step in checks:
            if cause := self.failed.get(step.needs):
                self.failed[step.name] = cause
                found = f"not looked at, because {cause} failed"
                yield Finding(step.name + label, Mark.SKIPPED, found)
                continue
            verdict = self._verdict(step, target)
            if verdict is None:
                continue
            if verdict.mark is Mark.FAIL:
                self.failed[step.name] = step.name
            yield Finding(
                step.name + label,
                verdict.mark,
                mask_urls(verdict.found),
                mask_urls(verdict.advice),
            )

    def _verdict(self, step: Check, target: Any) -> Verdict | None:
        try:
            return step.run(target)
        except Exception as exc:
            said = f"{type(exc).__name__}: {self.subject.reason(exc)}"
            return fail(said, "This was not foreseen: look at the broker's log, or report it.")


def examine(subject: Subject) -> Iterator[Finding]:
    """Run all checks and yield each finding as it is made; close the connection at the end."""
    try:
        yield from Examination(subject).run()
    finally:
        subject.close()
