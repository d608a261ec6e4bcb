"""The connection that results are sent on, without a server."""

from __future__ import annotations

from collections import deque
from struct import pack
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Connection as KombuConnection
from kombu.exceptions import OperationalError

from fastrpc.errors import ProtocolError
from fastrpc.sending._window import ConfirmWindow
from fastrpc.sending.link import WRITE_TIMEOUT, Link, Lost, Message
from fastrpc.stats import SentStats
from fastrpc.wire._reader import FrameReader
from tests.support.amqp_bytes import QOS_OK, frame

MESSAGE = Message("queue", "id", b"body", "application/json", "utf-8")


def confirm(tag: int) -> bytes:
    """``basic.ack`` on channel 1."""
    return frame(1, 1, pack(">HHQB", 60, 80, tag, 0))


class FakeAMQP:
    """py-amqp's connection, as far as a link uses it."""

    frame_max = 131072

    def __init__(self) -> None:
        self.reader = FrameReader()
        self.sock = SimpleNamespace(settimeout=self.settimeout, send=self.write)
        self.heartbeat = 0
        self.timeouts: list[float | None] = []
        self.answer_timeout = 10.0
        self.written: list[bytes] = []
        #: Raised by the next write.
        self.fails: BaseException | None = None
        #: What the next reads find: bytes, or an exception to raise.
        self.arriving: deque[bytes | BaseException] = deque()
        self.dispatched: list[bytes] = []
        self.abandoned = False

    def settimeout(self, timeout: float | None) -> None:
        self.timeouts.append(timeout)

    def write(self, data: bytes) -> int:
        if self.fails is not None:
            raise self.fails
        self.written.append(bytes(data))
        return len(data)

    def frame_writer(self, *frame: Any) -> None:
        """What py-amqp writes by itself."""

    def readable(self) -> bool:
        return bool(self.arriving)

    def fill(self, timeout: float) -> None:
        if not self.arriving:
            raise TimeoutError
        data = self.arriving.popleft()
        if isinstance(data, BaseException):
            raise data
        self.reader.feed(data)

    def dispatch(self, kind: int) -> None:
        self.dispatched.append(self.reader.payload)

    def abandon(self) -> None:
        self.abandoned = True


class FakeConnection:
    """A kombu connection over it."""

    connection_errors = (ConnectionError, ProtocolError)
    channel_errors = ()
    alt = ()
    connect_timeout = 4.0
    heartbeat = 0

    def __init__(self, amqp: FakeAMQP, **transport_options: Any) -> None:
        self.connection = amqp
        self.transport_options = transport_options
        self.connected = False
        self.refuses: BaseException | None = None
        self.ends: list[str] = []
        self.confirms = False
        self.default_channel = SimpleNamespace(
            channel_id=1, events={"basic_return": set()}, confirm_select=self.confirm_select
        )

    def confirm_select(self) -> None:
        self.confirms = True

    def ensure_connection(self, max_retries: int) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.connected = True

    def as_uri(self) -> str:
        return "amqp://host"

    def close(self) -> None:
        self.ends.append("close")

    def collect(self, timeout: float) -> None:
        self.connected = False
        self.ends.append("collect")


class Linked:
    """A link, and both fakes below it."""

    def __init__(self, confirms: bool = True, **transport_options: Any) -> None:
        self.amqp = FakeAMQP()
        self.connection = FakeConnection(self.amqp, **transport_options)
        self.stats = SentStats()
        self.link = Link(self.connection, 2, confirms, self.stats)
        self.window = ConfirmWindow()

    def send(self, message: Message = MESSAGE) -> None:
        self.link.send(message, self.window)


@pytest.fixture
def linked() -> Linked:
    return Linked()


class TestOpening:
    @pytest.mark.parametrize("confirms", [True, False])
    def test_confirms_are_asked_for_where_they_are_wanted(self, confirms):
        assert Linked(confirms).connection.confirms == confirms

    def test_what_bounds_a_write_is_set_and_may_be_set_otherwise(self):
        assert Linked().connection.transport_options["write_timeout"] == WRITE_TIMEOUT
        given = Linked(write_timeout=5, socket_settings={99: 1}).connection.transport_options
        assert given["write_timeout"] == 5
        assert given["socket_settings"][99] == 1

    def test_one_that_cannot_be_says_why_and_hangs_up(self):
        connection = FakeConnection(FakeAMQP())
        connection.refuses = OperationalError("nobody listens")
        with pytest.raises(Lost, match=r"nobody listens \(amqp://host\)") as raised:
            Link(connection, 2, True, SentStats())
        assert raised.value.__cause__ is connection.refuses
        assert connection.ends == ["collect"]

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_exception_from_elsewhere_leaves_no_socket_open(self, error):
        """Ctrl-C, or one that a callable broker_password raises."""
        connection = FakeConnection(FakeAMQP())
        connection.refuses = error()
        with pytest.raises(error):
            Link(connection, 2, True, SentStats())
        assert connection.ends == ["collect"]

    def test_a_real_kombu_connection_that_nobody_answers(self):
        with pytest.raises(Lost, match=r"127\.0\.0\.1"):
            Link(KombuConnection("amqp://127.0.0.1:1//"), 2, True, SentStats())


class TestSending:
    def test_one_write_each_and_a_delivery_tag(self, linked):
        for _ in range(3):
            linked.send()
        assert len(linked.amqp.written) == len(linked.window) == linked.link.sent == 3
        linked.amqp.arriving.append(confirm(2))
        linked.link.read(linked.window)
        assert len(linked.window) == 2
        for part in (b"queue", b"id", b"body", b"application/json", b"utf-8"):
            assert part in linked.amqp.written[0]

    def test_each_message_has_its_own_content_type(self, linked):
        linked.send()
        linked.send(MESSAGE._replace(content_type="text/yaml", content_encoding="latin-1"))
        linked.send()
        assert [b"text/yaml" in data for data in linked.amqp.written] == [False, True, False]
        assert [b"latin-1" in data for data in linked.amqp.written] == [False, True, False]
        assert linked.amqp.written[0] == linked.amqp.written[2]

    def test_without_confirms_a_question_follows_now_and_then(self):
        linked = Linked(confirms=False)
        linked.send(MESSAGE._replace(body=b"x" * 100_000))
        linked.send()
        _, question, _ = linked.amqp.written
        assert question == frame(1, 1, pack(">HHIHB", 60, 10, 0, 0, 0))
        linked.amqp.arriving.append(QOS_OK)
        linked.link.read(linked.window)
        assert (linked.window.ahead, linked.amqp.dispatched) == (0, [])

    def test_with_confirms_there_is_none(self, linked):
        linked.send(MESSAGE._replace(body=b"x" * 100_000))
        assert len(linked.amqp.written) == 1

    def test_the_broker_is_not_silent_during_a_write_that_takes_time(self, linked):
        linked.link.heard_at = 0.0
        linked.send()
        assert linked.link.heard_at == 0.0
        write = linked.link._write
        linked.link._write = lambda data: write(data[:30])
        linked.send()
        assert linked.link.heard_at > 0.0

    def test_a_lost_connection_is_lost(self, linked):
        linked.amqp.fails = ConnectionResetError("reset")
        with pytest.raises(Lost, match="reset") as raised:
            linked.send()
        assert raised.value.__cause__ is linked.amqp.fails
        assert linked.link.closed
        assert linked.link.sent == 0

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
    def test_an_exception_thrown_in_passes_through_and_leaves_it_busy(self, linked, error):
        """Half of a frame may be on its way: the next user gives the link up."""
        linked.amqp.fails = error()
        with pytest.raises(error):
            linked.send()
        assert linked.link.busy
        linked.link.goodbye(3)
        assert linked.connection.ends == ["collect"]

    def test_what_cannot_be_encoded_harms_nothing(self, linked):
        with pytest.raises(ValueError, match="255"):
            linked.send(MESSAGE._replace(routing_key="q" * 256))
        assert not linked.link.closed
        assert not linked.link.busy
        linked.send()
        assert linked.link.sent == 1


class TestReading:
    def test_confirms_go_to_the_window(self, linked):
        for tag in (1, 2):
            linked.window.add(tag, MESSAGE)
        assert not linked.link.read(linked.window)
        linked.amqp.arriving += [confirm(1), confirm(2)]
        assert linked.link.read(linked.window)
        assert len(linked.window) == 0
        assert linked.window.confirmed == 2

    def test_all_else_goes_to_py_amqp(self, linked):
        linked.window.add(1, MESSAGE)
        linked.amqp.arriving.append(frame(8, 0, b"") + confirm(1) + frame(1, 0, b"\0\x0a\0\x3c"))
        linked.link.read(linked.window)
        assert linked.amqp.dispatched == [b"", b"\0\x0a\0\x3c"]
        assert len(linked.window) == 0

    def test_it_waits_once_and_then_takes_what_is_there(self, linked):
        waits: list[float] = []
        fill = linked.amqp.fill
        linked.amqp.fill = lambda timeout: (waits.append(timeout), fill(timeout))
        linked.amqp.arriving += [confirm(1), confirm(2)]
        assert linked.link.read(linked.window, 5)
        assert waits == [5, 0]

    def test_nothing_in_time_is_no_error(self, linked):
        assert not linked.link.read(linked.window, 0.01)
        assert not linked.link.closed

    def test_a_lost_connection_is_lost(self, linked):
        linked.amqp.arriving.append(ConnectionResetError())
        with pytest.raises(Lost, match=r"ConnectionResetError\(\)"):
            linked.link.read(linked.window)
        assert linked.link.closed

    def test_so_is_one_that_does_not_speak_amqp(self, linked):
        linked.amqp.arriving.append(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        with pytest.raises(Lost):
            linked.link.read(linked.window)
        assert linked.link.closed

    @pytest.mark.parametrize("where", ["fill", "dispatch"])
    def test_an_exception_thrown_in_passes_through_and_leaves_it_busy(self, linked, where):
        """What was read and not served would be lost otherwise."""

        def interrupted(*args: Any) -> None:
            raise KeyboardInterrupt

        linked.amqp.arriving.append(frame(8, 0))
        setattr(linked.amqp, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            linked.link.read(linked.window)
        assert linked.link.busy


class TestWhatTheBrokerSays:
    def test_wait(self, linked, caplog):
        linked.amqp.on_blocked("low on memory")
        assert linked.link.blocked
        assert "low on memory" in caplog.text
        linked.amqp.on_unblocked()
        assert not linked.link.blocked

    def test_nobody_gets_this(self, linked):
        [returned] = linked.connection.default_channel.events["basic_return"]
        message = SimpleNamespace(properties={"correlation_id": "id"})
        returned(Exception("no route"), "", "queue", message)
        assert linked.stats.returned == 1


class TestEnds:
    def test_goodbye_is_bounded(self, linked):
        linked.link.goodbye(3)
        assert linked.connection.ends == ["close"]
        assert linked.amqp.timeouts[-1] == linked.amqp.answer_timeout == 3

    def test_goodbye_on_a_connection_that_is_lost(self, linked):
        def lost() -> None:
            raise ConnectionResetError

        linked.connection.close = lost
        linked.link.goodbye(3)

    def test_goodbye_when_it_is_closed_says_nothing(self, linked):
        linked.link.close()
        linked.link.goodbye(3)
        assert "close" not in linked.connection.ends

    def test_in_a_forked_child_nothing_is_said(self, linked):
        linked.link.abandon()
        assert linked.amqp.abandoned
        assert linked.connection.ends == []
