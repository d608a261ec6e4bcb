"""Which modules may import which outside the package: tests, benchmarks, examples."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

#: The sources: the tests may be a copy, run against an installed package.
ROOT = next(p for p in Path(__file__).parents if (p / "examples").is_dir())
FOLDERS = ("fastrpc", "tests", "bench", "examples")
SOURCES = {
    path.relative_to(ROOT): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(source: str, module: str) -> set[str]:
    """Full names of a module's imports, including those inside functions.

    `from a import b` counts as `a.b` too: b may be a module.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found.update([origin, *(f"{origin}.{alias.name}" for alias in node.names)])
    return found


def below(names: set[str], package: str) -> set[str]:
    """The members of `names` that are `package` or below it."""
    return {name for name in names if name == package or name.startswith(f"{package}.")}


def used_by(path: Path) -> set[str]:
    return imports(SOURCES[path].read_text(), ".".join(path.with_suffix("").parts))


def sources(*folders: str) -> list[Path]:
    return [path for path in SOURCES if path.parts[: len(folders)] == folders]


@pytest.mark.parametrize("path", sources("tests") + sources("bench"), ids=str)
def test_nobody_imports_a_test_or_a_conftest(path):
    ours = below(used_by(path), "tests") | below(used_by(path), "bench")
    parts = {part for name in ours for part in name.split(".")[1:]}
    assert not {part for part in parts if part.startswith("test_") or part == "conftest"}


@pytest.mark.parametrize("path", sources("tests", "support"), ids=str)
def test_what_the_tests_share_knows_none_of_them(path):
    names = below(used_by(path), "tests")
    assert names == below(names, "tests.support")
    assert not below(used_by(path), "bench") | below(used_by(path), "examples")


@pytest.mark.parametrize("path", sources("bench"), ids=str)
def test_benchmarks_share_with_the_tests_only_their_support(path):
    names = below(used_by(path), "tests")
    assert names == below(names, "tests.support")


@pytest.mark.parametrize("folder", ["fastrpc", "examples"])
def test_what_users_read_knows_neither_tests_nor_benchmarks(folder):
    paths = sources(folder)
    assert paths
    for path in paths:
        assert not below(used_by(path), "tests") | below(used_by(path), "bench"), path


def test_the_rules_notice_every_way_to_import():
    source = "def f():\n    import a.b\n    from c import d\nfrom . import e\nfrom ..g import h\n"
    wanted = {"a.b", "c", "c.d", "tests.unit", "tests.unit.e", "tests.g", "tests.g.h"}
    assert imports(source, "tests.unit.module") == wanted
