"""The pauses before retries: Celery's retry policy, and the back-off for reconnecting."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import BadOption

__all__ = ["RetryPolicy", "backoff"]


class RetryPolicy(NamedTuple):
    """When to try again, with Celery's names and meaning (``retry_policy``), in seconds.

    ``max_retries=None`` never gives up.
    """

    max_retries: int | None = 20
    interval_start: float = 0
    interval_step: float = 1
    interval_max: float = 1

    @classmethod
    def parse(cls, policy: Mapping[str, Any]) -> RetryPolicy:
        """Use the given keys, and the defaults for the others.

        Raises:
            BadOption: a key is unknown or not a number; the message names it.
        """
        for key, value in policy.items():
            if key not in cls._fields:
                raise BadOption(
                    f"unknown key {key!r} in option 'retry_policy'; allowed are: "
                    + ", ".join(cls._fields)
                )
            if value is None and key == "max_retries":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise BadOption(
                    f"key {key!r} in option 'retry_policy' must be a number >= 0, not {value!r}"
                )
        return cls(**policy)

    def as_dict(self) -> dict[str, Any]:
        return self._asdict()

    def delays(self) -> Iterator[float]:
        """The pause before each retry; ends when the retries are used up."""
        retries = 0
        delay = self.interval_start
        while self.max_retries is None or retries < self.max_retries:
            yield min(delay, self.interval_max)
            delay += self.interval_step
            retries += 1


def backoff(
    first: float = 0.05, factor: float = 2.0, most: float = 5.0, rng: random.Random | None = None
) -> Iterator[float]:
    """Endless pauses for reconnecting: 0, then random ones that grow up to ``most`` seconds."""
    uniform = (rng or random).uniform
    yield 0.0
    ceiling = first
    while True:
        yield uniform(ceiling / 2, ceiling)
        ceiling = min(ceiling * factor, most)
