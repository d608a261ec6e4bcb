"""Every code block of the documentation does what its page says.

Each page is followed in a process and a project folder of its own, see tests/support/doc_page.py.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.support.doc_page import BROKER, Page
from tests.support.processes import ROOT

pytestmark = pytest.mark.slow

TEXTS = ("README.md", "CONTRIBUTING.md", "examples/README.md")
PAGES = [*(ROOT / text for text in TEXTS), *sorted((ROOT / "docs").glob("*.md"))]

SHARED = "from celery import group\nfrom proj import add, app, leaf\n"

#: What the pages need that their texts leave out.
NEEDS = {
    "README.md": Page(
        check="assert [r.get(timeout=60) for r in results] == [2 * n for n in range(1000)]\n"
        "assert value == 4",
    ),
    "docs/await.md": Page(
        setup=SHARED,
        worker=True,
        check="import httpx\n"
        "client = httpx.AsyncClient(transport=httpx.ASGITransport(web), base_url='http://test')\n"
        "assert (await client.get('/add/2/3')).json() == {'sum': 5}\n"
        "assert value == 4 and values == [2 * n for n in range(10)]\n"
        "assert await aio.get(results, timeout=60) == [2 * n for n in range(10_000)]",
    ),
    "docs/bench-and-top.md": Page(worker=True),
    "docs/canvas.md": Page(worker=True),
    "docs/configuration.md": Page(
        setup=SHARED, check="assert app.backend.options.prefetch == 1000"
    ),
    "docs/doctor.md": Page(
        worker=True, commands=["fastrpc doctor amqp://guest:secret@localhost:{port}//"]
    ),
    "docs/monitoring.md": Page(
        worker=True,
        check="from prometheus_client import generate_latest\n"
        "assert b'fastrpc_results_waiting' in generate_latest()",
    ),
    "docs/moving.md": Page(setup=SHARED, worker=True, check="assert total([1, 2, 3]) == 6"),
    "docs/tasks.md": Page(
        setup=SHARED + "argslist, kwargslist = [(1,), (2,)], [{'y': 1}, {'y': 2}]",
        worker=True,
        check="wanted = [2 * n for n in range(1000)]\n"
        "assert [r.get(timeout=60) for r in results] == wanted\n"
        "assert all_of_them.get(timeout=60) == wanted",
    ),
    "docs/troubleshooting.md": Page(
        # A reply queue whose caller is gone.
        setup=SHARED + "with app.connection_for_write() as connection:\n"
        "    connection.SimpleQueue('forgotten').put('a result')\n",
    ),
}

#: Page -> the reasons of its blocks that are not run.
NOT_RUN = {
    "CONTRIBUTING.md": ["installs a hook into the clone", "uploads a release"],
}


@pytest.fixture(scope="module")
def rabbitmqctl(tmp_path_factory, private_broker, own_vhost) -> Path:
    """The folder of a `rabbitmqctl` that looks at the virtual host of this module."""
    path = tmp_path_factory.mktemp("bin") / "rabbitmqctl"
    names = [n for n in private_broker.env if n.startswith(("RABBITMQ_", "ERL_")) or n == "HOME"]
    exports = "".join(f"export {name}='{private_broker.env[name]}'\n" for name in names)
    vhost = own_vhost.rpartition("/")[2]
    command = f"{private_broker.scripts}/rabbitmqctl -n {private_broker.nodename} -p {vhost}"
    path.write_text(f'#!/bin/sh\n{exports}exec {command} "$@"\n')
    path.chmod(0o755)
    return path.parent


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks(path, tmp_path, own_vhost, rabbitmqctl):
    page = replace(NEEDS.get(str(path.relative_to(ROOT)), Page()), broker=own_vhost)
    folders = (str(rabbitmqctl), str(Path(sys.executable).parent), os.environ["PATH"])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.doc_page", str(path), json.dumps(asdict(page))],
        cwd=tmp_path,
        env={
            # Without those of pytest: a page may run pytest itself.
            **{name: value for name, value in os.environ.items() if "PYTEST" not in name},
            "CELERY_BROKER_URL": own_vhost,
            "PATH": os.pathsep.join(folders),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "120",
            "C_FORCE_ROOT": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["skipped"] == NOT_RUN.get(str(path.relative_to(ROOT)), [])
    fences = re.findall(r"^ *```", path.read_text(), re.MULTILINE)
    assert sum(report["blocks"].values()) + len(report["skipped"]) == len(fences) / 2


def test_pages_name_one_broker():
    """The others would miss the broker of the test."""
    urls = {url for path in PAGES for url in re.findall(r"amqps?://\S*@\S*//", path.read_text())}
    assert {url for url in urls if "localhost:5672" not in url} == {BROKER}
