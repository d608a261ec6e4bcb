"""The parser alone: small deliveries from memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .arena import QUICK, ROOT, contestants, rounds

CC = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="module")
def bench_frame(tmp_path_factory):
    """The C benchmark of the reader, built as the extension is: what C alone could do."""
    if CC is None:
        pytest.skip("no C compiler for tests/c/bench_frame.c")
    binary: Path = tmp_path_factory.mktemp("bench") / "bench_frame"
    sources = [ROOT / "tests/c/bench_frame.c", ROOT / "src_c/frame.c"]
    flags = ["-std=c11", "-O3", f"-I{ROOT}/src_c", f"-I{ROOT}/tests/c"]
    subprocess.run([CC, *flags, *map(str, sources), "-o", str(binary)], check=True)
    return binary


@contestants("rpc", "rpc-cython", "fastrpc", "raw")
def test_parser(race, arena, who, bench_frame):
    """Delivery tag, correlation id and body of each; `raw` is the C reader without Python."""
    count = 5_000 if QUICK else 20_000
    frame = str(bench_frame)
    race(
        lambda who: (
            arena.client(who).parser(count=count)
            if who != "raw"
            else arena.client(who).c_parser(binary=frame)
        ),
        rounds(5),
    )
