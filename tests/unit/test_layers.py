"""Which module may import which, read from the sources, including indirect imports."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

#: The sources: the tests may be a copy, run against an installed package.
ROOT = next(p for p in Path(__file__).parents if (p / "fastrpc" / "backend.py").exists())
PACKAGE = ROOT / "fastrpc"

#: Modules that import no other module of ours, except ``_lock``, which has its help in ``_enter``.
BASE = {
    "_borrowed",
    "errors",
    "options",
    "retry",
    "stats",
    "settings",
    "serialization",
    "_json",
    "_lock",
    "_enter",
}
#: Wing, or top-level module -> the wings and modules that it may import, directly or indirectly.
LAW: dict[str, set[str]] = {
    **{name: BASE for name in BASE},
    "wire": {"errors"},
    "transport": {"errors", "wire", "_lock"},
    "client": BASE | {"wire", "transport"},
    "sending": BASE | {"wire", "transport"},
    "worker": BASE | {"wire", "transport", "sending"},
    "tasks": BASE | {"_lifecycle", "wire", "transport", "sending"},
    "_lifecycle": {"_borrowed"},
    "replace": set(),
    "chords": BASE | {"wire", "transport", "client", "sending", "worker"},
    "backend": BASE
    | {"_lifecycle", "replace", "chords", "wire", "transport", "client", "sending", "worker"},
    "aio": BASE
    | {"_lifecycle", "replace", "chords", "wire", "transport", "client", "sending", "worker"}
    | {"backend", "tasks"},
    "_install": BASE | {"replace"},
    # For people: public names only, see below.
    "doctor": set(),
    "bench": set(),
    "top": set(),
    "cli": {"doctor", "bench", "top", "contrib"},
    "__main__": {"cli", "doctor", "bench", "top", "contrib"},
    "contrib": set(),
    "__init__": BASE
    | {"_install", "replace", "_lifecycle", "tasks", "wire", "transport", "sending"},
}
#: Only these may import Celery.
KNOW_CELERY = {
    *("_borrowed", "_lifecycle", "client", "sending", "worker", "tasks", "backend", "aio"),
    *("_install", "replace", "chords"),
    *("doctor", "bench", "top", "cli", "contrib"),
}
#: These see only public names, of fastrpc too.
FOR_PEOPLE = ("doctor", "bench", "top", "cli", "__main__", "contrib")

CIMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+c?import|c?import\s+([\w.]+))", re.MULTILINE)


def module_name(path: Path) -> str:
    """ "client.reader"; a package is called as its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def python_imports(path: Path, package: list[str]) -> set[str]:
    """Full names of a module's imports ("celery.states"), including those inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["fastrpc", *package[: len(package) + 1 - node.level]] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            found.add(name)
            found.update(f"{name}.{alias.name}" for alias in node.names)
    return found


def imports(path: Path, package: list[str]) -> set[str]:
    if path.suffix == ".py":
        return python_imports(path, package)
    return {a or b for a, b in CIMPORT.findall(path.read_text())}


def find_sources() -> dict[str, list[Path]]:
    """Module -> its files; a Cython module has its declarations in a second file."""
    sources: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", ".pyx", ".pxd") and "__pycache__" not in path.parts:
            sources.setdefault(module_name(path), []).append(path)
    return sources


SOURCES = find_sources()
#: Module -> everything it imports itself.
IMPORTS = {
    name: set().union(
        *(imports(path, list(path.relative_to(PACKAGE).parts[:-1])) for path in paths)
    )
    for name, paths in SOURCES.items()
}
#: Module -> our own modules that it imports directly.
OWN = {
    name: {full.removeprefix("fastrpc.") for full in used} & SOURCES.keys()
    for name, used in IMPORTS.items()
}


def reached(module: str) -> set[str]:
    """Our own modules that `module` imports, directly or indirectly."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        new = OWN[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def wing(module: str) -> str:
    return module.partition(".")[0]


def known(module: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in IMPORTS[module])


def test_every_module_has_its_place():
    assert {wing(module) for module in SOURCES} == LAW.keys()


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_reaches_only_what_its_wing_may(module):
    allowed = LAW[wing(module)] | {wing(module)}
    assert {name for name in reached(module) if wing(name) not in allowed} == set()


@pytest.mark.parametrize("module", SOURCES)
def test_no_module_reaches_itself(module):
    assert module not in reached(module)


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_upper_modules_know_celery(module):
    assert wing(module) in KNOW_CELERY or not known(module, "celery")


@pytest.mark.parametrize(
    "module", [m for m, paths in SOURCES.items() if paths[0].suffix in (".pyx", ".pxd")]
)
def test_the_cython_modules_know_neither_celery_nor_kombu_nor_py_amqp(module):
    for package in ("celery", "kombu", "amqp"):
        assert not known(module, package)


def private_names(tree: ast.AST) -> set[str]:
    """Private attributes of anything but ``self``, and private imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            found.add(node.attr)
        elif isinstance(node, ast.Import):
            found.update(part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found.update([*(node.module or "").split("."), *(a.name for a in node.names)])
    return {name for name in found if name.startswith("_") and not name.endswith("__")}


@pytest.mark.parametrize("module", [m for m in SOURCES if wing(m) in FOR_PEOPLE])
def test_what_is_for_people_sees_only_public_names(module):
    for path in SOURCES[module]:
        assert private_names(ast.parse(path.read_text())) == set()


def test_the_rule_notices_a_private_name():
    tree = ast.parse("from ._install import x\nbackend._client.queues\nself._mine")
    assert private_names(tree) == {"_install", "_client"}


def test_matching_does_no_io():
    for package in ("socket", "select", "amqp", "threading"):
        assert not known("client.matcher", package)


def test_who_awaits_nothing_does_not_import_asyncio():
    assert {name for name in SOURCES if known(name, "asyncio")} == {"aio", "client.aio"}
    for name in SOURCES.keys() - {"aio"}:
        assert "client.aio" not in OWN[name]


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
    mirrors = {path.stem[1:]: path.read_text() for path in PACKAGE.rglob("c*.pxd")}
    assert mirrors.keys() == headers
    for name, text in mirrors.items():
        assert re.findall(r'^cdef extern from "(.*)"', text, re.MULTILINE) == [f"{name}.h"]


def test_the_rules_notice_an_import_inside_a_function(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from celery import states\n    from ..sending import link\n")
    assert imports(path, ["client"]) >= {"celery.states", "fastrpc.sending.link"}
