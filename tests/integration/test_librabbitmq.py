"""A real librabbitmq package beside ours: kombu would take it for every `amqp://` URL."""

from __future__ import annotations

import os
from importlib.machinery import EXTENSION_SUFFIXES

import pytest

from tests.support.processes import ROOT, run_child
from tests.support.worker import Worker

FOLDER = ROOT / ".make" / "librabbitmq"

pytestmark = pytest.mark.skipif(
    not any((FOLDER / f"_librabbitmq{suffix}").exists() for suffix in EXTENSION_SUFFIXES),
    reason="`make test` fetches librabbitmq-fork; there are wheels for Python 3.10 to 3.12",
)


def env() -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(FOLDER), os.environ.get("PYTHONPATH", "")])}


@pytest.mark.parametrize("scheme", ["amqp", "librabbitmq"])
def test_worker_and_client_use_our_transport(broker, scheme):
    """Without install(), Celery's worker does not start beside that package on kombu 5.7."""
    queue = f"fastrpc-tests-librabbitmq-{scheme}-{os.getpid()}"
    url = broker.url.replace("amqp", scheme, 1)
    with Worker(url, "rpc://", pool="solo", queues=(queue,), env=env(), install=True):
        said = run_child("tests.support.librabbitmq_child", url, queue, env=env())
    assert said.split() == ["True", "True", "fastrpc.transport.transports"]
