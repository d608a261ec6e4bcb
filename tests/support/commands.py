"""Commands that a user starts, as processes: a worker, a web server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import kombu

from tests.support.waiting import wait_until


class Command:
    """A command that goes on until close(); what it prints goes to the file `log`."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.command, self.log = command, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def wait_until(self, condition: Callable[[], bool], message: str) -> None:
        """Wait for it, at most a minute; AssertionError if the command ends before."""

        def check() -> bool:
            said = f"{self.command} ended:\n{self.log.read_text()}"
            assert self.process.poll() is None, said
            return condition()

        wait_until(check, 60, message)

    def wait_until_it_consumes(self, url: str, queue: str = "celery") -> None:
        """Of a worker: until the queue has a consumer."""
        with kombu.Connection(url) as connection:
            declared = kombu.Queue(queue, channel=connection.default_channel)
            self.wait_until(
                lambda: declared.queue_declare().consumer_count > 0, "the worker consumes"
            )

    def close(self) -> None:
        """Stop it. A worker may take long: billiard alone may need 30 seconds for a child."""
        self.process.terminate()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait(10)
