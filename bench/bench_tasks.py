"""Sending tasks, and whole rounds with real workers."""

from __future__ import annotations

import pytest

from .arena import KIB, MIB, QUICK, contestants, fresh, full_only, rounds

EVERYBODY = ("rpc", "rpc-cython", "redis", "fastrpc", "installed", "raw")
#: Other task queues: over the same RabbitMQ, with their results in Redis.
PEERS = ("dramatiq", "taskiq")


@contestants(*EVERYBODY, *PEERS)
def test_call(race, arena, who):
    """send_task of a task without arguments to speak of, until all are in the queue."""
    race(lambda who: arena.client(who).call(count=200 if QUICK else 1_000), rounds(5))


@full_only
@contestants("rpc", "installed")
def test_call_confirmed(race, arena, who):
    """The same with `confirm_publish`: each call waits for its confirm."""
    race(lambda who: arena.client(who).call(count=1_000, confirm=True), rounds(5))


@full_only
@contestants("installed")
def test_call_pipelined(race, arena, who):
    """The same with `confirm_publish="pipelined"`: no call waits for its confirm."""
    race(lambda who: arena.client(who).call(count=1_000, confirm="pipelined"), rounds(5))


@contestants("rpc", "fastrpc", "installed", "raw")
def test_call_many(race, arena, who):
    """Thousands of tasks at once, until all are in the queue: apply_many() after install()."""
    few, many = (200, 2_000) if QUICK else (2_000, 10_000)
    race(
        lambda who: arena.client(who).call_many(count=many if who in ("installed", "raw") else few),
        rounds(5),
    )


@contestants("rpc", "fastrpc", "installed")
def test_call_group(race, arena, who):
    """group(1,000)(), until all are in the queue: in a batch() after install()."""
    race(lambda who: arena.client(who).call_group(count=1_000), rounds(5))


@full_only
@pytest.mark.parametrize(("part", "size"), [("arguments", MIB), ("headers", 64 * KIB)])
@contestants("rpc", "installed")
def test_call_large(race, arena, who, part, size):
    """send_task with 1 MiB of arguments, or 64 KiB of headers: the time, and `peak_per_body`."""
    race(lambda who: fresh(arena, who, "call_large", part=part, size=size, count=50), rounds(5))


def whole(race, arena, measure, pool, count, full_rounds):
    race(
        lambda who: getattr(arena.client(who), measure)(count=count, **arena.at_work(who, pool)),
        rounds(full_rounds),
        prepare=lambda who: arena.worker(who, pool),
    )


# The workers of a pool run until another pool is needed, so these three stay together.
@contestants(*EVERYBODY, *PEERS)
def test_round_solo(race, arena, who):
    """No-op tasks to a real worker with the solo pool, and their results."""
    whole(race, arena, "whole", "solo", 300 if QUICK else 4_000, 3)


@contestants("rpc", "fastrpc", "installed")
def test_round_many(race, arena, who):
    """The same, sent by apply_many() after install()."""
    whole(race, arena, "whole_many", "solo", 300 if QUICK else 4_000, 3)


@full_only
@contestants(*EVERYBODY)
def test_group(race, arena, who):
    """group(1,000)().get(), the same workers."""
    whole(race, arena, "group", "solo", 1_000, 3)


@full_only
@contestants("rpc", "redis", "fastrpc", "fastrpc-busywait")
def test_call_and_wait(race, arena, who):
    """One task at a time and its reply, the same workers."""
    whole(race, arena, "call_and_wait", "solo", 500, 5)


@full_only
@pytest.mark.parametrize("pool", ["threads", "prefork"])
@contestants("rpc", "redis", "fastrpc", "installed", *PEERS)
def test_round(race, arena, who, pool):
    """The same with the other pools, two threads or processes each."""
    whole(race, arena, "whole", pool, 4_000, 3)


@full_only
@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
@contestants("installed")
def test_round_green(race, arena, who, pool):
    """4,000 no-op tasks, sent by apply_many(), to two threads or to 16 greenlets.

    Stock's greenlet workers do ten tasks a second.
    """
    whole(race, arena, "whole_many", pool, 4_000, 3)
