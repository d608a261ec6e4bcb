"""Receives results over AMQP with our own frame reader, and acknowledges many at a time."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from ssl import SSLSocket

from amqp import spec
from amqp.exceptions import RecoverableConnectionError
from kombu.utils.compat import detect_environment

from ..errors import BadMessage, TableError
from ..transport.connection import PendingAnswer
from ..transport.dial import ANSWER_TIMEOUT
from ..wire._table import loads_table
from ._matcher import Delivery, DeliveryLoop
from .intake import INTERVAL, READERS_ONLY_INTERVAL, Intake
from .matcher import READY_STATES, body_format, load_large

__all__ = ["AMQPIntake"]

#: How many different (content type, encoding, headers) are remembered with their format.
MAX_FORMATS = 64

#: Seconds between two questions to a channel on which no new queue was consumed meanwhile.
QUESTION_INTERVAL = 30.0

#: Consumer priority: a newer connection outranks an older one that the broker has not yet noticed
#: is dead.
_connections = itertools.count()


class AMQPIntake(Intake):
    """Receives results over AMQP with our own frame reader, and acknowledges many at a time."""

    watchable = True

    def _open_channels(self) -> None:
        # Results have a channel of their own, which survives an error of a declaration.
        self.channel = self.connection.channel()
        self.channel.basic_qos(0, self.options.prefetch, False)
        self._priority = next(_connections)
        self._amqp = self.connection.connection
        # Writes take a lock, but two threads must not use one TLS connection at the same time.
        self.readers_only = isinstance(self._amqp.sock, SSLSocket)
        heartbeat = self._amqp.heartbeat or 4 * INTERVAL
        self._heartbeat_at = 0.0
        #: When the channel is asked next whether it still answers; after a question, when it must
        #: have answered.
        self._ask_at = 0.0
        self._answer: PendingAnswer | None = None
        #: Whether a queue was consumed since the last question.
        self._consumed_anew = True
        self.interval = min(READERS_ONLY_INTERVAL if self.readers_only else INTERVAL, heartbeat / 4)
        # A busy wait would keep other greenlets from running.
        green = detect_environment() != "default"
        self._busy_wait = 0.0 if green else self.options.busy_wait
        self._reader = self._amqp.reader
        #: Frames that an event loop has read, and that ``tend`` will handle.
        self._frames: deque[tuple[int, int, bytes]] = deque()
        self._formats: dict[tuple[bytes | None, bytes | None, bytes | None], bytes] = {}
        self._loop = DeliveryLoop(
            self._reader,
            self.matcher.table,
            self.channel.channel_id,
            max(1, self.options.prefetch // 4),
            fulfiller=self.matcher.fulfiller,
            ready_states=READY_STATES,
            load_text=load_large,
            sink=self,
        )
        # Deliveries that arrive while py-amqp waits for an answer are kept for `pump`.
        self._amqp.on_delivery = self._loop.keep

    def _declare(self, name: str, patience: float) -> bool:
        reachable = self._declare_within(name, min(patience, self._amqp.answer_timeout / 2))
        self._check_channel()
        return reachable

    def _declare_within(self, name: str, patience: float) -> bool:
        timeout = self._amqp.answer_timeout
        channel = self._declaring_channel
        refusals = channel.refusals
        try:
            with self.answered_within(patience):
                return super()._declare(name, patience)
        except TimeoutError:
            # It may have been refused in time, and py-amqp was opening the channel again.
            late = PendingAnswer(channel, spec.Queue.DeclareOk, refusals)
            channel.unattended = True
            # This fails if the broker answers nothing on any channel.
            with self.answered_within(timeout - patience):
                self._declaring_channel = self.connection.channel()
            self._set_aside(name, "its declaration is not answered", late)
            return False

    def consume(self, name: str) -> None:
        self._loop.guarded(super().consume, name)

    def _consume(self, name: str) -> None:
        self._consumed_anew = True
        self.channel.basic_consume(
            name,
            consumer_tag=name,
            nowait=True,
            on_cancel=self._on_cancel,
            arguments={"x-priority": self._priority},
        )

    def _on_cancel(self, consumer_tag: str) -> None:
        # The queue was deleted, or moved to another node: declare it and consume it again.
        if consumer_tag not in self.queues:
            return  # this process deleted it
        self._cancelled(consumer_tag)

    def read(self, timeout: float) -> bool:
        if self._busy_wait:
            self._amqp.readable(min(self._busy_wait, timeout))
        try:
            # A TLS socket is Python code: an exception thrown into it may lose bytes that it read.
            if self.readers_only:
                self._loop.guarded(self._amqp.fill, timeout)
            else:
                self._amqp.fill(timeout)
        except TimeoutError:
            if self.put_off is None:
                self._loop.guarded(self._ask_channel)
            return False
        self._amqp.bytes_recv += 1  # heartbeat_tick() needs to see a change
        return True

    def _check_channel(self) -> None:
        """
        Raises:
            RecoverableConnectionError: the broker has closed the channel of the results. py-amqp
                opened it again, but nothing is consumed on it. It raised that in whatever waited
                for an answer then, which may have taken it for its own.
        """
        if self.channel.refusals:
            raise RecoverableConnectionError("the broker has closed the channel of the results")

    def _ask_channel(self) -> None:
        """Ask whether the channel still answers. Called while nothing arrives.

        RabbitMQ handles ``basic.consume`` by waiting for the queue, and delivers nothing else on
        the channel meanwhile. So the channel is asked after each new consumer. Otherwise it is
        asked seldom, because each answer wakes several of the broker's processes.

        Raises:
            RecoverableConnectionError: the last question was not answered in time.
        """
        self._check_channel()
        now = time.monotonic()
        if now < self._ask_at and not (self._consumed_anew and self._answer is None):
            return
        if self._answer is None:
            self._ask_at = now + ANSWER_TIMEOUT
            self._answer = PendingAnswer(self.channel, spec.Basic.QosOk, 0)
            self._consumed_anew = False
            self._write_qos()
        elif self._answer.came:
            self._ask_at = now + QUESTION_INTERVAL
            self._answer = None
        else:
            raise RecoverableConnectionError(
                f"no answer to basic.qos in {ANSWER_TIMEOUT:g} seconds"
            )

    def nudge(self) -> None:
        if not self.readers_only:
            # Any method that the broker answers will do: the answer ends the read.
            self._loop.guarded(self._write_qos)

    def _write_qos(self) -> None:
        self.channel.send_method(spec.Basic.Qos, "lBb", (0, self.options.prefetch, False))

    def readable(self) -> bool:
        return bool(self._amqp.readable())

    def fileno(self) -> int:
        return int(self._amqp.sock.fileno())

    @property
    def holds_some(self) -> bool:
        return self._loop.holds_some

    def has_some(self) -> bool:
        return self._loop.holds_some or bool(self._amqp.readable())

    @property
    def spoiled(self) -> bool:
        return self._loop.spoiled

    @property
    def fast_path(self) -> bool:
        """Whether deliveries may take the fast path, without the matcher."""
        return self.matcher.knows_plain_json and not self.matcher.watchers.listening

    def pump(self) -> None:
        loop, stats = self._loop, self.matcher.stats
        try:
            loop.run(self.fast_path, time.monotonic())
        finally:
            # Read and zeroed in one step: a callback inside run() may have called pump() too.
            taken, loop.taken = loop.taken, 0
            duplicates, loop.duplicates = loop.duplicates, 0
            self.taken += taken
            stats.received += taken
            stats.duplicates += duplicates

    def deliver(self, delivery: Delivery) -> None:
        """Give the matcher a delivery that cannot take the fast path."""
        if delivery.dropped:
            exc = BadMessage("too large", f"{delivery.dropped} bytes, see max_body")
            self.matcher.refuse(delivery.correlation_id, exc)
            return
        self.matcher.deliver(
            delivery.correlation_id,
            delivery.body,
            self._format(delivery.format_key),
            delivery.consumer_tag,
        )

    def dispatch(self, kind: int) -> None:
        """Let py-amqp handle an event that is not a delivery of results. It may write and wait."""
        if self.put_off is None:
            self._amqp.dispatch(kind)
        else:
            reader = self._reader
            self._frames.append((reader.frame_type, reader.channel, reader.payload))
            self.put_off()

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

    def write_acknowledgement(self) -> None:
        """Acknowledge all deliveries in one frame. The loop calls this when many are due."""
        if self.put_off is None:
            self._write_acknowledgement()
        else:
            self.put_off()

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
        # Most looks find nothing to do. The condition must name everything that `_tend` does.
        if self._frames or self.away or time.monotonic() >= self._heartbeat_at:
            self._loop.guarded(self._tend)

    def _tend(self) -> None:
        while self._frames:
            self._amqp.serve(self._frames.popleft())
        super().tend()

    def _heartbeat(self) -> None:
        now = time.monotonic()
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + self.interval
            # Not more often: each write wakes the broker, which delays the results on their way.
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
        headers = loads_table(table)
    except (TableError, ValueError, OverflowError, OSError):  # the last three: impossible dates
        return "unreadable headers"
    return str(headers.get("compression") or "")


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace") if value else ""
