"""Every private name of other packages that fastrpc uses exists in the installed versions."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from fastrpc import _borrowed
from fastrpc._borrowed import BORROWED

SOURCES = Path(_borrowed.__file__).parent


def sets(cls: type, attribute: str) -> bool:
    """Whether an instance gets `attribute` in a method of `cls`."""
    return any(
        re.search(rf"\bself\.{attribute}\b[^=\n]*=", inspect.getsource(base))
        for base in cls.__mro__[:-1]
    )


@pytest.mark.parametrize("borrowed", BORROWED, ids=lambda borrowed: borrowed.where)
def test_it_exists(borrowed):
    name, _, path = borrowed.where.partition(":")
    path, _, own = path.partition("#")
    found = importlib.import_module(name)
    for attribute in path.split("."):
        assert hasattr(found, attribute) or attribute in getattr(found, "__annotations__", {}), (
            f"{borrowed.where} is gone: {borrowed.used_by} uses it ({borrowed.why}), "
            f"tried with {_borrowed.TRIED[name.partition('.')[0]]}"
        )
        found = getattr(found, attribute)
    assert not own or hasattr(found, own) or sets(found, own), f"{borrowed.where} is gone"


@pytest.mark.parametrize("borrowed", BORROWED, ids=lambda borrowed: borrowed.where)
def test_its_users_exist(borrowed):
    for module in borrowed.used_by.split(", "):
        assert list(SOURCES.glob(f"{module.replace('.', '/')}*")), f"no module {module}"


def test_no_other_module_imports_a_private_module():
    for path in SOURCES.rglob("*.py"):
        if path.name == "_borrowed.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and not node.level:
                private = [part for part in (node.module or "").split(".") if part.startswith("_")]
                assert not private or node.module == "__future__", f"{path}: {node.module}"
