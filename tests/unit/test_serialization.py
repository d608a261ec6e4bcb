"""serialization.encode and decode against kombu's dumps and loads as the oracle."""

from __future__ import annotations

import array
import dataclasses
import enum
import json
import math
import os
import struct
import uuid
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import kombu.serialization
import kombu.utils.json
import orjson
import pytest
from django.utils import functional
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kombu.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    SerializerNotInstalled,
)

from fastrpc import _json, serialization

JSON = "application/json"
ACCEPT = {JSON}
META = {
    "task_id": "3c1b1a52-8a1f-4f63-9a3e-1f2a3b4c5d6e",
    "status": "SUCCESS",
    "result": 4,
    "traceback": None,
    "children": [],
    "date_done": "2026-01-01T00:00:00+00:00",
}

Pair = namedtuple("Pair", "a b")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Mood(str, enum.Enum):
    GOOD = "good"


class Text(str):
    __slots__ = ()

    def __str__(self):
        return "not what json writes"


class Number(int):
    def __repr__(self):
        return "not what json writes"


class Real(float):
    def __repr__(self):
        return "not what json writes"


class Mapping(dict):
    pass


class Sequence(list):
    pass


class Bytes(bytes):
    pass


@dataclasses.dataclass
class Point:
    x: int


class WithJSON:
    def __json__(self):
        return {"with": ("json", uuid.UUID(int=3))}


class BadJSON:
    def __json__(self):
        raise ZeroDivisionError


class JSONDict(dict):
    """A dict with a `__json__` method, which json ignores."""

    def __json__(self):
        return "never asked"


def same(a: Any, b: Any) -> bool:
    """Equal in type, value, order of keys, sign of zero and bits of floats, all the way down."""
    pairs = [(a, b)]  # no recursion, because some values are as deep as it goes
    while pairs:
        a, b = pairs.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, dict | list | tuple):
            if len(a) != len(b):
                return False
            pairs += zip(a, b, strict=True)
            if isinstance(a, dict):
                pairs += zip(a.values(), b.values(), strict=True)
        elif isinstance(a, float):
            if struct.pack("d", a) != struct.pack("d", b) and not (math.isnan(a) and math.isnan(b)):
                return False
        elif isinstance(a, datetime | time | Decimal):
            if repr(a) != repr(b):
                return False
        elif a != b:
            return False
    return True


def outcome(call: Callable, *args: Any, **kwargs: Any) -> tuple[str, Any]:
    try:
        return "value", call(*args, **kwargs)
    except Exception as exc:
        return "error", type(exc)


def kombu_decode(body, content_type=JSON, content_encoding="utf-8", accept=ACCEPT):
    return kombu.serialization.loads(body, content_type, content_encoding, accept=accept)


def our_decode(body, content_type=JSON, content_encoding="utf-8", accept=ACCEPT):
    return serialization.decode(body, content_type, content_encoding, accept)


def check_encode(value: Any, serializer: str | None = "json") -> tuple[str, Any]:
    """Check that ours and kombu encode `value` alike; return the decoded value."""
    theirs = outcome(kombu.serialization.dumps, value, serializer=serializer)
    ours = outcome(serialization.encode, value, serializer)
    assert ours[0] == theirs[0], (ours, theirs)
    if ours[0] == "error":
        assert ours == theirs
        return ours
    assert ours[1][:2] == theirs[1][:2]
    content_type, content_encoding, payload = ours[1]
    if serializer == "json":
        assert type(payload) is bytes
    how = content_type, content_encoding, {content_type}
    meant = outcome(kombu_decode, theirs[1][2], *how)
    for understood in (outcome(kombu_decode, payload, *how), outcome(our_decode, payload, *how)):
        assert same(understood, meant), (understood, meant)
    return meant


def check_decode(body: Any, *how: Any) -> tuple[str, Any]:
    theirs = outcome(kombu_decode, body, *how)
    ours = outcome(our_decode, body, *how)
    assert same(ours, theirs), (body, ours, theirs)
    return theirs


def check_text(text: bytes | str) -> tuple[str, Any]:
    """Check that both decode a text alike, in every form in which a transport passes it."""
    if isinstance(text, str):
        check_decode(text)
        text = text.encode("utf-8", "surrogatepass")
    check_decode(bytearray(text))
    check_decode(memoryview(text))
    try:
        check_decode(text.decode())
    except UnicodeDecodeError:
        check_decode(text.decode("utf-8", "surrogateescape"))
    return check_decode(text)


@pytest.fixture
def registry():
    """kombu's registry, put back afterwards."""
    registry = kombu.serialization.registry
    names = (
        "_encoders",
        "_decoders",
        "type_to_name",
        "name_to_type",
        "_disabled_content_types",
    )
    kept = {name: getattr(registry, name).copy() for name in names}
    default = (
        registry._default_content_type,
        registry._default_content_encoding,
        registry._default_encode,
    )
    yield registry
    for name in names:
        getattr(registry, name).clear()
        getattr(registry, name).update(kept[name])
    (
        registry._default_content_type,
        registry._default_content_encoding,
        registry._default_encode,
    ) = default


@pytest.fixture
def registered_types(monkeypatch):
    """kombu's registered types, put back afterwards."""
    for name in ("_encoders", "_decoders"):
        kept = getattr(kombu.utils.json, name)
        monkeypatch.setattr(kombu.utils.json, name, kept.copy())
    return kombu.utils.json.register_type


def test_the_strict_equality_is_strict():
    assert not same(1, 1.0)
    assert not same(1, True)
    assert not same(0.0, -0.0)
    assert same(math.nan, math.nan)
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same([1], (1,))
    assert same({"a": [1, {"b": -0.0}]}, {"a": [1, {"b": -0.0}]})


# Which way it goes


def test_result_meta_goes_through_orjson():
    content_type, content_encoding, payload = serialization.encode(META, "json")
    assert (content_type, content_encoding) == (JSON, "utf-8")
    assert payload == orjson.dumps(META)
    assert check_encode(META) == ("value", META)


@pytest.mark.parametrize("value", [{1: 2}, Level.LOW, b"\xff", 2**64, [math.nan], "\ud800"])
def test_the_rest_goes_through_kombu(value):
    payload = serialization.encode(value, "json")[2]
    assert payload == kombu.serialization.dumps(value, serializer="json")[2].encode()


# Values


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2, 3, 4, 5, 678),
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
        date(2026, 1, 2),
        time(3, 4, 5),
        time(3, 4, 5, 6, tzinfo=timezone.utc),
    ],
)
def test_datetime_date_time(value):
    assert same(check_encode([value]), ("value", [value]))
    assert same(check_encode({"a": value}), ("value", {"a": value}))


@pytest.mark.parametrize("text", ["1.10", "-0", "1E+400", "NaN", "Infinity", "0." + "1" * 50])
def test_decimal(text):
    assert same(check_encode(Decimal(text)), ("value", Decimal(text)))


def test_uuid():
    value = uuid.UUID(int=5)
    assert check_encode({"a": [value]}) == ("value", {"a": [value]})


@pytest.mark.parametrize(
    "value", [b"", b"abc", "é".encode(), b"\xff\xfe", b"\x00", bytes(range(256)), Bytes(b"a")]
)
def test_bytes_valid_and_invalid_utf8(value):
    assert check_encode({"a": value}) == ("value", {"a": value})


@pytest.mark.parametrize("value", [bytearray(b"a"), memoryview(b"a"), array.array("b", [1])])
def test_buffers_are_refused_as_kombu_refuses_them(value):
    assert check_encode(value) == ("error", EncodeError)


def test_registered_type_in_an_envelope_both_ways(registered_types):
    registered_types(Point, "point", lambda p: p.x, Point)
    assert check_encode({"p": [Point(1)]}) == ("value", {"p": [Point(1)]})
    assert check_text(b'{"__type__": "point", "__value__": 2}') == ("value", Point(2))


def test_registered_type_without_a_marker(registered_types):
    registered_types(Point, None, lambda p: [p.x])
    assert check_encode({"p": Point(1)}) == ("value", {"p": [1]})
    registered_types(Point, None, lambda p: Pair(p.x, {1: 2**70}))
    assert check_encode({"p": Point(1)}) == ("value", {"p": [1, {"1": 2**70}]})


def test_registered_type_over_a_known_one(registered_types):
    registered_types(uuid.UUID, "uuid", str, lambda text: ["mine", text])
    value = uuid.UUID(int=1)
    assert check_encode([value]) == ("value", [["mine", str(value)]])


def test_registered_type_whose_functions_raise(registered_types):
    def fail(_):
        raise KeyError("x")

    registered_types(Point, "point", fail, fail)
    assert check_encode(Point(1)) == ("error", EncodeError)
    assert check_text(b'{"__type__": "point", "__value__": 2}') == ("error", DecodeError)


def test_values_that_look_like_an_envelope():
    assert check_encode({"__type__": "bytes", "__value__": "a"}) == ("value", b"a")
    assert check_encode({"__type__": "none such", "__value__": 1}) == ("error", DecodeError)
    assert check_encode({"__type__": [], "__value__": 1}) == ("error", DecodeError)
    assert check_encode({"__type__": "bytes"})[0] == "value"
    assert check_encode({"__type__": "bytes", "__value__": "a", "more": 1})[0] == "value"
    assert check_encode({"a": "__type__"})[0] == "value"


def test_json_method():
    assert check_encode([WithJSON()]) == ("value", [{"with": ["json", uuid.UUID(int=3)]}])
    assert check_encode(BadJSON()) == ("error", EncodeError)
    assert check_encode(JSONDict(a=1)) == ("value", {"a": 1})


def test_django_lazy_promise():
    lazy = functional.lazy(lambda: "lazily", str)()
    assert check_encode({"a": [lazy]}) == ("value", {"a": ["lazily"]})


def test_promise_without_django(monkeypatch):
    class Promise:
        def __str__(self):
            return "lazily"

    assert check_encode([Promise()]) == ("error", EncodeError)
    monkeypatch.setattr(kombu.utils.json, "textual_types", (Promise,))
    assert check_encode([Promise()]) == ("value", ["lazily"])


@pytest.mark.parametrize("exponent", [53, 62, 63, 64, 65, 200])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
def test_integers_up_to_and_beyond_64_bits(exponent, offset, sign):
    value = sign * (2**exponent + offset)
    assert same(check_encode({"a": [value]}), ("value", {"a": [value]}))
    assert same(check_text(str(value).encode()), ("value", value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinities(value):
    assert same(check_encode({"a": [value]}), ("value", {"a": [value]}))
    assert same(check_encode({value: 1})[1], {json.dumps(value): 1})


@pytest.mark.parametrize(
    "value",
    [
        0.0,
        -0.0,
        1.0,
        0.1,
        1e16,
        1e22,
        1e-7,
        5e-324,
        2.2250738585072014e-308,
        1.7976931348623157e308,
    ],
)
def test_floats(value):
    assert same(check_encode([value, -value]), ("value", [value, -value]))


@pytest.mark.parametrize("key", [1, -1, 1.5, math.inf, True, False, None, 2**70, Level.LOW])
def test_non_string_keys(key):
    assert check_encode({"a": {key: 1}})[0] == "value"


@pytest.mark.parametrize("key", [(1, 2), b"a", uuid.UUID(int=1), date(2026, 1, 1), Colour.RED])
def test_keys_that_json_refuses(key):
    assert check_encode({key: 1}) == ("error", EncodeError)


@pytest.mark.parametrize(
    "value",
    [{1: "a", "1": "b"}, {"1": "a", 1: "b"}, {None: 1, "null": 2}, {"true": 1, True: 2, "x": 3}],
)
def test_keys_that_collide(value):
    meant = check_encode(value)
    assert meant[0] == "value"
    assert len(meant[1]) == len(value) - 1


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        (Text("a"), "a"),
        (Number(3), 3),
        (Real(1.5), 1.5),
        (Mapping(a=Number(3)), {"a": 3}),
        (Sequence([Text("a")]), ["a"]),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        ({Text("a"): 1}, {"a": 1}),
    ],
)
def test_subclasses(value, meant):
    assert same(check_encode(value), ("value", meant))
    assert same(check_encode([value]), ("value", [meant]))


def test_enums():
    assert check_encode(Colour.RED) == ("error", EncodeError)
    assert same(check_encode(Level.LOW), ("value", 1))
    assert same(check_encode(Mood.GOOD), ("value", "good"))
    assert check_encode({Mood.GOOD: Level.LOW})[0] == "value"


def test_dataclasses():
    assert check_encode(Point(1)) == ("error", EncodeError)
    assert check_encode({"a": [Point(1)]}) == ("error", EncodeError)


def test_named_tuples_and_tuples():
    assert same(check_encode(Pair(1, (2, 3))), ("value", [1, [2, 3]]))
    assert same(check_encode(((), (1,), {"a": (2,)})), ("value", [[], [1], {"a": [2]}]))


@pytest.mark.parametrize("text", ["\ud800", chr(0xDFFF), "a\udc80b", "\ude00\ud83d", "\x00\ud800"])
def test_lone_surrogates(text):
    assert check_encode({"a": text, text: 1}) == ("value", {"a": text, text: 1})
    check_text(json.dumps(text).encode())
    check_text(json.dumps({text: 1}, ensure_ascii=False))


@pytest.mark.parametrize(
    "text", ["", "é", "中文", "\U0001f600", "\x00\x1f\x7f\x80", "\u2028", '"\\/']
)
def test_text(text):
    assert check_encode({text: text}) == ("value", {text: text})
    assert check_text(json.dumps([text]).encode()) == ("value", [text])


@pytest.mark.parametrize(
    "value", [{1}, frozenset(), object(), 1j, range(3), MappingProxyType({}), iter([]), len, int]
)
def test_what_json_refuses(value):
    assert check_encode(value) == ("error", EncodeError)
    assert check_encode({"a": [value]}) == ("error", EncodeError)


def test_circular_values():
    ring: list = []
    ring.append(ring)
    loop: dict = {}
    loop["a"] = {"b": [loop]}
    assert check_encode(ring) == ("error", EncodeError)
    assert check_encode(loop) == ("error", EncodeError)
    twice = [1]
    assert check_encode([twice, twice]) == ("value", [[1], [1]])


def test_orjson_fragment_is_nothing_to_kombu():
    assert check_encode(orjson.Fragment(b"1")) == ("error", EncodeError)


def test_numpy_scalars():
    numpy = pytest.importorskip("numpy")
    assert same(check_encode(numpy.float64(1.5)), ("value", 1.5))
    assert same(check_encode(numpy.str_("a")), ("value", "a"))
    for value in (numpy.int64(1), numpy.float32(1), numpy.bool_(True), numpy.array([1])):
        assert check_encode({"a": value}) == ("error", EncodeError)


def nested(kind: str, depth: int) -> Any:
    value: Any = {"list": [], "tuple": (), "dict": {}, "mixed": ()}[kind]
    for level in range(depth - 1):
        as_tuple = kind == "tuple" or (kind == "mixed" and level % 2)
        value = {"a": value} if kind == "dict" else (value,) if as_tuple else [value]
    return value


BOUND = _json.MAX_DEPTH
DEPTHS = [BOUND - 1, BOUND, BOUND + 1, 253, 254, 255, 256, 500]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "mixed"])
def test_nesting_around_each_limit(kind, depth):
    assert check_encode(nested(kind, depth))[0] == "value"
    unclosed = b"[" if kind != "dict" else b'{"a":'
    closing = b"]" if kind != "dict" else b"}"
    assert check_text(unclosed * depth + b"1" + closing * depth)[0] == "value"
    assert check_text(unclosed * depth) == ("error", DecodeError)


@pytest.mark.parametrize("kind", ["list", "tuple", "dict", "mixed"])
def test_nesting_beyond_the_recursion_limit(kind):
    assert check_encode(nested(kind, 100_000)) == ("error", EncodeError)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_text_nested_beyond_the_recursion_limit(opening, closing):
    # orjson decodes 1024 levels. kombu's limit depends on the interpreter: less than 1000 up to
    # Python 3.11, some thousands after that.
    for depth in (1023, 1024, 1025):
        check_text(opening * depth + b"1" + closing * depth)
    assert check_text(opening * 100_000 + b"1" + closing * 100_000) == ("error", DecodeError)


# Texts


@pytest.mark.parametrize(
    "text",
    [
        b'{"__type__": "bytes", "__value__": "a"}',
        b'{"__value__": "a", "__type__": "bytes"}',
        b'{"\\u005f_type__": "bytes", "__value__": "a"}',
        b'{"__t\\u0079pe__": "base64", "\\u005F_value__": "/w=="}',
        b'{"__t\\u0079pe__": "bytes", "__value__": "a"}',
        b'{"__typ\\u0065__": "bytes", "__value__": "a"}',
        b'[{"a": {"__typ\\u0065_\\u005f": "uuid", "__value__": {"hex": "' + b"0" * 32 + b'"}}}]',
        b'{"__type__": "decimal", "__value__": "1.50"}',
        b'{"__type__": "datetime", "__value__": "2026-01-01T00:00:00"}',
        b'{"__type__": "date", "__value__": "2026-01-01"}',
        b'{"__type__": "time", "__value__": "00:00:00"}',
        b'{"__type__": "bytes", "__value__": "/w==", "__type__": "base64"}',
        b'{"__type__": 1, "__type__": "bytes", "__value__": "a"}',
    ],
)
def test_envelopes_are_opened(text):
    assert check_text(text)[0] == "value"
    assert check_text(b"[1, " + text + b"]")[0] == "value"
    assert not isinstance(check_text(text)[1], dict)


@pytest.mark.parametrize(
    "text",
    [
        b'{"__type__": "none such", "__value__": 1}',
        b'{"__type__": "datetime", "__value__": "no date"}',
        b'{"__type__": "bytes", "__value__": 1}',
        b'{"__type__": {}, "__value__": 1}',
        b'{"__type__": "uuid", "__value__": {"hex": "1"}}',
        b'{"__type__": "uuid", "__value__": {"nonsense": "1"}}',
        b'{"a": {"__type__": "x", "__value__": 1}, "a": 1}',
    ],
)
def test_envelopes_that_cannot_be_opened(text):
    assert check_text(text) == ("error", DecodeError)


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"b":2,"a":3}',
        b'{"a":{"b":1,"b":2},"":1,"":2}',
        b'{"a":1,"\\u0061":2,"b":3}',
        b'{"\xc3\xa9":1,"x":0,"\\u00e9":2}',
        b"{" + b",".join(b'"%d":%d' % (i % 7, i) for i in range(100)) + b"}",
        b"{" + b",".join(b'"%s":%d' % (b"k" * (i % 99), i) for i in range(300)) + b"}",
    ],
)
def test_duplicate_keys(text):
    assert check_text(text)[0] == "value"


@pytest.mark.parametrize(
    "text",
    [
        b"-0", b"-0.0", b"-0e5", b"[-0]", b"0e0", b"1E5", b"1E+5", b"1e-5", b"1e400", b"-1e400",
        b"1e-400", b"-1e-400", b"0e99999999999", b"1e99999999999999999999", b"1e0000000000005",
        b"1e-99999999999999999999", b"NaN", b"-Infinity", b"Infinity", b"[NaN]", b'{"a":Infinity}',
        b"18446744073709551615", b"18446744073709551616", b"-9223372036854775808",
        b"-9223372036854775809", b"9999999999999999999", b"10000000000000000000",
        b"-1000000000000000000", b"1" * 400, b"1" * 400 + b"e-390", b"1" * 30 + b".5",
        b"0.1234567890123456789012345678901234567890", b"2.2250738585072011e-308",
        b"9007199254740993.0", b"0." + b"0" * 500 + b"1e500", b"1.7976931348623159e308",
        b"4.9e-324", b"2.4703282292062327e-324", b"2.4703282292062328e-324", b"0.0",
    ],
)  # fmt: skip
def test_numbers(text):
    assert check_text(text)[0] == "value"
    assert check_text(b'{"a": [' + text + b"]}")[0] == "value"


@pytest.mark.parametrize(
    "text",
    [
        b"01", b"-01", b"1.", b".5", b"+1", b"1e", b"1e+", b"--1", b"-", b"1_0", b"0x10", b"1 2",
        b"nan", b"inf", b"-nan", b"1" * 5000, b"[1,]", b'{"a":1,}', b"// c\n1", b"/**/1", b"'a'",
        b"{a:1}", b" ", b"tru", b"true1", b"True", b'"a', b"[1 2]", b"{1:2}", b'{"a" 1}', b"]",
        b"[", b"{}\x00", b"\x00{}", b"{}\x0b", b"{}\x0c", b"\xc2\xa0{}", b'"\\x41"', b'"\\u00e"',
        b'"\\a"', b'"\\U0041"', b'"\\u00g1"', b'"\\u+041"', b'"\\u 041"', b"\xef\xbc\x91",
        b"1\xd9\xa1", b"{}{}", b"\\", b"[\\]", b"\\n1", b'"\\', b'"\\u',
    ],
)  # fmt: skip
def test_what_is_no_json(text):
    assert check_text(text) == ("error", DecodeError)


@pytest.mark.parametrize(
    "text", [b"\xef\xbb\xbf{}", "\ufeff{}".encode("utf-16"), b"[\xef\xbb\xbf]"]
)
def test_byte_order_mark(text):
    assert check_text(text) == ("error", DecodeError)


@pytest.mark.parametrize("byte", [*range(32), 127])
def test_control_characters(byte):
    meant = check_text(b'"' + bytes([byte]) + b'"')
    assert meant == (("value", "\x7f") if byte == 127 else ("error", DecodeError))
    assert check_text(b'["\\u%04x"]' % byte) == ("value", [chr(byte)])
    check_text(b"[1," + bytes([byte]) + b"2]")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80", b"\xff", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80",
        b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe4\xb8",
        b"\xc3",
    ],
)  # fmt: skip
def test_invalid_utf8(raw):
    for text in (b'"' + raw + b'"', b'{"' + raw + b'": 1}', b"[1]" + raw, b'"' + raw):
        assert check_decode(text) == ("error", DecodeError)
        assert check_decode(bytearray(text)) == ("error", DecodeError)
        assert check_decode(memoryview(text)) == ("error", DecodeError)


@pytest.mark.parametrize(
    "text",
    [
        b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\u0041"', b'"\\udc00\\ud800"', b'{"\\ud800": 1}',
        b'"\\ud83d\\ude00"', b'"\\uD83D\\uDE00"', b'"\\ud83dx\\ude00"', b'"\\ud800\\ud800\\udc00"',
    ],
)  # fmt: skip
def test_surrogate_escapes(text):
    assert check_text(text)[0] == "value"


@pytest.mark.parametrize("body", [b"", "", bytearray(), memoryview(b""), None, 0, [], {}])
@pytest.mark.parametrize("content_type", [JSON, "application/x-yaml", "application/data", None])
def test_empty_bodies_are_returned(body, content_type):
    meant = outcome(kombu_decode, body, content_type, "utf-8", {JSON, "application/x-yaml"})
    ours = outcome(our_decode, body, content_type, "utf-8", {JSON, "application/x-yaml"})
    assert same(ours, meant)
    assert meant == ("value", body)
    assert ours[1] is body


@pytest.mark.parametrize("body", [1, 1.5, ["[]"], {"a": 1}, object(), True, array.array("b", b"1")])
def test_bodies_that_are_no_text(body):
    check_decode(body)


def test_subclasses_of_text_as_bodies():
    class Loud(bytes):
        def decode(self, *args):
            return "[1]"

    class Quiet(str):
        __slots__ = ()

    assert check_decode(Loud(b"[2]")) == ("value", [1])
    assert check_decode(Quiet("[2]")) == ("value", [2])
    assert check_decode(Loud(b"")) == ("value", b"")


def test_odd_memoryviews():
    assert check_decode(memoryview(b"1x2x")[::2]) == ("value", 12)
    assert check_decode(memoryview(b"1111").cast("I")) == ("value", 1111)
    assert check_decode(memoryview(b"1").cast("B", ())) == outcome(
        bool, memoryview(b"1").cast("B", ())
    )
    released = memoryview(b"1")
    released.release()
    assert check_decode(released) == ("error", ValueError)


# What is accepted


@pytest.mark.parametrize("accept", [set(), {"application/x-yaml"}, [], (), {}, "x", frozenset()])
def test_refused_before_anything_is_decoded(accept, registered_types):
    opened = []
    registered_types(Point, "point", lambda p: p.x, opened.append)
    for body in (b'{"__type__": "point", "__value__": 2}', b"[1]", b"no json", b"\xff", b""):
        assert check_decode(body, JSON, "utf-8", accept) == ("error", ContentDisallowed)
    assert opened == []


@pytest.mark.parametrize("accept", [{JSON}, [JSON], (JSON,), {JSON: 1}, frozenset({JSON}), None])
def test_accepted(accept):
    assert check_decode(b"[1]", JSON, "utf-8", accept) == ("value", [1])
    assert check_decode(b"[18446744073709551616]", JSON, "utf-8", accept) == ("value", [2**64])


def test_accept_that_can_be_asked_once():
    for body in (b"[1]", b"[NaN]", b"[", b""):
        theirs = outcome(kombu_decode, body, JSON, "utf-8", iter([JSON]))
        assert same(outcome(our_decode, body, JSON, "utf-8", iter([JSON])), theirs)
    with pytest.raises(ContentDisallowed):
        our_decode(b"[1]", JSON, "utf-8", iter(["text/html"]))


def test_disabled_in_the_registry(registry):
    registry.disable("json")
    assert check_decode(b"[1]", JSON, "utf-8", None) == ("error", ContentDisallowed)
    assert check_decode(b"[1]", JSON, "utf-8", {JSON}) == ("value", [1])
    pickled = kombu.serialization.dumps([1], serializer="pickle")
    for accept in (None, ACCEPT):
        assert check_decode(pickled[2], *pickled[:2], accept) == ("error", ContentDisallowed)


@pytest.mark.parametrize(
    "encoding",
    [None, "", "utf-8", "UTF-8", "latin-1", "binary", "us-ascii", "none such", b"utf-8", 0, 1],
)
def test_content_encodings(encoding):
    for body in (b'"\xc3\xa9"', '"é"', b"[1]", b"[NaN]", b"[", b""):
        check_decode(body, JSON, encoding, ACCEPT)


@pytest.mark.parametrize(
    "content_type",
    [None, "", JSON, JSON.encode(), "text/plain", "application/data", "APPLICATION/JSON", 1],
)
@pytest.mark.parametrize("encoding", ["utf-8", "binary", None, "none such"])
def test_content_types(content_type, encoding):
    for body in (b"[1]", "[1]", b"\xff", b""):
        for accept in (None, ACCEPT, {"text/plain"}):
            check_decode(body, content_type, encoding, accept)


# The registry


@pytest.mark.parametrize(
    "serializer", ["json", "pickle", "yaml", "msgpack", "raw", None, "none such", ""]
)
@pytest.mark.parametrize(
    "value", [META, "text", b"bytes", "\ud800", [1, (2,)], None, {1: 2}, {1, 2}, object, 2**70]
)
def test_every_serializer(serializer, value):
    theirs = outcome(kombu.serialization.dumps, value, serializer=serializer)
    ours = outcome(serialization.encode, value, serializer)
    if serializer == "json" and theirs[0] == "value":
        check_encode(value)
    else:
        assert same(ours, theirs)
    if theirs[0] == "value":
        content_type, content_encoding, payload = theirs[1]
        check_decode(payload, content_type, content_encoding, {content_type})
        check_decode(payload, content_type, content_encoding, ACCEPT)
        check_decode(payload, content_type, content_encoding, None)


def test_no_such_serializer():
    with pytest.raises(SerializerNotInstalled):
        serialization.encode(1, "none such")


def test_json_registered_by_the_application(registry):
    kombu.serialization.register(
        "json", lambda v: b"mine:" + repr(v).encode(), lambda s: ("mine", bytes(s)), JSON, "x-mine"
    )
    assert serialization.encode([1], "json") == (JSON, "x-mine", b"mine:[1]")
    assert our_decode(b"[1]") == ("mine", b"[1]")
    assert check_decode(b"[1]", JSON, "utf-8", set()) == ("error", ContentDisallowed)
    kombu.serialization.register_json()
    assert serialization.encode([1], "json") == (JSON, "utf-8", b"[1]")
    assert our_decode(b"[1]") == [1]


def test_json_registered_by_the_application_that_raises(registry):
    def fail(_):
        raise KeyError("x")

    kombu.serialization.register("json", fail, fail, JSON)
    assert check_encode([1]) == ("error", EncodeError)
    assert check_decode(b"[1]") == ("error", DecodeError)


def test_json_registered_under_another_content_type(registry):
    kombu.serialization.register(
        "json", kombu.utils.json.dumps, json.loads, "text/json", "us-ascii"
    )
    assert serialization.encode([1], "json")[:2] == ("text/json", "us-ascii")
    assert check_decode(b"[1]", "text/json", "utf-8", {"text/json"}) == ("value", [1])
    assert check_decode(b"[1]") == ("value", [1])


def test_only_the_encoder_or_the_decoder_is_the_applications(registry):
    kombu.serialization.register("json", lambda v: "enc", None, JSON)
    assert serialization.encode([1], "json") == (JSON, "utf-8", "enc")
    assert our_decode(b"[1]") == [1]
    kombu.serialization.register_json()
    kombu.serialization.register("json", None, lambda s: "dec", JSON)
    assert serialization.encode([1], "json")[2] == b"[1]"
    assert our_decode(b"[1]") == "dec"


def test_json_unregistered(registry):
    kombu.serialization.unregister("json")
    assert check_encode([1]) == ("error", SerializerNotInstalled)
    assert check_decode(b"[1]") == ("value", "[1]")


# In kombu's registry


@pytest.mark.parametrize(
    "value", [META, "text", "\ud800", [1, (2,)], None, {1: 2}, {1, 2}, object, 2**70, [1.5, "ü"]]
)
def test_the_registry_means_the_same_with_ours(registry, value):
    theirs = outcome(kombu.serialization.dumps, value, serializer="json")
    assert serialization.register_json()
    ours = outcome(kombu.serialization.dumps, value, serializer="json")
    check_encode(value)
    if theirs[0] == "error":
        assert ours == theirs
        return
    assert ours[1][:2] == theirs[1][:2]
    assert type(ours[1][2]) is str
    for payload in (theirs[1][2], ours[1][2], ours[1][2].encode("utf-8", "surrogatepass")):
        meant = outcome(kombu.utils.json.loads, payload)
        got = outcome(kombu_decode, payload)
        assert got[0] == meant[0]
        assert got[0] == "error" or same(got, meant)


@pytest.mark.parametrize("text", [b"", b"[1", b"NaN", b'{"a": 1, "a": 2}', b"\xff", b'"\\ud800"'])
def test_the_registry_reads_the_same_with_ours(registry, text):
    meant = outcome(kombu_decode, text)
    assert serialization.register_json()
    assert same(outcome(kombu_decode, text), meant)


def test_registering_again_changes_nothing(registry):
    assert serialization.register_json()
    kept = registry._encoders["json"], registry._decoders[JSON]
    assert serialization.register_json()
    assert (registry._encoders["json"], registry._decoders[JSON]) == kept
    assert serialization.means_kombu_json(ACCEPT)


def test_the_default_serializer_is_ours_too(registry):
    assert serialization.register_json()
    assert kombu.serialization.dumps({"a": [1, 2]}) == (JSON, "utf-8", '{"a":[1,2]}')


def test_a_json_of_the_application_is_left_alone(registry):
    kombu.serialization.register("json", lambda v: "enc", None, JSON)
    assert not serialization.register_json()
    assert kombu.serialization.dumps([1], serializer="json")[2] == "enc"


# Properties

EXAMPLES = int(os.environ.get("FASTRPC_HYPOTHESIS_EXAMPLES", "400"))
some = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

numbers = (
    st.integers()
    | st.integers(-(2**66), 2**66)
    | st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1, 2**64, 2**64 - 1, 10**18, 10**19])
)
any_text = st.text(st.characters(), max_size=12) | st.sampled_from(
    ["__type__", "__value__", "bytes", "uuid", "datetime", "\ud800", "\udc00", "", "1", "null"]
)
plain_leaves = st.none() | st.booleans() | numbers | st.floats() | any_text
odd_leaves = (
    st.datetimes(timezones=st.none() | st.just(timezone.utc))
    | st.dates()
    | st.times()
    | st.decimals()
    | st.uuids()
    | st.binary(max_size=8)
    | st.sets(st.integers(), max_size=1)
    | st.builds(Text, st.text(max_size=3))
    | st.builds(Number, st.integers())
    | st.builds(Real, st.floats())
    | st.builds(Point, st.integers())
    | st.sampled_from([Colour.RED, Level.LOW, Mood.GOOD, WithJSON(), BadJSON(), 1j, JSONDict()])
)
plain_keys = any_text
odd_keys = any_text | numbers | st.floats() | st.booleans() | st.none() | st.dates()


def containers(keys):
    return lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(keys, children, max_size=4)
        | st.builds(Pair, children, children)
        | st.fixed_dictionaries({"__type__": any_text, "__value__": children})
    )


plain_values = st.recursive(
    plain_leaves,
    lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=3).map(tuple)
        | st.dictionaries(plain_keys, children, max_size=4)
    ),
    max_leaves=12,
)
odd_values = st.recursive(plain_leaves | odd_leaves, containers(odd_keys), max_leaves=8)

number_texts = st.from_regex(
    r"\A-?(0|[1-9][0-9]{0,24})(\.[0-9]{1,24})?([eE][+-]?[0-9]{1,3})?\Z"
) | st.from_regex(r"\A-?[0-9]{17,21}\Z")
escapes = st.from_regex(r"\A\\u(00[0-9a-fA-F]{2}|d[89a-f][0-9a-f]{2}|[0-9a-f]{4})\Z") | (
    st.sampled_from(["\\n", '\\"', "\\\\", "\\/", "\\u005f", "\\u0074", "\\u0079", "\\u0065"])
)
string_texts = st.lists(
    escapes
    | st.characters(exclude_characters='"\\', min_codepoint=32)
    | st.sampled_from(["_", "__", "type", "value", "__type__"]),
    max_size=6,
).map(lambda parts: '"' + "".join(parts) + '"') | st.sampled_from(
    ['"__type__"', '"__value__"', '"\\u005f_type__"', '"a"', '"bytes"', '"uuid"']
)
spaces = st.sampled_from(["", "", "", " ", "\n", "\t\r"])
leaf_texts = (
    number_texts
    | string_texts
    | st.sampled_from(["null", "true", "false", "NaN", "Infinity", "-Infinity", "-0", "[]", "{}"])
)


@st.composite
def container_texts(draw, children):
    space = draw(spaces)
    if draw(st.booleans()):
        items = draw(st.lists(children, max_size=4))
        return "[" + space + f"{space},".join(items) + "]" + space
    pairs = draw(st.lists(st.tuples(string_texts, children), max_size=4))
    return space + "{" + ",".join(f"{space}{k}:{space}{v}" for k, v in pairs) + space + "}"


json_texts = st.recursive(leaf_texts, container_texts, max_leaves=10)
envelopes = st.sampled_from(["bytes", "base64", "datetime", "date", "time", "decimal", "uuid", "x"])


@st.composite
def mutated_texts(draw):
    """JSON with a few bytes changed, taken out, put in or doubled."""
    body = bytearray(draw(json_texts).encode("utf-8", "surrogatepass"))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(body)))
        until = min(len(body), at + draw(st.integers(0, 3)))
        body[at:until] = draw(
            st.binary(max_size=2)
            | st.sampled_from([b'"', b"\\", b"[", b"}", b",", b"0", b"-", b".", b"e", b"_", b"\\u"])
            | st.just(bytes(body[at:until]) * 2)
        )
    return bytes(body)


@some
@given(plain_values)
@example({"a": -0.0})
def test_plain_values_mean_what_they_mean_to_kombu(value):
    meant = check_encode(value)
    again = outcome(our_decode, serialization.encode(value, "json")[2])
    assert same(again, meant)


@some
@given(odd_values)
def test_any_values_mean_what_they_mean_to_kombu(value):
    check_encode(value)


@some
@given(json_texts)
@example('{"__type__":"x","__value__":1}')
@example("-0")
def test_json_texts_mean_what_they_mean_to_kombu(text):
    check_text(text)


@some
@given(envelopes, string_texts, string_texts | json_texts)
def test_envelope_texts_mean_what_they_mean_to_kombu(name, key, value):
    check_text('{"__type__":"' + name + '","__value__":' + value + "}")
    check_text("{" + key + ':"' + name + '","__value__":' + value + "}")


@some
@given(mutated_texts())
def test_mutated_texts_mean_what_they_mean_to_kombu(body):
    check_text(body)


@some
@given(st.binary(max_size=40) | st.text(st.characters(), max_size=20))
def test_any_bytes_mean_what_they_mean_to_kombu(body):
    check_text(body)
