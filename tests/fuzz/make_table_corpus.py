"""Writes the seed corpus of fuzz_table.c into corpus/table.

    python -m tests.fuzz.make_table_corpus

One file for each thing the reader distinguishes. A crash that was found is added by hand, under a
name that says what it was, and gets a test in ``tests/c/test_table.c``.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from pathlib import Path
from struct import pack

import amqp
from amqp.serialization import dumps

TABLE, PROPERTIES = b"\x00", b"\x01"

#: What Celery 5.7 sends with a task.
TASK = {
    "lang": "py",
    "task": "proj.tasks.add",
    "id": "3c1b1a52-8a1f-4f63-9a3e-1f2a3b4c5d6e",
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": "3c1b1a52-8a1f-4f63-9a3e-1f2a3b4c5d6e",
    "parent_id": None,
    "argsrepr": "(2, 3)",
    "kwargsrepr": "{}",
    "origin": "gen1@host",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": ["customer"],
    "stamps": {"customer": "acme"},
}
WRITTEN = {
    "text": "é",
    "octets": b"\xff",
    "true": True,
    "long": -1,
    "longlong": 2**40,
    "real": 1.5,
    "decimal": Decimal("-1.23"),
    "date": datetime.datetime(2026, 1, 1),
    "table": {"void": None, "empty": {}},
    "array": [[], [1, {"k": ()}]],
}
#: Every type that is read, each with its data.
READ = (
    b"t\x01",
    b"b\xff",
    b"B\xff",
    b"s\xff\xfe",
    b"U\xff\xfe",
    b"u\xff\xfe",
    b"I\xff\xff\xff\xfe",
    b"i\xff\xff\xff\xfe",
    b"l" + b"\xff" * 8,
    b"L\x80" + b"\x00" * 7,
    b"f\x7f\x80\x00\x01",
    b"d\xff\xf8" + b"\x00" * 6,
    b"D\x02\x80\x00\x00\x00",
    b"T" + b"\xff" * 8,
    b"S\x00\x00\x00\x01a",
    b"x\x00\x00\x00\x01a",
    b"V",
    b"F\x00\x00\x00\x03\x01jV",
    b"A\x00\x00\x00\x02VV",
)
ALL = {
    name: {"s": "text", "o": 7, "F": {"k": [None]}, "L": 2**63}[kind]
    for name, kind in amqp.Message.PROPERTIES
}


def table(pairs: bytes) -> bytes:
    return pack(">I", len(pairs)) + pairs


def nested(depth: int, code: bytes) -> bytes:
    """That many of these containers in each other."""
    key = b"\x01k" if code == b"F" else b""
    body = b""
    for _ in range(depth):
        body = key + code + pack(">I", len(body)) + body
    return table(body if key else b"\x01k" + body)


def properties(**values: object) -> bytes:
    message = amqp.Message()
    message.properties = values
    return message._serialize_properties()


SEEDS = {
    "empty": TABLE + table(b""),
    "task": TABLE + dumps("F", [TASK]),
    "written": TABLE + dumps("F", [WRITTEN]),
    "types": TABLE + table(b"".join(b"\x01k" + value for value in READ)),
    "array": TABLE + table(b"\x01kA" + table(b"".join(READ))),
    "keys": TABLE + table(b"\x00V" + b"\xff" + b"\xff" * 255 + b"V" + b"\x00V"),
    "nested-tables": TABLE + nested(512, b"F"),
    "nested-arrays": TABLE + nested(512, b"A"),
    "too-deep": TABLE + nested(513, b"A"),
    "unknown-type": TABLE + table(b"\x01kZ"),
    "cut-text": TABLE + table(b"\x01kS\x00\x00\x00\x09ab"),
    "cut-key": TABLE + table(b"\x05key"),
    "no-type": TABLE + table(b"\x03key"),
    "long-table": TABLE + b"\xff\xff\xff\xff\x01kV",
    "long-inside": TABLE + table(b"\x01kA\x00\x00\x00\x01I\x00\x00\x00\x01"),
    "all-properties": PROPERTIES + properties(**ALL),
    "task-properties": PROPERTIES
    + properties(
        content_type="application/json",
        content_encoding="utf-8",
        application_headers=TASK,
        delivery_mode=2,
        priority=0,
        correlation_id=TASK["id"],
        reply_to="3c1b1a52-8a1f-4f63-9a3e-1f2a3b4c5d6e",
    ),
    "no-properties": PROPERTIES + b"\x00\x00",
    "continuation-bit": PROPERTIES + b"\x00\x01\x00\x00",
    "cut-properties": PROPERTIES + properties(**ALL)[:-1],
}


def main() -> None:
    corpus = Path(__file__).parent / "corpus" / "table"
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in SEEDS.items():
        (corpus / name).write_bytes(data)


if __name__ == "__main__":
    main()
