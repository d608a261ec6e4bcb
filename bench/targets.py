"""The targets of the design, and what a run says of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .entries import Entry, Run, to_stock

Measure = Callable[[dict[str, Entry], Run], float]


@dataclass(frozen=True)
class Target:
    """A target of the design: `measure` of two or more entries, and the value it must reach."""

    what: str
    group: tuple[str, str]
    text: str
    measure: Measure
    met: Callable[[float], bool]
    unit: str = " x"


def faster(entries: dict[str, Entry], run: Run) -> float:
    return to_stock(entries, "fastrpc")


def of_limit(entries: dict[str, Entry], run: Run) -> float:
    return 100 * entries["raw"].us / entries["fastrpc"].us


def cpu(entries: dict[str, Entry], run: Run) -> float:
    return entries["fastrpc"].cpu("client")


def less_cpu(entries: dict[str, Entry], run: Run) -> float:
    return entries["rpc"].cpu("client") / entries["fastrpc"].cpu("client")


def installed(measure: Measure) -> Measure:
    """The same of fastrpc.install()."""

    def of_installed(entries: dict[str, Entry], run: Run) -> float:
        return measure({**entries, "fastrpc": entries["installed"]}, run)

    return of_installed


def less_worker_cpu(entries: dict[str, Entry], run: Run) -> float:
    return entries["rpc"].cpu("worker") / entries["fastrpc"].cpu("worker")


def p50(who: str, ours: str = "fastrpc") -> Callable[[dict[str, Entry], Run], float]:
    def measure(entries: dict[str, Entry], run: Run) -> float:
        mine = entries[ours].info["latencies"]["0.5"]
        return mine / entries[who].info["latencies"]["0.5"]

    return measure


def against(group: tuple[str, str], inverse: bool = False, who: str = "fastrpc") -> Measure:
    """The ratio of `who` in this group to `who` in the other, as time or as rate."""

    def measure(entries: dict[str, Entry], run: Run) -> float:
        ratio = entries[who].us / run.group(*group)[who].us
        return 1 / ratio if inverse else ratio

    return measure


def info(name: str, who: str = "fastrpc") -> Callable[[dict[str, Entry], Run], float]:
    return lambda entries, run: entries[who].info[name]


def times(slow: str, fast: str) -> Measure:
    """How many times the rate of `slow` is that of `fast`."""
    return lambda entries, run: entries[slow].us / entries[fast].us


def more_worker_cpu(entries: dict[str, Entry], run: Run) -> float:
    """The worker's CPU for a part of a chord beyond that for the same task in a group."""
    group = run.group("test_collected", "1000")
    return entries[CHORDS].cpu("worker") - group[CHORDS].cpu("worker")


peak = info("peak_per_body")


def at_least(least: float) -> Callable[[float], bool]:
    return lambda value: value >= least


def at_most(most: float) -> Callable[[float], bool]:
    return lambda value: value <= most


MANY = ("test_intake_many", "50000")
SMALL, KEPT = ("test_store_transient", "100"), ("test_store_persistent", "100")
LATENCY, SOLO = ("test_latency", ""), ("test_round_solo", "")
BUSY, CHORDS = "fastrpc-busywait", "installed-chords"
CALL, AT_ONCE, ROUND_MANY = ("test_call", ""), ("test_call_many", ""), ("test_round_many", "")
ARGUMENTS = ("test_call_large", "arguments 1048576")
HEADERS = ("test_call_large", "headers 65536")
AWAITS = ("test_await_many", "")
MOST, FEW = ("test_outstanding", "1000000"), ("test_outstanding", "1000")

TARGETS = (
    Target("result intake", MANY, ">= 18 x results/s", faster, at_least(18)),
    Target("result intake", MANY, "<= 10 µs CPU a result", cpu, at_most(10), " µs"),
    Target("result intake", MANY, ">= 60 % of raw bytes", of_limit, at_least(60), " %"),
    Target("store_result", SMALL, "8 x less CPU", less_cpu, at_least(8)),
    Target("store_result", SMALL, "<= 15 µs CPU", cpu, at_most(15), " µs"),
    Target("store_result", SMALL, ">= 6 x calls/s", faster, at_least(6)),
    Target("store_result, persistent", KEPT, ">= 3 x calls/s", faster, at_least(3)),
    Target(
        "store_result, 1 MiB", ("test_store_transient", "1048576"), ">= 1 x", faster, at_least(1)
    ),
    Target("reply, p50", LATENCY, "<= 1/3 of stock", p50("rpc"), at_most(1 / 3)),
    Target("reply, p50", LATENCY, "<= 1.6 x raw bytes", p50("raw"), at_most(1.6)),
    Target("reply, p50, busy_wait", LATENCY, "<= 1/3 of stock", p50("rpc", BUSY), at_most(1 / 3)),
    Target("reply, p50, busy_wait", LATENCY, "<= 1.6 x raw bytes", p50("raw", BUSY), at_most(1.6)),
    Target("apply_async", CALL, ">= 1.6 x calls/s", faster, at_least(1.6)),
    Target("apply_async, install()", CALL, ">= 3 x calls/s", installed(faster), at_least(3)),
    Target("apply_async, install()", CALL, "3 x less CPU", installed(less_cpu), at_least(3)),
    Target("apply_many", AT_ONCE, ">= 20 x calls/s", installed(faster), at_least(20)),
    Target("apply_many", AT_ONCE, "25 x less CPU", installed(less_cpu), at_least(25)),
    Target("apply_many", AT_ONCE, ">= 50 % of raw bytes", installed(of_limit), at_least(50), " %"),
    Target("group in batch()", ("test_call_group", ""), ">= 3 x", installed(faster), at_least(3)),
    Target("1 MiB of arguments", ARGUMENTS, "not slower", installed(faster), at_least(1)),
    Target("1 MiB of arguments", ARGUMENTS, "peak <= 2.5 x", installed(peak), at_most(2.5)),
    Target("64 KiB of headers", HEADERS, "not slower", installed(faster), at_least(1)),
    Target("64 KiB of headers", HEADERS, "peak <= 2.5 x", installed(peak), at_most(2.5)),
    Target("whole round, install()", SOLO, ">= 3.5 x", installed(faster), at_least(3.5)),
    Target(
        "whole round, install()",
        SOLO,
        ">= 1.5 x dramatiq",
        times("dramatiq", "installed"),
        at_least(1.5),
    ),
    Target("whole round, at once", ROUND_MANY, ">= 4.5 x", installed(faster), at_least(4.5)),
    Target("worker CPU, solo", SOLO, "3 x less", installed(less_worker_cpu), at_least(3)),
    Target(
        "worker CPU, threads",
        ("test_round", "threads"),
        "2.5 x less",
        installed(less_worker_cpu),
        at_least(2.5),
    ),
    Target(
        "worker CPU, prefork",
        ("test_round", "prefork"),
        "2 x less",
        installed(less_worker_cpu),
        at_least(2),
    ),
    Target(
        "broker CPU, solo",
        SOLO,
        "below stock's",
        lambda entries, run: entries["installed"].cpu("servers") / entries["rpc"].cpu("servers"),
        at_most(1),
    ),
    *(
        Target(
            f"whole round, {pool}",
            ("test_round_green", pool),
            ">= 0.8 x threads",
            against(("test_round_green", "threads"), inverse=True, who="installed"),
            at_least(0.8),
        )
        for pool in ("gevent", "eventlet")
    ),
    Target("whole round, solo", SOLO, ">= 1.4 x", faster, at_least(1.4)),
    Target("whole round, threads", ("test_round", "threads"), ">= 1.4 x", faster, at_least(1.4)),
    Target("whole round, prefork", ("test_round", "prefork"), ">= 1.4 x", faster, at_least(1.4)),
    Target(
        "an unclaimed result",
        ("test_unclaimed_memory", "*"),
        "<= body + 150 bytes",
        info("bytes_beyond_body"),
        at_most(150),
        " bytes",
    ),
    Target("ready() while consuming", ("test_ready", ""), "<= 5 µs", cpu, at_most(5), " µs"),
    Target("1,000,000 outstanding", MOST, "<= 1.3 x of 1,000", against(FEW), at_most(1.3)),
    Target(
        "64 threads",
        ("test_threads", "64"),
        ">= 0.7 x of one",
        against(("test_threads", "1"), inverse=True),
        at_least(0.7),
    ),
    Target("24 MiB", ("test_large", ""), "not slower", faster, at_least(1)),
    Target(
        "24 MiB",
        ("test_large", ""),
        "peak <= 2.5 x body",
        peak,
        at_most(2.5),
    ),
    Target("1,000 x 100 KiB", ("test_intake_100_kib", ""), "not slower", faster, at_least(1)),
    Target(
        "beside 10 MiB over a slow path",
        ("test_beside_a_large_one", ""),
        "worst call <= 50 ms",
        info("worst_ms"),
        at_most(50),
        " ms",
    ),
    Target(
        "beside a flood",
        ("test_beside_a_flood", ""),
        "p99 <= stock's",
        lambda entries, run: entries["fastrpc"].info["p99_ms"] / entries["rpc"].info["p99_ms"],
        at_most(1),
        " x",
    ),
    Target(
        "beside a caller that is stopped",
        ("test_beside_a_caller_that_reads_nothing", ""),
        "keeps >= 30 %",
        info("kept_percent"),
        at_least(30),
        " %",
    ),
    Target(
        "sending 1 MiB results",
        ("test_sender_memory", "1048576"),
        "peak <= 4 bodies",
        info("peak_bodies"),
        at_most(4),
    ),
    Target(
        "many in one aio.gather()",
        AWAITS,
        ">= 1/1.3 of join_native",
        times("join_native", "aio.gather"),
        at_least(1 / 1.3),
    ),
    Target(
        "many tasks that await",
        AWAITS,
        ">= 1/1.3 of join_native",
        times("join_native", "await"),
        at_least(1 / 1.3),
    ),
    Target(
        "1,000 awaits",
        ("test_await_executor", ""),
        ">= 5 x our get() in an executor",
        times("executor", "await"),
        at_least(5),
    ),
    Target(
        "await one reply, p50",
        ("test_await_latency", ""),
        "<= 1.2 x get()",
        p50("get", "await"),
        at_most(1.2),
    ),
    Target(
        "an await",
        ("test_await_memory", ""),
        "<= 1 KiB",
        info("bytes_each", "await"),
        at_most(1024),
        " bytes",
    ),
    *(
        Target(f"chord of {size:,}", ("test_chord", str(size)), text, measure, met)
        for size in (10, 100, 1_000)
        for text, measure, met in (
            ("faster than redis", times("redis", CHORDS), at_least(1)),
            (
                ">= 0.7 x the group",
                against(("test_collected", str(size)), inverse=True, who=CHORDS),
                at_least(0.7),
            ),
        )
    ),
    Target(
        "a part of a chord of 1,000",
        ("test_chord", "1000"),
        "<= 60 µs more worker CPU",
        more_worker_cpu,
        at_most(60),
        " µs",
    ),
    Target(
        "parser alone, C",
        ("test_parser", ""),
        ">= 3,000,000/s",
        lambda entries, run: 1e6 / entries["raw"].info["wall_us"]["median"],
        at_least(3e6),
        "/s",
    ),
)
