"""After a fork: the child has its own queue, connection and table, the parent keeps its own."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from celery import Celery

from tests.support import inside
from tests.support.apps import make_app
from tests.support.broker import free_port
from tests.support.installed import installed
from tests.support.processes import ROOT, Child, sys_exit_with_atexit
from tests.support.proxy import Proxy
from tests.support.results import answer, call, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import wait_until
from tests.support.worker import Worker

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here"),
    # Python 3.12 says so of every fork with threads: here it is the point.
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


@pytest.fixture
def live(app, sender) -> Celery:
    """A client in use: connected, with one result received and one awaited."""
    first, _ = expect(app, 2)
    answer(sender, app.backend.oid, [first], "first")
    assert first.get(timeout=10) == "first"
    return app


@contextmanager
def connected(app: Celery, sender: Celery):
    """Check that neither of the open connections is replaced inside the block."""
    intake, link = inside.intake(app), inside.link(sender)
    yield
    assert call(app, sender, 10) == list(range(10))
    assert (inside.intake(app), inside.link(sender)) == (intake, link)
    assert app.backend.stats()["reconnects"] == 0
    assert sender.backend.stats()["resent"] == 0


class TestPlainFork:
    def test_parent_and_child_call_and_wait_at_the_same_time(self, live, sender):
        with connected(live, sender):
            children = [Child(lambda: call(live, sender, 500)) for _ in range(3)]
            mine = call(live, sender, 500)
            assert [child.result() for child in children] == [list(range(500))] * 3
            assert mine == list(range(500))

    def test_the_child_has_its_own_queue_connection_and_table(self, live, sender):
        backend = live.backend

        def look() -> dict[str, Any]:
            before = backend.stats()
            call(live, sender, 1)
            return {
                "oid": backend.oid,
                "queues": inside.reply_queues(live),
                "socket": inside.intake_socket(live).getsockname(),
                "before": before,
                "after": backend.stats()["received"],
            }

        [waiting] = expect(live, 1)
        waiting.ready()
        backend.add_pending_result(waiting)
        mine = inside.intake_socket(live).getsockname()
        child = Child(look).result()
        assert child["oid"] != backend.oid
        assert child["queues"] == [child["oid"]]
        assert tuple(child["socket"]) != mine
        assert (child["before"]["waiting"], child["before"]["received"]) == (0, 0)
        assert child["after"] == 1
        assert backend.stats()["waiting"] == 1

    def test_celerys_own_signal_is_celerys_to_send(self, live, sender):
        """`on_after_fork`: in children of billiard, once; not in others."""
        heard = []
        live.on_after_fork.connect(lambda **kwargs: heard.append(kwargs), weak=False)
        assert Child(lambda: (call(live, sender, 1), len(heard))).result() == [[0], 0]

    @pytest.mark.parametrize("leave", [None, sys_exit_with_atexit], ids=["_exit", "sys.exit"])
    @pytest.mark.parametrize("uses", [True, False], ids=["calls", "idle"])
    def test_the_parent_goes_on_when_the_child_has_left(self, live, sender, leave, uses):
        with connected(live, sender):
            for _ in range(3):
                child = Child(lambda: call(live, sender, 20) if uses else None, leave)
                child.result()

    def test_the_child_leaves_the_parents_sockets_open(self, private_broker, make_client):
        """A proxy sees neither a byte nor a close on any of the parent's connections."""
        with Proxy(private_broker.host, private_broker.port) as proxy:
            app = make_client(private_broker.url_for(proxy.port))
            call(app, app, 5)
            wait_until(lambda: app.backend.stats()["unconfirmed"] == 0, 10, "all is confirmed")
            wait_until(lambda: not inside.owes_acknowledgement(app), 10, "all is acknowledged")
            before = proxy.stats
            Child(lambda: None, sys_exit_with_atexit).result()
            Child(lambda: None).result()
            assert proxy.stats == before
            # Celery's own connection, which sends the tasks, must stay open as well.
            assert call(app, app, 5) == list(range(5))
            assert proxy.stats["accepted"] == before["accepted"]

    def test_results_of_the_parents_calls_reach_the_parent(self, live, sender):
        """Called before the fork, answered after it."""
        results = expect(live, 100)
        oid = live.backend.oid
        child = Child(lambda: call(live, sender, 100))
        answer(sender, oid, results)
        assert child.result() == list(range(100))
        assert [result.get(timeout=10) for result in results] == list(range(100))

    def test_forked_while_another_thread_reads_and_others_sleep(self, live, sender):
        """The child inherits locks that nobody there will ever release."""
        results = expect(live, 4)
        oid = live.backend.oid
        waiters = Background(lambda: run_threads(4, lambda n: results[n].get(timeout=30)))
        wait_until(lambda: inside.sleepers(live) == 3, 10, "they wait")
        children = [Child(lambda: call(live, sender, 50)) for _ in range(4)]
        assert [child.result() for child in children] == [list(range(50))] * 4
        answer(sender, oid, results)
        assert waiters.result(10) == list(range(4))

    def test_forked_while_another_thread_sends_results(self, app, sender):
        """The child starts with no window: the unconfirmed results are the parent's."""
        stop = threading.Event()
        oid = app.backend.oid
        assert call(app, sender, 1) == [0]
        results = expect(app, 2_000)

        def send() -> None:
            for n, result in enumerate(results):
                answer(sender, oid, [result], n)
            stop.set()

        def begin_anew() -> list[Any]:
            return [sender.backend.stats()["unconfirmed"], call(app, sender, 5)]

        sending = Background(send)
        children = []
        while not stop.is_set() and len(children) < 8:
            children.append(
                Child(lambda: (sender.backend.stats()["unconfirmed"], call(app, sender, 5)))
            )
        for child in children:
            assert child.result() == [0, list(range(5))]
        sending.result(30)
        assert [result.get(timeout=20) for result in results] == list(range(2_000))
        assert app.backend.stats()["duplicates"] == 0

    def test_the_child_of_a_child(self, live, sender):
        def child() -> list[Any]:
            inner = Child(lambda: call(live, sender, 10))
            return [call(live, sender, 10), inner.result()]

        assert Child(child).result() == [list(range(10))] * 2

    def test_a_child_that_leaves_takes_its_queue_along(self, live, sender, private_broker):
        def child() -> str:
            call(live, sender, 1)
            return live.backend.oid

        clean = Child(child, sys_exit_with_atexit).result()
        queues = private_broker.queues()
        assert clean not in queues
        assert live.backend.oid in queues


def _child_of_multiprocessing(app: Celery, sender: Celery, pipe: Any) -> None:
    pipe.send(call(app, sender, 100))
    pipe.close()


_inherited: list[Celery] = []


def _in_pool(count: int) -> list[Any]:
    app, sender = _inherited
    return call(app, sender, count)


@pytest.mark.parametrize("switched_on", [True, False], ids=["installed", "stock"])
def test_an_app_with_another_backend_sends_in_parent_and_child(private_broker, switched_on):
    """Also one of which nothing is ours: its pools are closed with all the others."""
    queue = f"fastrpc-faults-forks-{os.getpid()}-{switched_on}"
    with installed() if switched_on else nullcontext():
        app = make_app(private_broker.url, "disabled://", queue)
        ids = [app.tasks["tests.echo"].delay(n).id for n in range(2)]
        ids += Child(lambda: [app.tasks["tests.echo"].delay(n).id for n in range(2)]).result()
        ids.append(app.tasks["tests.echo"].delay(5).id)
        with app.connection_for_read() as connection:
            got = []
            channel = connection.default_channel
            wait_until(
                lambda: channel.queue_declare(queue, passive=True).message_count == len(ids),
                10,
                "all have arrived",
            )
            while (message := channel.basic_get(queue, no_ack=True)) is not None:
                got.append(message.properties["correlation_id"])
            channel.queue_delete(queue)
        assert sorted(got) == sorted(ids)
        app.close()


class TestMultiprocessing:
    def test_processes(self, live, sender):
        context = multiprocessing.get_context("fork")
        with connected(live, sender):
            pipes, processes = [], []
            for _ in range(3):
                mine, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child_of_multiprocessing, args=(live, sender, theirs), daemon=True
                )
                process.start()
                pipes.append(mine)
                processes.append(process)
            assert call(live, sender, 100) == list(range(100))
            for pipe, process in zip(pipes, processes, strict=True):
                assert pipe.poll(30)
                assert pipe.recv() == list(range(100))
                process.join(20)
                assert process.exitcode == 0

    def test_a_pool(self, live, sender):
        _inherited[:] = [live, sender]
        with connected(live, sender), multiprocessing.get_context("fork").Pool(3) as pool:
            waiting = pool.map_async(_in_pool, [50] * 12, chunksize=1)
            assert call(live, sender, 100) == list(range(100))
            assert waiting.get(30) == [list(range(50))] * 12


def test_prefork_children_send_tasks_and_read_their_results(private_broker, make_client):
    """allow_join_result: the children are forked from a worker that has sent results itself."""
    queue = "fastrpc-faults-joins"
    with (
        Worker(private_broker.url, "fastrpc://", queues=(queue,), concurrency=3),
        Worker(private_broker.url, "fastrpc://", pool="solo", queues=(f"{queue}-leaf",)),
    ):
        app = make_client(private_broker.url, queue)
        join_one = app.tasks["tests.join_one"]
        results = [join_one.delay(n) for n in range(60)]
        assert [result.get(timeout=40) for result in results] == list(range(60))


SERVER = '''
"""As gunicorn --preload: the application is made, and used, before the workers are forked."""
import os, signal, socket, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from tests.support.apps import client
if sys.argv[3:]:
    import fastrpc
    fastrpc.install()

app = client(sys.argv[1], "fastrpc-faults")
echo = app.tasks["tests.echo"]
assert echo.delay("preloaded").get(timeout=30) == "preloaded"

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        said = echo.delay(self.path).get(timeout=20)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{os.getpid()} {said}".encode())
    def log_message(self, *args):
        pass

class Server(ThreadingHTTPServer):
    daemon_threads = True

server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
server.socket.setblocking(False)
children = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        signal.alarm(90)
        signal.signal(signal.SIGTERM, lambda *args: sys.exit(0))
        server.serve_forever()
    children.append(pid)
print("serving", flush=True)
sys.stdin.read()
assert echo.delay("the parent").get(timeout=20) == "the parent"
for pid in children:
    os.kill(pid, signal.SIGTERM)
for pid in children:
    print("left with", os.waitpid(pid, 0)[1], flush=True)
assert echo.delay("the parent").get(timeout=20) == "the parent"
print("reconnects", app.backend.stats()["reconnects"])
'''


@pytest.mark.parametrize("options", [[], ["install"]], ids=["", "installed"])
def test_a_preloading_server(private_broker, worker, options):
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, private_broker.url, str(port), *options],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout.readline() == "serving\n"

            def ask(n: int) -> set[str]:
                seen = set()
                for i in range(20):
                    url = f"http://127.0.0.1:{port}/{n}-{i}"
                    pid, said = urllib.request.urlopen(url, timeout=30).read().decode().split()
                    assert said == f"/{n}-{i}"
                    seen.add(pid)
                return seen

            seen = set().union(*run_threads(12, ask))
            server.stdin.close()
            told = server.stdout.read()
            assert server.wait(20) == 0, told
        finally:
            server.kill()
    assert len(seen) >= 2, "the requests did not spread over the forked servers"
    assert re.findall(r"left with (\d+)", told) == ["0"] * 3
    assert "reconnects 0" in told


def test_time_is_not_lost_in_a_fork(live, sender):
    """The exit of a child neither waits for the parent's confirms nor for its queues."""
    began = time.monotonic()
    for _ in range(5):
        Child(lambda: None, sys_exit_with_atexit).result()
    assert time.monotonic() - began < 5
