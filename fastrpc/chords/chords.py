"""What the backend asks of chords: make their queues, and send parts into them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import kombu
from celery.canvas import maybe_signature
from kombu.common import maybe_declare
from kombu.exceptions import OperationalError

from .._borrowed import current_task
from .._lock import Signal
from ..client.queues import explained_refusal
from ..client.side import open_channel
from ..options import Options
from ..sending.message import Message
from ..sending.publisher import AMQPPublisher
from ..serialization import decode
from ..stats import CHORDS, SentStats
from ..worker.message import pack, too_large_failure
from .connection import ANSWER_TIMEOUT
from .joiner import Joiner
from .look import Look, queue_name
from .memory import Memory
from .parts import flat, leaves

__all__ = ["Chords"]

logger = logging.getLogger("fastrpc")

#: The key, in the body that a header task carries, of the ``size`` of its ``Look``.
SIZE = "chord_size"

#: How long, in seconds, a task that is acknowledged late waits for the look at its chord: longer
#: than a look is repeated that cannot be decided.
LOOK_TIMEOUT = 150.0

PERSISTENT = 2


def too_large_part(message: Message, backend: Any) -> Message | None:
    """The failure that replaces a part that is too large for the broker.

    None if the message is no part.
    """
    accept = frozenset({message.content_type})
    content = decode(message.body, message.content_type, message.content_encoding, accept)
    return too_large_failure(message, backend) if "status" in content else None


class Chords:
    """The chords of one backend: those that it applies, and those whose parts it sends.

    Args:
        backend: The result backend.
        make_queue: Makes the queue of a name, unbound.
    """

    def __init__(
        self, backend: Any, options: Options, make_queue: Callable[[str], kombu.Queue]
    ) -> None:
        self.backend = backend
        self.app = backend.app
        self.options = options
        self.make_queue = make_queue
        self._joiner = Joiner(backend, self._await_confirms)
        self._begin()
        self._publisher = AMQPPublisher(
            self.app,
            PERSISTENT,
            options._replace(publisher_confirms=True),
            self.stats,
            partial(too_large_part, backend=backend),
        )

    def _begin(self) -> None:
        self.stats = SentStats()
        #: Parts that were sent.
        self.parts = 0
        #: Group id -> parts that its header tasks were told of, until Celery has counted them.
        self._applied = Memory()

    def counters(self) -> dict[str, int]:
        """What happened since this process began; see docs/stats.md."""
        joiner = self._joiner
        counts = (self.parts, joiner.joined, joiner.doubles, joiner.put_back, self.stats.returned)
        return dict(zip(CHORDS, counts, strict=True))

    def after_fork(self) -> None:
        """Begin anew in a forked child; what is open belongs to the parent and stays as it is."""
        self._begin()
        self._joiner.after_fork()
        self._publisher.after_fork()
        self._publisher.stats = self.stats

    def close(self, timeout: float) -> None:
        """Look at all chords that are due, ``timeout`` seconds at most, and hang up."""
        deadline = time.monotonic() + timeout
        self._joiner.close(timeout)
        self._publisher.close(max(deadline - time.monotonic(), 0.0))

    # -- applying a chord ----------------------------------------------------------------------

    def declare(self, group_id: str, results: Iterable[Any], body: Any) -> None:
        """Make the queue of a chord, before its first header task is sent.

        A header that is a generator is evaluated here: its tasks have to know how many they are.

        Raises:
            fastrpc.errors.ReplyQueueRefused: the broker does not make the queue.
        """
        tree = leaves(results)
        size = len(flat(tree))
        nested = any(isinstance(node, list) for node in tree)
        self._applied[group_id] = size
        body[SIZE] = size + nested
        queue = queue_name(group_id)
        with self.app.producer_or_acquire() as producer, explained_refusal(queue):
            maybe_declare(self.make_queue(queue)(open_channel(producer)), retry=True)
        if nested:
            self._publish(group_id, group_id, {"size": size, "shape": tree})
            self._await_confirms()

    def set_size(self, group_id: str, size: int) -> None:
        """Correct what the header tasks were told, now that Celery has counted the header."""
        told = self._applied.pop(group_id, size)
        if told != size:
            # As many messages as parts are missing: a look is due by the number of all messages.
            for _ in range(max(told - size, 1)):
                self._publish(group_id, group_id, {"size": size})
            self._await_confirms()

    def add(self, group_id: str, result: Any) -> None:
        """Expect one more part: that of ``result`` (``Task.add_to_chord``)."""
        self._publish(group_id, result.id, {"added": 1})

    # -- returning a part ----------------------------------------------------------------------

    def return_part(self, request: Any, state: str, result: Any) -> None:
        """Send the result of a header task to the queue of its chord, and look at it later.

        A task that is acknowledged late waits until somebody has looked.

        Raises:
            kombu.exceptions.EncodeError: the result cannot be serialized.
            kombu.exceptions.OperationalError: the retries of the retry policy are used up.
        """
        group_id, task_id = request.group, request.id
        if not group_id or not task_id or not request.chord:
            return
        body = dict(request.chord)
        size = body.pop(SIZE, None)
        if size is None:
            logger.error("chord %s was applied by another backend, its body will not run", group_id)
            return
        encoded = self.backend.encode_result(result, state)
        for member_id in self._members(request):
            part = {
                "task_id": member_id,
                "index": request.group_index,
                "status": state,
                "result": encoded,
            }
            self._publish(group_id, member_id, part)
            self.parts += 1
        look = Look(group_id, size, body, request)
        if not (current_task and current_task.acks_late):
            self._joiner.demand(look)
            return
        looked = Signal()
        look.waiting.append(looked)
        self._joiner.demand(look)
        if not looked.wait(LOOK_TIMEOUT):
            logger.error("chord %s was not looked at within %g s", group_id, LOOK_TIMEOUT)

    def _members(self, request: Any) -> list[str]:
        """The tasks of which ``request`` returns the parts: one, unless a chain of the header has
        failed before the group at its end. Celery returns that group as if it were a task."""
        if getattr(request, "subtask_type", None) != "group":
            return [request.id]
        signature = {
            "task": request.task,
            "args": (),
            "kwargs": request.kwargs,
            "options": {},
            "subtask_type": "group",
            "immutable": True,
        }
        return flat(leaves([maybe_signature(signature, app=self.app).freeze()]))

    # -- sending into the queue ----------------------------------------------------------------

    def _publish(self, group_id: str, correlation_id: str, content: dict[str, Any]) -> None:
        message = pack(queue_name(group_id), correlation_id, content, self.backend.serializer)
        self._publisher.publish(message)

    def _await_confirms(self) -> None:
        """
        Raises:
            kombu.exceptions.OperationalError: what was sent is not confirmed.
        """
        if not self._publisher.drain(ANSWER_TIMEOUT):
            raise OperationalError("the broker does not confirm the messages of chords")
