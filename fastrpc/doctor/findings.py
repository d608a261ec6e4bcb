"""What a check finds, and what a check is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["Check", "Checks", "Finding", "Mark", "Verdict", "fail", "note", "ok", "warn"]


class Mark(str, Enum):
    """How good or bad a finding is. Only FAIL changes the exit status."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check found, and one sentence on what to do, if anything is to be done."""

    check: str
    mark: Mark
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON."""
        return {**asdict(self), "mark": self.mark.value}


class Verdict(NamedTuple):
    """A finding before it has the name of its check."""

    mark: Mark
    found: str
    advice: str = ""


def ok(found: str) -> Verdict:
    return Verdict(Mark.OK, found)


def note(found: str, advice: str = "") -> Verdict:
    return Verdict(Mark.NOTE, found, advice)


def warn(found: str, advice: str) -> Verdict:
    return Verdict(Mark.WARN, found, advice)


def fail(found: str, advice: str) -> Verdict:
    return Verdict(Mark.FAIL, found, advice)


Run = Callable[[Any], "Verdict | None"]


class Check(NamedTuple):
    """One step. ``run`` takes a Node or a Subject and returns None if the check does not apply."""

    name: str
    #: The name of a check that must not have failed; empty for none.
    needs: str
    run: Run


class Checks(list[Check]):
    """The checks of one module, in their order."""

    def add(self, name: str, needs: str = "") -> Callable[[Run], Run]:
        """Decorator: make a function the next check."""

        def append(run: Run) -> Run:
            self.append(Check(name, needs, run))
            return run

        return append
