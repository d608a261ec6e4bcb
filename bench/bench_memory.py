"""Memory, measured in fresh processes."""

from __future__ import annotations

import pytest

from .arena import MIB, QUICK, contestants, fresh, full_only, rounds


@pytest.mark.parametrize("count", [20_000 if QUICK else 50_000])
@contestants("rpc", "fastrpc")
def test_pending_memory(race, arena, who, count):
    """Waiting AsyncResults: `bytes_each` includes the AsyncResult itself."""
    race(lambda who: fresh(arena, who, "pending", count=count), 1 if QUICK else 3)


@full_only
@pytest.mark.parametrize("count", [10_000])
@contestants("rpc", "fastrpc")
def test_unclaimed_memory(race, arena, who, count):
    """Unclaimed results: `bytes_beyond_body`, and how many were `lost`."""
    race(lambda who: fresh(arena, who, "unclaimed", count=count, weigh=True), 3)


@full_only
@contestants("rpc", "redis", "fastrpc", "raw")
def test_large(race, arena, who):
    """One result of 24 MiB: `peak_per_body`, the peak of additional memory."""
    race(lambda who: fresh(arena, who, "large", size=24 * MIB), rounds(3))
