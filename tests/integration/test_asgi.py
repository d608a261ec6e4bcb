"""The example of a web application: over HTTP, many requests at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.broker import free_port
from tests.support.processes import ROOT
from tests.support.waiting import wait_until


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def port(broker) -> Iterator[int]:
    """Where the application listens; a worker runs its tasks."""
    port = free_port()
    env = {**os.environ, "BROKER_URL": broker.url, "DEMO_QUEUE": f"fastrpc-asgi-{os.getpid()}"}
    worker = ("celery", "-A", "examples.tasks", "worker", "-P", "threads", "-c", "4")
    server = ("uvicorn", "examples.asgi:app", "--port", str(port), "--log-level", "warning")
    with ExitStack() as stack:
        for command in (worker, server):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=env)
            )
            stack.callback(process.terminate)
        wait_until(lambda: answers(port), 30, "the application listens")
        yield port


async def fetch(port: int, path: str) -> tuple[int, str]:
    """(status, body) of a GET; the body ends with the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 60)).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


def test_200_requests_at_once(port):
    async def main():
        return await asyncio.gather(*(fetch(port, f"/add/{n}/1") for n in range(200)))

    got = asyncio.run(main())
    assert [(status, json.loads(body)) for status, body in got] == [
        (200, {"sum": n + 1}) for n in range(200)
    ]


def test_states_are_streamed(port):
    status, body = asyncio.run(fetch(port, "/count/3"))
    lines = [json.loads(line) for line in body.splitlines()]
    assert status == 200
    assert lines[-1] == {"state": "SUCCESS", "result": "counted to 3"}
    assert {"state": "PROGRESS", "result": {"done": 2, "of": 3}} in lines
