"""A fake broker under the control of the test, for publishers without a server."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from amqp.exceptions import AccessRefused

from fastrpc.sending import publisher
from fastrpc.sending._window import ConfirmWindow
from fastrpc.sending.link import Lost
from fastrpc.sending.message import Message, Packed
from fastrpc.sending.publisher import AMQPPublisher
from fastrpc.wire._reader import FrameReader
from tests.support.amqp_bytes import QOS_OK


class Broker:
    """Records what is sent to it, and answers when the test says so."""

    def __init__(self) -> None:
        self.got: list[str] = []  # correlation ids, in the order of arrival, over all links
        self.links: list[FakeLink] = []
        self.down = False
        self.refuses = False
        self.confirms_at_once = False
        #: Correlation ids over which it closes the channel.
        self.not_taken: set[str] = set()

    def connect(self, connection, delivery_mode, confirms, stats) -> FakeLink:
        if self.refuses:
            raise Lost("refused") from AccessRefused("no such user")
        if self.down:
            raise Lost("down") from ConnectionRefusedError("down")
        link = FakeLink(self, confirms, connection["heartbeat"])
        self.links.append(link)
        return link

    @property
    def link(self) -> FakeLink:
        return self.links[-1]


def connected_broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker to which all publishers of the test connect."""
    broker = Broker()
    monkeypatch.setattr(publisher, "Link", broker.connect)
    return broker


class FakeLink:
    def __init__(self, broker: Broker, confirms: bool, heartbeat: int) -> None:
        self.broker = broker
        self.confirms = confirms
        self.sent = 0
        self.opened_at = time.monotonic()
        self.blocked = False
        self.closed_over: Message | Packed | None = None
        #: The connection is lost; if `too_large`, over a message larger than the broker takes.
        self.cut = self.too_large = False
        self.closed = self.busy = self.said_goodbye = self.abandoned = False
        self.heartbeat = heartbeat
        self.heard_at = 0.0
        self.answered = True
        self.heartbeats = 0
        self.reader = FrameReader()
        self.frames: deque[tuple[int, bool, bool] | bytes] = deque()
        #: Questions: how far the broker is, without confirms.
        self.asked = 0
        self.looks = 0
        self.waits: list[float] = []
        self.interrupt: BaseException | None = None
        self.on_send: Callable[[], object] | None = None

    def send(self, message: Message | Packed, window: ConfirmWindow) -> None:
        if self.interrupt is not None:
            self.busy = True
            raise self.interrupt
        if self.cut:
            raise self._lost()
        if self.on_send is not None:
            self.on_send()
        self.sent += 1
        self.broker.got.append(message.correlation_id)
        if message.correlation_id in self.broker.not_taken:
            self.closed_over = message
        if self.broker.confirms_at_once and self.closed_over is None:
            self.frames.append((self.sent, False, True))
        if self.confirms:
            window.add(self.sent, message)
        else:
            self.asked += window.forget(message, len(message.body))

    def _lost(self) -> Lost:
        lost = Lost("cut")
        lost.too_large = self.too_large
        lost.__cause__ = ConnectionResetError("cut")
        return lost

    def keep_alive(self, window: ConfirmWindow) -> None:
        self.heartbeats += 1

    def wait(self, timeout: float) -> None:
        self.waits.append(timeout)
        time.sleep(min(timeout, 0.01))

    def read(self, window, timeout=0) -> bool:
        self.looks += 1
        if self.cut:
            raise self._lost()
        if self.closed_over is not None:
            lost = Lost("no such exchange")
            lost.over_a_message = not isinstance(self.closed_over, Message)
            raise lost from AccessRefused("no such exchange")
        end = time.monotonic() + timeout
        while not self.frames:
            if time.monotonic() >= end:
                return False
            time.sleep(0.001)
        while self.frames:  # other threads append to it
            answer = self.frames.popleft()
            if isinstance(answer, bytes):
                self.reader.feed(answer)
                window.read(self.reader)
            else:
                window.confirm(*answer)
        self.heard_at = time.monotonic()
        return True

    def confirm(self, tag: int, multiple: bool = False) -> None:
        self.frames.append((tag, multiple, True))

    def refuse(self, tag: int, multiple: bool = False) -> None:
        self.frames.append((tag, multiple, False))

    def answer(self) -> None:
        """Answer the first unanswered question."""
        self.frames.append(QOS_OK)

    def close(self) -> None:
        self.closed = True

    def goodbye(self, timeout: float) -> None:
        self.said_goodbye = True

    def abandon(self) -> None:
        self.abandoned = True


def message(name: str, size: int = 10) -> Message:
    return Message("queue", name, b"x" * size, "application/json", "utf-8")


def send_tasks(publisher: AMQPPublisher, *names: str) -> None:
    """Send messages that name their exchange."""
    for name in names:
        publisher.publish(SimpleNamespace(correlation_id=name, body=b"x" * 10))


def apology(too_large: Message) -> Message:
    return too_large._replace(correlation_id=f"sorry, {too_large.correlation_id}", body=b"sorry")


def send(publisher: AMQPPublisher, *names: str) -> None:
    for name in names:
        publisher.publish(message(name))
