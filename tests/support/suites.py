"""Running another project's own tests, from its source distribution."""

from __future__ import annotations

import fnmatch
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

__all__ = ["LeftOut", "run_suite"]


class LeftOut:
    """Leaves out the tests of a table: pattern of test ids -> why.

    An id is a path below the sources and the names, as in ``t/unit/test_x.py::test_A::test_b``. An
    entry that matches no test is an error: it would hide that the test was renamed or mended.
    """

    def __init__(self, table: Mapping[str, str]) -> None:
        self.table = table
        self.left_out: Counter[str] = Counter()

    @pytest.hookimpl(tryfirst=True)  # sees also those that an option like -k would take out
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        kept, dropped = [], []
        for item in items:
            matching = [p for p in self.table if fnmatch.fnmatchcase(item.nodeid, p)]
            self.left_out.update(matching)
            (dropped if matching else kept).append(item)
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)
        if stale := self.table.keys() - self.left_out:
            raise pytest.UsageError(f"left out, but there is no such test: {sorted(stale)}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for pattern, why in self.table.items():
            terminalreporter.line(f"left out: {self.left_out[pattern]:3} {pattern}: {why}")


def run_suite(sources: str, tests: Iterable[str], plugins: list[object], *more: str) -> int:
    """Run tests of the folder ``sources``, with none of our settings; return pytest's exit code."""
    sys.path.append(sources)  # behind the package that is installed
    theirs = ["-c", os.devnull, "--rootdir", sources, "-o", "python_classes=test_*"]
    quiet = ["-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    paths = [os.path.join(sources, test) for test in tests]
    return pytest.main([*theirs, *quiet, *more, *paths], plugins=plugins)
