"""Turns pytest-benchmark's JSON into a Markdown report, with plots as SVG and PNG.

python -m bench.report RESULTS.json [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Entry", "Run", "main"]

#: The label of each implementation, in the order of all tables and plots.
NAMES = {
    "rpc": "rpc:// (stock)",
    "rpc-cython": "rpc://, py-amqp in Cython",
    "redis": "redis://",
    "fastrpc": "fastrpc://",
    "fastrpc-noconfirm": "fastrpc://, no confirms",
    "fastrpc-busywait": "fastrpc://, busy_wait",
    "fastrpc-chords": "fastrpc://?chords=1",
    "installed": "fastrpc.install()",
    "installed-chords": "fastrpc.install(), fastrpc://?chords=1",
    "dramatiq": "dramatiq",
    "taskiq": "taskiq",
    "librabbitmq": "librabbitmq",
    "raw": "raw bytes (limit)",
    "kombu": "kombu (stock)",
    "py-amqp": "py-amqp (stock)",
    "join_native": "join_native()",
    "get": "get()",
    "executor": "get() in an executor",
    "await": "await, a task for each",
    "aio.gather": "aio.gather()",
    "orjson": "bare orjson (limit)",
    "dict": "dict",
    "table": "fastrpc's table",
}
#: The implementation that others are compared with, and the one that is the limit.
BASES, LIMITS = ("rpc", "kombu", "py-amqp", "dict"), ("raw", "orjson")
OURS = {"rpc": "fastrpc", "kombu": "fastrpc", "py-amqp": "fastrpc", "dict": "table"}

COLOURS = {
    "rpc": "#8a8f98",
    "rpc-cython": "#b9bec6",
    "redis": "#d98c3f",
    "fastrpc": "#1f6fd0",
    "fastrpc-noconfirm": "#7fb2ee",
    "fastrpc-busywait": "#123f7a",
    "fastrpc-chords": "#123f7a",
    "installed": "#0b7a4b",
    "installed-chords": "#0b7a4b",
    "dramatiq": "#8a5fb0",
    "taskiq": "#c0a3d8",
    "librabbitmq": "#b0564a",
    "raw": "#2d9a6b",
}

#: The benchmarks in the plots and the table, in this order, and their labels.
SHOWN = {
    ("test_round_solo", ""): "whole round, solo worker",
    ("test_round_many", ""): "whole round, sent at once",
    ("test_round", "threads"): "whole round, threads",
    ("test_round", "prefork"): "whole round, prefork",
    ("test_group", ""): "group(1,000)().get()",
    ("test_call", ""): "apply_async",
    ("test_call_confirmed", ""): "apply_async, confirmed",
    ("test_call_pipelined", ""): "apply_async, pipelined confirms",
    ("test_call_many", ""): "many tasks at once",
    ("test_call_group", ""): "group(1,000)()",
    ("test_call_large", "arguments 1048576"): "1 MiB of arguments",
    ("test_call_large", "headers 65536"): "64 KiB of headers",
    ("test_call_and_wait", ""): "one task and its reply",
    ("test_intake_many", "50000"): "receive 50,000 results",
    ("test_intake", "10000"): "receive 10,000 results",
    ("test_intake", "1000"): "receive 1,000 results",
    ("test_unclaimed", "*"): "receive unclaimed results",
    ("test_intake_100_kib", ""): "receive results of 100 KiB",
    ("test_ready", ""): "ready() of a running task",
    ("test_store_transient", "100"): "store_result, 100 B",
    ("test_store_transient", "10240"): "store_result, 10 KiB",
    ("test_store_transient", "1048576"): "store_result, 1 MiB",
    ("test_store_persistent", "100"): "store_result, persistent",
    ("test_latency", ""): "one reply there and back",
}


@dataclass(frozen=True)
class Entry:
    """One implementation in one benchmark."""

    what: str
    arguments: dict[str, Any]
    who: str
    info: dict[str, Any]
    samples: list[float]

    @property
    def us(self) -> float:
        return self.info["wall_us"]["median"]

    @property
    def key(self) -> tuple[str, str]:
        return self.what, " ".join(map(str, self.arguments.values()))

    def cpu(self, part: str) -> float | None:
        spread = self.info["cpu_us"].get(part)
        return None if spread is None else spread["median"]


class Run:
    """All entries of one run."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.entries = [
            Entry(
                what=(info := bench["extra_info"])["what"],
                arguments=info["arguments"],
                who=info["who"],
                info=info,
                samples=bench["stats"]["data"],
            )
            for bench in data["benchmarks"]
        ]

    def groups(self) -> Iterator[tuple[tuple[str, str], dict[str, Entry]]]:
        """The implementations of each benchmark, in the order of NAMES."""
        found: dict[tuple[str, str], dict[str, Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.key, {})[entry.who] = entry
        order = list(NAMES).index
        for key, entries in found.items():
            yield key, {who: entries[who] for who in sorted(entries, key=order)}

    def group(self, what: str, arguments: str = "") -> dict[str, Entry]:
        """`arguments` may be "*", which selects the first group."""
        for key, entries in self.groups():
            if key[0] == what and arguments in (key[1], "*"):
                return entries
        return {}


def among(entries: dict[str, Entry], names: tuple[str, ...]) -> Entry | None:
    return next((entries[name] for name in names if name in entries), None)


# -- the tables


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits; thousands with commas."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def group_table(entries: dict[str, Entry]) -> str:
    base, limit = among(entries, BASES), among(entries, LIMITS)
    rows = []
    for who, entry in entries.items():
        spread = entry.info["wall_us"]
        rows.append(
            [
                f"**{NAMES[who]}**" if who in OURS.values() else NAMES[who],
                number(entry.us),
                f"{number(spread['min'])} to {number(spread['max'])}",
                number(1e6 / entry.us) if entry.us else "",
                f"{base.us / entry.us:.2f} x" if base else "",
                f"{limit.us / entry.us:.0%}" if limit else "",
                *(number(entry.cpu(part)) for part in ("client", "worker", "servers")),
            ]
        )
    return table(
        [
            *("", "µs", "spread", "per second", "to stock", "of the limit"),
            *("CPU client", "worker", "servers"),
        ],
        rows,
    )


EXTRAS = {
    "bytes_each": "bytes for each, its AsyncResult included",
    "bytes_beyond_body": "bytes for each beyond its body",
    "lost": "lost",
    "claim_us": "µs to get() one of them later",
    "peak_per_body": "peak memory, in bodies",
    "returned_us": "µs until the calls returned, per call",
}


def extras(entries: dict[str, Entry]) -> list[str]:
    lines = []
    for name, meaning in EXTRAS.items():
        told = [
            f"{NAMES[who]} {number(entry.info[name])}"
            for who, entry in entries.items()
            if name in entry.info
        ]
        if told:
            lines.append(f"- {meaning}: {', '.join(told)}")
    return lines


def latency_table(entries: dict[str, Entry]) -> str:
    shares = ("0.5", "0.9", "0.99", "0.999", "1.0")
    rows = [
        [NAMES[who], *(number(entry.info["latencies"][s] * 1e6) for s in shares)]
        for who, entry in entries.items()
    ]
    return table(["µs", "p50", "p90", "p99", "p99.9", "most"], rows)


# -- the targets of the design


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


def to_stock(entries: dict[str, Entry], who: str) -> float:
    return entries["rpc"].us / entries[who].us


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


def past(peer: str) -> Measure:
    """How many times faster fastrpc.install() is than that peer."""
    return lambda entries, run: entries[peer].us / entries["installed"].us


def less_worker_cpu(entries: dict[str, Entry], run: Run) -> float:
    return entries["rpc"].cpu("worker") / entries["fastrpc"].cpu("worker")


def p50(who: str, ours: str = "fastrpc") -> Callable[[dict[str, Entry], Run], float]:
    def measure(entries: dict[str, Entry], run: Run) -> float:
        mine = entries[ours].info["latencies"]["0.5"]
        return mine / entries[who].info["latencies"]["0.5"]

    return measure


def against(group: tuple[str, str], inverse: bool = False) -> Callable[..., float]:
    """The ratio of fastrpc in this group to fastrpc in the other, as time or as rate."""

    def measure(entries: dict[str, Entry], run: Run) -> float:
        ratio = entries["fastrpc"].us / run.group(*group)["fastrpc"].us
        return 1 / ratio if inverse else ratio

    return measure


def info(name: str, who: str = "fastrpc") -> Callable[[dict[str, Entry], Run], float]:
    return lambda entries, run: entries[who].info[name]


def times(slow: str, fast: str) -> Measure:
    """How many times the rate of `slow` is that of `fast`."""
    return lambda entries, run: entries[slow].us / entries[fast].us


def of_collected(entries: dict[str, Entry], run: Run) -> float:
    """The rate of a chord's parts, in rates of the same group whose client collects the results."""
    [size] = entries["installed-chords"].arguments.values()
    group = run.group("test_collected", str(size))
    return group["installed-chords"].us / entries["installed-chords"].us


def more_worker_cpu(entries: dict[str, Entry], run: Run) -> float:
    """The worker's CPU for a part of a chord beyond that for the same task in a group."""
    [size] = entries["installed-chords"].arguments.values()
    group = run.group("test_collected", str(size))
    return entries["installed-chords"].cpu("worker") - group["installed-chords"].cpu("worker")


peak = info("peak_per_body")


def at_least(least: float) -> Callable[[float], bool]:
    return lambda value: value >= least


def at_most(most: float) -> Callable[[float], bool]:
    return lambda value: value <= most


MANY = ("test_intake_many", "50000")
SMALL, KEPT = ("test_store_transient", "100"), ("test_store_persistent", "100")
LATENCY, SOLO = ("test_latency", ""), ("test_round_solo", "")
BUSY = "fastrpc-busywait"
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
    Target("whole round, install()", SOLO, ">= 1.5 x dramatiq", past("dramatiq"), at_least(1.5)),
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
        "sending 1 MiB results",
        ("test_sender_memory", "1048576"),
        "peak <= 4.1 bodies",
        info("peak_bodies"),
        at_most(4.1),
    ),
    Target(
        "10,000 in one aio.gather()",
        AWAITS,
        ">= 1/1.3 of join_native",
        times("join_native", "aio.gather"),
        at_least(1 / 1.3),
    ),
    Target(
        "10,000 tasks that await",
        AWAITS,
        ">= 1/1.3 of join_native",
        times("join_native", "await"),
        at_least(1 / 1.3),
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
        Target(f"chord of {size:,}", ("test_chord", str(size)), text, measure, met, unit)
        for size in (10, 100, 1_000)
        for text, measure, met, unit in (
            ("faster than redis", times("redis", "installed-chords"), at_least(1), " x"),
            (">= 0.7 x the group", of_collected, at_least(0.7), " x"),
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


def target_table(run: Run) -> str:
    rows = []
    for target in TARGETS:
        try:
            value = target.measure(run.group(*target.group), run)
        except (KeyError, TypeError, ZeroDivisionError):
            rows.append([target.what, target.text, "not in this run", ""])
            continue
        met = "met" if target.met(value) else "**not met**"
        rows.append([target.what, target.text, f"{number(value)}{target.unit}", met])
    return table(["", "target", "measured", ""], rows)


# -- the report


def describe(run: Run) -> str:
    machine, more = run.data["machine_info"], run.data.get("fastrpc", {})
    versions = ", ".join(f"{k} {v}" for k, v in more.get("versions", {}).items())
    return "\n".join(
        [
            f"- command: `make {'bench-quick' if more.get('quick') else 'bench'}`"
            + (" (small sizes, few rounds: for a first look only)" if more.get("quick") else ""),
            f"- machine: {machine['cpu'].get('brand_raw', machine['machine'])}, "
            f"{more.get('cores')} cores, {more.get('memory_gib')} GiB, "
            f"{machine['system']} {machine['release']}",
            f"- versions: fastrpc {more.get('commit')}, Python {machine['python_version']}, "
            + versions,
            f"- date: {run.data['datetime'][:10]}",
        ]
    )


def title(key: tuple[str, str], entries: dict[str, Entry]) -> str:
    arguments = next(iter(entries.values())).arguments
    told = ", ".join(f"{k} {v:,}" if type(v) is int else f"{k} {v}" for k, v in arguments.items())
    name = key[0].removeprefix("test_").replace("_", " ")
    return f"{name} ({told})" if told else name


def markdown(run: Run) -> str:
    parts = [
        "# Benchmarks",
        describe(run),
        "Times are microseconds per operation, the median of rounds taken in turns, with least and "
        "most. CPU is that of the client, the worker and the servers (broker, and Redis where it "
        "takes part) per operation, in microseconds.",
        "## Targets",
        target_table(run),
        "## Against stock, and towards the limit",
        "![ratio to stock](ratio.svg)",
        "![share of the limit](limit.svg)",
        "## Latency of one reply",
        "![latency](latency.svg)",
    ]
    if latency := run.group("test_latency"):
        parts.append(latency_table(latency))
    parts += ["## Scaling", "![scaling](scaling.svg)", "## Every benchmark"]
    for key, entries in run.groups():
        parts += [f"### {title(key, entries)}", group_table(entries)]
        if told := extras(entries):
            parts.append("\n".join(told))
    return "\n\n".join(parts) + "\n"


def our_way(entries: dict[str, Entry]) -> str:
    """``install()`` where that was measured, else the backend alone."""
    return "installed" if "installed" in entries else "fastrpc"


def readme_table(run: Run) -> str:
    """The short table for the README."""
    who = ("rpc", "redis", "dramatiq", "fastrpc", "installed", "raw")
    rows = []
    for name, entries in shown(run):
        rates = [number(1e6 / entries[w].us) if w in entries else "" for w in who]
        rows.append([name, *rates, f"{to_stock(entries, our_way(entries)):.1f} x"])
    header = ["per second", *(NAMES[w] for w in who), "to stock"]
    return table(header, rows) + "\n\n" + describe(run) + "\n"


# -- the plots


def style(pyplot: Any) -> None:
    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "svg.fonttype": "none",
            "figure.constrained_layout.use": True,
        }
    )


def shown(run: Run) -> list[tuple[str, dict[str, Entry]]]:
    found = [(name, run.group(*key)) for key, name in SHOWN.items()]
    return [(name, entries) for name, entries in found if {"rpc", our_way(entries)} <= {*entries}]


def bars(
    axes: Any,
    rows: list[tuple[str, dict[str, Entry]]],
    who: list[str],
    value: Any,
    text: Callable[[float], str],
    start: float,
) -> None:
    """Horizontal bars from `start`, a row for each benchmark, a bar for each implementation."""
    height = 0.8 / len(who)
    for place, name in enumerate(who):
        measured = [row for row, (_, entries) in enumerate(rows) if name in entries]
        ys = [row + (place - (len(who) - 1) / 2) * height for row in measured]
        xs = [value(rows[row][1], name) for row in measured]
        widths = [x - start for x in xs]
        axes.barh(ys, widths, height * 0.9, left=start, color=COLOURS[name], label=NAMES[name])
        for row, y, x in zip(measured, ys, xs, strict=True):
            if name == our_way(rows[row][1]):
                end = (max(x, start), y)
                axes.annotate(text(x), end, (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)


def plot_ratio(run: Run, pyplot: Any) -> Any:
    rows = shown(run)
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.62 * len(rows)))
    bars(
        axes,
        rows,
        ["rpc-cython", "redis", "dramatiq", "fastrpc", "installed"],
        to_stock,
        lambda x: f"{x:.1f} x",
        start=1,
    )
    axes.axvline(1, color=COLOURS["rpc"], linewidth=1.2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} x")
    axes.set_title("Speed against stock rpc:// (1 x); to the left: slower")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_limit(run: Run, pyplot: Any) -> Any:
    rows = [(name, entries) for name, entries in shown(run) if "raw" in entries]
    figure, axes = pyplot.subplots(figsize=(8, 0.8 + 0.52 * max(len(rows), 1)))
    bars(
        axes,
        rows,
        ["rpc", "redis", "fastrpc", "installed"],
        lambda entries, who: 100 * entries["raw"].us / entries[who].us,
        lambda x: f"{x:.0f} %",
        start=0,
    )
    axes.set_xlim(0, 105)
    axes.axvline(100, color=COLOURS["raw"], linewidth=1.2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} %")
    axes.set_title("Share of the limit: raw bytes to and from the same broker are 100 %")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def plot_latency(run: Run, pyplot: Any) -> Any:
    figure, axes = pyplot.subplots(figsize=(8, 3.6))
    for who, entry in run.group("test_latency").items():
        points = sorted((float(k), v * 1e6) for k, v in entry.info["latencies"].items())
        # The share of replies that took longer, which shows the tail.
        points = [(1 - share, us) for share, us in points if share <= 0.999]
        axes.plot(*zip(*points, strict=True), color=COLOURS[who], linewidth=1.8, label=NAMES[who])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    ticks = {0.5: "p50", 0.1: "p90", 0.01: "p99", 0.001: "p99.9"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f} µs")
    axes.grid(axis="both", color="#e4e6ea", linewidth=0.7)
    axes.set_title("One reply there and back: distribution")
    if axes.lines:
        axes.legend(loc="upper left")
    return figure


def plot_scaling(run: Run, pyplot: Any) -> Any:
    from matplotlib.ticker import LogLocator, NullFormatter

    panels = [
        ("Results waiting", ("test_intake", "test_intake_many"), "count", "µs a result"),
        ("Results outstanding", ("test_outstanding",), "outstanding", "µs a result"),
        ("Threads", ("test_threads",), "threads", "µs a result"),
    ]
    figure, all_axes = pyplot.subplots(1, 3, figsize=(10, 3.4))
    for axes, (name, measured, argument, label) in zip(all_axes, panels, strict=True):
        lines: dict[str, list[tuple[int, Entry]]] = {}
        for entry in run.entries:
            if entry.what in measured:
                lines.setdefault(entry.who, []).append((entry.arguments[argument], entry))
        for who in NAMES:
            if who in lines:
                points = sorted(lines[who], key=lambda point: point[0])
                spreads = [entry.info["wall_us"] for _, entry in points]
                us = [spread["median"] for spread in spreads]
                error = [
                    [u - spread["min"] for u, spread in zip(us, spreads, strict=True)],
                    [spread["max"] - u for u, spread in zip(us, spreads, strict=True)],
                ]
                axes.errorbar(
                    [x for x, _ in points],
                    us,
                    yerr=error,
                    **{"color": COLOURS[who], "marker": "o", "markersize": 3.5, "capsize": 2},
                    label=NAMES[who],
                )
        axes.set_xscale("log", base=2 if argument == "threads" else 10)
        if argument == "threads":
            axes.set_xticks([1, 8, 64], ["1", "8", "64"])
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="y", color="#e4e6ea", linewidth=0.7)
        axes.set_title(name)
        axes.set_ylabel(label)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


PLOTS = {
    "ratio": plot_ratio,
    "limit": plot_limit,
    "latency": plot_latency,
    "scaling": plot_scaling,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, help="folder for the report; that of the results")
    options = parser.parse_args(arguments)
    out = options.out or options.results.parent
    out.mkdir(parents=True, exist_ok=True)
    run = Run(json.loads(options.results.read_text()))
    (out / "report.md").write_text(markdown(run))
    (out / "readme-table.md").write_text(readme_table(run))

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style(pyplot)
    for name, plot in PLOTS.items():
        figure = plot(run, pyplot)
        for kind in ("svg", "png"):
            figure.savefig(out / f"{name}.{kind}", dpi=150)
        pyplot.close(figure)
    print(f"{out / 'report.md'}, with " + ", ".join(f"{name}.svg/.png" for name in PLOTS))


if __name__ == "__main__":
    main()
