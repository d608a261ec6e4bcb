"""JSON of a result there and back: kombu's, ours, and bare orjson, which does not mean the same.

pytest bench/bench_json.py --benchmark-only
"""

from __future__ import annotations

import datetime
import json

import kombu.serialization
import orjson
import pytest

from fastrpc import _json, serialization

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
# As kombu writes them, so that all read the same bytes.
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


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("implementation", ENCODERS)
def test_encode(benchmark, implementation, name):
    benchmark.group = f"encode {name}"
    benchmark(ENCODERS[implementation], VALUES[name])


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("implementation", DECODERS)
def test_decode(benchmark, implementation, name):
    benchmark.group = f"decode {name}"
    benchmark(DECODERS[implementation], BODIES[name])


@pytest.mark.parametrize("name", SCANNED)
def test_scan(benchmark, name):
    benchmark.group = "needs_kombu alone"
    benchmark.extra_info["bytes"] = len(SCANNED[name])
    benchmark(_json.needs_kombu, SCANNED[name])
