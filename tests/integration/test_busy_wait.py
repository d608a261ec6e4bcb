"""`busy_wait`: a reply that arrives soon finds its reader awake."""

from __future__ import annotations

import pytest

from fastrpc.transport.connection import Connection

CALLS = 50


@pytest.fixture
def slept(monkeypatch) -> list[bool]:
    """Of each read of a connection of ours: whether there was nothing yet."""
    reads = []
    fill, readable = Connection.fill, Connection.readable

    def patient(self, busy_wait=0.0):
        """Ten milliseconds become a second: a reply that is late on a busy machine is awaited."""
        return readable(self, 1.0 if busy_wait == 0.01 else busy_wait)

    def watched(self, timeout=None, **options):
        reads.append(not self.readable())
        return fill(self, timeout, **options)

    monkeypatch.setattr(Connection, "fill", watched)
    monkeypatch.setattr(Connection, "readable", patient)
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
    assert (sum(slept) > CALLS / 2) is sleepy, slept
