"""Every public name of the compiled modules has a docstring: help() does not read stub files."""

import inspect

import pytest

from fastrpc import _json, _lock
from fastrpc.client import _matcher, _pending, _wait
from fastrpc.sending import _window
from fastrpc.wire import _encoder, _poll, _reader, _table


def public_names(module):
    for name, obj in vars(module).items():
        if name.startswith("_") or getattr(obj, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(obj):
            yield name, obj
            for attribute, member in vars(obj).items():
                if not attribute.startswith("_") and callable(member):
                    yield f"{name}.{attribute}", member
        elif callable(obj):
            yield name, obj


def says_something(name, obj):
    """Whether it has more than the signature that Cython puts into the first line."""
    lines = (obj.__doc__ or "").splitlines()
    return any(line.strip() and not line.startswith(f"{name}(") for line in lines)


@pytest.mark.parametrize(
    ("module", "least"),
    [
        *((_json, 4), (_lock, 2), (_window, 5)),
        *((_matcher, 8), (_pending, 14), (_wait, 16)),
        *((_encoder, 3), (_poll, 2), (_reader, 4), (_table, 4)),
    ],
)
def test_every_public_name_has_a_docstring(module, least):
    names = {
        name: obj
        for name, obj in public_names(module)
        if not (inspect.isclass(obj) and name in {"MISS"})  # no names for users
    }
    assert len(names) >= least
    assert [name for name, obj in names.items() if not says_something(name, obj)] == []
