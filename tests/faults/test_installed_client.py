"""Tasks that are sent over our transport while the broker fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import kombu
import pytest

import fastrpc
from tests.support.apps import make_app
from tests.support.installed import installed
from tests.support.threads import Background

WAIT = 60
#: Longer than a restart takes.
PATIENT = {"max_retries": 200, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.3}


@pytest.fixture(autouse=True)
def switched_on() -> Iterator[None]:
    with installed():
        yield


def ids_in(url: str, queue: str) -> list[str]:
    with kombu.Connection(url) as connection:
        channel = connection.default_channel
        found = []
        while (raw := channel.basic_get(queue, no_ack=True)) is not None:
            found.append(raw.properties["correlation_id"])
        return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["restart", "kill"])
@pytest.mark.parametrize("way", ["single", "batch", "many"])
@pytest.mark.parametrize("confirm", [True, "pipelined"])
def test_no_confirmed_task_is_lost_with_the_broker(own_broker, how, way, confirm):
    queue = f"fastrpc-faults-installed-{how}-{way}-{confirm}"
    app = make_app(
        own_broker.url,
        "rpc://",
        queue,
        broker_transport_options={"confirm_publish": confirm},
        task_publish_retry_policy=PATIENT,
    )
    add = app.tasks["tests.add"]
    add.apply_async((0, 0), ignore_result=True)

    def fail() -> None:
        time.sleep(0.3)
        if how == "kill":
            own_broker.kill()
            own_broker.start()
        else:
            own_broker.restart()

    def arguments(n: int) -> Any:
        time.sleep(0.005)
        return n, n

    failing = Background(fail)
    sent: list[str] = []
    for _ in range(4):
        if way == "many":
            calls = (arguments(n) for n in range(50))
            sent += [r.id for r in fastrpc.apply_many(add, calls, ignore_result=True)]
        elif way == "batch":
            with fastrpc.batch(app, max_size=10):
                sent += [add.apply_async(arguments(n), ignore_result=True).id for n in range(50)]
        else:
            sent += [add.apply_async(arguments(n), ignore_result=True).id for n in range(50)]
    failing.result(WAIT)
    app.amqp.producer_pool.Producer.keywords["pipeline"].flush()
    assert set(sent) <= set(ids_in(own_broker.url, queue))
    app.close()
