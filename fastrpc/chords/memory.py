"""What is remembered of chords of which nobody says when they have ended."""

from __future__ import annotations

from typing import Any

__all__ = ["Memory"]

#: How many chords are remembered.
REMEMBERED = 10_000


class Memory(dict[str, Any]):
    """By group id; the oldest of more than ``REMEMBERED`` is forgotten."""

    def __setitem__(self, group_id: str, value: Any) -> None:
        super().__setitem__(group_id, value)
        if len(self) > REMEMBERED:
            del self[next(iter(self))]
