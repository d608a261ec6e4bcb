"""Replaces a method of Celery or kombu before fastrpc's way of sending is imported: URL NAME.

Sends eight tasks and says how often the replacement was called.
"""

from __future__ import annotations

import sys
from typing import Any

import kombu
from celery import Celery
from celery.app.task import Task

import fastrpc
from tests.support.apps import make_app

OWNERS: dict[str, type] = {
    "apply_async": Task,
    "send_task": Celery,
    "publish": kombu.Producer,
    "_publish": kombu.Producer,
}


def main(url: str, name: str) -> None:
    owner = OWNERS[name]
    method = getattr(owner, name)
    calls = []

    def traced(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return method(*args, **kwargs)

    setattr(owner, name, traced)
    assert not [module for module in sys.modules if module.startswith("fastrpc.tasks")]
    fastrpc.install()
    app = make_app(url, "rpc://", "fastrpc-tests-replaced")
    add = app.tasks["tests.add"]
    add.apply_async((1, 2))
    with fastrpc.batch(app):
        for _ in range(2):
            add.apply_async((1, 2))
    fastrpc.apply_many(add, [(1, 2)] * 5)
    with kombu.Connection(url) as connection:
        connection.default_channel.queue_delete("fastrpc-tests-replaced")
    print(len(calls))


if __name__ == "__main__":
    main(*sys.argv[1:])
