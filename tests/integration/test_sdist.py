"""The source distribution, from which users without a clone build."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT = ("*.so", "_*.c", "__pycache__")  # in a clone that was built, not in a fresh one


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory) -> Path:
    """A clone without earlier builds: setuptools remembers what it has listed."""
    clone = tmp_path_factory.mktemp("clone")
    for folder in ("fastrpc", "src_c"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns(*BUILT))
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, clone)
    return clone


@pytest.fixture(scope="module")
def unpacked(fresh, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", folder, cwd=fresh)
    (archive,) = folder.glob("fastrpc-*.tar.gz")
    shutil.unpack_archive(archive, folder)
    return next(path for path in folder.iterdir() if path.is_dir())


@pytest.mark.slow
def test_it_has_every_source_and_nothing_that_is_made_of_them(fresh, unpacked):
    generated = {
        str(path.relative_to(fresh).with_suffix(".c"))
        for path in (fresh / "fastrpc").rglob("*.pyx")
    }
    sources = {
        f"{folder}/{name}"
        for folder in ("fastrpc", "src_c")
        for name in names(fresh / folder)
        if f"{folder}/{name}" not in generated
    }
    assert {n for n in names(unpacked) if n.startswith(("fastrpc/", "src_c/"))} == sources


@pytest.mark.slow
def test_a_wheel_is_built_from_it_and_works_elsewhere(unpacked, tmp_path):
    """With the installed build tools, which the tests need anyway; no index is used."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(
        *(*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, "."),
        cwd=unpacked,
        FASTRPC_WERROR="",  # a user's compiler may warn of what ours does not
        CFLAGS="-Wconversion",
    )
    (wheel,) = tmp_path.glob("fastrpc-*.whl")
    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    modules = {path.stem for path in (unpacked / "fastrpc").glob("*.pyx")}
    code = f"import fastrpc, fastrpc.backend, {', '.join(f'fastrpc.{m}' for m in sorted(modules))}"
    found = run(sys.executable, "-c", f"{code}; print(fastrpc.__file__)", cwd=installed)
    assert Path(found.strip()).is_relative_to(installed)
    assert {f"fastrpc/{m}.pyi" for m in modules} | {"fastrpc/py.typed"} <= names(installed)
