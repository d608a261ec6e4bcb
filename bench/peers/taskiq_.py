"""taskiq, with taskiq-aio-pika as its broker and results in Redis.

python -m bench.peers.taskiq_ CONFIG              # the client process
taskiq worker bench.peers.taskiq_:worker          # its worker, see bench.peers.PEERS
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from taskiq_aio_pika import AioPikaBroker, Queue, QueueType
from taskiq_redis import RedisAsyncResultBackend

from bench.serving import TIMEOUT, WARM, ClientProcess, serve, values_of

from .settings import PREFETCH, Settings, say_ready, with_slash

#: Seconds between two looks for a result: with taskiq's own 0.2 a short round would mostly sleep.
CHECK_INTERVAL = 0.01


async def echo(value: int) -> int:
    return value


def threaded_echo(value: int) -> int:
    return value


class WorkerBroker(AioPikaBroker):
    async def startup(self) -> None:
        await super().startup()
        say_ready()


def make_broker(cls: type[AioPikaBroker], broker: str, redis: str, queue: str) -> AioPikaBroker:
    """A broker with one classic queue, as those of Celery are; its own choice is a quorum queue."""
    return cls(
        with_slash(broker),
        result_backend=RedisAsyncResultBackend(redis),
        qos=PREFETCH,
        task_queues=[Queue(name=queue, type=QueueType.CLASSIC)],
        dead_letter_queue=Queue(name="bench-taskiq-dead", type=QueueType.CLASSIC),
    )


def _worker(function: Callable[[int], Any]) -> AioPikaBroker:
    settings = Settings.of_this_worker()
    broker = make_broker(WorkerBroker, settings.broker, settings.redis, settings.queue)
    broker.register_task(function, task_name="echo")
    return broker


def worker() -> AioPikaBroker:
    return _worker(echo)


def threaded_worker() -> AioPikaBroker:
    return _worker(threaded_echo)


class TaskiqClient(ClientProcess):
    packages = ("taskiq", "taskiq-aio-pika", "aio-pika", "aiormq", "taskiq-redis")

    def call(self, count: int) -> dict[str, Any]:
        """`count` calls of kiq, each awaited, until all are in the queue."""
        queue = f"bench-sink-{os.getpid()}"

        async def send(task: Any) -> dict[str, Any]:
            await task.kiq(0)
            self.wire.channel.queue_purge(queue)
            with self.meter(count) as sample:
                for n in range(count):
                    await task.kiq(n)
                sample["not_counted"] = self.wire.wait_count(queue, count)
            self.wire.channel.queue_purge(queue)
            return sample

        return self._run(queue, send)

    def whole(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """`count` tasks to a real worker, and all of their results."""
        values = values_of(count, None)

        async def call(task: Any) -> dict[str, Any]:
            assert await self._results([await task.kiq(n) for n in range(WARM)]) == [*range(WARM)]
            self.meter.watch(workers)
            with self.meter(count) as sample:
                got = await self._results([await task.kiq(value) for value in values])
            self.meter.watch([])
            assert got == values, "results differ"
            return sample

        return self._run(queue, call)

    def _run(self, queue: str, measure: Callable[[Any], Any]) -> dict[str, Any]:
        """Run `measure` on a started broker; its connection needs the loop for its heartbeats."""

        async def run() -> dict[str, Any]:
            config = self.config
            broker = make_broker(AioPikaBroker, config["broker"], config["backend"], queue)
            task = broker.register_task(echo, task_name="echo")
            await broker.startup()
            try:
                return await measure(task)
            finally:
                await broker.shutdown()

        return asyncio.run(run())

    async def _results(self, sent: list[Any]) -> list[Any]:
        results = [await task.wait_result(CHECK_INTERVAL, timeout=TIMEOUT) for task in sent]
        for result in results:
            result.raise_for_error()
        return [result.return_value for result in results]


if __name__ == "__main__":
    serve(TaskiqClient(json.loads(sys.argv[1])))
