"""kombu's own integration tests of its AMQP transport, run over ours on a private broker.

    python -m tests.kombu_suite SOURCES     # where kombu's tests, the folder `t`, are

kombu's promises for ``pyamqp://`` hold for our transport too; `make test-kombu` fetches the tests
of the installed version.
"""

from __future__ import annotations

import os
import sys

import kombu.transport
import pytest

import fastrpc
from tests.support.broker import RabbitMQ
from tests.support.suites import run_suite

OURS = "fastrpc.transport.transports:Transport"


class Used:
    """Checks that the tests really ran over our transport."""

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        cls = kombu.transport.get_transport_cls("pyamqp")
        if f"{cls.__module__}:{cls.__qualname__}" != OURS:
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR


def main(sources: str) -> int:
    """Run the tests; return pytest's exit code."""
    fastrpc.install()
    with RabbitMQ() as broker:
        os.environ["RABBITMQ_HOST"] = broker.host
        os.environ["RABBITMQ_5672_TCP"] = str(broker.port)
        return run_suite(sources, ["t/integration/test_py_amqp.py"], [Used()])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
