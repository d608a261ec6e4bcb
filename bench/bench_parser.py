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
def parser_rate(tmp_path_factory):
    """The C benchmark of the reader, built like the extension, as the limit without Python."""
    if CC is None:
        pytest.skip("no C compiler for bench/c/parser_rate.c")
    binary: Path = tmp_path_factory.mktemp("bench") / "parser_rate"
    sources = [ROOT / "bench/c/parser_rate.c", ROOT / "src_c/frame.c"]
    flags = ["-std=c11", "-O3", f"-I{ROOT}/src_c", f"-I{ROOT}/tests/c"]
    subprocess.run([CC, *flags, *map(str, sources), "-o", str(binary)], check=True)
    return binary


@contestants("rpc", "rpc-cython", "fastrpc", "raw")
def test_parser(race, arena, who, parser_rate):
    """Read the delivery tag, correlation id and body; `raw` is the C reader without Python."""
    count = 5_000 if QUICK else 20_000
    race(
        lambda who: (
            arena.client(who).parser(count=count)
            if who != "raw"
            else arena.client(who).c_parser(binary=str(parser_rate))
        ),
        rounds(5),
    )
