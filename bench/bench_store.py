"""Sending results, and the latency of one reply."""

from __future__ import annotations

import pytest

from .arena import KIB, MIB, QUICK, contestants, rounds

COUNTS = {100: 1_000} if QUICK else {100: 3_000, 10 * KIB: 2_000, MIB: 40}


@pytest.mark.parametrize("size", COUNTS)
@contestants("rpc", "rpc-cython", "redis", "fastrpc", "fastrpc-noconfirm", "raw")
def test_store_transient(race, arena, who, size):
    """store_result until all are in the queue; `returned_us` until the calls have returned."""
    arguments = {"size": size, "count": COUNTS[size], "persistent": False}
    race(lambda who: arena.client(who).store(**arguments), rounds(5))


@pytest.mark.parametrize("size", COUNTS)
@contestants("rpc", "rpc-cython", "fastrpc", "fastrpc-noconfirm", "raw")
def test_store_persistent(race, arena, who, size):
    arguments = {"size": size, "count": COUNTS[size], "persistent": True}
    race(lambda who: arena.client(who).store(**arguments), rounds(5))


@contestants("rpc", "rpc-cython", "redis", "fastrpc", "fastrpc-busywait", "raw")
def test_latency(race, arena, who):
    """store_result and get() in one process, one at a time; `latencies` in seconds."""
    race(lambda who: arena.client(who).latency(count=300 if QUICK else 2_000), rounds(5))
