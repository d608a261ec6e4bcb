"""Who may import whom: the rules of the house, read off the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

#: The sources: the tests may be a copy, run against an installed package.
ROOT = next(p for p in Path(__file__).parents if (p / "fastrpc" / "_amqp.pyx").exists())
PACKAGE = ROOT / "fastrpc"

#: From the bottom up: a module may import from the rows before its own, and its row mates where
#: they are named in WITHIN.
LAYERS = [
    {"errors"},
    {
        *("_amqp", "_table", "_lock", "_pending", "_wait", "_json"),
        *("serialization", "options", "retry", "stats", "settings"),
    },
    {"_intake", "_window", "queues", "transport"},
    {"matching", "intake", "link"},
    {"consumer", "publisher", "meta"},
    {"backend"},
]
#: module -> the modules of its own row that it may import.
WITHIN = {"options": {"retry"}, "serialization": {"_json"}, "intake": {"matching"}}
#: Only these may import Celery; `__init__` has install().
KNOW_CELERY = {"matching", "consumer", "publisher", "meta", "backend", "__init__"}

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)


def python_imports(path: Path) -> set[str]:
    """What a module imports: "celery.states", ".errors" ..., also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level and not node.module:  # from . import errors
                found.update("." + alias.name for alias in node.names)
            else:
                found.add("." * node.level + (node.module or ""))
    return found


def imports(path: Path) -> set[str]:
    if path.suffix == ".py":
        return python_imports(path)
    return {a or b for a, b in CIMPORT.findall(path.read_text())}


def siblings(names: set[str]) -> set[str]:
    """Those of our own package, by their bare names."""
    own = {name[1:] for name in names if name.startswith(".")}
    own |= {name.partition(".")[2] for name in names if name.startswith("fastrpc.")}
    return own


def known(names: set[str], package: str) -> bool:
    return any(name.split(".")[0] == package for name in names)


SOURCES = {
    path.stem: path
    for path in sorted(PACKAGE.iterdir())
    if path.suffix in (".py", ".pyx") and path.stem != "__main__"
}


def test_every_module_has_its_row():
    assert SOURCES.keys() - {"__init__"} == set().union(*LAYERS)


@pytest.mark.parametrize("module", SOURCES.keys() - {"__init__"})
def test_a_module_imports_only_what_lies_below(module):
    row = next(i for i, names in enumerate(LAYERS) if module in names)
    allowed = set().union(*LAYERS[:row]) | WITHIN.get(module, set())
    used = siblings(imports(SOURCES[module])) & set(SOURCES)
    assert used <= allowed


def test_the_package_itself_imports_only_its_errors():
    assert siblings(imports(SOURCES["__init__"])) == {"errors"}


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_upper_modules_know_celery(module):
    assert module in KNOW_CELERY or not known(imports(SOURCES[module]), "celery")


@pytest.mark.parametrize("module", [m for m, path in SOURCES.items() if path.suffix == ".pyx"])
def test_the_cython_modules_know_neither_celery_nor_kombu_nor_py_amqp(module):
    for package in ("celery", "kombu", "amqp"):
        assert not known(imports(SOURCES[module]), package)


def test_matching_does_no_io():
    for package in ("socket", "select", "amqp", "threading"):
        assert not known(imports(SOURCES["matching"]), package)


def test_the_c_sources_know_neither_python_nor_the_system():
    sources = sorted((ROOT / "src_c").glob("*.[ch]"))
    assert sources
    includes = {
        include
        for path in sources
        for include in re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)', path.read_text(), re.MULTILINE)
    }
    own = {path.name for path in sources}
    headers = {"limits", "stdarg", "stdbool", "stddef", "stdint", "stdio", "stdlib", "string"}
    assert includes - own <= {f"{name}.h" for name in headers | {"assert", "inttypes"}}


def test_each_c_header_is_mirrored_by_the_pxd_of_its_name():
    headers = {path.stem for path in (ROOT / "src_c").glob("*.h")}
    mirrors = {path.stem[1:]: path.read_text() for path in PACKAGE.glob("c*.pxd")}
    assert mirrors.keys() == headers
    for name, text in mirrors.items():
        assert re.findall(r'^cdef extern from "(.*)"', text, re.MULTILINE) == [f"{name}.h"]


def test_the_rules_notice_an_import_inside_a_function(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from celery import states\n    from . import backend\n")
    assert imports(path) == {"celery", ".backend"}
