"""Load while everything breaks: random cuts, broker restarts, kills and forks.

    python -m tests.soak [seconds]

Prints one line of counts at the end; the exit status is 1 unless lost, duplicated and hung are all
0. Results are persistent, so none may be lost even by `kill -9` of the broker. The exception is a
queue that the broker has not yet written to disk; the forked children wait until it is.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from tests.support import inside, soaking
from tests.support.apps import client
from tests.support.broker import RabbitMQ, settle
from tests.support.processes import Child, sys_exit_with_atexit
from tests.support.proxy import Proxy
from tests.support.results import answer, await_confirms, expect
from tests.support.soaking import FAILURES, MUCH_GROWTH, PATIENCE, Tally

PROCESSES = 2
CONF = {
    "result_persistent": True,
    "result_expires": 600,
    "options": {"heartbeat": 4, "retry_policy": {"max_retries": 60}},
}


class Load(soaking.Load):
    """One process: its threads call, answer and wait until the time is up."""

    threads = 6
    patience = PATIENCE + 30

    def __init__(self, client_url: str, sender_url: str, seconds: float, seed: int) -> None:
        super().__init__(seconds, seed)
        # kombu tries to import it for each connection it makes; a process that is forked while
        # another thread does would wait for Python's lock of that module for ever.
        sys.modules.setdefault("librabbitmq", None)  # type: ignore[arg-type]
        self.app = client(client_url, **CONF)
        self.sender = client(sender_url, **CONF)
        #: A fork must not find one of kombu's own locks taken: nobody calls meanwhile.
        self.calling = threading.Lock()

    def run(self) -> dict[str, Any]:
        memory = self.run_threads()
        await_confirms(self.sender)  # up to then its results are kept
        growth = memory.bytes()
        if growth > MUCH_GROWTH:
            print(f"grew by {growth}: client {self.app.backend.stats()}", file=sys.stderr)
        for app in (self.app, self.sender):
            app.backend.close()
        return {**self.counts, "growth": growth}

    def repeat(self, seed: float) -> None:
        rng = random.Random(seed)
        while time.monotonic() < self.end:
            self.round(rng)

    def call(self, count: int) -> list[Any]:
        try:
            with self.calling:
                return expect(self.app, count)
        except (OperationalError, *self.app.connection_for_write().connection_errors):
            # Celery's own connection for calls: whoever calls hears of it, nothing was sent.
            self.count(refused=1)
            time.sleep(0.2)
            return []

    def round(self, rng: random.Random) -> None:
        results = self.call(rng.choice((1, 10, 300)))
        if not results:
            return
        self.count(sent=len(results))
        heard: Counter[str] = Counter()
        for result in results:
            result.then(lambda result: heard.update([result.id]))
        value = "x" * rng.choice((10, 1_000, 20_000)) + results[0].id
        sending = threading.Thread(
            target=answer, args=(self.sender, self.app.backend.oid, results, value), daemon=True
        )
        sending.start()
        if rng.random() < 0.5:
            sending.join()
        deadline = time.monotonic() + PATIENCE
        for result in rng.sample(results, len(results)):
            self.wait(result, value, deadline)
        sending.join()
        self.count(duplicated=sum(times - 1 for times in heard.values()))

    def wait(self, result: Any, value: str, deadline: float) -> None:
        try:
            right = result.get(timeout=max(0.0, deadline - time.monotonic())) == value
        except TimeoutError:
            late = time.monotonic() - deadline
            backend = self.app.backend
            intake = inside.intake(self.app)
            print(
                f"lost: {result.id} of {backend.oid}, {late:.1f} s late,",
                f"in the table {backend.client.table.state(result.id)},",
                f"consumed {intake and intake.consumed}, away {intake and intake.away},",
                f"client {backend.stats()}, sender {self.sender.backend.stats()}",
                file=sys.stderr,
            )
            self.count(lost=1, hung=int(late > 1))
        else:
            self.count(received=int(right), wrong=int(not right))

    def meanwhile(self) -> None:
        """Fork a child that runs and ends while its parent's threads run."""
        with self.calling:
            # Until the broker is there it may take kombu as long as a round may take.
            child = Child(self.in_child, sys_exit_with_atexit, patience=2 * int(PATIENCE))
        try:
            self.count(forks=1, **child.result())
        except AssertionError as exc:
            print(f"a forked child failed: {exc}", file=sys.stderr)
            self.count(hung=1)

    def in_child(self) -> dict[str, int]:
        Tally.__init__(self)
        self.calling = threading.Lock()
        while not self.call(1):
            pass
        settle()
        self.round(random.Random(os.getpid()))
        return dict(self.counts)


def soak(seconds: float, seed: int) -> tuple[str, bool]:
    """The line of counts, and whether all is well."""
    rng = random.Random(seed)
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(RabbitMQ(config=[soaking.NO_MESSAGE_STORE]))
        proxies = [stack.enter_context(Proxy(broker.host, broker.port)) for _ in range(2)]
        urls = [broker.url_for(proxy.port) for proxy in proxies]
        end = time.monotonic() + seconds
        commands = [["tests.soak", "--load", *urls, str(seconds), str(n)] for n in range(PROCESSES)]
        loads = stack.enter_context(soaking.Loads(commands))
        done = soaking.break_things(rng, proxies, end, partial(soaking.restart, rng, broker))
        total, growth = loads.counts()
    line = (
        f"soak: {soaking.listed(total, ('sent', 'received', *FAILURES))}, "
        f"memory growth {soaking.mebibytes(growth)} "
        f"({seconds:g} s, {soaking.listed(done, ('cuts', 'restarts', 'kills'))}, "
        f"forks {total['forks']}, calls refused {total['refused']})"
    )
    return line, soaking.verdict(total, growth)


def load(client_url: str, sender_url: str, seconds: str, seed: str) -> dict[str, Any]:
    return Load(client_url, sender_url, float(seconds), int(seed)).run()


if __name__ == "__main__":
    sys.exit(soaking.main(__doc__, soak, load))
