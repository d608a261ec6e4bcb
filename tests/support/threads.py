"""Runs functions in threads and returns their outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


def run_threads(count: int, target: Callable[[int], Any], timeout: float = 60) -> list[Any]:
    """Run `target(n)` in `count` threads at once; return the results, or raise the first error."""
    outcomes: list[Any] = [None] * count
    start = threading.Barrier(count)

    def run(n: int) -> None:
        try:
            start.wait(timeout)
            outcomes[n] = target(n)
        except BaseException as exc:
            outcomes[n] = exc

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
    hung = sum(thread.is_alive() for thread in threads)
    assert not hung, f"{hung} of {count} threads hang after {timeout:g} s"
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes


class Background:
    """A thread with a result: `with Background(f) as job: ...; job.result(5)`."""

    def __init__(self, target: Callable[[], Any]) -> None:
        self._target = target
        self._outcome: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._target()
        except BaseException as exc:
            self._error = exc

    @property
    def running(self) -> bool:
        return self.thread.is_alive()

    def result(self, timeout: float = 30) -> Any:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), f"it hangs after {timeout:g} s"
        if self._error is not None:
            raise self._error
        return self._outcome
