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

#: The tests ask whether the name of the backend begins with "redis" before they use chords.
BACKEND = "redisless"

#: Seconds that a test waits for a result; Celery's own tests wait a minute.
PATIENCE = 20

FILES = ("test_canvas.py", "test_group_chains.py")

#: A test -> why it is left out.
LEFT_OUT = {
    "test_group::test_empty_group_result": "saves a group, which needs a store",
    "test_chord::test_chord_on_error": "reads the parts from the keys of the redis backend",
    "test_chord::test_error_propagates_from_chord": "fails with redis too (Celery's issue 6437)",
    "test_chord::test_generator": "a generator is evaluated before the first task is sent",
}


def name_of(item: pytest.Item) -> str:
    """test_chord::test_generator, without the file and the parameters."""
    return item.nodeid.partition("::")[2].partition("[")[0]


class Used:
    """Leaves out what is left out, and sees to it that the tests did run over our backend."""

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list) -> None:
        for module in {item.module for item in items}:
            module.TIMEOUT = PATIENCE
        left_out = [item for item in items if name_of(item) in LEFT_OUT]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]

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
    sys.path.append(sources)  # behind the Celery that is installed
    with RabbitMQ() as broker, Redis() as redis:
        os.environ["TEST_BROKER"] = broker.url
        os.environ["TEST_BACKEND"] = f"{BACKEND}://?chords=1"
        os.environ["REDIS_HOST"], os.environ["REDIS_PORT"] = redis.host, str(redis.port)
        theirs = ["-c", os.devnull, "--rootdir", sources, "-o", "python_classes=test_*"]
        plugins = [f"-p{name}" for name in ("celery.contrib.pytest", "no:cacheprovider")]
        tests = [os.path.join(sources, "t", "integration", name) for name in FILES]
        arguments = [*theirs, *plugins, "-q", "-Wignore", *more, *tests]
        return pytest.main(arguments, plugins=[Used()])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
