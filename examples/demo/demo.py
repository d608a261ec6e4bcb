"""What fastrpc does, shown with a real worker.

`make demo` runs it with a private RabbitMQ node, `python demo.py` with the broker of BROKER_URL.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
import proj
from celery import chord
from celery.exceptions import TimeoutError
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

import fastrpc
from fastrpc import aio

MANY = int(os.environ.get("DEMO_TASKS", "5000"))
AT_ONCE = 200
ROUNDS = 2
console = Console(highlight=False)


@contextmanager
def worker() -> Iterator[None]:
    """`celery -A proj worker`, until the end of the block."""
    command = [
        *(sys.executable, "-m", "celery", "-A", "proj", "--quiet", "worker"),
        *("-P", "solo", "-l", "error", "-n", f"demo-{os.getpid()}@%h"),
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        # With few, Celery's event loop may sleep before it acknowledges tasks as short as these.
        "--prefetch-multiplier=64",
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env={**os.environ, "C_FORCE_ROOT": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            with console.status("starting a worker"):
                proj.add.delay(0, 0).get(timeout=60)  # its first answer shows that it is there
            yield
        except TimeoutError:
            log.seek(0)
            console.print(log.read().decode(errors="replace"), style="red", markup=False)
            raise SystemExit("the worker did not answer") from None
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def heading(text: str, code: str = "") -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left", style="dim")
    if code:
        console.print(f"  {code}", style="cyan", markup=False)


def show_single_tasks() -> None:
    heading("A task and its result", "add.delay(2, 3).get(timeout=10)")
    for task, args in [(proj.add, (2, 3)), (proj.add, ("fast", "rpc")), (proj.divide, (1, 0))]:
        started = time.perf_counter()
        result = task.delay(*args)
        value = result.get(timeout=30, propagate=False)
        took = (time.perf_counter() - started) * 1000
        style = "green" if result.successful() else "red"
        call = f"{task.name.partition('.')[2]}({', '.join(map(repr, args))})"
        outcome = f"[{style}]{result.state:<8}[/] {value!r:<37}"
        console.print(f"  {call:<20} {outcome} [dim]{took:5.1f} ms[/]")


def show_many() -> None:
    heading(
        f"{MANY:,} tasks at once",
        f"fastrpc.apply_many(add, ((n, 1) for n in range({MANY:_}))).get(timeout=60)",
    )
    started = time.perf_counter()
    results = fastrpc.apply_many(proj.add, ((n, 1) for n in range(MANY)))
    sent = time.perf_counter() - started
    values = results.get(timeout=60)
    took = time.perf_counter() - started
    assert values == [n + 1 for n in range(MANY)]
    console.print(f"  all sent after {sent:.2f} s, all results in order after {took:.2f} s")


def show_await() -> None:
    heading(f"{AT_ONCE} awaits at once, in one thread", "await aio.get(result, timeout=10)")

    async def call(n: int) -> int:
        result = await aio.apply_async(proj.add, (n, n))
        return await aio.get(result, timeout=30)

    async def main() -> list[int]:
        return await asyncio.gather(*map(call, range(AT_ONCE)))

    started = time.perf_counter()
    values = asyncio.run(main())
    took = (time.perf_counter() - started) * 1000
    assert values == [2 * n for n in range(AT_ONCE)]
    console.print(f"  {AT_ONCE} results after {took:.0f} ms")


def show_progress() -> None:
    heading("States on the way", "count.delay(10).get(timeout=30, on_message=show)")
    columns = (BarColumn(30), TextColumn("{task.completed:.0f} of {task.total:.0f}"))
    with Progress(TextColumn(" "), *columns, console=console) as progress:
        bar = progress.add_task("", total=10)

        def show(meta: dict) -> None:
            if meta["status"] == "PROGRESS":
                progress.update(bar, completed=meta["result"]["done"])

        value = proj.count.delay(10).get(timeout=30, on_message=show)
    console.print(f"  {value}")


def show_chord() -> None:
    heading("A chord, without a second server", "chord(add.s(n, n) for n in range(100))(total.s())")
    started = time.perf_counter()
    value = chord(proj.add.s(n, n) for n in range(100))(proj.total.s()).get(timeout=60)
    took = (time.perf_counter() - started) * 1000
    assert value == 9900
    console.print(f"  100 parts, then one task with all their results: {value} after {took:.0f} ms")


def run(*options: str, **how: Any) -> subprocess.CompletedProcess:
    """The command `fastrpc -A proj ...`."""
    command = [sys.executable, "-m", "fastrpc", "-A", "proj", *options]
    return subprocess.run(command, cwd=Path(__file__).parent, **how)


def show_rates() -> None:
    options = ("--tasks", str(MANY // 10), "--rounds", str(ROUNDS))
    heading("Stock Celery and fastrpc, side by side on this broker", "$ fastrpc -A proj bench")
    run("bench", *options, check=True)


def show_verdict() -> None:
    """Only what asks for something to be done: the command itself shows all that it found."""
    heading("Is all well? Ask the doctor", "$ fastrpc -A proj doctor")
    with console.status("examining"):
        done = run("doctor", "--json", stdout=subprocess.PIPE)
    findings = json.loads(done.stdout)["findings"]
    troubles = [finding for finding in findings if finding["mark"] in ("warn", "fail")]
    checks = ", ".join(finding["check"] for finding in findings)
    console.print(Padding(f"{len(findings)} checks: {checks}", (0, 2)))
    for trouble in troubles:
        text = f"{trouble['check']}: {trouble['found']}. {trouble['advice']}"
        console.print(Padding(Text(text, "yellow"), (0, 2)))
    if not troubles:
        console.print("  all passed", style="green")


def main() -> None:
    console.print("[bold]fastrpc[/]: Celery over RabbitMQ, fast")
    console.print(f"  broker   {proj.app.connection_for_write().as_uri()}")
    console.print(f"  celery   {celery.__version__}, Python {sys.version.split()[0]}")
    with worker():
        show_single_tasks()
        show_many()
        show_await()
        show_progress()
        show_chord()
        show_rates()
        show_verdict()
    console.print()


if __name__ == "__main__":
    main()
