"""The CPU time and memory of processes, as counted by the operating system."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Meter", "MissingMeasure", "peak_rss", "reset_peak_rss", "rss", "session_pids", "timed"]

_libc = ctypes.CDLL(None, use_errno=True)


class MissingMeasure(RuntimeError):
    """The kernel does not provide this value here."""


def cpu_clock(pid: int) -> int:
    """The clock of a process's user and system time, for `time.clock_gettime`.

    clock_getcpuclockid(3): utime + stime of /proc/PID/stat, all threads, also those that have
    ended, but in nanoseconds and not in ticks of 10 ms.
    """
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise MissingMeasure(f"no CPU clock of process {pid}")
    return clock.value


def session_pids(leader: int) -> list[int]:
    """The processes of the session that `leader` leads: a worker and its pool."""
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[3]) == leader:
                    pids.append(int(entry.name))
    return pids


def rss() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def reset_peak_rss() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_rss() -> int:
    """The peak of this process's memory since `reset_peak_rss`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise MissingMeasure("no VmHWM in /proc/self/status")


def timed(
    run: Callable[..., Any], *arguments: Any, operations: int = 1, at_least: float = 0.01
) -> dict[str, Any]:
    """A sample of work in this process alone, repeated for at least `at_least` seconds."""
    gc.collect()
    calls, spent, start = 0, time.process_time(), time.perf_counter()
    while True:
        run(*arguments)
        calls += 1
        if (wall := time.perf_counter() - start) >= at_least:
            break
    spent = time.process_time() - spent
    each = calls * operations
    return {"wall": wall / each, "cpu": {"client": spent / each}, "operations": each}


class Meter:
    """Wall time of a block, and the CPU time that this process, workers and servers spend in it."""

    def __init__(self, servers: Iterable[int]) -> None:
        self.clocks = {
            "client": [time.CLOCK_PROCESS_CPUTIME_ID],
            "worker": [],
            "servers": [cpu_clock(pid) for pid in servers],
        }

    def watch(self, workers: Iterable[int]) -> None:
        self.clocks["worker"] = [cpu_clock(pid) for pid in workers]

    def _cpu(self) -> dict[str, float]:
        return {
            part: sum(map(time.clock_gettime, clocks))
            for part, clocks in self.clocks.items()
            if clocks
        }

    @contextlib.contextmanager
    def __call__(self, operations: int) -> Iterator[dict[str, Any]]:
        """Yields the sample, which is complete when the block ends: all seconds per operation."""
        sample: dict[str, Any] = {"operations": operations}
        gc.collect()
        # Let the servers finish the preparation of this round.
        time.sleep(0.02)
        before = self._cpu()
        start = time.perf_counter()
        yield sample
        wall = time.perf_counter() - start
        after = self._cpu()
        # The harness's own CPU time, spent watching the queue.
        after["client"] -= sample.pop("not_counted", 0.0)
        sample["wall"] = wall / operations
        sample["cpu"] = {part: (after[part] - before[part]) / operations for part in after}
