"""A real Celery worker, a client, and results over fastrpc://.

Run it by `make demo`, which starts a private RabbitMQ, or with BROKER_URL set.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import celery
from celery import Celery, group
from kombu import Connection
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

ROOT = Path(__file__).parents[1]
STOCK, FAST = "rpc://", "fastrpc://"
COUNT = int(os.environ.get("DEMO_TASKS", "1000"))
ROUNDS = 3
console = Console(highlight=False)


@contextlib.contextmanager
def find_broker() -> Iterator[tuple[str, dict, str]]:
    """(URL, transport options, what it is) of the broker to use."""
    if url := os.environ.get("BROKER_URL"):
        yield url, {}, Connection(url).as_uri()
        return
    with tempfile.TemporaryDirectory(prefix="fastrpc-demo-") as folder:
        names = {"data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "ctl"}
        options = {key: f"{folder}/{name}" for key, name in names.items()}
        for path in options.values():
            Path(path).mkdir(exist_ok=True)
        yield "filesystem://", options, "kombu's filesystem transport (BROKER_URL names no broker)"


@contextlib.contextmanager
def worker(url: str, backend: str, options: dict) -> Iterator[Celery]:
    """A worker process with that backend, and a client app of the same kind."""
    queue = f"fastrpc-demo-{backend.partition(':')[0]}-{os.getpid()}"
    env = {
        **os.environ,
        "BROKER_URL": url,
        "RESULT_BACKEND": backend,
        "BROKER_OPTIONS": json.dumps(options),
        "DEMO_QUEUE": queue,
        "C_FORCE_ROOT": "1",
    }
    command = [
        *(sys.executable, "-m", "celery", "-A", "examples.tasks", "--quiet", "worker"),
        *("-P", "solo", "-l", "error", "-Q", queue, "-n", f"{queue}@demo"),
        # With few, Celery's event loop may sleep before it acknowledges tasks as short as these.
        "--prefetch-multiplier=64",
        *("--without-gossip", "--without-mingle", "--without-heartbeat"),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            app = Celery("examples", broker=url, backend=backend, set_as_current=False)
            app.conf.update(task_default_queue=queue, broker_transport_options=options)
            # The first answer shows that the worker is there.
            app.send_task("examples.tasks.add", (0, 0)).get(timeout=60)
            yield app
        except celery.exceptions.TimeoutError:
            log.seek(0)
            console.print(log.read().decode(errors="replace"), style="red", markup=False)
            raise SystemExit("the worker did not answer within 60 s") from None
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def heading(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left", style="dim")


def show_single_tasks(app: Celery) -> None:
    heading("Tasks one by one")
    calls = [("add", (2, 3)), ("add", ("fast", "rpc")), ("divide", (1, 4)), ("divide", (1, 0))]
    for name, args in calls:
        started = time.perf_counter()
        result = app.send_task(f"examples.tasks.{name}", args)
        value = result.get(timeout=30, propagate=False)
        took = (time.perf_counter() - started) * 1000
        style = "green" if result.successful() else "red"
        call = f"{name}({', '.join(map(repr, args))})"
        outcome = f"[{style}]{result.state:<8}[/] {value!r:<37}"
        console.print(f"  {call:<20} {outcome} [dim]{took:5.1f} ms[/]")


def show_group(app: Celery) -> None:
    heading("A group of 100")
    members = group(app.signature("examples.tasks.add", (n, n)) for n in range(100))
    started = time.perf_counter()
    values = members().get(timeout=60)
    took = (time.perf_counter() - started) * 1000
    assert values == [2 * n for n in range(100)]
    first = ", ".join(map(str, values[:5]))
    console.print(f"  {first} ... {values[-1]}, in order [dim]{took:6.1f} ms[/]")


def show_progress(app: Celery) -> None:
    heading("Progress states")
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(30),
        TextColumn("{task.completed:.0f} of {task.total:.0f}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("count(10)", total=10)

        def on_message(meta: dict) -> None:
            if meta["status"] == "PROGRESS":
                progress.update(bar, completed=meta["result"]["done"])

        value = app.send_task("examples.tasks.count", (10,)).get(timeout=30, on_message=on_message)
    console.print(f"  {value!r}")


def rate(app: Celery, count: int) -> float:
    """Tasks a second: send them all, then wait for them all."""
    started = time.perf_counter()
    sent = [app.send_task("examples.tasks.add", (n, 1)) for n in range(count)]
    values = app.ResultSet(sent, app=app).get(timeout=120)
    took = time.perf_counter() - started
    assert values == [n + 1 for n in range(count)]
    return count / took


def show_rates(stock: Celery, fast: Celery, count: int) -> None:
    heading(f"The rate: {count} tasks there and back, {ROUNDS} rounds each, taking turns")
    rates: dict[str, list[float]] = {STOCK: [], FAST: []}
    with console.status("measuring"):
        for _ in range(ROUNDS):
            rates[STOCK].append(rate(stock, count))
            rates[FAST].append(rate(fast, count))
    table = Table(box=None, pad_edge=False, padding=(0, 3))
    for column in ("  backend", "median", "best", "against rpc://"):
        table.add_column(column, justify="left" if column == "  backend" else "right")
    base = statistics.median(rates[STOCK])
    for backend, seen in rates.items():
        median = statistics.median(seen)
        table.add_row(
            f"  {backend}",
            f"{median:,.0f}/s",
            f"{max(seen):,.0f}/s",
            f"{median / base:.2f} x",
            style="bold green" if backend == FAST else None,
        )
    console.print(table)
    console.print("  [dim]One solo-pool worker process each, same broker, same machine.[/]")


def main() -> None:
    console.print("[bold]fastrpc[/]: results of Celery tasks, over the caller's own reply queue")
    with find_broker() as (url, options, what):
        console.print(f"  broker   {what}")
        console.print(f"  celery   {celery.__version__}, Python {sys.version.split()[0]}")
        # Without a broker process kombu polls a folder, which is slow: a few tasks are enough.
        count = COUNT if url != "filesystem://" else min(COUNT, 50)
        with worker(url, FAST, options) as fast:
            show_single_tasks(fast)
            show_group(fast)
            show_progress(fast)
            with worker(url, STOCK, options) as stock:
                show_rates(stock, fast, count)
    console.print()


if __name__ == "__main__":
    main()
