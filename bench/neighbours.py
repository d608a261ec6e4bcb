"""How threads of a worker slow down each other, and how callers slow down a worker.

These are the measurements of `bench_neighbours` and `bench_growth`, through Celery's public API, in
a client process (`bench.client`).
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery.app.task import Context
from kombu.utils.uuid import uuid

from .cost import peak_rss, reset_peak_rss, rss

KIB, MIB = 1024, 1024 * 1024
#: How long a measurement waits for the threads that it has started, in seconds.
PATIENCE = 120


class Neighbours:
    """Mixed into `bench.client.CeleryClient`."""

    def sender(self, **conf: Any) -> Callable[..., float]:
        """send(queue, value) -> how long, in seconds, one store_result took."""
        app = self.app(**conf)
        store = app.backend.store_result

        def send(queue: str, value: Any, task_id: str = "") -> float:
            task_id = task_id or uuid()
            request = Context({"id": task_id, "reply_to": queue, "correlation_id": task_id})
            start = time.perf_counter()
            store(task_id, value, "SUCCESS", request=request)
            return time.perf_counter() - start

        return send

    @contextlib.contextmanager
    def queues(self, count: int) -> Iterator[list[str]]:
        """Declare this many reply queues, which are not read."""
        names = [f"bench-neighbours-{uuid()}" for _ in range(count)]
        for name in names:
            self.wire.declare(name)
        try:
            yield names
        finally:
            for name in names:
                self.wire.delete(name)

    def beside_a_large_one(self, broker: str, size: int, seconds: float) -> dict[str, Any]:
        """One thread sends a result of `size` bytes, seven send 1 KiB every 50 ms: `worst_ms`."""
        send = self.sender(broker_url=broker)
        took: list[float] = []
        begin, end = threading.Event(), threading.Event()

        def small(queue: str) -> None:
            begin.wait()
            while not end.wait(0.05):
                took.append(send(queue, "x" * KIB))

        with self.queues(8) as queues:
            for queue in queues:
                send(queue, "warm")
            threads = [threading.Thread(target=small, args=(q,)) for q in queues[1:]]
            for thread in threads:
                thread.start()
            start = time.perf_counter()
            begin.set()
            large = send(queues[0], "x" * size)
            time.sleep(max(seconds - large, 0))
            end.set()
            for thread in threads:
                thread.join(PATIENCE)
            wall = time.perf_counter() - start
        return {"wall": wall / len(took), "worst_ms": max(took) * 1e3, "large_s": large}

    def beside_a_flood(self, seconds: float) -> dict[str, Any]:
        """One thread sends every 10 ms, another as fast as it can: `p99_ms`, `flood_per_s`."""
        send = self.sender()
        end = threading.Event()
        flooded = 0

        def flood(queue: str) -> None:
            nonlocal flooded
            while not end.is_set():
                send(queue, "x" * 100)
                flooded += 1

        took: list[float] = []
        with self.queues(2) as queues:
            for queue in queues:
                send(queue, "warm")
            thread = threading.Thread(target=flood, args=(queues[0],))
            thread.start()
            start = time.perf_counter()
            while time.perf_counter() - start < seconds:
                time.sleep(0.01)
                took.append(send(queues[1], "x" * 100))
            end.set()
            thread.join(PATIENCE)
            wall = time.perf_counter() - start
        p99 = statistics.quantiles(took, n=100)[98]
        return {"wall": wall / flooded, "p99_ms": p99 * 1e3, "flood_per_s": flooded / wall}

    def beside_a_caller_that_reads_nothing(self, count: int) -> dict[str, Any]:
        """A thread sends `count` results to a caller that is stopped; another one answers a caller
        that waits for each: the rate that this one keeps, `kept_percent`, `flood_per_s`.
        """
        send, caller = self.sender(), self.app()
        mine = self.reply_queue(caller)
        backend = caller.backend
        ended = threading.Event()

        def flood(queue: str) -> None:
            for _ in range(count):
                send(queue, "x" * 100)
            ended.set()

        def rate(until: Callable[[], bool]) -> float:
            start, calls = time.perf_counter(), 0
            while not until():
                result = caller.AsyncResult(uuid())
                backend.add_pending_result(result)
                send(mine, calls, task_id=result.id)
                assert result.get(timeout=PATIENCE) == calls, "results differ"
                calls += 1
            return calls / (time.perf_counter() - start)

        with self.queues(1) as queues:
            send(queues[0], "warm")
            end = time.perf_counter() + 1
            alone = rate(lambda: time.perf_counter() > end)
            thread = threading.Thread(target=flood, args=queues)
            start = time.perf_counter()
            thread.start()
            beside = rate(ended.is_set)
            wall = time.perf_counter() - start
            thread.join(PATIENCE)
        self.drop(caller)
        return {
            "wall": wall / count,
            "kept_percent": beside / alone * 100,
            "flood_per_s": count / wall,
        }

    def one_after_the_other(self, size: int, count: int, gone: bool) -> dict[str, Any]:
        """`count` results of `size` bytes: `peak_bodies` is the peak of additional memory.

        `gone`: to a caller whose reply queue no longer exists.
        """
        send = self.sender()
        with self.queues(1) as queues:
            queue = "bench-gone" if gone else queues[0]
            send(queue, "x" * size)
            value = "x" * size
            time.sleep(0.5)
            reset_peak_rss()
            before = rss()
            with self.meter(count) as sample:
                for _ in range(count):
                    send(queue, value)
            sample["peak_bodies"] = (peak_rss() - before) / size
        return sample

    def to_many_queues(self, queues: int, count: int) -> dict[str, Any]:
        """`count` persistent results, in turns to this many reply queues."""
        send = self.sender(result_persistent=True)
        with self.queues(queues) as names:
            send(names[0], "warm")
            with self.meter(count) as sample:
                for n in range(count):
                    send(names[n % queues], "x" * 100)
                sample["not_counted"] = sum(
                    self.wire.wait_count(name, count // queues) for name in names[-1:]
                )
        return sample

    def from_many_threads(self, threads: int, count: int) -> dict[str, Any]:
        """`count` results, an equal part from each thread to a reply queue of its own."""
        send = self.sender()
        share = count // threads
        go_on = threading.Barrier(threads + 1)

        def work(queue: str) -> None:
            go_on.wait()
            for _ in range(share):
                send(queue, "x" * 100)

        with self.queues(threads) as names:
            send(names[0], "warm")
            workers = [threading.Thread(target=work, args=(name,)) for name in names]
            for worker in workers:
                worker.start()
            with self.meter(share * threads) as sample:
                go_on.wait()
                for worker in workers:
                    worker.join(PATIENCE)
        return sample
