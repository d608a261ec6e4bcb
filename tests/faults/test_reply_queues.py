"""Reply queues are deleted with their owners: apps, threads, greenlets, forks, the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support import inside
from tests.support.apps import make_app
from tests.support.backends import BACKENDS, FAST
from tests.support.processes import ROOT
from tests.support.proxy import Proxy
from tests.support.results import answer, answer_once_consumed, call, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import wait_until

#: How long, in seconds, a process may take to end when it only has to close its backends.
EXIT = 1.0


@pytest.fixture
def run(private_broker, worker):
    """run(scenario, backend) -> the output of leaving_child.py, and the time when it ended."""

    @contextmanager
    def start(scenario: str, backend: str = FAST, *args: str, url: str = "") -> Iterator:
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.leaving_child"),
                *(url or private_broker.url, backend, worker.queue, scenario, *args),
            ],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            try:
                yield child
            finally:
                child.kill()

    return start


def soonest(leave: Callable[[], float], at_most: float) -> float:
    """The shortest of up to three times: one may be long on a busy machine.

    A process that waits for something at its end does so each time.
    """
    took = leave()
    for _ in range(2):
        if took >= at_most:
            took = min(took, leave())
    return took


def finish(child: subprocess.Popen, status: int = 0) -> float:
    """Wait for its end; return the seconds from its last line to its end."""
    said, errors = child.communicate("\n", timeout=60)
    ended = time.time()
    assert child.returncode == status, said + errors
    try:
        return ended - float(said.splitlines()[-1])
    except (IndexError, ValueError):
        return 0.0


@pytest.fixture
def queues(private_broker, worker):
    """queues() -> the queues that were made since the test began."""
    before = private_broker.queues().keys()

    def new() -> set[str]:
        return private_broker.queues().keys() - before - {"fastrpc-faults-nobody"}

    return new


def all_gone(queues) -> None:
    wait_until(lambda: not queues(), 10, "no queue is left")


SCENARIOS = [
    *("apps", "kept_apps", "forks", "exit_in_thread", "interrupt", "terminate"),
    *("waiting_daemon", "waiting_daemons"),
]


@pytest.mark.parametrize(
    ("scenario", "backend"),
    [
        *((scenario, backend) for scenario in SCENARIOS for backend in BACKENDS),
        ("threads", FAST),  # on stock some of them wait in vain
        ("unread", FAST),  # stock leaves the queues that nobody has consumed
    ],
)
def test_none_is_left_by_a_process_that_has_ended(run, queues, scenario, backend):
    with run(scenario, backend) as child:
        finish(child)
    all_gone(queues)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["early", "late"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_none_is_left_by_a_child_of_multiprocessing(
    private_broker, worker, queues, method, when, backend
):
    """And its threads get their results, also those that ask after its target has returned."""
    said = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.multiprocessing_child"),
            *(private_broker.url, backend, worker.queue, method, when),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (said.returncode, said.stdout) == (0, "late\n"), said.stderr
    all_gone(queues)


def test_none_is_left_by_a_daemon_thread_that_runs_to_the_end(run, queues):
    """Otherwise it would declare them again."""
    for _ in range(3):
        with run("sending_daemon") as child:
            finish(child)
    all_gone(queues)


@pytest.mark.parametrize("backend", BACKENDS)
def test_none_is_left_by_an_app_that_was_closed(run, queues, backend):
    """Its process continues."""
    with run("collected_app", backend) as child:
        assert child.stdout.readline() == "collected\n"
        all_gone(queues)
        finish(child)


def test_of_a_process_that_sigterm_kills_they_expire(private_broker, make_client, sender, queues):
    """It cannot run any code at its end, as after kill -9."""
    pid = os.fork()
    if not pid:
        try:
            # rabbitmqctl may take seconds to list the queues.
            expect(make_client(private_broker.url, result_expires=10), 1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == signal.SIGTERM
    assert len(queues()) == 1
    wait_until(lambda: not queues(), 30, "it has expired")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_greenlets_that_come_and_go_share_a_few(run, queues):
    """On stock some of them wait in vain."""
    pytest.importorskip("gevent")
    with run("greenlets", FAST, "1500") as child:
        assert child.stdout.readline() == "served\n"
        assert 0 < len(queues()) <= 21  # and the main one
        finish(child)
    all_gone(queues)


class TestThreads:
    def test_that_come_and_go_share_a_few(self, app, sender, queues):
        def request(_n: int) -> str:
            [result] = expect(app, 1)
            answer(sender, app.backend.oid, [result], "there")
            return result.get(timeout=20)

        for _ in range(40):
            assert run_threads(5, request) == ["there"] * 5
        assert len(queues()) <= 5
        assert set(inside.reply_queues(app)) == queues()

    def test_results_of_a_thread_that_ended_still_arrive(self, app, sender):
        """By then another thread has its queue."""
        oid, first = Background(lambda: (app.backend.oid, expect(app, 3))).result(10)
        again, second = Background(lambda: (app.backend.oid, expect(app, 3))).result(10)
        assert again == oid
        answer(sender, oid, second)
        answer(sender, oid, first)
        assert [result.get(timeout=10) for result in first + second] == [0, 1, 2] * 2

    def test_concurrent_threads_have_one_each(self, app):
        all_have_one = threading.Barrier(6)
        names = run_threads(6, lambda n: (app.backend.oid, all_have_one.wait(20))[0])
        assert len(set(names)) == 6

    def test_those_of_an_app_whose_backend_was_made_late(self, private_broker, sender):
        """Celery names the queue of the first task before it asks for the backend."""
        app = make_app(private_broker.url, FAST, "fastrpc-faults-nobody")
        oid = app.thread_oid
        [result] = expect(app, 1)
        assert app.thread_oid == oid == app.backend.oid
        answer(sender, oid, [result], "there")
        assert result.get(timeout=10) == "there"
        app.backend.close()

    def test_one_that_only_froze_a_signature_waits_on_its_own(self, app, sender):
        """Another thread sends the task, as a client does with the `link` of one."""
        call(app, sender, 1)  # the connection is there

        def freeze_and_wait() -> str:
            result = app.signature("tests.echo").freeze()
            oid = app.thread_oid
            Background(lambda: answer_once_consumed(app, sender, oid, result, "there"))
            return result.get(timeout=10)

        assert Background(freeze_and_wait).result(20) == "there"


class TestLeavingSoon:
    @pytest.mark.parametrize("scenario", ["waiting_daemon", "waiting_daemons"])
    def test_while_a_daemon_thread_waits(self, run, scenario):
        def leave() -> float:
            with run(scenario) as child:
                return finish(child)

        assert soonest(leave, EXIT) < EXIT

    def test_while_the_broker_is_silent(self, run, private_broker):
        def leave() -> float:
            with (
                Proxy(private_broker.host, private_broker.port) as proxy,
                run("silent_broker", url=private_broker.url_for(proxy.port)) as child,
            ):
                assert child.stdout.readline() == "silence, please\n"
                proxy.freeze()
                return finish(child)

        at_most = EXIT + 0.2  # the interpreter's own end
        assert soonest(leave, at_most) < at_most

    def test_other_threads_continue_if_only_a_backend_is_closed(self, app, sender):
        """They connect again."""
        [result] = expect(app, 1)
        oid = app.backend.oid
        waiting = Background(lambda: result.get(timeout=20))
        wait_until(lambda: inside.role_is_taken(app), 5, "it reads")
        app.backend.close()
        [second] = expect(app, 1)
        answer(sender, oid, [result, second], "there")
        assert waiting.result(10) == "there"
        assert second.get(timeout=10) == "there"
