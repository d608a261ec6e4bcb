"""Encoding and decoding header tables and properties of a task: py-amqp and ours.

pytest bench/bench_table.py --benchmark-only
"""

from __future__ import annotations

import amqp
import pytest
from amqp.serialization import dumps, loads

from fastrpc.wire import _table

from .arena import contestants, rounds
from .cost import timed

TASK_ID = "7c7139fc-be7f-410e-b96c-0f7668978db7"
#: As Celery 5.7 sends them with `add.apply_async((2, 3), {"z": "xxxxxxxxxxxxxxxxxxxx"})`.
TASK = {
    "lang": "py",
    "task": "proj.tasks.add",
    "id": TASK_ID,
    "shadow": None,
    "eta": None,
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [None, None],
    "root_id": TASK_ID,
    "parent_id": None,
    "argsrepr": "(2, 3)",
    "kwargsrepr": "{'z': 'xxxxxxxxxxxxxxxxxxxx'}",
    "origin": "gen3089@vm",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
STAMPS = {"customer": "acme", "numbers": [1, 2, 3]}
TABLES = {
    "a task": TASK,
    "a stamped task": {
        **TASK,
        "stamped_headers": list(STAMPS),
        "stamps": STAMPS,
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    },
    "64 KiB": {**TASK, "kwargsrepr": "x" * 65536},
}
PROPERTIES = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "application_headers": TASK,
    "delivery_mode": 2,
    "priority": 0,
    "correlation_id": TASK_ID,
    "reply_to": "d77704bc-b725-3895-a4c6-9e2f6dd1a300",
}


def stock_dumps_properties(properties):
    return amqp.Message(**properties)._serialize_properties()


def stock_loads_properties(data):
    message = amqp.Message()
    message._load_properties(60, data, 0)
    return message.properties


TABLE_ENCODERS = {"py-amqp": lambda table: dumps("F", [table]), "fastrpc": _table.dumps_table}
TABLE_DECODERS = {"py-amqp": lambda data: loads("F", data, 0)[0][0], "fastrpc": _table.loads_table}
PROPERTIES_ENCODERS = {"py-amqp": stock_dumps_properties, "fastrpc": _table.dumps_properties}
PROPERTIES_DECODERS = {"py-amqp": stock_loads_properties, "fastrpc": _table.loads_properties}


@pytest.mark.parametrize("name", TABLES)
@contestants("py-amqp", "fastrpc")
def test_table_encode(race, who, name):
    table = TABLES[name]
    assert TABLE_ENCODERS[who](table) == dumps("F", [table])
    race(lambda who: timed(TABLE_ENCODERS[who], table), rounds(9))


@pytest.mark.parametrize("name", TABLES)
@contestants("py-amqp", "fastrpc")
def test_table_decode(race, who, name):
    data = dumps("F", [TABLES[name]])
    assert TABLE_DECODERS[who](data) == TABLES[name]
    race(lambda who: timed(TABLE_DECODERS[who], data), rounds(9))


@contestants("py-amqp", "fastrpc")
def test_properties_encode(race, who):
    assert PROPERTIES_ENCODERS[who](PROPERTIES) == stock_dumps_properties(PROPERTIES)
    race(lambda who: timed(PROPERTIES_ENCODERS[who], PROPERTIES), rounds(9))


@contestants("py-amqp", "fastrpc")
def test_properties_decode(race, who):
    data = stock_dumps_properties(PROPERTIES)
    assert PROPERTIES_DECODERS[who](data) == PROPERTIES
    race(lambda who: timed(PROPERTIES_DECODERS[who], data), rounds(9))
