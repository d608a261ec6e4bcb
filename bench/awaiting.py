"""How many ways there are to wait for results in an event loop, and what each costs.

The measurements of `bench_await`, in a client process (`bench.client`).
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.app.task import Context
from celery.result import ResultSet
from kombu.utils.uuid import uuid

from .wire import Wire, result_body

TIMEOUT = 600
WARM = 20
#: Threads of the executor that people block on get() in.
EXECUTOR = 40


async def in_tasks(results: list[Any]) -> list[Any]:
    """As the requests of a server: each in a task of its own."""
    from fastrpc import aio

    return await asyncio.gather(*(aio.get(result) for result in results))


async def in_one(results: list[Any]) -> list[Any]:
    from fastrpc import aio

    return await aio.gather(*results)


async def in_executor(results: list[Any]) -> list[Any]:
    """What there is without await: a thread blocks for each."""
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(EXECUTOR) as pool:
        waits = [loop.run_in_executor(pool, result.get) for result in results]
        return await asyncio.gather(*waits)


def joined(results: list[Any]) -> list[Any]:
    """No event loop at all."""
    return ResultSet(results, app=results[0].app).join_native()


def in_loop(wait: Callable[[list[Any]], Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda results: asyncio.run(wait(results))


WAYS: dict[str, Callable[[list[Any]], list[Any]]] = {
    "join": joined,
    "tasks": in_loop(in_tasks),
    "gather": in_loop(in_one),
    "executor": in_loop(in_executor),
}


class Awaiting:
    """Mixed into `bench.client.CeleryClient`."""

    def awaits(self, way: str, count: int) -> dict[str, Any]:
        """`count` results come while all are waited for; the connection is open."""
        app = self.app()
        queue = self.reply_queue(app)
        warm, ids = uuid(), [uuid() for _ in range(count)]
        self.fill(app, [warm], [0])
        assert app.AsyncResult(warm).get(timeout=TIMEOUT) == 0
        results = [app.AsyncResult(task_id) for task_id in ids]
        wire = Wire(self.config["broker"])
        encode = wire.encoder()
        frames = b"".join(encode(queue, i, result_body(i, n)) for n, i in enumerate(ids))
        sending = threading.Thread(target=wire.sock.sendall, args=[frames])
        with self.meter(count) as sample:
            sending.start()
            got = WAYS[way](results)
        sending.join()
        wire.close()
        assert got == list(range(count)), "results differ"
        self.drop(app)
        return sample

    def await_latency(self, count: int) -> dict[str, Any]:
        """As `latency`, with an await in the place of get()."""
        from fastrpc import aio

        app = self.app()
        backend, queue = app.backend, self.reply_queue(app)

        async def there_and_back(value: Any) -> float:
            task_id = uuid()
            request = Context({"id": task_id, "reply_to": queue, "correlation_id": task_id})
            result = app.AsyncResult(task_id)
            start = time.perf_counter()
            backend.store_result(task_id, value, "SUCCESS", request=request)
            got = await aio.get(result, timeout=TIMEOUT)
            took = time.perf_counter() - start
            assert got == value
            return took

        async def all_of_them() -> dict[str, Any]:
            for _ in range(WARM):
                await there_and_back("warm")
            with self.meter(count) as sample:
                sample["latencies"] = [await there_and_back(n) for n in range(count)]
            return sample

        sample: dict[str, Any] = asyncio.run(all_of_them())
        self.drop(app)
        return sample

    def await_memory(self, count: int) -> dict[str, Any]:
        """Bytes that an await holds, beyond those of a task that awaits a future of its own."""
        from fastrpc import aio

        app = self.app()
        self.reply_queue(app)

        async def held_by(begin: Callable[[], Any]) -> float:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            tasks = [asyncio.ensure_future(begin()) for _ in range(count)]
            await asyncio.sleep(0.1)
            gc.collect()
            held = (tracemalloc.get_traced_memory()[0] - before) / count
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return held

        async def wait_for_future() -> None:
            await asyncio.get_running_loop().create_future()

        async def compare() -> float:
            results = [app.AsyncResult(uuid()) for _ in range(count)]
            for result in results:  # in the table beforehand: that is the price of any wait
                app.backend.add_pending_result(result)
            left = iter(results)
            await held_by(wait_for_future)
            of_future = await held_by(wait_for_future)
            return await held_by(lambda: aio.get(next(left))) - of_future

        tracemalloc.start()
        with self.meter(count) as sample:
            sample["bytes_each"] = asyncio.run(compare())
        tracemalloc.stop()
        self.drop(app)
        return sample
