"""What the soaks share: the faults that they make, their processes, and their line of counts."""

from __future__ import annotations

import argparse
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
from collections.abc import Callable, Iterable
from typing import Any

from tests.support.broker import RabbitMQ
from tests.support.processes import ROOT
from tests.support.proxy import Proxy
from tests.support.resources import memory

#: The timeout of a wait: longer than a restart of the broker, and than the 70 seconds after which
#: RabbitMQ ends a channel that hangs. A wait that reaches it has lost its result.
PATIENCE = 100.0
#: How many bytes a process may have grown by at the end.
MUCH_GROWTH = 16 * 1024 * 1024
#: The message store of RabbitMQ 3.10, which holds results larger than 4 kB, sometimes never answers
#: the reads of a queue after a restart. That would hide every other failure here.
NO_MESSAGE_STORE = "queue_index_embed_msgs_below = 32kb"
#: Counts that must be 0 at the end.
FAILURES = ("lost", "wrong", "duplicated", "hung")


class Tally:
    """Counts that many threads add to."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, **more: int) -> None:
        with self._lock:
            self.counts.update(more)


class Growth:
    """How much the memory grows once everything has happened a few times."""

    def __init__(self, end: float) -> None:
        self._warm_at = time.monotonic() + (end - time.monotonic()) / 3
        self._warm: int | None = None

    def look(self) -> None:
        """Call it now and then."""
        if self._warm is None and time.monotonic() > self._warm_at:
            self._warm = memory()

    def bytes(self) -> int:
        return memory() - (self._warm or memory())


class Load(Tally):
    """A process whose threads call `repeat`, which goes on until the time is up."""

    #: How many threads, and how long, in seconds, each may need after the end.
    threads: int
    patience: float

    def __init__(self, seconds: float, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.end = time.monotonic() + seconds

    def repeat(self, seed: float) -> None:
        raise NotImplementedError

    def meanwhile(self) -> None:
        """Called every two seconds, while the threads run."""

    def run_threads(self) -> Growth:
        """Run the threads until they end; return what has watched the memory."""
        threads = [
            threading.Thread(target=self.repeat, args=(self.rng.random(),), daemon=True)
            for _ in range(self.threads)
        ]
        memory = Growth(self.end)
        for thread in threads:
            thread.start()
        while (left := self.end - time.monotonic()) > 0:
            time.sleep(min(2.0, left))
            self.meanwhile()
            memory.look()
        for thread in threads:
            thread.join(self.patience)
            self.count(hung=int(thread.is_alive()))
        return memory


def break_things(
    rng: random.Random,
    proxies: list[Proxy],
    end: float,
    seldom: Callable[[], str],
    pauses: tuple[float, float] = (15, 45),
) -> Counter[str]:
    """Cut every second or so; in between call `seldom`, which breaks more and says what.

    `pauses` are the shortest and the longest time, in seconds, between two calls of it. Returns how
    often each thing was done.
    """
    done: Counter[str] = Counter()
    next_time = time.monotonic() + pauses[0]
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(rng.uniform(0.1, 2.0), left))
        done["cuts"] += break_connections(rng, rng.choice(proxies))
        if time.monotonic() > next_time and left > pauses[0]:
            done[seldom()] += 1
            next_time = time.monotonic() + rng.uniform(*pauses)
    return done


def break_connections(rng: random.Random, proxy: Proxy) -> int:
    """Cut at once, after some bytes, or after some silence; return how many are cut at once."""
    what = rng.random()
    if what < 0.7:
        return proxy.cut(rst=rng.random() < 0.5)
    if what < 0.9:
        proxy.cut_after(rng.randrange(1, 100_000), rng.choice(("to_client", "to_server")))
        return 0
    proxy.freeze()
    time.sleep(rng.uniform(0, 1))
    cut = proxy.cut()
    proxy.thaw()
    return cut


def restart(
    rng: random.Random, broker: RabbitMQ, before_kill: Callable[[], object] = lambda: None
) -> str:
    """Stop the broker, or `kill -9` it, and start it again."""
    if rng.random() < 0.5:
        broker.restart()
        return "restarts"
    before_kill()
    broker.kill()
    broker.start()
    return "kills"


class Loads:
    """Processes that run the load of a soak, and print their counts as one line of JSON.

    `commands` are their arguments, from the name of the module on.
    """

    def __init__(self, commands: Iterable[list[str]]) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
            for command in commands
        ]

    def __enter__(self) -> Loads:
        return self

    def __exit__(self, *exc_info) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def counts(self) -> tuple[Counter[str], int]:
        """The sum of their counts, and the largest growth."""
        total: Counter[str] = Counter()
        growths = []
        for process in self.processes:
            try:
                said = json.loads(process.communicate(timeout=2 * PATIENCE + 60)[0])
                growths.append(said.pop("growth"))
                total.update(said)
            except (subprocess.TimeoutExpired, json.JSONDecodeError) as exc:
                print(f"a process hung or died: {exc!r}", file=sys.stderr)
                process.send_signal(signal.SIGUSR1)  # it says where
                time.sleep(1)
                total["hung"] += 1
        return total, max(growths, default=0)


def verdict(total: Counter[str], growth: int, failures: Iterable[str] = FAILURES) -> bool:
    """Whether all is well."""
    return (
        total["sent"] == total["received"] > 0
        and not any(total[name] for name in failures)
        and growth < MUCH_GROWTH
    )


def listed(total: Counter[str], names: Iterable[str]) -> str:
    return ", ".join(f"{name} {total[name]}" for name in names)


def mebibytes(count: int) -> str:
    return f"{count / 1024 / 1024:+.1f} MiB"


def main(
    what: str | None,
    soak: Callable[[float, int], tuple[str, bool]],
    load: Callable[..., dict[str, Any]],
) -> int:
    """The command line: run `soak(seconds, seed)`, or the load of one of its processes."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("seconds", nargs="?", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--load", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        faulthandler.register(signal.SIGUSR1)
        print(json.dumps(load(*args.load)))
        return 0
    seed = random.randrange(1 << 32) if args.seed is None else args.seed
    print(f"soak: seed {seed}", file=sys.stderr)
    line, well = soak(args.seconds, seed)
    print(line)
    return 0 if well else 1
