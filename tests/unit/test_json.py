"""The two checks of fastrpc._json: is a value plain, and must kombu decode a text."""

from __future__ import annotations

import enum
import json
import math
import sys
import threading
import tracemalloc
import uuid
from collections import OrderedDict, namedtuple

import orjson
import pytest

from fastrpc import _json

Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


class Mapping(dict):
    pass


class Sequence(list):
    pass


def nested(kind: str, depth: int):
    value = {"list": [], "tuple": (), "dict": {}}[kind]
    for _ in range(depth - 1):
        value = {"list": [value], "tuple": (value,), "dict": {"a": value}}[kind]
    return value


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 5e-324, 1.7e308, "", "é",
        "\x00", "\U0001f600", [], (), {}, [1, [2, (3, {"a": None})]], {"": {"": ""}},
        {"task_id": "x", "status": "SUCCESS", "result": 4, "traceback": None, "children": []},
    ],
)  # fmt: skip
def test_plain(value):
    assert _json.is_plain(value) is True
    assert json.loads(_json.dumps(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize(
    "value",
    [
        2**64, -(2**63) - 1, 10**100, math.nan, math.inf, -math.inf, b"", bytearray(), {1},
        object(), Colour.RED, Level.LOW, Text("a"), Number(1), Real(1), Mapping(), Sequence(),
        Pair(1, 2), OrderedDict(), uuid.UUID(int=1), 1j, range(3), {1: 1}, {None: 1}, {True: 1},
        {1.5: 1}, {Text("a"): 1}, {"a": 1, 2: 2}, orjson.Fragment(b"1"),
    ],
)  # fmt: skip
def test_not_plain(value):
    for wrapped in (value, [value], (1, value), {"a": 1, "b": value}, [{"a": [[value]]}]):
        assert _json.is_plain(wrapped) is False
        assert _json.dumps(wrapped) is None


@pytest.mark.parametrize("kind", ["list", "tuple", "dict"])
def test_plain_to_a_bounded_depth(kind):
    assert _json.MAX_DEPTH < 254, "what orjson encodes"
    assert _json.is_plain(nested(kind, _json.MAX_DEPTH))
    assert _json.dumps(nested(kind, _json.MAX_DEPTH)) is not None
    for depth in (_json.MAX_DEPTH + 1, 254, 255, 100_000):
        assert not _json.is_plain(nested(kind, depth))
        assert _json.dumps(nested(kind, depth)) is None


def test_cycles_are_not_plain():
    line: list = []
    line.append(line)
    fan: list = []
    fan += [fan, fan, fan]
    ring: dict = {}
    ring["ring"] = ([ring],)
    for value in (line, fan, ring):
        assert not _json.is_plain(value)


def test_lone_surrogates_are_refused_by_orjson():
    assert _json.dumps("\ud800") is None
    assert _json.dumps({"\udfff": 1}) is None


def test_scalars_at_the_bound_are_plain():
    value = 1
    for _ in range(_json.MAX_DEPTH):
        value = [value]
    assert _json.is_plain(value)


@pytest.mark.parametrize(
    "text",
    [
        b"1", b"0", b"0.0", b"-1", b"[]", b"{}", b" [1, 2]\n", b'"a"', b'"\\""', b'"\\\\"', b"null",
        b'{"a": "\\u00e9\\u4e2d\\n\\/\\b"}', b'"\\u0000\\u001f"', b"9999999999999999999",
        b"-999999999999999999", b"1.2345678901234567e-308", b"-0.0", b"1E5", b"1e400",
        b'"12345678901234567890123"', b'"[[[[["', b'"\\\\u0074ype"', b'{"a":1,"a":2}', b"NaN",
        b'"__type"', b'"a __type__ b"', b'"___type__"', b'"\\"__type__\\""', b'"-0"',
    ],
)  # fmt: skip
def test_text_for_orjson(text):
    assert _json.needs_kombu(text) is False
    assert _json.needs_kombu(text.decode()) is False
    assert _json.needs_kombu(bytearray(text)) is False
    assert _json.needs_kombu(memoryview(text)) is False


@pytest.mark.parametrize(
    "text",
    [
        b"", b'{"__type__": 1}', b'["__type__"]', b'"\\u005f_type__"', b'"__\\u0074ype__"',
        b'"_\\u005Ftype__"', b'"__t\\u0079pe__"', b'"__ty\\u0070e__"', b'"__typ\\u0065__"',
        b"18446744073709551616", b"18446744073709551615", b"-9223372036854775809", b"1" * 5000,
        b"[1, -1000000000000000000]", b"-0", b"[-0]", b"-", b"-Infinity", b'"a', b'"\\', b'"\\"',
        b'"\\u0', b"\\", b"[" * 129, b'{"a":' * 200, b"0." + b"1" * 40, b"1" * 40 + b".5", b'"a"\\',
    ],
)  # fmt: skip
def test_text_for_kombu(text):
    assert _json.needs_kombu(text) is True
    assert _json.needs_kombu(text.decode()) is True
    assert _json.loads(text) is _json.MISS


def test_brackets_are_counted_outside_of_strings_only():
    deep = b"[" * 100 + b'"' + b"]" * 100 + b'",' + b"[" * 29 + b"]" * 129
    assert _json.needs_kombu(deep)
    flat = b"[" + b'{"a":"[[[{{{"},' * 1000 + b"[]]"
    assert not _json.needs_kombu(flat)


@pytest.mark.parametrize("before", range(5))
def test_backslashes_before_a_quote(before):
    text = b'["' + b"\\" * (2 * before) + b'","__type__"]'
    assert _json.needs_kombu(text)
    text = b'["' + b"\\" * (2 * before + 1) + b'","__type__"]'
    assert _json.needs_kombu(text), "no JSON"
    text = b'["' + b"\\" * (2 * before) + b'u0074"]'
    assert not _json.needs_kombu(text)


def test_every_cut_of_a_text_is_survived():
    text = b'{"a\\u00e9\\n": [1, -2.5e+10, "\\u0041\\"", {"__type__": 1}], "\\\\": -12345678901}'
    for start in range(len(text)):
        for end in range(start, len(text) + 1):
            assert _json.needs_kombu(text[start:end]) in (True, False)


def test_bodies_that_are_not_text_need_kombu():
    for body in (None, 1, [], {}, Text("1"), type("B", (bytes,), {})(b"1"), "\ud800", "", b""):
        assert _json.needs_kombu(body) is True
        assert _json.loads(body) is _json.MISS
    assert repr(_json.MISS) == "MISS"


def test_views_of_other_shapes():
    assert _json.loads(memoryview(b"1x2x")[::2]) == 12
    assert _json.loads(memoryview(b"1111").cast("I")) == 1111
    released = memoryview(b"1")
    released.release()
    with pytest.raises(ValueError, match="released"):
        _json.loads(released)


@pytest.mark.parametrize(
    "unit", [b'"a",', b'"\\"",', b'\\"', b"\\u4e2d", b"\\", b'"', b"1,", b"[],", b'"\\\\",']
)
def test_time_is_linear(unit):
    # Quadratic time would be hours: no search for a quote or backslash may be repeated.
    text = b'["' + unit * 2_000_000
    assert _json.needs_kombu(text) in (True, False)
    text = b"[" + unit * 2_000_000
    assert _json.needs_kombu(text) in (True, False)


def test_nothing_changes_between_check_and_encoding():
    odd = uuid.UUID(int=5)  # orjson would encode it, but differently from kombu
    value = {"pad": list(range(100)), "x": [1]}
    stop = threading.Event()

    def toggle():
        while not stop.is_set():
            value["x"][0] = odd
            value["x"][0] = 1

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=toggle)
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        seen = {_json.dumps(value) for _ in range(20_000)}
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert seen <= {None, orjson.dumps({"pad": list(range(100)), "x": [1]})}


def test_an_encoded_value_takes_no_more_memory_than_it_needs():
    value = {"result": "x" * 20_000}
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        kept = [_json.dumps(value) for _ in range(10)]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1.1 * sum(map(len, kept))


def test_no_references_are_leaked_or_lost():
    shared = "a shared string that is not interned " * 2
    value = [shared, {shared: shared}, (shared, 2**63, 2**70)]
    text = orjson.dumps([shared])
    before = sys.getrefcount(shared), sys.getrefcount(value), sys.getrefcount(text)
    for _ in range(1000):
        _json.is_plain(value)
        _json.dumps(value)
        _json.dumps(value[:2])
        _json.loads(text)
        _json.needs_kombu(text)
    assert (sys.getrefcount(shared), sys.getrefcount(value), sys.getrefcount(text)) == before
