"""Real workers and clients with install() on both sides; the transport is checked to be ours."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import textwrap
import time

import pytest

from tests.support.apps import make_app
from tests.support.authority import Authority
from tests.support.broker import RabbitMQ
from tests.support.processes import ROOT
from tests.support.waiting import wait_until
from tests.support.worker import Worker

WAIT = 30
CONF = {"task_queue_max_priority": 10}
CLIENT = """
import os, sys, time
import fastrpc
fastrpc.install()
from datetime import datetime, timedelta, timezone
from celery import chain, group
from tests.support.apps import make_app
app = make_app(os.environ["URL"], "rpc://", os.environ["QUEUE"], task_queue_max_priority=10)
task = lambda name: app.tasks["tests." + name]
with app.connection_for_write() as connection:
    assert type(connection.transport).__module__ == "fastrpc.transport.transports"
"""


@pytest.fixture(scope="module", params=["solo", "threads", "prefork", "gevent", "eventlet"])
def worker(request, broker):
    if request.param in ("gevent", "eventlet"):
        pytest.importorskip(request.param)
    name = f"fastrpc-tests-installed-{request.param}-{os.getpid()}"
    with Worker(
        broker.url,
        "rpc://",
        pool=request.param,
        queues=(name,),
        args=("-E",),
        install=True,
        conf=CONF,
    ) as worker:
        yield worker


def run(broker, worker, source: str, first: str = "") -> str:
    """What a client program prints, in a process of its own: install() is for a whole process."""
    done = subprocess.run(
        [sys.executable, "-c", first + CLIENT + textwrap.dedent(source)],
        cwd=ROOT,
        env={**os.environ, "URL": worker.broker, "QUEUE": worker.queue, "NAME": worker.name},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr + worker.log
    return done.stdout


def test_tasks_and_their_options(broker, worker):
    run(
        broker,
        worker,
        f"""
        echo, add = task("echo"), task("add")
        results = [
            echo.apply_async(("plain",)),
            echo.apply_async(("headers",), headers={{"a": [1, {{"b": None}}]}}),
            echo.apply_async(("priority",), priority=7),
            echo.apply_async(("eta",), eta=datetime.now(timezone.utc) + timedelta(seconds=0.5)),
            echo.apply_async(("countdown",), countdown=0.2),
            echo.apply_async(("expires",), expires=60),
            echo.apply_async(("gzip",), compression="gzip"),
            echo.apply_async(("linked",), link=echo.s(), link_error=echo.s()),
            echo.apply_async(("größer" * 100_000,)),
        ]
        got = [r.get(timeout={WAIT}) for r in results]
        assert got[:8] == "plain headers priority eta countdown expires gzip linked".split(), got
        assert got[8] == "größer" * 100_000
        assert chain(add.s(1, 2), add.s(3))().get(timeout={WAIT}) == 6
        many = group(add.s(n, n) for n in range(300))()
        assert many.get(timeout={WAIT}) == [2 * n for n in range(300)]
        """,
    )


def test_remote_control(broker, worker):
    said = run(
        broker,
        worker,
        f"""
        name = os.environ["NAME"]
        assert app.control.ping([name], timeout={WAIT}, limit=1) == [{{name: {{"ok": "pong"}}}}]
        look = app.control.inspect([name], timeout={WAIT}, limit=1)
        print(sorted(look.registered()) == [name], look.stats()[name]["broker"]["transport"])
        options = {{"destination": [name], "reply": True, "timeout": {WAIT}, "limit": 1}}
        answer = app.control.broadcast("fastrpc_stats", **options)[0][name]
        assert answer["pool"] == look.stats()[name]["pool"]["implementation"]
        assert answer["events"] is True
        """,
    )
    assert said.split() == ["True", "amqp"]


def test_events(broker, worker):
    said = run(
        broker,
        worker,
        f"""
        import json, threading
        seen, done = [], threading.Event()
        def watch():
            with app.connection_for_read() as connection:
                def caught(event):
                    seen.append(event["type"])
                    if event["type"] == "task-succeeded":
                        receiver.should_stop = True
                        done.set()
                receiver = app.events.Receiver(connection, handlers={{"*": caught}})
                receiver.on_consume_ready = lambda *_, **__: ready.set()
                receiver.capture(limit=None, timeout={WAIT}, wakeup=False)
        ready = threading.Event()
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        assert ready.wait({WAIT})
        task("echo").apply_async(("seen",)).get(timeout={WAIT})
        assert done.wait({WAIT}), seen
        print(json.dumps(seen))
        """,
    )
    assert {"task-received", "task-started", "task-succeeded"} <= set(json.loads(said))


@pytest.mark.parametrize(
    ("green", "spawn"),
    [
        ("gevent", "lambda *call: gevent.spawn(*call).get"),
        ("eventlet", "lambda *call: eventlet.spawn(*call).wait"),
    ],
)
def test_green_clients(broker, green, spawn):
    """Thirty greenlets send and wait over the connections of one pool."""
    pytest.importorskip(green)
    queue = f"fastrpc-tests-{green}-clients-{os.getpid()}"
    patch = {
        "gevent": "import gevent; from gevent import monkey; monkey.patch_all()",
        "eventlet": "import eventlet; eventlet.monkey_patch()",
    }
    with Worker(
        broker.url, "rpc://", pool="threads", queues=(queue,), install=True, conf=CONF
    ) as worker:
        run(
            broker,
            worker,
            f"""
            def call(n):
                for i in range(10):
                    assert task("echo").apply_async(([n, i],)).get(timeout={WAIT}) == [n, i]
                return n

            spawn = {spawn}
            ends = [spawn(call, n) for n in range(30)]
            assert [end() for end in ends] == list(range(30))
            """,
            patch[green],
        )


def test_the_smallest_frames(tmp_path):
    """The broker allows frames of 4,096 bytes; messages of 100 kB go through both ways, also with
    TLS."""
    authority = Authority(tmp_path)
    server = authority.issue("server", "localhost")
    trust = {"ca_certs": authority.cafile, "cert_reqs": int(ssl.CERT_REQUIRED)}
    with RabbitMQ(config=["frame_max = 4096"], tls=server) as broker:
        for url, conf in (broker.url, CONF), (broker.tls_url, {**CONF, "broker_use_ssl": trust}):
            queue = f"fastrpc-tests-small-frames-{url[:5]}"
            with Worker(
                url, "rpc://", pool="threads", queues=(queue,), install=True, conf=conf
            ) as worker:
                said = run(
                    broker,
                    worker,
                    f"""
                    app.conf.update({conf!r})
                    echo = task("echo")
                    values = [str(n) + "x" * 100_000 for n in range(20)]
                    one_by_one = [echo.apply_async((value,)) for value in values]
                    assert [result.get(timeout={WAIT}) for result in one_by_one] == values
                    many = fastrpc.apply_many(echo, ((value,) for value in values))
                    assert many.get(timeout={WAIT}) == values
                    with app.connection_for_write() as connection:
                        amqp = connection.connection
                        print(amqp.frame_max, hasattr(amqp.sock, "pending"))
                    """,
                )
            assert said.split() == ["4096", str(url == broker.tls_url)]


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["solo", "threads", "gevent", "eventlet"])
def test_heartbeats_are_kept_idle_and_busy(broker, pool):
    """RabbitMQ hangs up on whoever is silent for two seconds here."""
    if pool in ("gevent", "eventlet"):
        pytest.importorskip(pool)
    queue = f"fastrpc-tests-heartbeats-{pool}-{os.getpid()}"
    app = make_app(broker.url, "fastrpc://", queue)
    conf = {"broker_heartbeat": 2}
    with Worker(
        broker.url, "rpc://", pool=pool, queues=(queue,), conf=conf, install=True
    ) as worker:
        end = time.monotonic() + 7
        while time.monotonic() < end:
            app.tasks["tests.echo"].apply_async((1,)).get(timeout=WAIT)
        time.sleep(7)
        app.tasks["tests.echo"].apply_async((1,)).get(timeout=WAIT)
        assert "onnection" not in worker.log


@pytest.mark.parametrize("acks_late", [False, True], ids=["early", "late"])
@pytest.mark.parametrize("install", [True, False], ids=["installed", "stock"])
def test_kill_9_in_the_fifth_of_eight_tasks(broker, tmp_path, install, acks_late):
    """All are prefetched by a solo pool. None is lost, and no finished one runs again.

    On stock the last ones that finished run again: their acknowledgements wait for the loop's turn.
    """
    log = tmp_path / "runs"
    queue = f"fastrpc-tests-kill-{install}-{acks_late}-{os.getpid()}"
    app = make_app(broker.url, "fastrpc://", queue)

    def start():
        return Worker(
            broker.url,
            "rpc://",
            pool="solo",
            concurrency=1,
            queues=(queue,),
            conf={"worker_prefetch_multiplier": 8, "task_acks_late": acks_late},
            install=install,
        )

    def runs() -> list[int]:
        numbers = [int(line) for line in log.read_text().split()] if log.exists() else []
        return [numbers.count(n) for n in range(8)]

    with contextlib.closing(start()) as worker:
        for n in range(8):
            # Only the first worker stays in the fifth.
            app.tasks["tests.note_and_wait"].apply_async(
                (str(log), n, str(tmp_path / "go") if n == 4 else None), ignore_result=True
            )
        wait_until(lambda: runs()[4] == 1, WAIT, "the fifth task runs")
        worker.kill()
    (tmp_path / "go").touch()
    with contextlib.closing(start()):
        wait_until(lambda: min(runs()) > 0, WAIT, "the others have run")
    again = {n for n, times in enumerate(runs()) if times > 1}
    assert max(runs()) <= 2
    assert again <= ({4} if install else set(range(5)))
    assert 4 in again or not acks_late
