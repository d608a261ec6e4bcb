"""Raw messages, without tasks: the transports alone."""

from __future__ import annotations

from .arena import QUICK, contestants, rounds

TRANSPORTS = ("rpc", "rpc-cython", "librabbitmq", "installed", "raw")
COUNT = 1_000 if QUICK else 10_000


@contestants(*TRANSPORTS)
def test_publish(race, arena, who):
    """basic_publish of small transient messages one by one, until all are in the queue."""
    race(lambda who: arena.client(who).publish(count=COUNT), rounds(5))


@contestants(*TRANSPORTS)
def test_consume(race, arena, who):
    """Small messages that wait in a queue, to a callback that acknowledges each."""
    race(lambda who: arena.client(who).consume(count=COUNT), rounds(5))
