"""Cost of a result as queues and threads become many; for outstanding results see bench_intake."""

from __future__ import annotations

import pytest

from .arena import contestants, full_only, rounds

pytestmark = full_only


@pytest.mark.parametrize("queues", [1, 100, 1_000])
@contestants("rpc", "fastrpc")
def test_to_many_queues(race, arena, who, queues):
    """Persistent results in turns to so many reply queues, until all have reached them."""
    arguments = {"queues": queues, "count": 10_000}
    race(lambda who: arena.client(who).to_many_queues(**arguments), rounds(3))


@pytest.mark.parametrize("threads", [1, 8, 64, 512])
@contestants("rpc", "fastrpc")
def test_from_many_threads(race, arena, who, threads):
    """An equal part of the results from each thread of a worker."""
    arguments = {"threads": threads, "count": 10_240}
    race(lambda who: arena.client(who).from_many_threads(**arguments), rounds(3))
