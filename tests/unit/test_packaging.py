"""What is installed: every package, the commands, and the extras that the documentation names."""

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

#: The sources: the tests may be a copy, run against an installed package.
ROOT = next(p for p in Path(__file__).parents if (p / "fastrpc" / "backend.py").exists())


def project() -> str:
    return (ROOT / "pyproject.toml").read_text()


def test_every_package_is_listed():
    listed = re.search(r"^packages = \[(.*?)\]", project(), re.DOTALL | re.MULTILINE)
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "fastrpc").rglob("__init__.py")}
    assert set(re.findall(r'"([\w.]+)"', listed[1])) == {".".join(f.parts) for f in folders}


def test_every_extra_that_is_named_exists():
    section = project().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "fastrpc").glob("*.py")]
    named = {e for page in pages for e in re.findall(r"fastrpc\[(\w+)\]", page.read_text())}
    assert {"cli", "prometheus", "opentelemetry"} <= named <= extras


def test_make_docs_installs_the_packages_of_the_extra():
    extra = re.search(r"^docs = \[(.*)\]", project(), re.MULTILINE)
    makefile = re.search(r"^DOCS_PACKAGES = (.*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert makefile[1].split() == [name.replace('"', "'") for name in extra[1].split(", ")]


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("console_scripts", "fastrpc.cli:main"),
        ("celery.commands", "fastrpc.cli:main"),
        ("celery.result_backends", "fastrpc.backend:RPCBackend"),
    ],
)
def test_entry_points(group, value):
    assert value in {entry.value for entry in entry_points(group=group, name="fastrpc")}
