"""A client that can import librabbitmq. Prints whether its results came, and its transport."""

from __future__ import annotations

import sys

import librabbitmq  # noqa: F401  # kombu would take it

import fastrpc
from tests.support.apps import make_app


def main(url: str, queue: str) -> None:
    fastrpc.install()
    app = make_app(url, "rpc://", queue)
    echo = app.tasks["tests.echo"]
    one_by_one = [echo.apply_async((n,)) for n in range(20)]
    many = fastrpc.apply_many(echo, ((n,) for n in range(500)))
    came = [result.get(timeout=20) for result in one_by_one] == list(range(20))
    print(came, many.get(timeout=20) == list(range(500)))
    with app.connection_for_write() as connection:
        print(type(connection.transport).__module__)


main(*sys.argv[1:])
