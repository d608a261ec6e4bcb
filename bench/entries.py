"""The entries of one run, from pytest-benchmark's JSON, and the names of who took part."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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

#: The benchmarks in the plots and the table, in this order, and their labels.
SHOWN = {
    ("test_round_solo", ""): "whole round, solo worker",
    ("test_round_many", ""): "whole round, sent at once",
    ("test_round", "threads"): "whole round, threads",
    ("test_round", "prefork"): "whole round, prefork",
    ("test_group", ""): "group(1,000)().get()",
    ("test_call", ""): "apply_async",
    ("test_call_confirmed", ""): "apply_async, confirmed",
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


def to_stock(entries: dict[str, Entry], who: str) -> float:
    return entries["rpc"].us / entries[who].us


def our_way(entries: dict[str, Entry]) -> str:
    """``install()`` where that was measured, else the backend alone."""
    return "installed" if "installed" in entries else "fastrpc"


def shown(run: Run) -> list[tuple[str, dict[str, Entry]]]:
    found = [(name, run.group(*key)) for key, name in SHOWN.items()]
    return [(name, entries) for name, entries in found if {"rpc", our_way(entries)} <= {*entries}]
