"""Celery's own integration tests of its canvas, run over our backend, on private servers.

    python -m tests.celery_suite SOURCES [PYTEST ARGUMENTS]   # SOURCES has Celery's tests, `t`

What Celery promises of chords on redis holds over the broker too; `make test-celery` gets the tests
of the version that is installed. Many of them note in a redis what their tasks do, so one runs
beside; no result goes there.
"""

from __future__ import annotations

import os
import sys

import celery
import pytest
from celery.app.backends import BACKEND_ALIASES

from tests.support.broker import RabbitMQ, Redis
from tests.support.suites import LeftOut, run_suite

#: The tests ask whether the name of the backend begins with "redis" before they use chords.
BACKEND = "redisless"

#: Seconds that a test waits for a result; Celery's own tests wait a minute.
PATIENCE = 20

FILES = ("t/integration/test_canvas.py", "t/integration/test_group_chains.py")

#: Tests -> why they are left out.
LEFT_OUT = {
    "*::test_group::test_empty_group_result": "It saves a group, which needs a store.",
    "*::test_chord::test_chord_on_error": "It reads the parts from the keys of the redis backend.",
    "*::test_chord::test_error_propagates_from_chord": (
        "It fails with redis too (Celery's issue 6437)."
    ),
    "*::test_chord::test_generator*": "A generator is evaluated before the first task is sent.",
}


class Used:
    """Bounds how long a test waits, and sees to it that the tests did run over our backend."""

    def pytest_collection_modifyitems(self, items: list) -> None:
        for module in {item.module for item in items}:
            module.TIMEOUT = PATIENCE

    def __init__(self) -> None:
        self.backends: set[type] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.backends.add(type(celery.current_app.backend))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if {backend.__module__ for backend in self.backends} != {"fastrpc.backend"}:
            print(f"the tests ran over {self.backends}", file=sys.stderr)
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def main(sources: str, *more: str) -> int:
    """Run the tests; returns pytest's exit code."""
    BACKEND_ALIASES[BACKEND] = "fastrpc.backend:RPCBackend"
    with RabbitMQ() as broker, Redis() as redis:
        os.environ["TEST_BROKER"] = broker.url
        os.environ["TEST_BACKEND"] = f"{BACKEND}://?chords=1"
        os.environ["REDIS_HOST"], os.environ["REDIS_PORT"] = redis.host, str(redis.port)
        options = ["-p", "celery.contrib.pytest", "-W", "ignore", *more]
        return run_suite(sources, FILES, [LeftOut(LEFT_OUT), Used()], *options)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
