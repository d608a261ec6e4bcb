"""The C tests: compiled under ASan and UBSan, one program each, run as a test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "src_c"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Werror"]
FLAGS = ["-std=c11", "-g", "-O1", *WARNINGS]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

PROGRAMS = {
    "test_frame": ["frame.c"],
    "test_publish": ["publish.c", "frame.c"],
    "test_table": ["table.c"],
    "test_pending": ["pending.c"],
}

CC = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or "cc"


@pytest.mark.parametrize("program", PROGRAMS)
def test_program(program: str, tmp_path: Path) -> None:
    binary = tmp_path / program
    sources = [HERE / f"{program}.c", *(SOURCES / name for name in PROGRAMS[program])]
    command = [CC, *FLAGS, *SANITIZE, f"-I{SOURCES}", f"-I{HERE}", *sources, "-o", binary]
    built = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    # Under FASTRPC_SANITIZE=1 the Python process has ASan preloaded; this program has its own.
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    env["ASAN_OPTIONS"] = "detect_leaks=1:allocator_may_return_null=1"
    ran = subprocess.run([str(binary)], capture_output=True, text=True, env=env, timeout=100)
    assert ran.returncode == 0, ran.stderr[-8000:]
