"""Sends five hundred tasks with ``confirm_publish="pipelined"`` and ends: URL QUEUE."""

from __future__ import annotations

import sys

import fastrpc
from tests.support.apps import make_app

if __name__ == "__main__":
    fastrpc.install()
    url, queue = sys.argv[1:]
    options = {"confirm_publish": "pipelined"}
    app = make_app(url, "rpc://", queue, broker_transport_options=options)
    for n in range(500):
        app.tasks["tests.add"].apply_async((n, n), ignore_result=True)
