"""The benchmarks run, and the report has a row for everybody who took part."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run_child

pytestmark = pytest.mark.skipif(not (ROOT / "bench").exists(), reason="the benchmarks are not here")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark refuses to measure in a worker of xdist."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)


def test_each_implementation_has_a_label() -> None:
    """The collection refuses one that the report could not name."""
    assert "bench_await.py" in run_child("pytest", "bench", "--collect-only", "-q")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_quick_run_and_its_report(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    run_child(
        *("pytest", "bench/bench_await.py", "bench/bench_parser.py", "-q"),
        *("-k", "latency or parser", "--benchmark-only", f"--benchmark-json={results}"),
        timeout=120,
        env={"FASTRPC_BENCH_QUICK": "1"},
    )
    run_child("bench.report", str(results), "--out", str(tmp_path / "report"))
    report = (tmp_path / "report" / "report.md").read_text()
    assert "| get() |" in report
    assert "| await, a task for each |" in report
    [target] = (line for line in report.splitlines() if line.startswith("| await one reply, p50 |"))
    assert target.endswith(("| met |", "| **not met** |"))
    assert (tmp_path / "report" / "ratio.svg").exists()
