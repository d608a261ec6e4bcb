"""The examples, each run in its folder as its text says, with real workers and servers."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.broker import free_port
from tests.support.commands import Command
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

EXAMPLES = ROOT / "examples"
#: Seconds, for 200 requests at once on a busy machine.
TIMEOUT = 60


class Example:
    """The folder of an example, and the processes that run in it."""

    def __init__(self, name: str, url: str, logs: Path) -> None:
        self.folder, self.url, self.logs = EXAMPLES / name, url, logs
        self.running: list[Command] = []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "CELERY_BROKER_URL": url, "PATH": path, "C_FORCE_ROOT": "1"}
        # They are copied into projects, and so have to work without the rest of the repository.
        self.env.pop("PYTHONPATH", None)

    def start(self, command: str) -> Command:
        log = self.logs / f"{len(self.running)}.log"
        started = Command(command.split(), log, cwd=self.folder, env=self.env)
        self.running.append(started)
        return started

    def start_worker(self, command: str) -> None:
        self.start(command).wait_until_it_consumes(self.url)

    def start_server(self, command: str) -> str:
        """Its URL, once it answers; `{port}` is its port."""
        port = free_port()

        def answers() -> bool:
            try:
                httpx.get(f"http://127.0.0.1:{port}/nothing-here", timeout=TIMEOUT)
            except httpx.ConnectError:
                return False
            return True

        self.start(command.format(port=port)).wait_until(answers, "the server answers")
        return f"http://127.0.0.1:{port}"

    def run(self, command: str) -> str:
        """What it prints; it has to end well."""
        done = subprocess.run(
            command.split(),
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr
        return done.stdout

    def close(self) -> None:
        for command in reversed(self.running):
            command.close()


@pytest.fixture
def example(own_vhost, tmp_path) -> Iterator[Callable[[str], Example]]:
    opened = []

    def make(name: str) -> Example:
        opened.append(Example(name, own_vhost, tmp_path))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def fetch(url: str, *paths: str) -> list[httpx.Response]:
    """All at once, each over a connection of its own: gunicorn closes one that is idle for 2 s, and
    a request that is sent at that moment fails."""

    async def main() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(paths), max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits) as client:
            return await asyncio.gather(*map(client.get, paths))

    return asyncio.run(main())


def test_smallest(example):
    smallest = example("smallest")
    smallest.start_worker("celery -A proj worker")
    assert smallest.run("python call.py") == "5\n"


def test_bulk_import(example):
    bulk = example("bulk_import")
    bulk.start_worker("celery -A proj worker")
    assert "2100 rows imported" in bulk.run("python import_rows.py 2100")


def test_chords(example, tmp_path):
    chords = example("chords")
    chords.start_worker("celery -A proj worker")
    text = tmp_path / "text"
    text.write_text("the way out and the way in\n" * 1050)
    assert chords.run(f"python count_words.py {text}").split() == [
        *("2100", "the", "2100", "way", "1050", "out", "1050", "and", "1050", "in"),
    ]


def test_demo(example):
    demo = example("demo")
    demo.env.update(BROKER_URL=demo.url, DEMO_TASKS="500")
    said = demo.run("python demo.py")
    for words in ("'fastrpc'", "500 tasks at once", "200 results", "counted to 10", "9900"):
        assert words in said
    assert re.search(r"the same, with apply_many +[\d,]+ +[\d,]+ +[\d.]+ x", said)
    assert "all passed" in said


def test_fastapi(example):
    web = example("fastapi_app")
    web.start_worker("celery -A proj worker")
    url = web.start_server("uvicorn web:app --port {port} --log-level warning")
    got = fetch(url, *(f"/add/{n}/1" for n in range(200)))
    assert [answer.json() for answer in got] == [{"sum": n + 1} for n in range(200)]
    (states,) = fetch(url, "/count/3")
    lines = states.text.splitlines()
    assert lines[-1] == '{"state": "SUCCESS", "result": "counted to 3"}'
    assert '{"state": "PROGRESS", "result": {"done": 2, "of": 3}}' in lines


def test_django(example):
    shop = example("django_shop")
    assert "no issues" in shop.run("python manage.py check")
    shop.start_worker("celery -A shop worker")
    url = shop.start_server("python manage.py runserver --noreload {port}")
    one, many = fetch(url, "/total/3/4", "/totals/3")
    assert one.json() == {"total": 12}
    assert many.json() == {"totals": [3 * n for n in range(1, 11)]}


def test_gunicorn_with_gevent(example):
    web = example("gunicorn_gevent")
    web.start_worker("celery -A proj worker -P gevent -c 200")
    url = web.start_server("gunicorn web:application --bind 127.0.0.1:{port}")
    got = fetch(url, *(f"/name{n}" for n in range(200)))
    assert [answer.text for answer in got] == [f"Name{n}" for n in range(200)]
