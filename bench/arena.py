"""Compares implementations in turns, in one run, each in a process of its own.

pytest-benchmark measures one parameter after the other; on a shared machine that compares two
different quarters of an hour. So the first parameter of a benchmark that is run measures *all*
of its implementations, round by round, A B C A B C. Each parameter then passes its own samples to
pytest-benchmark, whose clock (`replayed_time`, the `timer` of every benchmark here) advances by the
samples. A sample is seconds per operation, so the table's OPS are results, calls or tasks a second.
Only the parameters that were selected (`-k`) take part.

Implementations run in client processes (`bench.client`) that live for the whole session: one
process cannot load both the plain and the Cython build of py-amqp, and the heap and imports of one
implementation must not slow down another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.worker import Worker

from .cost import session_pids
from .peers import PEERS
from .peers.settings import Settings

__all__ = [
    *("KIB", "MIB", "QUICK", "ROOT", "Arena", "Client", "Race"),
    *("contestants", "fresh", "full_only", "replayed_time", "rounds"),
]

ROOT = Path(__file__).parents[1]
#: Where `make bench` puts py-amqp built with its own Cython speed-ups.
SPEEDUPS = ROOT / ".make" / "amqp-speedups"
#: Fewer rounds and smaller sizes: `make bench-quick`.
QUICK = os.environ.get("FASTRPC_BENCH_QUICK") == "1"
#: The measured parts: CPU time of client, worker and servers, in microseconds per operation.
CPU = ("client", "worker", "servers")

KIB, MIB = 1024, 1024 * 1024

full_only = pytest.mark.skipif(QUICK, reason="left out of the quick run")

#: Stands for the URL of the session's own Redis.
REDIS = "redis://"
BACKENDS = {
    "rpc": "rpc://",
    "rpc-cython": "rpc://",
    "fastrpc": "fastrpc://",
    "fastrpc-noconfirm": "fastrpc://?publisher_confirms=0",
    "fastrpc-busywait": "fastrpc://?busy_wait=0.002",
    "fastrpc-chords": "fastrpc://?chords=1",
    "installed": "rpc://",
    "installed-chords": "fastrpc://?chords=1",
    "raw": "rpc://",
    "librabbitmq": "rpc://",
    "redis": REDIS,
    "dramatiq": REDIS,
    "taskiq": REDIS,
}

#: Those whose processes call fastrpc.install() first.
INSTALLED = {"installed", "installed-chords"}


def rounds(full: int) -> int:
    """The number of rounds: `full`, or the fewest that a median needs."""
    return min(full, 3) if QUICK else full


def contestants(*names: str) -> pytest.MarkDecorator:
    """The implementations of one benchmark, as its parameter `who`."""
    return pytest.mark.parametrize("who", names)


def selected(session: pytest.Session) -> set[str]:
    """All implementations that take part in this session."""
    found = (getattr(item, "callspec", None) for item in session.items)
    return {spec.params["who"] for spec in found if spec is not None and "who" in spec.params}


_replayed = 0.0


def replayed_time() -> float:
    """The clock of all benchmarks: it stands still until `_replay` moves it."""
    return _replayed


def _replay(samples: Iterator[float]) -> None:
    global _replayed
    _replayed += next(samples)


class Client:
    """A process of `bench.client` or of a peer; each method name is a measurement there."""

    def __init__(self, who: str, config: dict[str, Any], env: dict[str, str]) -> None:
        self.who = who
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", PEERS[who].module if who in PEERS else "bench.client"),
                json.dumps({"who": who, **config}),
            ],
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __getattr__(self, name: str) -> Callable[..., dict[str, Any]]:
        def measure(**arguments: Any) -> dict[str, Any]:
            print(json.dumps([name, arguments]), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
            if not answer:
                raise RuntimeError(f"the client process of {self.who} ended")
            reply = json.loads(answer)
            if "error" in reply:
                raise RuntimeError(f"{self.who}, {name}{arguments}:\n{reply['error']}")
            return reply

        return measure

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stdout.close()


class Arena:
    """The servers, and the client and worker processes, of one session."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._clients: dict[str, Client] = {}
        self._workers: dict[str, Worker | Answering] = {}
        self._pool = ""
        self._races: dict[Any, dict[str, Any]] = {}
        #: Versions of the servers and libraries in use.
        self.versions: dict[str, str] = {}
        self.capture = request.config.pluginmanager.getplugin("capturemanager")

    def say(self, text: str, passing: bool = False) -> None:
        """Show progress in spite of pytest's capturing; `passing` text only on a terminal."""
        with self.capture.global_and_fixture_disabled():
            if sys.stdout.isatty():
                print(f"\r\033[K{text}", end="" if passing else "\n", flush=True)
            elif not passing:
                print(text, flush=True)

    # -- who takes part

    def backend(self, who: str) -> str:
        if BACKENDS[who] == REDIS:
            return self._request.getfixturevalue("redis_server").url
        return BACKENDS[who]

    def missing(self, who: str) -> str:
        """Why this implementation is left out, or an empty text."""
        if who in PEERS:
            return PEERS[who].missing()
        if who == "rpc-cython" and not list(SPEEDUPS.glob("amqp/*.so")):
            return f"py-amqp with its Cython speed-ups is not in {SPEEDUPS}: make bench-deps"
        return ""

    def say_who_is_missing(self) -> None:
        """Name the selected implementations that are left out, and why."""
        for who in sorted(BACKENDS.keys() & selected(self._request.session)):
            if reason := self.missing(who):
                self.say(f"{who} is left out: {reason}")

    def _env(self, who: str) -> dict[str, str]:
        """The environment of its processes; skips if it is not installed."""
        if reason := self.missing(who):
            pytest.skip(f"{who}: {reason}")
        folder = PEERS[who].folder if who in PEERS else SPEEDUPS if who == "rpc-cython" else None
        if folder is None:
            return {}
        return {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}

    def start_client(self, who: str) -> Client:
        """A new client process; the caller closes it."""
        env = self._env(who)
        broker = self._request.getfixturevalue("broker")
        servers = [broker.pid] if hasattr(broker, "pid") else []
        if BACKENDS[who] == REDIS:
            servers.append(self._request.getfixturevalue("redis_server").process.pid)
        config = {
            "broker": broker.url,
            "backend": self.backend(who),
            "install": who in INSTALLED,
            "servers": servers,
        }
        client = Client(who, config, env)
        try:
            self.versions.update(client.hello()["versions"])
        except BaseException:
            client.close()
            raise
        return client

    def client(self, who: str) -> Client:
        """The session's client process of that implementation."""
        if who not in self._clients:
            self._clients[who] = self.start_client(who)
        return self._clients[who]

    @contextlib.contextmanager
    def fresh_client(self, who: str) -> Iterator[Client]:
        """A new process, to measure its memory."""
        client = self.start_client(who)
        try:
            yield client
        finally:
            client.close()

    def worker(self, who: str, pool: str) -> Worker | Answering:
        """A real worker for that implementation; only the workers of one pool run at a time."""
        if pool != self._pool:
            self._close_workers()
            self._pool = pool
        if who not in self._workers:
            broker, env = self._request.getfixturevalue("broker"), self._env(who)
            queue = f"bench-{who}-{pool}-{os.getpid()}"
            if who == "raw":
                command = [sys.executable, "-m", "bench.echo", broker.url, queue]
                self._workers[who] = Answering(queue, command, env)
            elif who in PEERS:
                command, processes = PEERS[who].workers[pool]
                settings = Settings(broker.url, self.backend(who), queue)
                env = {**env, **settings.env()}
                self._workers[who] = Answering(queue, command, env, processes)
            else:
                concurrency = 16 if pool in ("gevent", "eventlet") else 2
                self._workers[who] = Worker(
                    broker.url,
                    self.backend(who),
                    pool=pool,
                    concurrency=concurrency,
                    queues=(queue,),
                    # With few, Celery's event loop may sleep before it acknowledges short tasks.
                    conf={"worker_prefetch_multiplier": 128 // concurrency},
                    env=env,
                    install=who in INSTALLED,
                )
        return self._workers[who]

    def at_work(self, who: str, pool: str) -> dict[str, Any]:
        """The data that a client needs about its worker."""
        worker = self.worker(who, pool)
        return {"queue": worker.queue, "workers": session_pids(worker.pid)}

    def _close_workers(self) -> None:
        for worker in self._workers.values():
            worker.ask_to_stop()
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def close(self) -> None:
        self._close_workers()
        for client in self._clients.values():
            client.close()


def fresh(arena: Arena, who: str, measure: str, **arguments: Any) -> dict[str, Any]:
    """A measurement in a process of its own."""
    with arena.fresh_client(who) as client:
        return getattr(client, measure)(**arguments)


class Answering:
    """A worker without Celery: `bench.echo`, or a peer's.

    Each of its `processes` that consumes writes a line; all have when the constructor returns.
    """

    def __init__(
        self, queue: str, command: list[str], env: dict[str, str], processes: int = 1
    ) -> None:
        self.queue = queue
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self.process.pid
        for _ in range(processes):
            if not self.process.stdout.readline():
                self.close()
                raise RuntimeError(f"it did not start: {' '.join(command)}")

    def ask_to_stop(self) -> None:
        self.process.terminate()

    def close(self) -> None:
        """Stop, by force if necessary."""
        self.ask_to_stop()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)
        self.process.stdout.close()


class Race:
    """Runs the rounds of one benchmark in turns, and returns the samples of one implementation."""

    def __init__(self, request: pytest.FixtureRequest, benchmark: Any, arena: Arena | None) -> None:
        self.request, self.benchmark, self.arena = request, benchmark, arena

    def __call__(
        self,
        run: Callable[[str], dict[str, Any]],
        rounds: int,
        prepare: Callable[[str], Any] | None = None,
        finish: Callable[[], Any] | None = None,
    ) -> None:
        """`run(who)` does one round and returns its sample: `wall` and CPU seconds per operation.

        `prepare(who)` is called for each before the rounds (it may skip), `finish()` after them.
        """
        node = self.request.node
        who, arguments, rivals = self._rivals()
        key = (node.path, node.originalname, *sorted(arguments.items()))
        races = self.arena._races
        if key not in races:
            title = " ".join([node.originalname, *(f"{k}={v}" for k, v in arguments.items())])
            races[key] = self._run(title, rivals, run, rounds, prepare)
            if finish is not None:
                finish()
        outcome = races[key][who]
        if isinstance(outcome, BaseException):
            raise outcome
        self._record(who, arguments, outcome)

    def _rivals(self) -> tuple[str, dict[str, Any], list[str]]:
        """This implementation, the other parameters, and all selected implementations with them."""
        node = self.request.node
        arguments = {k: v for k, v in node.callspec.params.items() if k != "who"}
        rivals = [
            item.callspec.params["who"]
            for item in self.request.session.items
            if (item.path, getattr(item, "originalname", "")) == (node.path, node.originalname)
            and {k: v for k, v in item.callspec.params.items() if k != "who"} == arguments
        ]
        return node.callspec.params["who"], arguments, rivals

    def _run(self, title, rivals, run, rounds, prepare) -> dict[str, Any]:
        outcomes: dict[str, Any] = {who: [] for who in rivals}
        start = time.monotonic()
        for number in range(-1 if prepare else 0, rounds):
            self.arena.say(f"{title}: round {number + 1} of {rounds}", passing=True)
            for who in rivals:
                if not isinstance(outcomes[who], list):
                    continue
                try:
                    if number < 0:
                        prepare(who)
                    else:
                        outcomes[who].append(run(who))
                except (Exception, pytest.skip.Exception) as exc:
                    outcomes[who] = exc
        medians = "  ".join(
            f"{who} {statistics.median(s['wall'] for s in samples) * 1e6:,.1f}"
            if isinstance(samples, list)
            else f"{who} {type(samples).__name__}"
            for who, samples in outcomes.items()
        )
        took = time.monotonic() - start
        self.arena.say(f"{title}: {medians} us  ({rounds} rounds, {took:.0f} s)")
        return outcomes

    def _record(self, who: str, arguments: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        walls = [sample["wall"] for sample in samples]
        info = self.benchmark.extra_info
        info.update(who=who, what=self.request.node.originalname, arguments=arguments)
        info["cpu_us"] = {
            part: _spread([s["cpu"][part] * 1e6 for s in samples])
            for part in CPU
            if part in samples[0].get("cpu", {})
        }
        info["wall_us"] = _spread([wall * 1e6 for wall in walls])
        for name in samples[0].keys() - {"wall", "cpu"}:
            info[name] = _combined([sample[name] for sample in samples])
        self.benchmark.group = " ".join(
            [self.request.node.originalname.removeprefix("test_")]
            + [f"{k}={v}" for k, v in arguments.items()]
        )
        self.benchmark.pedantic(_replay, args=(iter(walls),), rounds=len(walls))


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
    }


def _combined(values: list[Any]) -> Any:
    """Combine samples: join lists (latencies), take the median of numbers, else the last value."""
    if isinstance(values[0], list):
        return quantiles([v for value in values for v in value])
    if isinstance(values[0], (int, float)):
        return statistics.median(values)
    return values[-1]


def quantiles(values: Iterable[float]) -> dict[str, float]:
    """Share -> latency, for the plot of a distribution."""
    ordered = sorted(values)
    shares = [n / 100 for n in range(100)] + [n / 1000 for n in range(991, 1000)] + [1.0]
    last = len(ordered) - 1
    return {str(share): round(ordered[min(last, int(share * len(ordered)))], 9) for share in shares}
