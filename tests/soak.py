"""Load while everything breaks: random cuts, broker restarts, kills and forks.

    python -m tests.soak [seconds]

Prints one line of counts at the end; the exit status is 1 unless lost, duplicated and hung are all
0. Results are persistent, so none may be lost even by `kill -9` of the broker. The exception is a
queue that the broker has not yet written to disk; the forked children wait until it is.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from celery.exceptions import TimeoutError
from kombu.exceptions import OperationalError

from tests.support import inside
from tests.support.apps import client
from tests.support.broker import RabbitMQ, settle
from tests.support.processes import Child, sys_exit_with_atexit
from tests.support.proxy import Proxy
from tests.support.resources import memory
from tests.support.results import answer, await_confirms, expect

ROOT = Path(__file__).parents[1]
PROCESSES = 2
THREADS = 6
#: The timeout of a wait: longer than a restart of the broker, and than the 70 seconds after which
#: RabbitMQ ends a channel that hangs. A wait that reaches it has lost its result.
PATIENCE = 100.0
CONF = {
    "result_persistent": True,
    "result_expires": 600,
    "options": {"heartbeat": 4, "retry_policy": {"max_retries": 60}},
}
#: How many bytes a process may have grown by at the end.
MUCH_GROWTH = 16 * 1024 * 1024
#: The message store of RabbitMQ 3.10, which holds results larger than 4 kB, sometimes never answers
#: the reads of a queue after a restart. That would hide every other failure here.
NO_MESSAGE_STORE = "queue_index_embed_msgs_below = 32kb"


class Load:
    """One process: its threads call, answer and wait until the time is up."""

    def __init__(self, client_url: str, sender_url: str, seconds: float, seed: int) -> None:
        # kombu tries to import it for each connection it makes; a process that is forked while
        # another thread does would wait for Python's lock of that module for ever.
        sys.modules.setdefault("librabbitmq", None)  # type: ignore[arg-type]
        self.app = client(client_url, **CONF)
        self.sender = client(sender_url, **CONF)
        self.rng = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        #: A fork must not find one of kombu's own locks taken: nobody calls meanwhile.
        self.calling = threading.Lock()

    def run(self) -> dict[str, Any]:
        threads = [
            threading.Thread(target=self.repeat, args=(self.rng.random(),), daemon=True)
            for _ in range(THREADS)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        # Memory is compared once everything has happened a few times.
        warm = None
        while time.monotonic() < self.end:
            time.sleep(min(2.0, max(0.0, self.end - time.monotonic())))
            self.fork()
            if warm is None and time.monotonic() - began > (self.end - began) / 3:
                warm = memory()
        for thread in threads:
            thread.join(PATIENCE + 30)
            self.count(hung=int(thread.is_alive()))
        await_confirms(self.sender)  # up to then its results are kept
        growth = memory() - (warm or memory())
        if growth > MUCH_GROWTH:
            print(f"grew by {growth}: client {self.app.backend.stats()}", file=sys.stderr)
        for app in (self.app, self.sender):
            app.backend.close()
        return {**self.counts, "growth": growth}

    def count(self, **more: int) -> None:
        with self.lock:
            self.counts.update(more)

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

    def fork(self) -> None:
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
        self.counts, self.lock = Counter(), threading.Lock()
        self.calling = threading.Lock()
        while not self.call(1):
            pass
        settle()
        self.round(random.Random(os.getpid()))
        return dict(self.counts)


def break_things(rng: random.Random, broker: RabbitMQ, proxies: list[Proxy], end: float) -> Counter:
    """Cut every second or so; restart or kill the broker once in half a minute."""
    done: Counter[str] = Counter()
    next_restart = time.monotonic() + 15
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(rng.uniform(0.1, 2.0), left))
        proxy = rng.choice(proxies)
        what = rng.random()
        if what < 0.7:
            done["cuts"] += proxy.cut(rst=rng.random() < 0.5)
        elif what < 0.9:
            proxy.cut_after(rng.randrange(1, 100_000), rng.choice(("to_client", "to_server")))
        else:
            proxy.freeze()
            time.sleep(rng.uniform(0, 1))
            done["cuts"] += proxy.cut()
            proxy.thaw()
        if time.monotonic() > next_restart and left > 15:
            done["restarts"] += 1
            broker.kill() if rng.random() < 0.5 else broker.stop()
            broker.start()
            next_restart = time.monotonic() + rng.uniform(15, 45)
    return done


def soak(seconds: float, seed: int) -> tuple[str, bool]:
    """The line of counts, and whether all is well."""
    rng = random.Random(seed)
    total: Counter[str] = Counter()
    growth = []
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(RabbitMQ(config=[NO_MESSAGE_STORE]))
        proxies = [stack.enter_context(Proxy(broker.host, broker.port)) for _ in range(2)]
        urls = [broker.url_for(proxy.port) for proxy in proxies]
        end = time.monotonic() + seconds
        loads = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.soak", "--load", *urls, str(seconds), str(n)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
            for n in range(PROCESSES)
        ]
        try:
            total.update(break_things(rng, broker, proxies, end))
            for load in loads:
                try:
                    said = json.loads(load.communicate(timeout=2 * PATIENCE + 60)[0])
                    growth.append(said.pop("growth"))
                    total.update(said)
                except (subprocess.TimeoutExpired, json.JSONDecodeError) as exc:
                    print(f"a process hung or died: {exc!r}", file=sys.stderr)
                    load.send_signal(signal.SIGUSR1)  # it says where
                    time.sleep(1)
                    total["hung"] += 1
        finally:
            for load in loads:
                load.kill()
                load.wait()
    names = ("sent", "received", "lost", "wrong", "duplicated", "hung")
    counts = ", ".join(f"{name} {total[name]}" for name in names)
    grown = max(growth, default=0)
    line = (
        f"soak: {counts}, memory growth {grown / 1024 / 1024:+.1f} MiB "
        f"({seconds:g} s, {total['cuts']} cuts, {total['restarts']} restarts, "
        f"{total['forks']} forks, {total['refused']} calls refused)"
    )
    well = (
        total["sent"] == total["received"] > 0
        and not any(total[name] for name in names[2:])
        and grown < MUCH_GROWTH
    )
    return line, well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", nargs="?", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--load", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        faulthandler.register(signal.SIGUSR1)
        client_url, sender_url, seconds, seed = args.load
        print(json.dumps(Load(client_url, sender_url, float(seconds), int(seed)).run()))
        return 0
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"soak: seed {seed}", file=sys.stderr)
    line, well = soak(args.seconds, seed)
    print(line)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
