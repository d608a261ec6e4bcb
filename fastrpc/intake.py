"""From the broker to the matcher: one connection, one consumer for each reply queue.

Two ways in, the same five verbs: ``open``, ``consume``, ``read``, ``pump``, ``close``.
All queues are declared before the first is consumed: results that come while an answer of the
broker is awaited take a longer way.
``AMQPIntake`` takes deliveries from our own frame reader; ``KombuIntake`` is for every other
kombu transport and gets its messages one at a time. Only the thread that holds the reading
role may call them, but for ``consume``.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from ssl import SSLSocket
from typing import Any

from amqp import spec
from amqp.exceptions import NotFound, RecoverableConnectionError
from amqp.serialization import loads
from kombu.utils.compat import detect_environment

from ._intake import Delivery, DeliveryLoop
from ._lock import Lock
from .matching import READY_STATES, ResultMatcher, body_format, load_large
from .options import Options
from .queues import ReplyQueues
from .transport import PendingAnswer, connect, errors_of, is_amqp, use_our_transport

__all__ = ["AMQPIntake", "Intake", "KombuIntake", "make_intake"]

logger = logging.getLogger("fastrpc")

#: Called with correlation id, body, format and reply queue of each message.
Deliver = Callable[[bytes | None, bytes, bytes, str], None]

#: Longest time, in seconds, that a reader goes without looking after its connection …
INTERVAL = 1.0
#: … where nobody but the reader may consume from the new queue of another thread.
READERS_ONLY_INTERVAL = 0.05

#: Least time, in seconds, allowed for each answer while a connection is being opened …
LEAST_ANSWER_TIMEOUT = 0.05
#: … and the time for each answer afterwards.
ANSWER_TIMEOUT = 10.0

#: Seconds between two tries to get at a reply queue whose node is down.
DOWN_INTERVAL = 1.0

#: Seconds after which the other queues wait no longer for one whose declaration is not answered:
#: while a connection is opened …
OPENING_PATIENCE = 2.0
#: … and while somebody reads, whose own timeout must be kept.
READING_PATIENCE = 0.1

#: Different (content type, encoding, headers) whose format is remembered.
MAX_FORMATS = 64


def make_intake(app: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher) -> Intake:
    """The way in that fits the broker of ``app``; not yet connected."""
    heartbeat = options.heartbeat if options.heartbeat is not None else app.conf.broker_heartbeat
    connection = app.connection_for_read(heartbeat=heartbeat)
    if is_amqp(connection):
        return AMQPIntake(
            use_our_transport(connection, max_body=options.max_body, answer_timeout=ANSWER_TIMEOUT),
            queues,
            options,
            matcher,
        )
    return KombuIntake(connection, queues, options, matcher)


class Intake:
    """What both ways in share: the connection and the set of queues consumed."""

    #: Whether nobody but the reader may touch the connection.
    readers_only = True

    #: Longest time, in seconds, that the reader may go without looking after the connection.
    interval = READERS_ONLY_INTERVAL

    @property
    def spoiled(self) -> bool:
        """Whether an exception parted something on the connection, which must be given up."""
        return False

    def __init__(
        self, connection: Any, queues: ReplyQueues, options: Options, matcher: ResultMatcher
    ) -> None:
        self.connection = connection
        self.matcher = matcher
        self.queues = queues
        self.options = options
        self.consumed: set[str] = set()
        #: Those that exist and cannot be had: on a node of the cluster that is down (None), or
        #: whose declaration has no answer yet.
        self.away: dict[str, PendingAnswer | None] = {}
        self._away_at = 0.0
        #: Messages that waited in the queues when they were opened, and that came since.
        self.backlog = 0
        self.taken = 0
        self._consume_lock = Lock()
        #: What a lost or refused connection raises.
        self.errors = errors_of(connection)

    def open(self, timeout: float) -> None:
        """Connect, within about ``timeout`` seconds, and have every reply queue exist."""
        end = time.monotonic() + timeout
        connect(self.connection, timeout)
        with self.answered_within(max(end - time.monotonic(), LEAST_ANSWER_TIMEOUT)):
            self._declaring = self.connection.default_channel
            self._open_channels()
            for name in self.queues.names:
                # Less for each further one: a node that went has taken all of its queues along.
                self._declare(name, OPENING_PATIENCE / (1 + len(self.away)))

    @property
    def behind(self) -> bool:
        """Whether there are queues that are not consumed."""
        return len(self.consumed) != len(self.queues)

    def catch_up(self) -> None:
        """Consume all the queues that were declared since.

        A signal handler that interrupts this leaves them to the reader.
        """
        if self._consume_lock.mine:
            return
        for name in self.queues.names:
            try:
                self.consume(name)
            except self.errors as exc:
                logger.debug("cannot consume from %s, the reader will reconnect: %s", name, exc)

    def consume(self, name: str) -> None:
        """Let the results of queue ``name``, which exists, come this way too."""
        with self._consume_lock:
            if name not in self.consumed and name not in self.away:
                self._consume(name)
                self.consumed.add(name)

    def _declare_and_consume(self, name: str) -> None:
        if self._declare(name, READING_PATIENCE):
            self._consume_again(name)

    def _consume_again(self, name: str) -> None:
        self.away.pop(name, None)
        self.consume(name)

    def _declare(self, name: str, patience: float) -> bool:
        """Have ``name`` exist; one that cannot be had is set aside and must not stop the others."""
        try:
            self.backlog += self.queues.declare(name, self._declaring)
            return True
        except NotFound as exc:
            self._set_aside(name, exc)
            return False

    def _set_aside(self, name: str, why: Any, late: PendingAnswer | None = None) -> None:
        if name not in self.away:
            logger.warning("the reply queue %s is down, trying again: %s", name, why)
        self.away[name] = late
        self._away_at = time.monotonic() + DOWN_INTERVAL
        self.queues.doubt(name)

    def _look_for_away(self) -> None:
        """Consume the queues again that are back."""
        if not self.away:
            return
        due = time.monotonic() >= self._away_at
        for name, late in list(self.away.items()):
            if late is not None and late.came:
                late.channel.close()
                self._consume_again(name)
            elif late is None and due:
                self._declare_and_consume(name)

    def close(self) -> None:
        """Hang up; what was not acknowledged stays in the queues."""
        with suppress(*self.errors):  # it is lost already: that is why it is closed
            self.connection.collect(0.1)

    @contextmanager
    def answered_within(self, timeout: float) -> Iterator[None]:
        """Within, each answer of the broker may take ``timeout`` seconds, where we can say so."""
        yield

    def goodbye(self, timeout: float, delete_queues: bool) -> None:
        """Close in order; each answer may take ``timeout`` seconds."""
        with self.answered_within(timeout):
            self.acknowledge()
            if delete_queues:
                self.queues.delete(self._declaring)
            self.connection.close()

    def abandon(self) -> None:
        """Let go of the connection without a word on it: it is the parent process's."""

    def _open_channels(self) -> None:
        raise NotImplementedError

    def _consume(self, name: str) -> None:
        raise NotImplementedError

    def read(self, timeout: float) -> bool:
        """Wait for something to arrive; False if nothing did within ``timeout`` seconds."""
        raise NotImplementedError

    def readable(self) -> bool:
        """Whether ``read`` would find something at once."""
        raise NotImplementedError

    @property
    def holds_some(self) -> bool:
        """Whether something was read that was not handed over."""
        raise NotImplementedError

    def pump(self, deliver: Deliver, everything: bool) -> None:
        """Hand over all that was read.

        ``deliver`` gets what has no shorter way to the matcher; with ``everything`` all of it.
        """
        raise NotImplementedError

    @property
    def owes_acknowledgement(self) -> bool:
        """Whether something was handed over and is not acknowledged yet."""
        return False

    def acknowledge(self) -> None:
        """Acknowledge all that was handed over."""

    def tend(self) -> None:
        """Look after the connection: heartbeats, and the queues that were away.

        Raises one of ``errors`` if the peer has been silent for too long.
        """
        self._heartbeat()
        self._look_for_away()

    def _heartbeat(self) -> None:
        """Send a heartbeat if one is due."""


#: Consumer priority: a newer connection outranks an older one that the broker has not yet noticed
#: is dead.
_connections = itertools.count()


class AMQPIntake(Intake):
    """Results through our own frame reader, acknowledged a batch at a time."""

    def _open_channels(self) -> None:
        # Its own channel: an error on the channel of the declarations must not end it.
        self.channel = self.connection.channel()
        self.channel.basic_qos(0, self.options.prefetch, False)
        # The broker may not know yet that the connection before this one is lost.
        self._priority = next(_connections)
        self._amqp = self.connection.connection
        # py-amqp locks its writes, but no two threads may use one TLS connection at a time.
        self.readers_only = isinstance(self._amqp.sock, SSLSocket)
        heartbeat = self._amqp.heartbeat or 4 * INTERVAL
        self._heartbeat_at = 0.0
        #: When the channel is asked next whether it still answers, or must have answered.
        self._ask_at = 0.0
        self._answer: PendingAnswer | None = None
        self.interval = min(READERS_ONLY_INTERVAL if self.readers_only else INTERVAL, heartbeat / 4)
        # Greenlets would not get to run meanwhile.
        green = detect_environment() != "default"
        self._busy_wait = 0.0 if green else self.options.busy_wait
        self._reader = self._amqp.reader
        self._deliver: Deliver | None = None
        self._formats: dict[tuple[bytes | None, bytes | None, bytes | None], bytes] = {}
        self._loop = DeliveryLoop(
            self._reader,
            self.matcher.table,
            self.channel.channel_id,
            max(1, self.options.prefetch // 4),
            fulfiller=self.matcher.fulfiller,
            ready_states=READY_STATES,
            load_text=load_large,
            deliver_slowly=self._deliver_slowly,
            dispatch=self._amqp.dispatch,
            acknowledge=self._write_acknowledgement,
        )
        #: What comes while an answer is awaited.
        self._amqp.on_delivery = self._loop.keep

    def _declare(self, name: str, patience: float) -> bool:
        timeout = self._amqp.answer_timeout
        patience = min(patience, timeout / 2)
        try:
            with self.answered_within(patience):
                return super()._declare(name, patience)
        except TimeoutError:
            late = PendingAnswer(self._declaring, spec.Queue.DeclareOk)
            with self.answered_within(timeout - patience):  # unless nothing at all is answered
                self._declaring = self.connection.channel()
            self._set_aside(name, "its declaration is not answered", late)
            return False

    def consume(self, name: str) -> None:
        self._loop.guarded(super().consume, name)

    def _consume(self, name: str) -> None:
        self.channel.basic_consume(
            name,
            consumer_tag=name,
            nowait=True,
            on_cancel=self._on_cancel,
            arguments={"x-priority": self._priority},
        )

    def _on_cancel(self, consumer_tag: str) -> None:
        # The queue was deleted, or moved to another node: make it, and consume it, again.
        if consumer_tag not in self.queues:
            return  # we deleted it ourselves
        self.consumed.discard(consumer_tag)
        self._declare_and_consume(consumer_tag)

    def read(self, timeout: float) -> bool:
        if self._busy_wait:
            self._amqp.readable(min(self._busy_wait, timeout))
        try:
            # The socket of TLS is Python code, which may lose what it read to an exception.
            if self.readers_only:
                self._loop.guarded(self._amqp.fill, timeout)
            else:
                self._amqp.fill(timeout)
        except TimeoutError:
            self._loop.guarded(self._ask_channel)
            return False
        self._amqp.bytes_recv += 1  # a sign of life: heartbeat() asks for it
        return True

    def _ask_channel(self) -> None:
        """While nothing comes: one queue that RabbitMQ waits for holds up all that are consumed."""
        now = time.monotonic()
        if now < self._ask_at:
            return
        if self._answer is not None and not self._answer.came:
            raise RecoverableConnectionError(
                f"no answer to basic.qos in {ANSWER_TIMEOUT:g} seconds"
            )
        self._ask_at = now + ANSWER_TIMEOUT
        self._answer = PendingAnswer(self.channel, spec.Basic.QosOk)
        self.channel.send_method(spec.Basic.Qos, "lBb", (0, self.options.prefetch, False))

    def readable(self) -> bool:
        return bool(self._amqp.readable())

    @property
    def holds_some(self) -> bool:
        return self._loop.holds_some

    @property
    def spoiled(self) -> bool:
        return self._loop.spoiled

    def pump(self, deliver: Deliver, everything: bool) -> None:
        loop, stats = self._loop, self.matcher.stats
        self._deliver = deliver
        try:
            loop.run(not everything and self.matcher.knows_plain_json, time.monotonic())
        finally:
            # Zeroed at once: a callback may have had us pump in the midst of it.
            taken, loop.taken = loop.taken, 0
            duplicates, loop.duplicates = loop.duplicates, 0
            self.taken += taken
            stats.received += taken
            stats.duplicates += duplicates

    def _deliver_slowly(self, delivery: Delivery) -> None:
        if delivery.dropped:
            self.matcher.report_too_large(delivery.correlation_id, delivery.dropped)
            return
        assert self._deliver is not None
        self._deliver(
            delivery.correlation_id,
            delivery.body,
            self._format(delivery.format_key),
            delivery.consumer_tag,
        )

    @property
    def owes_acknowledgement(self) -> bool:
        return bool(self._loop.last_tag != self._loop.acked_tag)

    def acknowledge(self) -> None:
        self._loop.guarded(self._write_acknowledgement)

    def _write_acknowledgement(self) -> None:
        loop = self._loop
        if loop.last_tag != loop.acked_tag:
            self.channel.basic_ack(loop.last_tag, multiple=True)
            loop.acked_tag = loop.last_tag

    def _format(self, key: tuple[bytes | None, bytes | None, bytes | None]) -> bytes:
        try:
            return self._formats[key]
        except KeyError:
            if len(self._formats) >= MAX_FORMATS:
                self._formats.clear()
            format = self._formats[key] = body_format(
                _text(key[0]), _text(key[1]) or "utf-8", _compression(key[2])
            )
            return format

    @contextmanager
    def answered_within(self, timeout: float) -> Iterator[None]:
        amqp = self.connection.connection
        usual, amqp.answer_timeout = amqp.answer_timeout, timeout
        try:
            yield
        finally:
            amqp.answer_timeout = usual

    def tend(self) -> None:
        self._loop.guarded(super().tend)

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self.interval
            # Seldom: a write wakes the broker at the cost of whoever waits for a result.
            self.acknowledge()
            self._amqp.heartbeat_tick()

    def abandon(self) -> None:
        self._loop.end()
        self._amqp.abandon()


def _compression(table: bytes | None) -> str:
    """The ``compression`` header in an encoded table."""
    if not table:
        return ""
    try:
        headers = loads("F", table, 0)[0][0]
    except Exception:  # py-amqp raises of many kinds for tables that are none
        return "unreadable headers"
    return str(headers.get("compression") or "")


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""


class KombuIntake(Intake):
    """Results through a plain kombu consumer, each acknowledged by itself."""

    def _open_channels(self) -> None:
        self.channel = self.connection.default_channel
        self._messages: deque[tuple[str, Any]] = deque()
        self._consumers: list[Any] = []

    def _consume(self, name: str) -> None:
        consumer = self.connection.Consumer(
            [self.queues.make(name)],
            channel=self.channel,
            auto_declare=False,
            on_message=lambda message: self._messages.append((name, message)),
            # One that kombu cannot decompress; raised here, it would come again and again.
            on_decode_error=lambda message, exc: self._messages.append((name, message)),
        )
        consumer.consume()
        self._consumers.append(consumer)

    def read(self, timeout: float) -> bool:
        if not self._messages:
            try:
                self.connection.drain_events(timeout=timeout)
            except TimeoutError:
                return False
        return True

    def readable(self) -> bool:
        return self.read(timeout=0.001)

    @property
    def holds_some(self) -> bool:
        return bool(self._messages)

    def pump(self, deliver: Deliver, everything: bool) -> None:
        while self._messages:
            name, message = self._messages.popleft()
            try:
                self._deliver_message(deliver, name, message)
            except BaseException:
                self._messages.appendleft((name, message))  # thrown into this thread
                raise
            message.ack()
            self.matcher.stats.received += 1
            self.taken += 1

    def _deliver_message(self, deliver: Deliver, name: str, message: Any) -> None:
        body = message.body
        correlation_id = message.properties.get("correlation_id")
        deliver(
            correlation_id.encode("utf-8", "surrogatepass") if correlation_id else None,
            body.encode() if isinstance(body, str) else bytes(body),
            body_format(
                message.content_type or "",
                message.content_encoding or "utf-8",
                # kombu has opened the body, if it could.
                str(message.headers.get("compression") or "") if message.errors else "",
            ),
            name,
        )
