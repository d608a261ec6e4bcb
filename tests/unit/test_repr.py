"""fastrpc.tasks._repr compared with Celery's saferepr."""

from __future__ import annotations

from decimal import Decimal
from enum import IntEnum
from typing import Any

import pytest
from celery.utils.saferepr import saferepr
from hypothesis import given
from hypothesis import strategies as st

from fastrpc.tasks._repr import simple_repr

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(alphabet="a'\"\\ \n", max_size=40)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(max_size=10) | st.integers(), inner, max_size=5)
        | st.binary(max_size=5)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=30,
)


@given(VALUES, st.integers(0, 2000), st.integers(1, 5))
def test_it_equals_saferepr_or_leaves_it_to_celery(value: Any, maxlen: int, maxlevels: int):
    text = simple_repr(value, maxlen, maxlevels)
    assert text is None or text == saferepr(value, maxlen, maxlevels)


@given(st.lists(LEAVES, max_size=10), st.data())
def test_near_the_limit(values: list[Any], data: st.DataObject):
    whole = saferepr(values, 100_000)
    maxlen = data.draw(st.integers(max(len(whole) - 3, 1), len(whole) + 3))
    text = simple_repr(values, maxlen, 3)
    assert text is None or text == saferepr(values, maxlen)


@pytest.mark.parametrize(
    "value",
    [
        *((), (1,), (1, 2), [], {}, "it's", "", None, True, 1.5, float("inf"), -0.0),
        *({"a": [1, ("b",)]}, ([],), [[[]]], {"k'": "v"}),
        *(2**63 - 1, -(2**63 - 1)),
    ],
)
def test_simple_values_are_not_left_to_celery(value: Any):
    assert simple_repr(value, 1024, 3) == saferepr(value, 1024, 3)


class Number(IntEnum):
    ONE = 1


class Text(str):
    pass


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "value",
    [
        *(b"bytes", {1, 2}, Decimal(1), Number.ONE, Text("a"), {1: 2}, {Text("a"): 1}, object()),
        *([[[[]]]], RECURSIVE, 2**63, "x" * 1024, ["x" * 1022], range(3), 1j),
    ],
)
def test_everything_else_is(value: Any):
    assert simple_repr(value, 1024, 3) is None


def test_depth_has_an_end_of_its_own():
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    assert simple_repr(value, 10**9, 10**6) is None
