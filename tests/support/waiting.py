"""Bounded waits, and how long they may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

#: How much later than its own timeout a get() may raise TimeoutError. Other tests share the cores.
LATE = 0.5


def wait_until(
    condition: Callable[[], Any], timeout: float, what: str, interval: float = 0.01
) -> Any:
    """Return the first true value of `condition()`; after `timeout` seconds raise TimeoutError."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(interval)
    return value


@contextmanager
def stopwatch(at_most: float, what: str):
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took <= at_most, f"{what} took {took:.2f} s, {at_most:g} s are allowed"
