"""A real Celery worker in a process of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Iterable
from typing import Any

from tests.support.processes import ROOT
from tests.support.waiting import wait_until

__all__ = ["READY_LINE", "Worker", "close_all"]

#: The line that worker_app.py prints when the worker consumes.
READY_LINE = "== worker is ready =="
_numbers = itertools.count(1)


class Worker:
    """`celery worker` with the tasks of tasks.py, ready when the constructor returns.

    `queues` are the queues it consumes; its tasks send subtasks to the first one.
    `conf` are Celery settings, `args` more of the command line. `install`: it calls
    fastrpc.install() first.
    """

    def __init__(
        self,
        broker: str,
        backend: str,
        *,
        pool: str = "prefork",
        concurrency: int = 2,
        queues: tuple[str, ...] = ("celery",),
        loglevel: str = "WARNING",
        conf: dict[str, Any] | None = None,
        args: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        install: bool = False,
        timeout: float = 60,
    ) -> None:
        self.broker, self.backend, self.pool, self.queues = broker, backend, pool, queues
        self.name = f"w{next(_numbers)}-{os.getpid()}@{pool}"
        #: It has no name, so nothing is left of it, however the test and the worker end. `log` is
        #: read after close() too.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._log.close)
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.support.worker_app", "worker"),
                *("-P", pool, "-c", str(concurrency), "-n", self.name, "-l", loglevel),
                *("-Q", ",".join(queues), "--without-gossip", "--without-mingle"),
                *args,
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "FASTRPC_TEST_BROKER": broker,
                "FASTRPC_TEST_BACKEND": backend,
                "FASTRPC_TEST_QUEUE": queues[0],
                "FASTRPC_TEST_CONF": json.dumps(conf or {}),
                "C_FORCE_ROOT": "1",
                **({"FASTRPC_TEST_INSTALL": "1"} if install else {}),
                **(env or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            wait_until(self._is_ready, timeout, f"{self} is ready", 0.05)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.backend} pid {self.process.pid}>"

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, exc_type: Any, *rest: Any) -> None:
        if exc_type is not None:
            print(self.log[-10_000:])
        self.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def queue(self) -> str:
        return self.queues[0]

    @property
    def log(self) -> str:
        fd = self._log.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"{self} ended at its start:\n{self.log}")
        return READY_LINE in self.log

    def stop(self, timeout: float = 60) -> int:
        """Warm shutdown: it finishes its running tasks. Returns its exit status.

        With any backend a prefork child may take 30 s over it: billiard lets it wait that long
        for the main process, which no longer looks, to count the tasks it ran.
        """
        return self._signal(signal.SIGTERM, timeout)

    def stop_cold(self, timeout: float = 30) -> int:
        """Cold shutdown: it drops its running tasks. Returns its exit status."""
        return self._signal(signal.SIGQUIT, timeout)

    def kill(self) -> None:
        """kill -9, its pool's processes too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def ask_to_stop(self) -> None:
        """Begin a warm shutdown, and do not wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def _signal(self, sig: int, timeout: float) -> int:
        self.process.send_signal(sig)
        return self.process.wait(timeout)

    def close(self) -> None:
        """Stop, by force if necessary."""
        try:
            self.ask_to_stop()
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()


def close_all(workers: Iterable[Worker]) -> None:
    """Stop all workers at the same time: each takes a second."""
    for worker in workers:
        worker.ask_to_stop()
    for worker in workers:
        worker.close()
