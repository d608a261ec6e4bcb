"""A look at the queue of a chord: what is to be known of the chord, and who waits for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .._lock import Signal

__all__ = ["Look", "queue_name"]


def queue_name(group_id: str) -> str:
    """The name of the queue in which the parts of a chord meet."""
    return f"fastrpc.chord.{group_id}"


@dataclass
class Look:
    """A look at the queue of one chord that is due."""

    group_id: str
    #: All parts may be there once the queue has this many messages.
    size: int
    #: The body, as the header task carried it.
    body: dict[str, Any]
    #: The request of the header task that ended last in this process.
    request: Any
    #: When to look, by ``time.monotonic()``.
    due: float = 0.0
    #: How often the connection was lost while the body was sent.
    failures: int = 0
    #: How often it was made without a decision.
    undecided: int = 0
    #: Whether the body was sent: only the queue is left, to be deleted.
    body_sent: bool = False
    #: Set once somebody has looked at the queue.
    waiting: list[Signal] = field(default_factory=list)

    def take_over(self, earlier: Look) -> None:
        """Take the place of an earlier look at the same chord."""
        self.waiting += earlier.waiting
        self.failures = max(self.failures, earlier.failures)
        self.body_sent = self.body_sent or earlier.body_sent
