"""gevent and eventlet, for clients and workers: patched first, hundreds of greenlets waiting."""

from __future__ import annotations

import pytest

from tests.support.processes import run_child
from tests.support.threads import Background
from tests.support.worker import Worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(params=["gevent", "eventlet"])
def library(request) -> str:
    pytest.importorskip(request.param)
    return request.param


@pytest.mark.parametrize(
    "scenario",
    [
        *("many_wait", "call_and_wait", "latency", "callbacks", "timeouts", "cuts", "struck"),
        "busy_wait",
    ],
)
def test_a_client(private_broker, library, scenario):
    said = run_child("tests.faults.green_child", library, private_broker.url, scenario)
    assert said.splitlines()[-1] == "well"


def test_a_client_that_was_patched_late(private_broker):
    pytest.importorskip("gevent")
    assert run_child("tests.faults.late_green_child", private_broker.url).splitlines() == ["well"]


def test_a_client_and_a_worker(private_broker, library):
    queue = f"fastrpc-faults-{library}"
    with Worker(
        private_broker.url, "fastrpc://", pool=library, concurrency=100, queues=(queue,)
    ) as worker:
        children = [
            Background(
                lambda: run_child(
                    *("tests.faults.green_child", library, private_broker.url, "tasks", queue)
                )
            )
            for _ in range(2)
        ]
        for child in children:
            assert child.result(60).splitlines()[-1] == "well"
        assert worker.stop() == 0
