"""Chords with real workers: over the broker, and with redis.

A sample is for one part: a chord of 1,000 takes a thousand times as long.
"""

from __future__ import annotations

import pytest

from .arena import QUICK, contestants, rounds

WHO = contestants("redis", "fastrpc-chords", "installed-chords")
SIZES = pytest.mark.parametrize("size", [10, 100] if QUICK else [10, 100, 1_000])


def run(race, arena, measure, size):
    times = max(100 // size, 1)
    race(
        lambda who: getattr(arena.client(who), measure)(
            count=size, times=times, **arena.at_work(who, "solo")
        ),
        rounds(5),
        prepare=lambda who: arena.worker(who, "solo"),
    )


@SIZES
@WHO
def test_chord(race, arena, who, size):
    """chord of no-op tasks, from apply to the result of its body; solo workers."""
    run(race, arena, "chord", size)


@SIZES
@WHO
def test_collected(race, arena, who, size):
    """The same tasks as a group whose results the client collects, the same workers."""
    run(race, arena, "collected", size)
