"""What a process of pytest-xdist leaves behind when it dies: its status and its last output."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, BinaryIO

import pytest

LAST_BYTES = 8192


class CrashReporter:
    """Says in the parent process how a test process died.

    For a fatal error CPython disables faulthandler and writes to standard error, which pytest has
    redirected to a deleted file by then. The parent keeps that file open.
    """

    def __init__(self) -> None:
        self._captured: dict[str, list[BinaryIO]] = {}
        self._summary: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any) -> None:
        self._captured[node.gateway.id] = deleted_files_of(node.gateway._io.popen.pid)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        with contextlib.ExitStack() as files:
            captured = self._captured.pop(node.gateway.id, [])
            for file in captured:
                files.enter_context(file)
            if not error:
                return
            report = f"{node.gateway.id} {how_it_ended(node.gateway._io.popen)}: {error}"
            print(f"\n{report}", file=sys.stderr)
            for text in filter(None, map(last_text, captured)):
                print(f"its last output:\n{text}", file=sys.stderr)
                report += f"; {text.splitlines()[0]}"
            self._summary.append(report)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for report in self._summary:
            terminalreporter.write_line(report)


def how_it_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        return f"ended with {process.wait(10)}"
    except subprocess.TimeoutExpired:
        return "still runs"


def deleted_files_of(pid: int) -> list[BinaryIO]:
    """Open the deleted files that a process still holds open; none where there is no /proc."""
    files = []
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile, or a folder
            if str(file.readlink()).endswith(" (deleted)"):
                files.append(file.open("rb"))
    return files


def last_text(file: BinaryIO) -> str:
    file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
    return file.read().decode(errors="replace").strip()
