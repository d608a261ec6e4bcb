"""The fuzzers, a short run each; `make fuzz` runs them for longer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run")
SECONDS = 10


@pytest.mark.slow
@pytest.mark.parametrize("target", ["frame", "table", "pending", "publish"])
def test_hostile_bytes_do_no_harm(target):
    # Under FASTRPC_SANITIZE=1 the Python process has ASan preloaded; the fuzzer has its own.
    env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    ran = subprocess.run(
        [str(RUN), target],
        env={**env, "FUZZ_SECONDS": str(SECONDS)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-8000:]
    # It did run, and long enough to mean something.
    executed = [line for line in ran.stdout.splitlines() if "number_of_executed_units" in line]
    assert int(executed[0].split()[-1]) > 1_000
