"""The command ``fastrpc``, and ``celery fastrpc``, where Celery loads it as a plugin.

Click comes with Celery. Rich, from the extra ``cli``, is imported when a command draws something.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import click
from kombu.exceptions import OperationalError

from . import __version__

# Celery's command line loads this module as a plugin: its workers then have `fastrpc_stats`, and
# `celery inspect` knows it.
from .contrib import control  # noqa: F401

if TYPE_CHECKING:
    from .bench import Outcome
    from .doctor import Finding
    from .top import Sampler

__all__ = ["main"]

NO_RICH = "this command draws with rich, which is missing: pip install 'fastrpc[cli]'"
NO_TARGET = "name an app (-A proj) or the URL of a broker (-b amqp://user:password@host//)"

#: Mark -> the sign, the word where the terminal has no such signs, and the style.
SIGNS = {
    "ok": ("✓", "ok", "green"),
    "note": ("i", "note", "cyan"),
    "warn": ("!", "warn", "yellow"),
    "fail": ("✗", "FAIL", "bold red"),
}

#: Of ``fastrpc top``; those from the fourth on are keys of ``backend.stats()``.
WORKER_COLUMNS = ("tasks", "tasks/s", "results/s", "published", "unconfirmed", "resent", "returned")

#: Those with most results in them.
MOST_REPLY_QUEUES = 20

SECONDS = click.FloatRange(min=0, min_open=True)
AT_LEAST_ONE = click.IntRange(min=1)

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1024, "mi": 1024**2, "gi": 1024**3}


def size(text: str) -> int:
    """A number of bytes: 1000, 20MB, 16MiB."""
    found = re.fullmatch(r"(\d+)\s*([kmg]?i?)b?", text.strip().lower())
    if not found or found[2] not in UNITS:
        raise click.BadParameter(f"{text!r} is no size, such as 1000, 20MB or 16MiB")
    return int(found[1]) * UNITS[found[2]]


def web_address(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """The URL of the management plugin."""
    if text is not None and not re.match(r"https?://[^/]", text):
        raise click.BadParameter("must begin with http:// or https:// and name a host")
    return text


def console(**options: Any) -> Any:
    """What commands draw on."""
    try:
        from rich.console import Console
    except ImportError:
        raise click.ClickException(NO_RICH) from None
    return Console(highlight=False, **options)


class Target:
    """The app or the broker that a command is for. The command line wins over the environment."""

    def __init__(self, ctx: click.Context, app: str | None, broker: str | None) -> None:
        root = ctx.find_root()
        self.app_name = app or root.params.get("app")
        self.broker = broker or root.params.get("broker")
        if not self.app_name and not self.broker:
            self.app_name = os.environ.get("APP")
        if not self.app_name and not self.broker:
            self.broker = os.environ.get("BROKER_URL")
        # Under `celery -A proj fastrpc`, Celery has loaded the app, or says why it cannot.
        loaded = getattr(root.obj, "app", None)
        self.app = loaded if self.app_name or not self.broker else None
        if self.app is None and not self.app_name and not self.broker:
            raise click.UsageError(NO_TARGET, ctx)

    def load(self) -> Any:
        """The app; None where only a broker is named."""
        if self.app is None and self.app_name:
            from .doctor import load_app

            self.app = load_app(self.app_name)
        if self.app is not None and self.broker:
            urls = ("broker_url", "broker_read_url", "broker_write_url")
            self.app.conf.update(dict.fromkeys(urls, self.broker))
        return self.app

    def load_or_fail(self) -> Any:
        """The app, or one for the broker; a sentence for the user if either cannot be used."""
        import celery

        from .doctor import explain_import, explain_url

        try:
            app = self.load() or celery.Celery(broker=self.broker, set_as_current=False)
            _ = app.conf.broker_url  # loads the settings
        except Exception as exc:
            finding = explain_import(str(self.app_name), exc)
            raise click.ClickException(f"{finding.found}\n{finding.advice}") from None
        try:
            app.connection_for_write().get_transport_cls()
        except (KeyError, ValueError) as exc:
            raise click.ClickException("\n".join(explain_url(exc))) from None
        except ImportError as exc:
            raise click.ClickException(f"the broker's URL needs a package: {exc}") from None
        return app


def target_options(command: Any) -> Any:
    """Add -A and -b."""
    command = click.option(
        "-b",
        "--broker",
        help="The URL of a broker, alone or in place of the app's; or set BROKER_URL.",
    )(command)
    return click.option("-A", "--app", help="The app, as for celery -A; or set APP.")(command)


# Celery adds the group by this name.
@click.group("fastrpc", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastrpc")
@target_options
def main(app: str | None, broker: str | None) -> None:
    """Look at Celery over RabbitMQ, and at fastrpc in it."""


@main.command()
@click.argument("url", required=False)
@target_options
@click.option(
    "--timeout",
    type=SECONDS,
    default=5.0,
    show_default=True,
    help="Seconds to wait for each answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--no-workers", is_flag=True, help="Ask no worker, and send no task.")
@click.option("--message-size", type=size, default="0", help="Send one message of this size.")
@click.option("--reply-queue", default="", help="Compare this reply queue with the app's settings.")
@click.pass_context
def doctor(
    ctx: click.Context,
    url: str | None,
    app: str | None,
    broker: str | None,
    timeout: float,
    as_json: bool,
    no_workers: bool,
    message_size: int,
    reply_queue: str,
) -> None:
    """Find out why nothing comes back.

    Looks at the broker of an app (-A proj), or at the broker of a URL, step by step. The exit
    status is 1 if a check failed. Put a URL with a password into the environment (BROKER_URL), so
    that other users of the machine do not see it.
    """
    from .doctor import Finding, Mark, Options, Subject, examine, explain_import

    target = Target(ctx, app, url or broker)
    options = Options(timeout, message_size, reply_queue, not no_workers)

    def findings() -> Iterable[Finding]:
        try:
            loaded = target.load()
        except Exception as exc:
            yield explain_import(str(target.app_name), exc)
            return
        if loaded is not None:
            own = [name for name in loaded.tasks if not name.startswith("celery.")]
            yield Finding("app", Mark.OK, f"{target.app_name or loaded.main}, {len(own)} tasks")
        yield from examine(Subject(target.broker, loaded, options))

    found = print_json(findings()) if as_json else print_findings(findings())
    sys.exit(any(finding.mark is Mark.FAIL for finding in found))


def print_json(findings: Iterable[Finding]) -> list[Finding]:
    found = list(findings)
    marks = [finding.mark.value for finding in found]
    report = {
        "fastrpc": __version__,
        "ok": "fail" not in marks,
        "findings": [finding.as_dict() for finding in found],
    }
    click.echo(json.dumps(report, indent=2))
    return found


def print_findings(findings: Iterable[Finding]) -> list[Finding]:
    """One line for each finding, as it comes, and a verdict at the end."""
    screen = console()
    from rich.padding import Padding
    from rich.text import Text

    found = []
    skipped = []
    unicode = screen.encoding.lower().replace("-", "") == "utf8"
    with screen.status("looking", spinner="dots" if unicode else "line"):
        for finding in findings:
            found.append(finding)
            if finding.mark.value == "skipped":
                skipped.append(finding.check)
                continue
            sign, word, style = SIGNS[finding.mark.value]
            first = f"{sign} " if unicode else f"{word:<5}"
            line = Text.assemble((first, style), (f"{finding.check:<20} ", "bold"))
            line.append(finding.found)
            screen.print(line, soft_wrap=True)
            if finding.advice:
                indent = len(first) + 21
                advice = Text(finding.advice, style.removeprefix("bold "))
                screen.print(Padding(advice, (0, 0, 0, indent), expand=False))
    screen.print()
    if skipped:
        screen.print(Text(f"Not looked at because of that: {', '.join(skipped)}", "dim"))
    screen.print(verdict(found))
    return found


def verdict(found: list[Finding]) -> Any:
    """The last line."""
    from rich.text import Text

    failed = [finding.check for finding in found if finding.mark.value == "fail"]
    warned = [finding.check for finding in found if finding.mark.value == "warn"]
    looked = sum(finding.mark.value != "skipped" for finding in found)
    if failed:
        return Text(f"{len(failed)} of {looked} checks failed: {', '.join(failed)}", "bold red")
    if warned:
        return Text(f"No check failed; look at: {', '.join(warned)}", "bold yellow")
    return Text(f"All {looked} checks passed", "bold green")


@main.command()
@click.argument("url", required=False)
@target_options
@click.option(
    "--tasks", type=AT_LEAST_ONE, default=2000, show_default=True, help="Tasks in a round."
)
@click.option(
    "--rounds", type=AT_LEAST_ONE, default=3, show_default=True, help="Rounds of each measurement."
)
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the rates into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print the rates as JSON.")
@click.pass_context
def bench(
    ctx: click.Context,
    url: str | None,
    app: str | None,
    broker: str | None,
    tasks: int,
    rounds: int,
    plot: str | None,
    as_json: bool,
) -> None:
    """Compare stock Celery with fastrpc on your broker.

    Both get a queue, a worker process with the solo pool, and a client process of their own. Your
    tasks, queues and workers are left alone, but the broker has work to do for a minute.
    """
    from . import bench as benchmark

    target = Target(ctx, app, url or broker)
    settings = benchmark.broker_settings(target.load_or_fail(), target.broker)
    screen = None if as_json else console()
    if plot:
        need_matplotlib()
    try:
        outcomes = run_bench(settings, tasks, rounds, screen)
    except RuntimeError as exc:
        raise click.ClickException(f"{exc}\nfastrpc doctor looks for the reason.") from None
    if screen is None:
        click.echo(json.dumps([outcome.as_dict() for outcome in outcomes], indent=2))
    else:
        screen.print(rates_table(outcomes))
        screen.print(f"Medians of {rounds} rounds of {tasks:,} tasks; solo worker.", style="dim")
    if plot:
        benchmark.plot(outcomes, plot)


def need_matplotlib() -> None:
    """Say that it is missing before the minute of measuring, not after."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise click.ClickException("--plot needs matplotlib: pip install matplotlib") from None


def run_bench(settings: dict[str, Any], tasks: int, rounds: int, screen: Any) -> list[Outcome]:
    """Measure, with a progress bar if there is a screen."""
    from .bench import MEASUREMENTS, measure

    if screen is None:
        return measure(settings, tasks, rounds)
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(30), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=screen, transient=True) as progress:
        bar = progress.add_task("starting the workers", total=len(MEASUREMENTS) * rounds * 2 + 1)
        return measure(
            settings,
            tasks,
            rounds,
            lambda text: progress.update(bar, advance=1, description=text),
        )


def rates_table(outcomes: list[Outcome]) -> Any:
    """Operations a second, side by side."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("per second")
    for column in ("stock", "fastrpc", "fastrpc to stock"):
        table.add_column(column, justify="right")
    for outcome in outcomes:
        rates = [f"{outcome.median(who):,.0f}" for who in ("stock", "fastrpc")]
        table.add_row(outcome.name, *rates, f"{outcome.ratio:.1f} x")
    return table


@main.command()
@click.argument("url", required=False)
@target_options
@click.option("--queue", "queues", multiple=True, help="Show this queue too; can be repeated.")
@click.option(
    "--management",
    callback=web_address,
    help="List the reply queues: http://user:password@host:15672.",
)
@click.option(
    "--interval", type=SECONDS, default=2.0, show_default=True, help="Seconds between two looks."
)
@click.option(
    "--count",
    type=click.IntRange(min=0),
    default=0,
    help="End after so many looks; 0 goes on until Ctrl-C.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each look as one line of JSON.")
@click.pass_context
def top(
    ctx: click.Context,
    url: str | None,
    app: str | None,
    broker: str | None,
    queues: tuple[str, ...],
    management: str | None,
    interval: float,
    count: int,
    as_json: bool,
) -> None:
    """Watch the counters of workers, and the queues of an app.

    Workers answer by Celery's remote control. One that the command celery has started, with fastrpc
    installed, knows how; other workers need `import fastrpc.contrib.control`.
    """
    from .top import Management, Sampler

    target = Target(ctx, app, url or broker)
    loaded = target.load_or_fail()
    sampler = Sampler(loaded, queues)
    if management:
        vhost = loaded.connection_for_read().virtual_host or "/"
        sampler.management = Management(management, vhost)
    screen = None if as_json else console()
    try:
        watch(sampler, screen, interval, count)
    except URLError as exc:
        raise click.ClickException(f"no answer from the management plugin: {exc}") from None
    except (OperationalError, *lost_connection(loaded)) as exc:
        message = f"no connection to the broker: {exc}\nfastrpc doctor looks for the reason."
        raise click.ClickException(message) from None
    except KeyboardInterrupt:
        pass  # the way to end it
    finally:
        sampler.close()


def lost_connection(app: Any) -> tuple[type[Exception], ...]:
    """What a lost connection raises, and a refused one: a wrong password is a channel error."""
    connection = app.connection_for_write()
    return (*connection.connection_errors, *connection.channel_errors)


def watch(sampler: Sampler, screen: Any, interval: float, count: int) -> None:
    """Look ``count`` times, or for ever, and show each sample."""
    if screen is None:
        for _ in looks(sampler, interval, count):
            click.echo(json.dumps(sampler.as_dict()))
        return
    if not screen.is_terminal:  # Live would show only the last sample
        for _ in looks(sampler, interval, count):
            screen.print(top_tables(sampler))
        return
    from rich.live import Live

    with Live(console=screen, auto_refresh=False, screen=not count) as live:
        for _ in looks(sampler, interval, count):
            live.update(top_tables(sampler), refresh=True)


def looks(sampler: Sampler, interval: float, count: int) -> Iterator[int]:
    """Take samples, one each ``interval`` seconds."""
    number = 0
    while not count or number < count:
        if number:
            time.sleep(interval)
        sampler.sample()
        number += 1
        yield number


def top_tables(sampler: Sampler) -> Any:
    """Two tables, workers and queues."""
    from rich.console import Group
    from rich.table import Table

    # Numbers are never cut, and long names are folded: 80 columns show all of it.
    workers = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    queues = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    workers.add_column("worker", overflow="fold")
    workers.add_column("backend", overflow="fold", min_width=len("fastrpc"))
    for name in WORKER_COLUMNS:
        workers.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for row in sampler.workers.values():
        results = [row.results_rate, *map(row.stats.get, WORKER_COLUMNS[3:])]
        if row.counts_no_results:
            results = [None] * len(results)
        cells: tuple[Any, ...] = (row.answer.get("tasks"), row.tasks_rate, *results)
        backend = row.answer.get("backend", "no stats").partition(":")[0]
        short = backend.removeprefix("celery.backends.").removesuffix(".backend")
        workers.add_row(row.name, short, *map(number_text, cells))
    queues.add_column("queue", overflow="fold")
    for name in ("messages", "consumers", "grows/s"):
        queues.add_column(name, justify="right")
    for depth in sampler.depths.values():
        if depth.messages is None:
            queues.add_row(depth.name, "none", "", "")
        else:
            cells = (depth.messages, depth.consumers, depth.growth)
            queues.add_row(depth.name, *map(number_text, cells))
    for depth in sampler.reply_queues[:MOST_REPLY_QUEUES]:
        cells = (depth.messages, depth.consumers, depth.growth)
        queues.add_row(depth.name, *map(number_text, cells))
    parts: list[Any] = [workers if sampler.workers else "no worker answers"]
    if sampler.refused:
        parts.append(
            f"A worker's answer was refused, and those after it are missing: {sampler.refused}\n"
            "Name the app with -A, or set its accept_content: a worker answers in its own "
            "task_serializer."
        )
    parts += ["", queues]
    if sampler.management:
        messages = sum(row.messages or 0 for row in sampler.reply_queues)
        parts.append(f"{len(sampler.reply_queues):,} reply queues, {messages:,} results in them")
    return Group(*parts)


def number_text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
