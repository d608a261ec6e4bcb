"""`busy_wait`: a reply that arrives soon finds its reader awake."""

from __future__ import annotations

import pytest

from fastrpc.transport.connection import Connection

CALLS = 50


@pytest.fixture
def slept(monkeypatch) -> list[bool]:
    """Of each read of a connection of ours: whether there was nothing yet."""
    reads = []
    fill = Connection.fill

    def watched(self, timeout=None, **options):
        reads.append(not self.readable())
        return fill(self, timeout, **options)

    monkeypatch.setattr(Connection, "fill", watched)
    return reads


@pytest.mark.parametrize(
    ("backend", "sleepy"), [("fastrpc://", True), ("fastrpc://?busy_wait=0.01", False)]
)
def test_a_reader_looks_before_it_sleeps(make_worker, make_client, slept, backend, sleepy):
    app = make_client(backend, make_worker("fastrpc://"))
    # Long enough that the reply is not there yet, even if the caller is delayed for a moment.
    task = app.tasks["tests.sleep"]
    task.delay(0).get(timeout=30)
    slept.clear()
    for _ in range(CALLS):
        task.delay(0.004).get(timeout=30)
    # A caller that is delayed for more than ten milliseconds proves nothing.
    assert (sum(slept) > CALLS / 2) is sleepy, slept
