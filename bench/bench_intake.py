"""Receiving results that wait in the reply queue, or arrive while others are awaited."""

from __future__ import annotations

from pathlib import Path

import pytest

from .arena import QUICK, contestants, full_only, rounds

EVERYBODY = ("rpc", "rpc-cython", "redis", "fastrpc", "raw")


@pytest.mark.parametrize("count", [1_000] if QUICK else [1_000, 10_000])
@contestants(*EVERYBODY)
def test_intake(race, arena, who, count):
    """`count` waiting results, one ResultSet; connecting included."""
    race(lambda who: arena.client(who).intake(count=count), 5 if count == 1_000 else 3)


# A round takes half a minute with stock: only the main implementations, and fewer rounds.
@full_only
@pytest.mark.parametrize("count", [50_000, 100_000])
@contestants("rpc", "fastrpc", "raw")
def test_intake_many(race, arena, who, count):
    race(lambda who: arena.client(who).intake(count=count), 3 if count == 50_000 else 1)


# Stock keeps 8,192 of them and silently drops the others, so there are fewer.
@pytest.mark.parametrize("count", [1_000 if QUICK else 5_000])
@contestants("rpc", "rpc-cython", "fastrpc")
def test_unclaimed(race, arena, who, count):
    """Unclaimed results arrive before the awaited one."""
    race(lambda who: arena.client(who).unclaimed(count=count), rounds(3))


@full_only
@pytest.mark.parametrize("threads", [1, 8, 64])
@contestants("rpc", "redis", "fastrpc")
def test_threads(race, arena, who, threads):
    """Each thread calls get() for its own results one by one; all of them wait in the queues."""
    race(lambda who: arena.client(who).threads(threads=threads, count=3_200), rounds(3))


@full_only
@pytest.mark.parametrize("outstanding", [1_000, 100_000, 1_000_000])
@contestants("rpc", "fastrpc")
def test_outstanding(race, arena, who, outstanding):
    """Results that arrive while this many others are awaited."""
    clients = {}

    def prepare(who: str) -> None:
        if free_memory() < outstanding * 8_000:
            pytest.skip(
                f"{outstanding} AsyncResults for each need {outstanding * 8e-6:.0f} GB free"
            )
        clients[who] = arena.start_client(who)
        clients[who].outstanding(outstanding=outstanding, count=100)

    def finish() -> None:
        for client in clients.values():
            client.close()

    race(
        lambda who: clients[who].outstanding(outstanding=outstanding, count=2_000),
        rounds(3),
        prepare,
        finish,
    )


def free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@contestants("rpc", "redis", "fastrpc")
def test_ready(race, arena, who):
    """ready() of a task that still runs."""
    race(lambda who: arena.client(who).ready(count=200 if QUICK else 2_000), rounds(5))


@full_only
@contestants(*EVERYBODY)
def test_intake_100_kib(race, arena, who):
    """1,000 results of 100 KiB each."""
    race(lambda who: arena.client(who).intake(count=1_000, size=100 * 1024), rounds(3))
