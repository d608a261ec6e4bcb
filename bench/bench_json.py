"""Encoding and decoding the JSON of a result: kombu, ours, and orjson alone (not equivalent).

pytest bench/bench_json.py --benchmark-only
"""

from __future__ import annotations

import datetime
import json

import kombu.serialization
import orjson
import pytest

from fastrpc import _json, serialization

from .arena import QUICK, contestants, rounds
from .cost import timed

JSON = "application/json"
ACCEPT = frozenset({JSON})

META = {
    "task_id": "3c1b1a52-8a1f-4f63-9a3e-1f2a3b4c5d6e",
    "status": "SUCCESS",
    "result": 4,
    "traceback": None,
    "children": [],
    "date_done": "2026-01-01T00:00:00+00:00",
}
VALUES = {
    "meta": META,
    "meta, kombu's to encode": {**META, "result": datetime.datetime(2026, 1, 1)},
    "1000 metas": [META] * 1000,
    "100 kB text": {**META, "result": "line of some text\n" * 5000},
    "10000 floats": [i * 1.1 for i in range(10_000)],
}
# Encoded by kombu, so that all decode the same bytes.
BODIES = {
    name: kombu.serialization.dumps(value, serializer="json")[2].encode()
    for name, value in VALUES.items()
}
SCANNED = {
    **BODIES,
    "200 kB Cyrillic, escaped": json.dumps("ж" * 35_000).encode(),
    "200 kB Cyrillic, utf-8": orjson.dumps("ж" * 100_000),
    "200 kB of quotes": orjson.dumps('"' * 100_000),
    "200 kB of empty strings": orjson.dumps([""] * 70_000),
    "200 kB of numbers": orjson.dumps(list(range(35_000))),
}

ENCODERS = {
    "kombu": lambda value: kombu.serialization.dumps(value, serializer="json"),
    "fastrpc": lambda value: serialization.encode(value, "json"),
    "orjson": orjson.dumps,
}
DECODERS = {
    "kombu": lambda body: kombu.serialization.loads(body, JSON, "utf-8", accept=ACCEPT),
    "fastrpc": lambda body: serialization.decode(body, JSON, "utf-8", ACCEPT),
    "orjson": orjson.loads,
}


# Which implementation is fast depends on the kind of value, not only on the length of its text.
SOME = ("meta", "1000 metas") if QUICK else tuple(VALUES)


@pytest.mark.parametrize("name", SOME)
@contestants(*ENCODERS)
def test_encode(race, who, name):
    """Encode a value; the bytes may differ, but not their meaning."""
    value = VALUES[name]
    if who != "orjson":
        assert json.loads(_payload(ENCODERS[who](value))) == json.loads(BODIES[name])
    race(lambda who: timed(ENCODERS[who], value), rounds(9))


@pytest.mark.parametrize("name", SOME)
@contestants(*DECODERS)
def test_decode(race, who, name):
    body = BODIES[name]
    if who != "orjson":
        assert DECODERS[who](body) == DECODERS["kombu"](body)
    race(lambda who: timed(DECODERS[who], body), rounds(9))


@pytest.mark.parametrize("name", ("meta",) if QUICK else SCANNED)
@contestants("fastrpc")
def test_scan(race, who, name):
    """Check whether orjson may decode a text."""
    race(lambda who: timed(_json.needs_kombu, SCANNED[name]), rounds(9))


def _payload(encoded):
    return encoded[2]
