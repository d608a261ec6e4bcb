"""Compares instructions per operation of the C code, counted by callgrind, with stored bounds.

    python -m bench.instructions           fails if an operation takes over 10 % more than its bound
    python -m bench.instructions --store   stores the counts as the new bounds

Counts do not depend on the machine's load, so only a regression fails, not noise. They depend on
compiler and libc: the bounds record which ones were used, and a failure says if they differ from
the ones here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
HERE = ROOT / "bench" / "c"
BOUNDS = ROOT / "bench" / "instructions.json"
TOLERANCE = 0.10
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wsign-conversion", "-Werror"]
FLAGS = ["-std=c11", "-O2", *WARNINGS]

#: Program -> the sources that it is linked with.
PROGRAMS = {
    "parser": ["frame.c"],
    "table_waited": ["pending.c"],
    "table_unclaimed": ["pending.c"],
    "encoder": ["publish.c"],
}


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        sys.exit(f"{name} was not found: apt-get install {name}")
    return found


def count(name: str, folder: Path) -> float:
    """Instructions per operation of that program's `measured`."""
    compiler = os.environ.get("CC") or "cc"
    binary = folder / name
    sources = [HERE / f"{name}.c", *(ROOT / "src_c" / source for source in PROGRAMS[name])]
    includes = [f"-I{ROOT / folder}" for folder in ("src_c", "tests/c", "bench/c")]
    subprocess.run(
        [tool(compiler), *FLAGS, *includes, *map(str, sources), "-o", str(binary)], check=True
    )
    done = subprocess.run(
        [
            *(tool("valgrind"), "--tool=callgrind", "--toggle-collect=measured"),
            *("--callgrind-out-file=/dev/null", str(binary)),
        ],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout}{done.stderr}")
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if collected is None:
        sys.exit(f"callgrind said nothing of {name}:\n{done.stderr}")
    return int(collected[1]) / int(done.stdout)


def toolchain() -> str:
    compiler = os.environ.get("CC") or "cc"
    said = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True)
    return f"{said.stdout.splitlines()[0]}, {' '.join(platform.libc_ver())}, {platform.machine()}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="make these counts the bounds")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        counting = {name: threads.submit(count, name, Path(folder)) for name in PROGRAMS}
        counts = {name: future.result() for name, future in counting.items()}
    if options.store:
        rounded = {name: round(found, 1) for name, found in counts.items()}
        bounds = {"toolchain": toolchain(), "instructions": rounded}
        BOUNDS.write_text(json.dumps(bounds, indent=4) + "\n")
        print(f"stored in {BOUNDS.relative_to(ROOT)}")
    bounds = json.loads(BOUNDS.read_text())
    failed = []
    print(f"{'instructions per operation':28} {'bound':>8} {'here':>8}")
    for name, found in counts.items():
        bound = bounds["instructions"][name]
        change = found / bound - 1
        print(f"{name:28} {bound:8.1f} {found:8.1f}  {change:+.1%}")
        if change > TOLERANCE:
            failed.append(name)
        elif change < -TOLERANCE:
            print(f"{'':28} better: python -m bench.instructions --store")
    if failed:
        print(f"more than {TOLERANCE:.0%} over the bound: {', '.join(failed)}", file=sys.stderr)
    if bounds["toolchain"] != toolchain():
        print(f"the bounds were counted with {bounds['toolchain']}; here: {toolchain()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
