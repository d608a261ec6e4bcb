"""The examples, run as their texts say."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.slow
def test_bulk_import(own_vhost):
    env = {**os.environ, "BROKER_URL": own_vhost, "DEMO_QUEUE": "fastrpc-tests-import"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "examples.tasks", "worker", "-P", "solo"],
        cwd=ROOT,
        env={**env, "C_FORCE_ROOT": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        done = subprocess.run(
            [sys.executable, "-m", "examples.bulk_import", "2100"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=100,
        )
    finally:
        worker.terminate()
        worker.wait(30)
    assert done.returncode == 0, done.stderr
    assert "2100 rows imported" in done.stdout
