"""Header tables and properties: the bytes, values and errors of py-amqp, and hostile bytes.

py-amqp is the oracle. If a length is wrong, py-amqp may read on, but ours refuses the table. So the
tests use tables with correct lengths, or compare the two only if ours accepts the table.
"""

from __future__ import annotations

import datetime
import enum
import math
import struct
import threading
import tracemalloc
from collections import OrderedDict, UserDict
from decimal import Decimal
from struct import pack
from typing import Any, NamedTuple

import amqp
import pytest
from amqp.exceptions import FrameSyntaxError
from amqp.serialization import dumps, loads
from celery import Celery
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastrpc.errors import TableError
from fastrpc.wire._table import dumps_properties, dumps_table, loads_properties, loads_table

#: As src_c/table.h has it.
DEPTH_MAX = 512


def stock_dumps(table: Any) -> bytes:
    return dumps("F", [table])


def stock_loads(data: bytes) -> dict:
    return loads("F", data, 0)[0][0]


def stock_dumps_properties(properties: dict) -> bytes:
    message = amqp.Message()
    message.properties = properties
    return message._serialize_properties()


def stock_loads_properties(data: bytes) -> dict:
    message = amqp.Message()
    message._load_properties(60, data, 0)
    return message.properties


def same(a: Any, b: Any) -> bool:
    """Equal, of the same types and in the same order; NaN is NaN."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            same(k, m) and same(v, w) for (k, v), (m, w) in zip(a.items(), b.items(), strict=True)
        )
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or pack(">d", a) == pack(">d", b)
    if isinstance(a, Decimal):
        return a.as_tuple() == b.as_tuple()
    return a == b


def outcome(function: Any, *args: Any) -> Any:
    try:
        return function(*args)
    except Exception as exc:
        return exc


def assert_same_outcome(stock: Any, ours: Any, *args: Any) -> None:
    expected, got = outcome(stock, *args), outcome(ours, *args)
    if isinstance(expected, Exception):
        assert isinstance(got, type(expected)), (expected, got)
    else:
        assert same(got, expected), (got, expected)


def assert_no_other_value(stock: Any, ours: Any, wire: bytes) -> None:
    """Ours may refuse more than py-amqp, but the values that it accepts are the same."""
    expected, got = outcome(stock, wire), outcome(ours, wire)
    if isinstance(got, TableError):
        return
    if isinstance(got, Exception):
        assert isinstance(expected, type(got))
    elif not OLD:
        assert same(got, expected), (got, expected)


#: Before 5.4 py-amqp took `s` for a short string, mixed up the signs of `b`, `B` and `l`, and
#: refused keys that are no UTF-8. Ours is as 5.4: such tables are not compared then.
OLD = stock_loads(b"\x00\x00\x00\x0b\x01kl" + b"\xff" * 8) != {"k": -1}


# ---------------------------------------------------------------- what Python has

texts = st.text(alphabet=st.characters(), max_size=40)
keys = st.one_of(
    st.text(alphabet=st.characters(), max_size=60),
    st.just(b"octets") if OLD else st.binary(max_size=60),
    st.just("k" * 255),
)
edges = st.sampled_from(
    [n + d for n in (0, 2**7, 2**15, 2**31, -(2**31), 2**63, -(2**63)) for d in (-2, -1, 0, 1)]
)
decimals = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False),
    st.builds(
        lambda n, places: Decimal(n).scaleb(-places),
        st.integers(-(2**31), 2**31 - 1),
        st.integers(0, 255),
    ),
    st.sampled_from([Decimal("NaN"), Decimal("-Infinity"), Decimal("1E3"), Decimal("-0.00")]),
)
zones = st.integers(-23, 23).map(lambda h: datetime.timezone(datetime.timedelta(hours=h)))
dates = st.one_of(st.datetimes(), st.datetimes(timezones=zones))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    edges,
    st.integers(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    texts,
    st.binary(max_size=40),
    decimals,
    dates,
)
encodable = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), texts,
    st.binary(max_size=40),
)  # fmt: skip


def nested(leaves: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(keys, inner, max_size=4),
        ),
        max_leaves=12,
    )


class Colour(str, enum.Enum):
    RED = "rot"


class Level(enum.IntEnum):
    HIGH = 2**40


class Reply(NamedTuple):
    queue: str
    n: int


class Text(str):
    def encode(self, *args: Any) -> bytes:
        return b"<" + str.encode(self, *args) + b">"


class Table(dict):
    def items(self) -> Any:
        return [("from items", 1), ("again", None), ("again", 2)]


class Octets(bytes):
    pass


class Real(float):
    pass


class Row(list):
    def __iter__(self) -> Any:
        return iter("abc")


class BrokenZone(datetime.tzinfo):
    def utcoffset(self, when: Any) -> Any:
        raise ValueError("no offset")


class TestEncoding:
    @given(st.dictionaries(keys, nested(encodable), max_size=8))
    @settings(max_examples=400, deadline=None)
    def test_same_bytes(self, table):
        wire = stock_dumps(table)
        assert dumps_table(table) == wire
        assert same(loads_table(wire), stock_loads(wire))

    @given(st.dictionaries(keys, nested(scalars), max_size=4))
    @settings(max_examples=400, deadline=None)
    def test_same_bytes_or_the_same_error(self, table):
        assert_same_outcome(stock_dumps, dumps_table, table)

    @pytest.mark.parametrize(
        "value",
        [
            *(Colour.RED, Level.HIGH, Reply("q", 1), Text("text"), Octets(b"octets"), Real(1.5)),
            *(Table(a=1), Row([1]), OrderedDict(b=1, a=[]), {Text("key"): 1}, {Octets(b"key"): 1}),
            *(float("nan"), float("-inf"), -0.0, "", b"", {}, [], (), "\ud800", "k" * 70_000),
            *(Decimal("-1.50"), Decimal("1E-255"), Decimal("1E-256"), Decimal(2**31)),
            datetime.datetime(2026, 1, 2, 3, 4, 5, 999_999),
            datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone(datetime.timedelta(hours=-9))),
            datetime.datetime(1969, 12, 31, 23, 59, 59),
            datetime.datetime.min.replace(tzinfo=datetime.timezone(datetime.timedelta(hours=23))),
            datetime.datetime(2026, 1, 1, tzinfo=BrokenZone()),
            pytest.param({memoryview(b"ab"): 1}, id="{memoryview: 1}"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_what_is_not_plain(self, value):
        for table in ({"k": value}, {"k": [value]}, {"k": {"j": value}}):
            assert_same_outcome(stock_dumps, dumps_table, table)

    @pytest.mark.parametrize(
        "value",
        [
            *(set(), frozenset({1}), object(), bytearray(b"a"), memoryview(b"a"), 1j, range(3)),
            *(datetime.date(2026, 1, 1), datetime.timedelta(1), len, UserDict(a=1)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_a_value_without_a_type(self, value):
        for table in ({"k": value}, {"k": [1, value]}, {"k": {"j": (value,)}}):
            with pytest.raises(FrameSyntaxError):
                stock_dumps(table)
            with pytest.raises(FrameSyntaxError) as raised:
                dumps_table(table)
            assert type(raised.value) is TableError
            assert str(type(value)) in str(raised.value)

    @pytest.mark.parametrize(
        "table",
        [{None: 1}, {1: 1}, {(1,): 1}, {"k" * 256: 1}, {b"k" * 256: 1}, {"é" * 128: 1}],
        ids=str,
    )
    def test_a_key_that_cannot_be_one(self, table):
        assert isinstance(outcome(dumps_table, table), (TypeError, struct.error))
        assert_same_outcome(stock_dumps, dumps_table, table)

    @pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 10**400])
    def test_a_number_that_is_too_large(self, number):
        with pytest.raises(struct.error):
            dumps_table({"k": number})
        with pytest.raises(struct.error):
            dumps_table({"k": [{"j": number}]})

    @pytest.mark.parametrize(
        "table", [None, {}, (), "", 0, UserDict(a=1), [1], "text", 1], ids=repr
    )
    def test_what_the_outermost_table_may_be(self, table):
        assert_same_outcome(stock_dumps, dumps_table, table)

    def test_a_dict_that_changes_while_it_is_encoded(self):
        class Changing(str):
            def encode(self, *args: Any) -> bytes:
                table["new"] = 1
                return b""

        table: dict[str, Any] = {"k": Changing("x")}
        with pytest.raises(RuntimeError, match="changed size"):
            dumps_table(table)

    def test_as_deep_as_py_amqp_and_no_deeper_than_it_can_be_read(self):
        def nest(depth: int, wrap: Any) -> dict:
            value: Any = 1
            for _ in range(depth):
                value = wrap(value)
            return {"k": value}

        for wrap in (lambda v: [v], lambda v: {"k": v}, lambda v: ({"k": v},)):
            assert dumps_table(nest(100, wrap)) == stock_dumps(nest(100, wrap))
        for wrap in (lambda v: [v], lambda v: {"k": v}):
            wire = dumps_table(nest(DEPTH_MAX, wrap))
            assert dumps_table(loads_table(wire)) == wire
            for depth in (DEPTH_MAX + 1, 100_000):
                with pytest.raises(RecursionError):
                    dumps_table(nest(depth, wrap))

    def test_a_dict_inside_itself(self):
        table: dict[str, Any] = {}
        table["k"] = [table]
        with pytest.raises(RecursionError):
            stock_dumps(table)
        with pytest.raises(RecursionError):
            dumps_table(table)

    def test_the_deepest_fits_a_small_stack(self):
        value: Any = 1
        for _ in range(DEPTH_MAX):
            value = {"k": value}
        done = []
        before = threading.stack_size(256 * 1024)
        try:
            thread = threading.Thread(
                target=lambda: done.append(loads_table(dumps_table({"k": value})))
            )
            thread.start()
        finally:
            threading.stack_size(before)
        thread.join(30)
        assert done

    def test_large_headers(self):
        table = {f"key {i}": "v" * 1000 for i in range(500)}
        assert dumps_table(table) == stock_dumps(table)
        assert loads_table(dumps_table(table)) == table


# ---------------------------------------------------------------- what the wire has


def wire_table(body: bytes) -> bytes:
    return pack(">I", len(body)) + body


def long(data: bytes) -> bytes:
    return pack(">I", len(data)) + data


#: What each type code is followed by.
FIXED = {"t": 1, "b": 1, "B": 1, "s": 2, "U": 2, "u": 2, "I": 4, "i": 4, "l": 8, "L": 8}
FIXED |= {"f": 4, "d": 8, "D": 5, "V": 0}
if OLD:
    del FIXED["s"], FIXED["b"], FIXED["B"], FIXED["l"]

wire_scalars = st.one_of(
    *(
        st.binary(min_size=size, max_size=size).map(code.encode().__add__)
        for code, size in FIXED.items()
    ),
    st.integers(0, 253402300799).map(lambda seconds: b"T" + pack(">Q", seconds)),
    st.one_of(texts.map(lambda s: s.encode("utf-8", "surrogatepass")), st.binary(max_size=40)).map(
        lambda data: b"S" + long(data)
    ),
    st.binary(max_size=40).map(lambda data: b"x" + long(data)),
)
wire_keys = st.one_of(
    st.just(b"octets") if OLD else st.binary(max_size=8),
    st.sampled_from([b"", b"k", b"k" * 255, "é\ud800".encode("utf-8", "surrogatepass")]),
).map(lambda key: bytes([len(key)]) + key)


def wire_pairs(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(st.tuples(wire_keys, values).map(b"".join), max_size=5).map(b"".join)


wire_values = st.recursive(
    wire_scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5).map(lambda values: b"A" + long(b"".join(values))),
        wire_pairs(inner).map(lambda pairs: b"F" + long(pairs)),
    ),
    max_leaves=12,
)
wire_tables = wire_pairs(wire_values).map(wire_table)


def one(value: bytes) -> bytes:
    return wire_table(b"\x01k" + value)


@st.composite
def damaged(draw: Any) -> bytes:
    """A table with some octets changed, left out or added."""
    data = bytearray(draw(wire_tables))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        until = draw(st.integers(at, min(len(data), at + 4)))
        data[at:until] = draw(st.binary(max_size=4))
    return bytes(data)


class TestDecoding:
    @given(wire_tables)
    @settings(max_examples=600, deadline=None)
    def test_same_values(self, wire):
        assert same(loads_table(wire), stock_loads(wire))

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (b"t\x00", False),
            (b"t\x02", True),
            (b"b\xff", -1),
            (b"B\xff", 255),
            (b"s\xff\xfe", -2),
            (b"U\xff\xfe", -2),
            (b"u\xff\xfe", 65534),
            (b"I\xff\xff\xff\xfe", -2),
            (b"i\xff\xff\xff\xfe", 4294967294),
            (b"l" + b"\xff" * 8, -1),
            (b"L" + b"\xff" * 8, -1),
            (b"L\x80" + b"\x00" * 7, -(2**63)),
            (b"f\xbf\xc0\x00\x00", -1.5),
            (b"d\xbf\xf8" + b"\x00" * 6, -1.5),
            (b"D\x02\x00\x00\x00\x7b", Decimal("1.23")),
            (b"D\xff\xff\xff\xff\xff", Decimal("-1E-255")),
            (b"T\x00\x00\x00\x00\x00\x00\x00\x01", datetime.datetime(1970, 1, 1, 0, 0, 1)),
            (b"V", None),
            (b"S\x00\x00\x00\x02\xc3\xa9", "é"),
            (b"S\x00\x00\x00\x03\xed\xa0\x80", "\ud800"),
            (b"S\x00\x00\x00\x01\xff", b"\xff"),
            (b"x\x00\x00\x00\x01a", b"a"),
            (b"F\x00\x00\x00\x03\x01jV", {"j": None}),
            (b"A\x00\x00\x00\x02VV", [None, None]),
        ],
        ids=lambda v: repr(v)[:30],
    )
    def test_every_type(self, value, expected):
        assert same(loads_table(one(value)), {"k": expected})

    def test_keys(self):
        wire = wire_table(b"\x01\xffV" + b"\x00V" + b"\x03\xed\xa0\x80V" + b"\x02\xc3\xa9V")
        assert same(loads_table(wire), dict.fromkeys([b"\xff", "", "\ud800", "é"]))

    def test_a_key_that_comes_twice(self):
        first, second = b"\x01kA\x00\x00\x00\x01V", b"\x01kF\x00\x00\x00\x00"
        for pairs in (first + second, second + first + b"\x01jV" + second, first + b"\x01kV"):
            wire = wire_table(pairs)
            assert same(loads_table(wire), stock_loads(wire))

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
    def test_what_it_is_given(self, kind):
        data = kind(one(b"x\x00\x00\x00\x01a") + b"what follows")
        table = loads_table(data)
        assert same(table, {"k": b"a"})

    @pytest.mark.parametrize("data", [None, "text", 1, [b""], memoryview(b"abcdef")[::2]])
    def test_what_has_no_bytes(self, data):
        with pytest.raises((TypeError, BufferError)):
            loads_table(data)

    @pytest.mark.parametrize("seconds", [253402300800, 2**62, 2**63, 2**64 - 1])
    def test_a_date_that_python_does_not_have(self, seconds):
        wire = one(b"T" + pack(">Q", seconds))
        assert isinstance(outcome(loads_table, wire), (ValueError, OverflowError, OSError))
        assert_same_outcome(stock_loads, loads_table, wire)

    @pytest.mark.parametrize("code", sorted(set(range(256)) - set(b"tbBsUuIilLfdDTVSxFA")))
    def test_a_type_that_is_unknown(self, code):
        wire = one(bytes([code]) + b"\x00" * 16)
        with pytest.raises(FrameSyntaxError, match="Unknown value in table"):
            loads_table(wire)
        with pytest.raises(FrameSyntaxError, match="Unknown value in table"):
            stock_loads(wire)


class TestHostile:
    @given(wire_tables)
    @settings(max_examples=60, deadline=None)
    def test_cut_at_every_point(self, wire):
        for n in range(len(wire)):
            with pytest.raises(TableError):
                loads_table(wire[:n])

    @given(st.one_of(damaged(), st.binary(max_size=60).map(wire_table), st.binary(max_size=60)))
    @example(one(b"S\x00\x00\x00\x09ab"))
    @example(one(b"A\x00\x00\x00\x01I\x00\x00\x00\x01"))
    @example(b"\x00\x00\x00\x02\x01kV")
    @settings(max_examples=1500, deadline=None)
    def test_what_is_taken_is_what_py_amqp_reads(self, wire):
        assert_no_other_value(stock_loads, loads_table, wire)

    @pytest.mark.parametrize(
        "wire",
        [
            b"",
            b"\x00\x00\x00",
            b"\x00\x00\x00\x01",
            b"\xff\xff\xff\xff\x01kV",
            b"\x00\x00\x00\x02\x01kV",
            wire_table(b"\x05k"),
            wire_table(b"\x01k"),
            one(b"S\x00\x00\x00\x09ab"),
            one(b"S\xff\xff\xff\xffab"),
            one(b"x\x00\x00\x00\x03ab"),
            one(b"I\x00\x00\x00"),
            one(b"D\x00\x00\x00\x00"),
            one(b"F\x00\x00\x00\x09\x01jV"),
            one(b"A\xff\xff\xff\xffV"),
            # The length fits the bytes but not the table: py-amqp reads past the table.
            one(b"A\x00\x00\x00\x01I\x00\x00\x00\x01"),
            one(b"F\x00\x00\x00\x03\x01jt\x01"),
            wire_table(b"\x01kF\x00\x00\x00\x02\x01jV\x01lV"),
        ],
        ids=repr,
    )
    def test_a_length_that_lies_loses_the_connection(self, wire):
        with pytest.raises(amqp.Connection.connection_errors):
            loads_table(wire)

    @pytest.mark.parametrize("key", [b"\x01k", b""], ids=["table", "array"])
    def test_nested_100_000_deep(self, key):
        body = b""
        depth = 100_000
        size = len(key) + 5
        parts = [b"\x01k"] if not key else []
        for left in range(depth - 1, -1, -1):
            parts.append(key + (b"F" if key else b"A") + pack(">I", left * size))
        body = b"".join(parts)
        tracemalloc.start()
        try:
            with pytest.raises(TableError, match="levels"):
                loads_table(wire_table(body))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * len(body)

    def test_no_memory_for_what_is_only_announced(self):
        wire = b"\xff\xff\xff\xff\x01kS\xff\xff\xff\x00abc"
        loads = (
            one(b"S\xff\xff\xff\x00abc"),
            one(b"x\x7f\xff\xff\xff"),
            one(b"A\xff\xff\xff\x00V"),
        )
        tracemalloc.start()
        try:
            for data in (wire, *loads):
                with pytest.raises(TableError):
                    loads_table(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 100_000

    def test_a_refused_table_leaks_nothing(self):
        wire = wire_table(b"\x01kA" + long(b"S" + long(b"x" * 10_000) + b"Z"))
        for _ in range(3):
            assert isinstance(outcome(loads_table, wire), TableError)
        tracemalloc.start()
        try:
            for _ in range(200):
                assert isinstance(outcome(loads_table, wire), TableError)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 100_000


# ---------------------------------------------------------------- properties

NAMES = [name for name, _ in amqp.Message.PROPERTIES]
short = st.text(alphabet=st.characters(), max_size=255).filter(
    lambda s: len(s.encode("utf-8", "surrogatepass")) <= 255
)
KINDS = {
    "s": st.one_of(st.none(), short, st.binary(max_size=255)),
    "o": st.one_of(st.none(), st.integers(0, 255), st.booleans()),
    "F": st.one_of(st.none(), st.dictionaries(keys, nested(encodable), max_size=4)),
    "L": st.one_of(st.none(), st.integers(0, 2**64 - 1)),
}
all_properties = st.fixed_dictionaries(
    {}, optional={name: KINDS[kind] for name, kind in amqp.Message.PROPERTIES}
)


class TestProperties:
    @given(all_properties)
    @settings(max_examples=400, deadline=None)
    def test_same_bytes_and_values(self, properties):
        wire = stock_dumps_properties(properties)
        assert dumps_properties(properties) == wire
        assert_same_outcome(stock_loads_properties, loads_properties, wire)

    @given(all_properties)
    @settings(max_examples=60, deadline=None)
    def test_cut_at_every_point(self, properties):
        wire = stock_dumps_properties(properties)
        for n in range(len(wire)):
            with pytest.raises((TableError, UnicodeDecodeError)):
                loads_properties(wire[:n])

    @pytest.mark.parametrize("name", NAMES)
    def test_each_alone(self, name):
        kind = dict(amqp.Message.PROPERTIES)[name]
        value = {"s": "text", "o": 7, "F": {"k": [None]}, "L": 2**63}[kind]
        wire = dumps_properties({name: value})
        assert wire == stock_dumps_properties({name: value})
        assert same(loads_properties(wire), {name: value})

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "value",
        [
            *(
                None,
                "",
                b"",
                0,
                False,
                True,
                -1,
                255,
                256,
                2**64 - 1,
                2**64,
                1.5,
                "text",
                "t" * 256,
            ),
            *(b"\xff", bytearray(b"ab"), [], {}, {"k": 1}, object, Decimal(3)),
            *(Level.HIGH, Colour.RED, Text("text"), Octets(b"ab")),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_any_value_in_each(self, name, value):
        assert_same_outcome(stock_dumps_properties, dumps_properties, {name: value})

    def test_a_name_that_is_unknown_is_left_out(self):
        assert dumps_properties({"delivery_info": 1, "priority": 3}) == b"\x08\x00\x03"

    @given(st.binary(max_size=80), st.integers(0, 0xFFFF))
    @settings(max_examples=1000, deadline=None)
    def test_hostile(self, data, flags):
        wire = pack(">H", flags) + data
        assert_no_other_value(stock_loads_properties, loads_properties, wire)

    def test_text_that_is_no_utf_8(self):
        wire = b"\x80\x00\x01\xff"
        for load in (stock_loads_properties, loads_properties):
            with pytest.raises(UnicodeDecodeError):
                load(wire)

    def test_the_continuation_bit(self):
        with pytest.raises(TableError, match="continuation"):
            loads_properties(b"\x00\x01\x00\x00")

    def test_flags_that_no_property_has(self):
        assert loads_properties(b"\x08\x02\x03") == stock_loads_properties(b"\x08\x02\x03")


# ---------------------------------------------------------------- what Celery sends


@pytest.fixture(scope="module")
def sent():
    """The properties, with headers, that Celery passes to the channel for many kinds of tasks."""
    app = Celery("app", broker="memory://", backend="rpc://", set_as_current=False)
    messages = []

    @app.task(name="app.add")
    def add(*args: Any, **kwargs: Any) -> None: ...

    class Producer(app.amqp.Producer):
        def _publish(
            self, body, priority, content_type, content_encoding, headers, properties, *_, **__
        ):
            messages.append(
                {
                    **properties,
                    "priority": priority,
                    "content_type": content_type,
                    "content_encoding": content_encoding,
                    "application_headers": headers,
                }
            )

    with app.connection_for_write() as connection:
        producer = Producer(connection)
        add.apply_async((2, 3), {"z": "é\U0001f600"}, producer=producer)
        stamped = add.s(1, 2)
        stamped.stamp(customer="acme", numbers=[1, None, 3], nested={"a": {"b": [1]}})
        stamped.apply_async(producer=producer)
        add.apply_async(
            *((1,), {}),
            producer=producer,
            countdown=10,
            expires=30,
            time_limit=10.5,
            soft_time_limit=5,
            priority=9,
            shadow="another name",
            ignore_result=True,
            group_id="group",
            group_index=3,
            headers={"traceparent": "00-4bf92f", "baggage": {"k": ["v", None, 1.5]}},
        )
        add.apply_async(("a" * 100_000,), argsrepr="a" * 70_000, producer=producer, retries=3)
    assert len(messages) == 4
    return messages


def test_the_headers_of_celery(sent):
    assert {"timelimit": [None, None], "stamps": {}}.items() <= sent[0][
        "application_headers"
    ].items()
    assert sent[1]["application_headers"]["stamps"]["nested"] == {"a": {"b": [1]}}
    for properties in sent:
        wire = stock_dumps_properties(properties)
        assert dumps_properties(properties) == wire
        assert same(loads_properties(wire), stock_loads_properties(wire))
        headers = stock_dumps(properties["application_headers"])
        assert dumps_table(properties["application_headers"]) == headers
        assert same(loads_table(headers), stock_loads(headers))
