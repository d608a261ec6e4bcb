"""The app of a worker process: its settings come from the environment, see worker.py."""

from __future__ import annotations

import json
import os
import sys

from celery.signals import worker_ready

import fastrpc
from tests.support.apps import make_app
from tests.support.worker import READY_LINE

if os.environ.get("FASTRPC_TEST_INSTALL"):
    fastrpc.install()

if os.environ.get("FASTRPC_TEST_KILL"):
    from tests.support.kill_points import arm

    arm(*json.loads(os.environ["FASTRPC_TEST_KILL"]))

app = make_app(
    os.environ["FASTRPC_TEST_BROKER"],
    os.environ["FASTRPC_TEST_BACKEND"],
    os.environ["FASTRPC_TEST_QUEUE"],
    **json.loads(os.environ["FASTRPC_TEST_CONF"]),
)


@worker_ready.connect
def _say_ready(**_kwargs):
    print(READY_LINE, file=sys.stderr, flush=True)
