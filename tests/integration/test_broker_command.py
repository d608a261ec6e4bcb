"""`python -m tests.support.broker COMMAND`."""

from __future__ import annotations

import socket
import subprocess
import sys
from urllib.parse import urlsplit

import pytest


def test_a_sigterm_ends_the_node_too():
    command = "import os, time; print(os.environ['BROKER_URL'], flush=True); time.sleep(100)"
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.broker", sys.executable, "-c", command],
        stdout=subprocess.PIPE,
        text=True,
    ) as helper:
        port = urlsplit(helper.stdout.readline()).port
        socket.create_connection(("127.0.0.1", port), 5).close()
        helper.terminate()
        assert helper.wait(60) == 128 + 15
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
