"""Separate processes: one that runs a module of the tests, and a forked child."""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Where `tests` can be imported from.
ROOT = Path(__file__).parents[2]


def run_child(*args: str, timeout: float = 60, env: dict[str, str] | None = None) -> str:
    """Run a module of the tests in a process of its own; return its output, or raise."""
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{args} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


class Child:
    """A forked child that runs `target`, within `patience` seconds, and sends what it returned."""

    def __init__(
        self,
        target: Callable[[], Any],
        leave: Callable[[], Any] | None = None,
        patience: int = 25,
    ) -> None:
        self._patience = patience
        self._read, write = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(write)
            return
        try:
            # A child that hangs must not outlive the tests; it prints where it was.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            faulthandler.register(signal.SIGALRM, chain=True)
            signal.alarm(patience)
            try:
                said = {"value": target()}
            except BaseException:
                said = {"error": traceback.format_exc()}
            os.write(write, json.dumps(said).encode())
            os.close(write)
            if leave is not None:
                leave()
        finally:
            os._exit(0)

    def result(self) -> Any:
        timer = threading.Timer(self._patience + 5, os.kill, (self.pid, signal.SIGKILL))
        timer.start()
        with os.fdopen(self._read) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        timer.cancel()
        assert text, f"the child said nothing within {self._patience} s"
        said = json.loads(text)
        assert "error" not in said, said["error"]
        return said["value"]


def sys_exit_with_atexit() -> None:
    """Leave as the main module of a program does: handlers run, objects are collected."""
    try:
        sys.exit(0)
    except SystemExit:
        atexit._run_exitfuncs()
