"""Chords whose header tasks the test itself ends."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from amqp.exceptions import NotFound
from celery.app.task import Context
from kombu import Connection

from tests.support.results import expect
from tests.support.waiting import wait_until

__all__ = ["Header"]


class Header:
    """A chord whose header tasks the test itself ends."""

    def __init__(self, app, size: int, path: Path, **options: Any) -> None:
        expect(app, 1)  # the reply queue is there
        self.backend = app.backend
        body = app.tasks["tests.noted_total"].s(str(path)).set(**options)
        self.result = body.freeze()
        self.group_id = str(uuid.uuid4())
        self.ids = [str(uuid.uuid4()) for _ in range(size)]
        self.backend.apply_chord((self.group_id, [app.AsyncResult(i) for i in self.ids]), body)
        self.backend.set_chord_size(self.group_id, size)
        self.body = json.loads(json.dumps(body))
        self.queue = f"fastrpc.chord.{self.group_id}"

    def end(self, index: int, value, state="SUCCESS", task_id: str | None = None) -> None:
        request = Context(
            id=task_id or self.ids[index],
            group=self.group_id,
            group_index=index,
            chord=self.body,
            reply_to=self.backend.oid,
        )
        self.backend.on_chord_part_return(request, state, value)

    def count(self, url: str) -> int | None:
        with Connection(url) as connection:
            try:
                return connection.default_channel.queue_declare(self.queue, passive=True)[1]
            except NotFound:
                return None

    def wait_for_deletion(self, url: str) -> None:
        wait_until(lambda: self.count(url) is None, 40, "the queue is gone")
