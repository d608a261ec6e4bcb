"""Turns pytest-benchmark's JSON into a Markdown report, with plots as SVG and PNG.

python -m bench.report RESULTS.json [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from .entries import BASES, LIMITS, NAMES, OURS, Entry, Run, among, our_way, shown, to_stock
from .plots import PLOTS, style
from .targets import TARGETS

__all__ = ["main"]


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
    "bytes_each": "bytes for each",
    "bytes_beyond_body": "bytes for each beyond its body",
    "lost": "lost",
    "claim_us": "µs to get() one of them later",
    "peak_per_body": "peak memory, in bodies",
    "peak_bodies": "peak memory, in bodies",
    "worst_ms": "slowest call, in ms",
    "p99_ms": "p99 of a call, in ms",
    "kept_percent": "% of the rate kept",
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


def readme_table(run: Run) -> str:
    """The short table for the README."""
    who = ("rpc", "redis", "dramatiq", "fastrpc", "installed", "raw")
    rows = []
    for name, entries in shown(run):
        rates = [number(1e6 / entries[w].us) if w in entries else "" for w in who]
        rows.append([name, *rates, f"{to_stock(entries, our_way(entries)):.1f} x"])
    header = ["per second", *(NAMES[w] for w in who), "to stock"]
    return table(header, rows) + "\n\n" + describe(run) + "\n"


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
