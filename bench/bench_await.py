"""Event loops that await results, against threads and against the usual executor."""

from __future__ import annotations

from .arena import QUICK, contestants, rounds

#: The name in the tables -> (whose backend, how it waits).
WAYS = {
    "join_native": ("fastrpc", "join"),
    "await": ("fastrpc", "tasks"),
    "aio.gather": ("fastrpc", "gather"),
    "executor": ("fastrpc", "executor"),
}


def awaits(race, arena, count: int, how_often: int) -> None:
    def run(who: str) -> dict:
        backend, way = WAYS[who]
        return arena.client(backend).awaits(way=way, count=count)

    race(run, rounds(how_often))


@contestants("join_native", "await", "aio.gather")
def test_await_many(race, arena, who):
    """10,000 at once, each in a task of its own, against one thread that joins them."""
    awaits(race, arena, 1_000 if QUICK else 10_000, 5)


@contestants("await", "executor")
def test_await_executor(race, arena, who):
    """1,000 at once, against get() in an executor of 40 threads."""
    awaits(race, arena, 200 if QUICK else 1_000, 3)


@contestants("get", "await")
def test_await_latency(race, arena, who):
    """One reply there and back."""

    def run(who: str) -> dict:
        client = arena.client("fastrpc")
        count = 200 if QUICK else 2_000
        return client.latency(count=count) if who == "get" else client.await_latency(count=count)

    race(run, rounds(5))


@contestants("await")
def test_await_memory(race, arena, who):
    """What 10,000 awaits hold beyond 10,000 tasks that await a future."""

    def run(who: str) -> dict:
        with arena.fresh_client("fastrpc") as client:
            return client.await_memory(count=10_000)

    race(run, 1)
