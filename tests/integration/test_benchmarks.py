"""The benchmarks run, and the report has a row for everybody who took part."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "bench").exists(), reason="the benchmarks are not here")


def run(*arguments: str | Path, **env: str) -> str:
    # pytest-benchmark refuses to measure in a worker of xdist.
    alone = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**alone, **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stdout + done.stderr
    return done.stdout


def test_each_implementation_has_a_label() -> None:
    """The collection refuses one that the report could not name."""
    assert "bench_await.py" in run("pytest", "bench", "--collect-only", "-q")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_quick_run_and_its_report(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run(
        *("pytest", "bench/bench_await.py", "bench/bench_parser.py", "-q"),
        *("-k", "latency or parser", "--benchmark-only", f"--benchmark-json={results}"),
        FASTRPC_BENCH_QUICK="1",
    )
    run("bench.report", results, "--out", tmp_path / "report")
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| get() |" in report
    assert "| await, a task for each |" in report
    [target] = (line for line in report.splitlines() if line.startswith("| await one reply, p50 |"))
    assert target.endswith(("| met |", "| **not met** |"))
    assert (tmp_path / "report" / "ratio.svg").exists()
