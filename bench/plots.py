"""The plots of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .entries import NAMES, Entry, Run, our_way, shown, to_stock

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
