"""dramatiq, with RabbitMQ as its broker and results in Redis.

python -m bench.peers.dramatiq_ CONFIG            # the client process
dramatiq bench.peers.dramatiq_:worker             # its worker, see bench.peers.PEERS
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results
from dramatiq.results.backends.redis import RedisBackend

from bench.serving import TIMEOUT, WARM, ClientProcess, serve, values_of

from .settings import Settings, say_ready, with_slash

MILLISECONDS = 1_000


class Ready(dramatiq.Middleware):
    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        say_ready()


def make_broker(broker: str, redis: str) -> RabbitmqBroker:
    """The broker of this process, with dramatiq's own middleware and that for results."""
    made = RabbitmqBroker(url=with_slash(broker))
    made.add_middleware(Results(backend=RedisBackend(url=redis)))
    dramatiq.set_broker(made)
    return made


def make_echo(queue: str) -> Any:
    """The task of that queue, and named after it: an actor has one queue."""
    return dramatiq.actor(
        lambda value: value, actor_name=queue, queue_name=queue, store_results=True
    )


def worker() -> None:
    settings = Settings.of_this_worker()
    make_broker(settings.broker, settings.redis).add_middleware(Ready())
    make_echo(settings.queue)


class DramatiqClient(ClientProcess):
    packages = ("dramatiq", "pika", "redis")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        make_broker(config["broker"], config["backend"])
        self.actors: dict[str, Any] = {}

    def actor(self, queue: str) -> Any:
        if queue not in self.actors:
            self.actors[queue] = make_echo(queue)
        return self.actors[queue]

    def call(self, count: int) -> dict[str, Any]:
        """`count` calls of send, until all are in the queue."""
        queue = f"bench-sink-{os.getpid()}"
        send = self.actor(queue).send
        send(0)
        self.wire.wait_count(queue, 1)
        self.wire.channel.queue_purge(queue)
        with self.meter(count) as sample:
            for n in range(count):
                send(n)
            sample["not_counted"] = self.wire.wait_count(queue, count)
        self.wire.channel.queue_purge(queue)
        return sample

    def whole(self, queue: str, workers: list[int], count: int) -> dict[str, Any]:
        """`count` tasks to a real worker, and all of their results."""
        actor, values = self.actor(queue), values_of(count, None)
        assert self._results([actor.send(n) for n in range(WARM)]) == list(range(WARM))
        self.meter.watch(workers)
        with self.meter(count) as sample:
            got = self._results([actor.send(value) for value in values])
        self.meter.watch([])
        assert got == values, "results differ"
        return sample

    def _results(self, sent: list[Any]) -> list[Any]:
        return [m.get_result(block=True, timeout=TIMEOUT * MILLISECONDS) for m in sent]


if __name__ == "__main__":
    serve(DramatiqClient(json.loads(sys.argv[1])))
