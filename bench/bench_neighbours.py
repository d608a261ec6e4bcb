"""What a worker's threads, and its callers, have to bear of each other."""

from __future__ import annotations

import pytest

from tests.support.proxy import Proxy

from .arena import KIB, MIB, QUICK, contestants, fresh, full_only, rounds


@contestants("rpc", "fastrpc")
def test_beside_a_large_one(race, arena, broker, who):
    """One thread sends 10 MiB over a path of 1 MB/s, seven send 1 KiB: `worst_ms` of these."""

    def run(who):
        with Proxy(broker.host, broker.port) as proxy:
            proxy.limit(1_000_000)
            url = broker.url_for(proxy.port)
            seconds = 3 if QUICK else 8
            return fresh(
                arena, who, "beside_a_large_one", broker=url, size=10 * MIB, seconds=seconds
            )

    race(run, 1 if QUICK else 3)


@contestants("rpc", "fastrpc", "fastrpc-noconfirm")
def test_beside_a_flood(race, arena, who):
    """One thread sends every 10 ms, one as fast as it can: `p99_ms` of the first."""
    race(lambda who: fresh(arena, who, "beside_a_flood", seconds=2 if QUICK else 5), rounds(5))


@full_only
@contestants("rpc", "fastrpc")
def test_beside_a_caller_that_reads_nothing(race, arena, who):
    """30,000 results for a caller that is stopped: how much of its rate another one keeps."""
    race(lambda who: fresh(arena, who, "beside_a_caller_that_reads_nothing", count=30_000), 3)


@pytest.mark.parametrize("size", [MIB] if QUICK else [10 * KIB, MIB])
@contestants("rpc", "fastrpc")
def test_sender_memory(race, arena, who, size):
    """Results one after the other: `peak_bodies`, the most memory beyond what was held before."""
    count = max(60, 10 * MIB // size)
    race(
        lambda who: fresh(arena, who, "one_after_the_other", size=size, count=count, gone=False),
        rounds(3),
    )


@full_only
@contestants("rpc", "fastrpc")
def test_sender_memory_gone(race, arena, who):
    """The same for a caller that is gone."""
    race(
        lambda who: fresh(arena, who, "one_after_the_other", size=MIB, count=60, gone=True),
        rounds(3),
    )
