"""Chords without a store: the parts of a chord meet in a queue of their own.

Who applies a chord declares its queue. Each header task that ends sends its result there, beside
the reply that its caller gets, and waits for the broker's confirm; only then is the count of the
queue right. Whoever sees by the count that all parts may be there consumes the queue. It has a
single active consumer, so one process gets everything and the others nothing. That process drops
doubles by task id. If the set is whole it sends the body, waits for the broker's confirm, and
deletes the queue. If not, it gives everything back, and looks once more if parts came meanwhile.

What happens if a process is killed:

- Before its part is confirmed: a task that is acknowledged late is run again, and sends its part
  again. A task that was acknowledged early is lost, as with every result backend.
- After the confirm, before the count: the same. If a part is there twice, one is dropped. A task
  that is acknowledged late is not acknowledged before its chord was looked at.
- While it holds the parts, before the body is sent: the broker gives the parts back. Another
  process that saw the count waits for the queue and gets them. Otherwise the header task that ended
  last is run again, if it is acknowledged late, and counts again.
- After the body is sent, before the queue is deleted: the same, and the body is sent again: it runs
  once more for each such end.
- After the queue is deleted: nothing is left to do. The broker returns a part that comes now; it is
  counted and dropped.

So either the queue stays whole or the body was sent. A lost connection alone ends nothing: the look
is repeated over the next one until it gets through.

The broker drops a queue that nobody touches for ``result_expires``, with what is in it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import kombu
from amqp.exceptions import NotFound
from celery import states
from celery.app.task import Context
from celery.canvas import maybe_signature
from celery.exceptions import ChordError
from celery.result import GroupResult
from kombu.common import maybe_declare
from kombu.exceptions import OperationalError

from ._borrowed import current_task, running
from ._lock import start_thread
from .client.queues import explained_refusal
from .client.side import open_channel
from .options import Options
from .retry import backoff
from .sending.message import Message
from .sending.publisher import AMQPPublisher
from .serialization import decode
from .stats import CHORD_COUNTERS, Stats
from .transport.dial import connect, errors_of
from .transport.transports import use_our_transport
from .worker.message import pack, too_large_failure

__all__ = ["Chords"]

logger = logging.getLogger("fastrpc")

#: What a header task carries, beside its body: at how many messages in the queue to look at it.
SIZE = "chord_size"

#: Seconds that each answer of the broker may take.
ANSWER_TIMEOUT = 30.0

#: Seconds to wait for parts that another process holds. It gives them back, or deletes the queue.
HELD_TIMEOUT = 15.0

#: How often a body is sent over another connection before its chord fails.
MOST_SENDS = 20

#: Seconds that a task which is acknowledged late waits for its look at the queue.
LOOK_TIMEOUT = 60.0

#: Seconds without a part after which the thread that looks ends, and hangs up.
IDLE = 10.0

#: Asked of the broker, so that it notices if this host dies and gives back what we hold. Seconds;
#: longer than ``IDLE``, because nobody sends heartbeats while nothing is to do.
HEARTBEAT = 20

#: The next look at a chord is due after so many seconds for each part that is missing, and after
#: ``MOST_PAUSE`` at the latest: no cluster finishes tasks faster.
PAUSE_FOR_EACH, MOST_PAUSE = 100e-6, 0.05

#: Chords of which the time of the next look, or the size, is remembered.
REMEMBERED = 10_000

#: Seconds between two counts of a queue that has not taken back everything yet (a quorum queue).
RETURN_INTERVAL, RETURN_TRIES = 0.01, 500


def leaves(results: Iterable[Any]) -> list[Any]:
    """The ids in ``results``; those of a group as a list of its own."""
    return [
        leaves(result.results) if isinstance(result, GroupResult) else result.id
        for result in results
    ]


def count_leaves(tree: list[Any]) -> int:
    return sum(count_leaves(node) if isinstance(node, list) else 1 for node in tree)


def parent_of(body: Any, request: Any) -> Context:
    """What ``body`` is told of the header task of ``request``, which ended last."""
    return Context(
        id=request.id,
        root_id=request.root_id or request.id,
        reply_to=reply_queue_of(body) or request.reply_to,
        delivery_info=request.delivery_info or {},
        called_directly=False,
    )


def reply_queue_of(sig: Any) -> str | None:
    """The queue that the last task of a frozen signature answers to."""
    own: str | None = sig.options.get("reply_to")
    if own or not sig.subtask_type:
        return own
    last = sig.kwargs.get("body") or next(iter(reversed(sig.kwargs.get("tasks") or ())), None)
    return last and reply_queue_of(maybe_signature(last))


def too_large_part(message: Message, backend: Any) -> Message | None:
    """What takes the place of a part that the broker does not take: a failed one."""
    accept = frozenset({message.content_type})
    content = decode(message.body, message.content_type, message.content_encoding, accept)
    return too_large_failure(message, backend) if "status" in content else None


@dataclass
class Look:
    """A look at the queue of one chord that is due."""

    group_id: str
    #: The number of messages in the queue from which on all parts may be there.
    size: int
    #: The body, as the header task carried it.
    body: dict[str, Any]
    #: That of the header task that ended last here.
    request: Any
    due: float = 0.0
    #: How often the connection was lost while the body was sent.
    failures: int = 0
    #: Set once the queue was looked at.
    waiting: list[threading.Event] = field(default_factory=list)


class Parts:
    """What was in the queue of a chord.

    Args:
        size: The parts that are expected, unless a message in the queue says otherwise.
        messages: py-amqp messages.
        backend: Decodes, and rebuilds exceptions.
    """

    def __init__(self, size: int, messages: list[Any], backend: Any) -> None:
        self.backend = backend
        self.size = size
        self.read = len(messages)
        #: The ids in the order, and in the groups, that the body gets the results in.
        self.shape: list[Any] | None = None
        self.doubles = 0
        self._parts: dict[str, tuple[float, str, Any]] = {}
        self._added: set[str] = set()
        for message in messages:
            self._take_in(message)

    def _take_in(self, message: Any) -> None:
        properties = message.properties
        task_id = properties.get("correlation_id", "")
        try:
            content = decode(
                message.body,
                properties.get("content_type"),
                properties.get("content_encoding"),
                self.backend.accept,
            )
            if "added" in content:
                self._added.add(task_id)
                return
            if "size" in content:
                self.size = content["size"]
                self.shape = content.get("shape", self.shape)
                return
            index = content["index"]
            part = (math.inf if index is None else index, content["status"], content["result"])
        except Exception as exc:  # whatever a decoder raises: the part has failed
            part = (math.inf, states.FAILURE, exc)
        if task_id in self._parts:
            self.doubles += 1
        else:
            self._parts[task_id] = part

    @property
    def whole(self) -> bool:
        return len(self._parts) >= self.size + len(self._added)

    def values(self) -> list[Any]:
        """The results in the order of the header.

        Raises:
            ChordError: a part has failed, or is none of the header.
        """
        if self.shape is not None:
            try:
                return self._nested(self.shape)
            except Exception as exc:
                raise ChordError(f"Join error: {exc!r}") from exc
        in_order = sorted(self._parts.items(), key=lambda item: item[1][0])
        return [self._value(task_id, raw=False) for task_id, _ in in_order]

    def _nested(self, shape: list[Any]) -> list[Any]:
        return [
            self._nested(node) if isinstance(node, list) else self._value(node, raw=True)
            for node in shape
        ]

    def _value(self, task_id: str, raw: bool) -> Any:
        _, state, value = self._parts[task_id]
        if state in states.EXCEPTION_STATES:
            value = self.backend.exception_to_python(value)
        if state in states.PROPAGATE_STATES:
            if raw:
                raise value
            raise ChordError(f"Dependency {task_id} raised {value!r}") from value
        return value


class BodyProducer(kombu.Producer):
    """Every publish waits for the broker's confirm; nothing is retried here."""

    def publish(self, *args: Any, **kwargs: Any) -> Any:
        return super().publish(*args, **{**kwargs, "retry": False})


class Desk:
    """The connection on which this process looks at the queues of chords, and sends bodies.

    One thread uses it. Every method raises ``errors`` if the connection is lost.

    Raises:
        kombu.exceptions.OperationalError: the broker cannot be reached.
    """

    def __init__(self, app: Any) -> None:
        self._connection = use_our_transport(
            app.connection_for_write(heartbeat=HEARTBEAT),
            answer_timeout=ANSWER_TIMEOUT,
            confirm_publish=True,
        )
        self._channel: Any = None
        self.errors = errors_of(self._connection)
        connect(self._connection)
        self._amqp = self._connection.connection
        #: Sends bodies.
        self.producer = BodyProducer(self._connection)

    def _open_channel(self) -> Any:
        if self._channel is None:
            self._channel = self._connection.channel()
        return self._channel

    def count(self, queue: str) -> int | None:
        """The messages that are ready in ``queue``; None if there is no such queue."""
        try:
            return int(self._open_channel().queue_declare(queue, passive=True).message_count)
        except NotFound:
            self._channel = None
            return None

    def take(self, queue: str, count: int) -> list[Any] | None:
        """Consume ``count`` messages and whatever else comes with them.

        None if another process holds them, or has deleted the queue.
        """
        channel = self._open_channel()
        messages: list[Any] = []
        gone: list[str] = []
        try:
            channel.basic_consume(queue, callback=messages.append, on_cancel=gone.append)
            while len(messages) < count and not gone:
                self._connection.drain_events(timeout=HELD_TIMEOUT)
        except NotFound:
            self._channel = None
            return None
        except TimeoutError:
            self.put_back()
            return None
        if gone:
            return None
        return messages

    def put_back(self) -> None:
        """Give back what was taken: the broker does so when the channel closes."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def delete(self, queue: str) -> None:
        """Delete ``queue`` with all that is in it, and what was taken of it."""
        self._open_channel().queue_delete(queue)

    def hang_up(self) -> None:
        """Hang up without waiting for an answer."""
        self._connection.collect(0.1)

    def abandon(self) -> None:
        """Let go of the connection without a word on it: it is the parent process's."""
        self._amqp.abandon()


class Chords:
    """The chords of one backend: those that it applies, and those whose parts it returns.

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
        self._local = threading.local()
        self._lends = False
        self._begin()

    def _begin(self) -> None:
        self.stats = Stats()
        self.parts = self.joined = self.doubles = self.put_back = 0
        self._publisher: AMQPPublisher | None = None
        self._desk: Desk | None = None
        #: Guards what follows; waited on by the thread that looks, and by ``flush``.
        self._changed = threading.Condition()
        self._looks: dict[str, Look] = {}
        #: Those that are being made.
        self._current: list[Look] = []
        #: When the next look at a chord is due at the earliest.
        self._next: dict[str, float] = {}
        self._running = False
        #: It is to end as soon as no look is due.
        self._closing = False
        #: When the thread wakes up by itself.
        self._wakes_at = 0.0
        #: Group id -> parts that its header tasks were told of, until Celery has counted them.
        self._applied: dict[str, int] = {}

    def _lend_producer(self) -> None:
        """Have what the looking thread sends go out over its producer, which waits for confirms.

        Celery hands a producer down to a task and to the tasks of a group only; what a chain or a
        chord sends takes one from ``app.producer_or_acquire``.
        """
        self._lends = True
        usual = self.app.producer_or_acquire

        def producer_or_acquire(producer: Any = None) -> Any:
            return usual(producer or getattr(self._local, "producer", None))

        self.app.producer_or_acquire = producer_or_acquire

    def counters(self) -> dict[str, int]:
        """What happened since this process began; see docs/stats.md."""
        counts = (self.parts, self.joined, self.doubles, self.put_back, self.stats.returned)
        return dict(zip(CHORD_COUNTERS, counts, strict=True))

    def after_fork(self) -> None:
        """Begin anew in a forked child; what is open belongs to the parent and stays as it is."""
        publisher, desk = self._publisher, self._desk
        self._begin()
        if desk is not None:
            desk.abandon()
        if publisher is not None:
            publisher.after_fork()
            publisher.stats = self.stats
            self._publisher = publisher

    # -- applying a chord ----------------------------------------------------------------------

    def queue_name(self, group_id: str) -> str:
        return f"fastrpc.chord.{group_id}"

    def declare(self, group_id: str, results: Iterable[Any], body: Any) -> None:
        """Make the queue of a chord, before its first header task is sent.

        A header that is a generator is evaluated here: its tasks have to know how many they are.

        Raises:
            fastrpc.errors.ReplyQueueRefused: the broker does not make the queue.
        """
        tree = leaves(results)
        size = count_leaves(tree)
        nested = any(isinstance(node, list) for node in tree)
        self._remember(self._applied, group_id, size)
        body[SIZE] = size + nested
        queue = self.queue_name(group_id)
        with self.app.producer_or_acquire() as producer, explained_refusal(queue):
            maybe_declare(self.make_queue(queue)(open_channel(producer)), retry=True)
        if nested:
            self._publish(queue, group_id, {"size": size, "shape": tree})
            self._await_confirms()

    def _remember(self, memory: dict[str, Any], key: str, value: Any) -> None:
        memory[key] = value
        if len(memory) > REMEMBERED:
            del memory[next(iter(memory))]

    def set_size(self, group_id: str, size: int) -> None:
        """Celery has counted the header: correct what its tasks were told, if they were."""
        told = self._applied.pop(group_id, size)
        if told != size:
            # As many messages as parts are missing: whoever looks goes by the count of all.
            for _ in range(max(told - size, 1)):
                self._publish(self.queue_name(group_id), group_id, {"size": size})
            self._await_confirms()

    def add(self, group_id: str, result: Any) -> None:
        """One more part is to come (``Task.add_to_chord``)."""
        self._publish(self.queue_name(group_id), result.id, {"added": 1})

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
        part = {
            "task_id": task_id,
            "index": request.group_index,
            "status": state,
            "result": self.backend.encode_result(result, state),
        }
        self._publish(self.queue_name(group_id), task_id, part)
        self.parts += 1
        look = Look(group_id, size, body, request)
        if not (current_task and current_task.acks_late):
            self._demand(look)
            return
        looked = threading.Event()
        look.waiting.append(looked)
        self._demand(look)
        if not looked.wait(LOOK_TIMEOUT):
            logger.error("chord %s was not looked at within %g s", group_id, LOOK_TIMEOUT)

    def _publish(self, queue: str, correlation_id: str, content: dict[str, Any]) -> None:
        serializer = self.backend.serializer
        self._ensure_publisher().publish(pack(queue, correlation_id, content, serializer))

    def _await_confirms(self) -> None:
        """
        Raises:
            kombu.exceptions.OperationalError: what was sent is not confirmed.
        """
        if not self._ensure_publisher().drain(ANSWER_TIMEOUT):
            raise OperationalError("the broker does not confirm the messages of chords")

    def _ensure_publisher(self) -> AMQPPublisher:
        with self._changed:
            if self._publisher is None:
                self._publisher = AMQPPublisher(
                    self.app,
                    2,  # persistent
                    replace(self.options, publisher_confirms=True),
                    self.stats,
                    partial(too_large_part, backend=self.backend),
                )
            return self._publisher

    # -- the thread that looks -----------------------------------------------------------------

    def _demand(self, look: Look) -> None:
        """Have the thread look at a chord: at once if a task waits for it."""
        with self._changed:
            known = self._looks.get(look.group_id)
            if known is not None:
                look.waiting += known.waiting
                look.due = known.due
            if look.waiting:
                look.due = 0.0
            elif known is None:
                look.due = self._next.get(look.group_id, 0.0)
            self._looks[look.group_id] = look
            if not self._running:
                self._closing, self._wakes_at = False, 0.0
                start_thread(self._run)
                self._running = True
            elif look.due < self._wakes_at:
                self._changed.notify_all()

    def _run(self) -> None:
        pauses = backoff()
        while looks := self._await_looks():
            try:
                self._make(looks)
                pauses = backoff()
            except Exception as exc:  # the connection is lost, most likely
                self._again(looks, exc, next(pauses))

    def _await_looks(self) -> list[Look]:
        """Those that are due; none when nothing happened for long, and the thread is to end."""
        with self._changed:
            self._current = []
            self._changed.notify_all()
            idle_at = time.monotonic() + IDLE
            while True:
                now = time.monotonic()
                due = [look for look in self._looks.values() if look.due <= now]
                if due:
                    for look in due:
                        del self._looks[look.group_id]
                    self._current = due
                    self._wakes_at = 0.0
                    return due
                if not self._looks and (self._closing or now >= idle_at):
                    self._running = False
                    desk, self._desk = self._desk, None
                    break
                self._wakes_at = min((look.due for look in self._looks.values()), default=idle_at)
                self._changed.wait(self._wakes_at - now)
        if desk is not None:
            desk.hang_up()
        return []

    def _make(self, looks: list[Look]) -> None:
        """Make these looks; takes out of ``looks`` those that were made."""
        self._await_confirms()
        if self._desk is None:
            if not self._lends:
                self._lend_producer()
            self._desk = Desk(self.app)
        desk = self._desk
        while looks:
            try:
                self._look(desk, looks[0])
            except desk.errors:
                raise
            except Exception as exc:  # of one chord; the others must not suffer
                logger.error("chord %s cannot be joined", looks[0].group_id, exc_info=exc)
                desk.put_back()
            for looked in looks.pop(0).waiting:
                looked.set()

    def _again(self, looks: list[Look], exc: Exception, pause: float) -> None:
        """Have these looks made over another connection, after a pause."""
        logger.warning("looking at %d chords failed, trying again: %r", len(looks), exc)
        desk, self._desk = self._desk, None
        if desk is not None:
            desk.hang_up()
        with self._changed:
            for look in looks:
                newer = self._looks.setdefault(look.group_id, look)
                if newer is not look:
                    newer.waiting += look.waiting
                    newer.failures = look.failures
                newer.due = time.monotonic() + pause

    def _look(self, desk: Desk, look: Look) -> None:
        queue = self.queue_name(look.group_id)
        read = 0
        while True:
            count = desk.count(queue)
            if count is None:  # the body was sent by another process
                return
            if count < look.size or count <= read:
                pause = min((look.size - count) * PAUSE_FOR_EACH, MOST_PAUSE)
                with self._changed:
                    self._remember(self._next, look.group_id, time.monotonic() + pause)
                return
            messages = desk.take(queue, count)
            if messages is None:
                return
            parts = Parts(look.size, messages, self.backend)
            if parts.whole:
                self._join(desk, look, parts)
                desk.delete(queue)
                self.joined += 1
                self.doubles += parts.doubles
                return
            self.put_back += 1
            read = parts.read
            desk.put_back()
            self._await_return(desk, queue, read)

    def _await_return(self, desk: Desk, queue: str, read: int) -> None:
        """Wait until the queue has taken back what was read, unless others take it meanwhile."""
        for _ in range(RETURN_TRIES):
            count = desk.count(queue)
            if count is None or count >= read:
                return
            time.sleep(RETURN_INTERVAL)

    # -- the body ------------------------------------------------------------------------------

    def _join(self, desk: Desk, look: Look, parts: Parts) -> None:
        """Send the body its results, confirmed; or report to it and its errbacks what failed."""
        body = maybe_signature(look.body, app=self.app)
        parent = parent_of(body, look.request)
        with running(self.app, parent), self._sending_over(desk.producer, parent.reply_to):
            try:
                values = parts.values()
            except ChordError as exc:
                self._report(look, body, exc)
                return
            try:
                body.delay(values)
            except Exception as exc:
                look.failures += isinstance(exc, desk.errors)
                if isinstance(exc, desk.errors) and look.failures < MOST_SENDS:
                    raise
                self._report(look, body, ChordError(f"Callback error: {exc!r}"))

    @contextmanager
    def _sending_over(self, producer: Any, reply_to: str) -> Iterator[None]:
        """What this thread sends goes out over ``producer``, and answers to ``reply_to``."""
        self._local.producer = producer
        try:
            with self.backend.answering_to(reply_to):
                yield
        finally:
            self._local.producer = None

    def _report(self, look: Look, body: Any, exc: ChordError) -> None:
        """The chord has failed: so has its body, and errbacks are called, as Celery does it."""
        logger.error("Chord %r raised: %r", look.group_id, exc, exc_info=exc)
        self.backend.chord_error_from_stack(body, exc)
        self.backend.drain(ANSWER_TIMEOUT)

    # -- the end -------------------------------------------------------------------------------

    def close(self, timeout: float) -> None:
        """Look at all chords that are due, ``timeout`` seconds at most, and hang up."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            for look in self._looks.values():
                look.due = 0.0
            self._changed.notify_all()
            looked = self._changed.wait_for(lambda: not self._looks and not self._current, timeout)
        if not looked:
            logger.error("chords were not looked at within %g s of shutting down", timeout)
        if self._publisher is not None:
            self._publisher.close(max(deadline - time.monotonic(), 0.0))
