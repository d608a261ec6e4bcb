"""The AMQP intake, over a connection without a server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from amqp import spec
from amqp.exceptions import NotFound, RecoverableConnectionError
from amqp.serialization import dumps

from fastrpc.client import amqp_intake as amqp_intake_module
from fastrpc.client import intake as intake_module
from fastrpc.client._pending import PendingTable
from fastrpc.client._wait import ReadingRole, Wait, Watchers
from fastrpc.client.amqp_intake import MAX_FORMATS, AMQPIntake
from fastrpc.client.matcher import ResultMatcher, body_format
from fastrpc.client.queues import ReplyQueues
from fastrpc.errors import ProtocolError
from fastrpc.options import Options
from fastrpc.stats import ReceivedStats
from tests.support.amqp_bytes import delivery, frame
from tests.support.fake_amqp import FakeAMQP, FakeConnection
from tests.support.results import meta


class Broker:
    """The broker's answers for reply queues."""

    def __init__(self) -> None:
        #: Queue name -> what its declaration raises, or messages in it.
        self.answers: dict[str, BaseException | int] = {}
        self.declared: list[str] = []
        self.deleted: list[str] = []

    def make(self, name: str):
        """A reply queue, unbound."""
        return lambda channel: SimpleNamespace(
            queue_declare=lambda: self.declare(name),
            delete=lambda nowait: self.deleted.append(name),
        )

    def declare(self, name: str):
        self.declared.append(name)
        answer = self.answers.get(name, 0)
        if isinstance(answer, BaseException):
            raise answer
        return name, answer, 0


class Clock:
    """The clock of both modules, under the control of the test."""

    def __init__(self, monkeypatch) -> None:
        self.now = 1000.0
        for module in (intake_module, amqp_intake_module):
            monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


class Way:
    """An open intake, and what the test needs of it."""

    def __init__(self, *names: str, prefetch: int = 400, **answers) -> None:
        self.broker = Broker()
        self.broker.answers.update(answers)
        self.amqp = FakeAMQP()
        self.connection = FakeConnection(self.amqp)
        self.stats = ReceivedStats()
        self.watchers = Watchers()
        self.matcher = ResultMatcher(
            PendingTable(),
            self.watchers,
            ReadingRole(self.watchers),
            accept=None,
            to_python=dict,
            stats=self.stats,
            max_age=None,
            max_claimed=0,
            max_claimed_bytes=0,
        )
        self.queues = ReplyQueues(self.broker.make, None, connect=None)
        for name in names:
            self.queues._renew_at[name] = 0.0
        self.intake = AMQPIntake(
            self.connection, self.queues, Options(prefetch=prefetch), self.matcher
        )
        self.intake.open(5)
        self.tag = 0
        #: What the slow path gave to the matcher.
        self.delivered: list[tuple] = []
        self.matcher.deliver = lambda *message: self.delivered.append(message)

    @property
    def channel(self):
        return self.intake.channel

    def consumed(self) -> list[str]:
        return [args[0] for name, *args in self.channel.written if name == "consume"]

    def arrives(self, body: bytes = b"x", **properties) -> None:
        self.tag += 1
        channel = self.channel.channel_id
        self.amqp.arriving.append(delivery(self.tag, body, b"id", channel=channel, **properties))

    def take_in(self) -> None:
        while self.amqp.arriving:
            self.intake.read(0)
        self.intake.pump()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


class TestOpening:
    def test_all_queues_exist_before_the_first_is_consumed(self):
        way = Way("a", "b", a=2, b=3)
        assert way.broker.declared == ["a", "b"]
        assert way.intake.backlog == 5
        assert way.consumed() == []
        assert way.intake.behind
        way.intake.catch_up()
        assert way.consumed() == ["a", "b"]
        assert not way.intake.behind

    def test_results_have_a_channel_of_their_own(self):
        way = Way("a", prefetch=7)
        assert way.channel is not way.connection.default_channel
        assert way.channel.written[0] == ("qos", 0, 7, False)

    def test_answers_have_less_time_only_while_it_opens(self, clock):
        way = Way("a")
        assert way.amqp.answer_timeout == 10

    def test_a_queue_whose_node_is_down_stops_no_other(self, clock, caplog):
        way = Way("a", "b", a=NotFound("node down"))
        assert "the reply queue a is down" in caplog.text
        way.intake.catch_up()
        assert way.consumed() == ["b"]

    def test_a_newer_connection_comes_before_an_older_one(self):
        assert Way().intake._priority < Way().intake._priority

    def test_it_looks_after_the_connection_as_often_as_the_heartbeat_asks(self):
        assert Way().intake.interval == intake_module.INTERVAL
        assert not Way().intake.readers_only


class TestConsuming:
    def test_each_queue_once(self):
        way = Way("a")
        for _ in range(3):
            way.intake.catch_up()
        assert way.consumed() == ["a"]

    def test_one_that_fails_is_left_to_the_reader(self):
        way = Way("a", "b")
        way.channel.fails = ConnectionResetError()
        way.intake.catch_up()
        assert way.consumed() == ["b"]
        assert way.intake.behind
        assert way.intake.spoiled

    def test_one_that_is_interrupted_spoils_the_connection(self):
        way = Way("a")
        way.channel.fails = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            way.intake.catch_up()
        assert way.intake.spoiled

    def test_one_that_the_broker_cancelled_is_made_and_consumed_again(self):
        way = Way("a")
        way.intake.catch_up()
        way.channel.on_cancel("a")
        way.intake.tend()
        assert way.broker.declared == ["a", "a"]
        assert way.consumed() == ["a", "a"]

    def test_those_that_it_cancels_meanwhile_are_made_after_that_one(self, monkeypatch):
        """The answer to one declaration is awaited, and in comes that another one is cancelled."""
        way = Way("a", "b")
        way.intake.catch_up()
        under_way: list[str] = []
        stock = way.broker.declare

        def declare(name: str):
            assert not under_way
            under_way.append(name)
            if name == "a":
                way.channel.on_cancel("b")
            under_way.remove(name)
            return stock(name)

        monkeypatch.setattr(way.broker, "declare", declare)
        way.channel.on_cancel("a")
        way.intake.tend()
        way.intake.tend()
        assert way.broker.declared == ["a", "b", "a", "b"]
        assert way.consumed() == ["a", "b", "a", "b"]
        assert not way.intake.away

    def test_a_channel_of_results_that_the_broker_has_closed_is_a_lost_connection(self):
        """py-amqp opened it again, without consumers, and raised in whatever waited then."""
        way = Way("a", a=NotFound("node down"))
        way.broker.answers.clear()
        way.channel.refusals = 1
        way.intake._away_at = 0.0
        with pytest.raises(RecoverableConnectionError, match="closed the channel"):
            way.intake.tend()
        assert way.intake.spoiled

    def test_but_not_one_that_we_deleted(self):
        way = Way("a")
        way.intake.catch_up()
        way.queues.delete(way.connection.default_channel)
        way.channel.on_cancel("a")
        assert way.broker.declared == ["a"]

    def test_one_that_was_away_is_looked_for_once_a_second(self, clock):
        way = Way("a", a=NotFound("node down"))
        way.intake.tend()
        assert way.broker.declared == ["a"]
        clock.now += intake_module.DOWN_INTERVAL
        way.intake.tend()
        assert way.broker.declared == ["a", "a"]
        assert way.consumed() == []
        way.broker.answers.clear()
        clock.now += intake_module.DOWN_INTERVAL
        way.intake.tend()
        assert way.consumed() == ["a"]
        assert not way.intake.away

    def test_one_whose_declaration_is_not_answered_waits_for_it(self, clock, caplog):
        way = Way("a", "b", a=TimeoutError())
        first = way.connection.default_channel
        assert "its declaration is not answered" in caplog.text
        # The channel serves nothing before its answer, so the other queues use another channel.
        assert way.intake._declaring_channel is not first
        assert way.broker.declared == ["a", "b"]
        way.intake.catch_up()
        assert way.consumed() == ["b"]
        clock.now += 100
        way.intake.tend()
        assert way.broker.declared == ["a", "b"]
        first._pending[spec.Queue.DeclareOk]()
        way.intake.tend()
        assert way.consumed() == ["b", "a"]
        assert first.written[-1] == ("close",)

    def test_one_that_is_refused_too_late_is_declared_again(self, clock):
        """The answer that is still awaited never comes."""
        way = Way("a", a=TimeoutError())
        first = way.connection.default_channel
        first.refusals += 1
        way.intake.tend()
        assert way.broker.declared == ["a"]
        way.broker.answers.clear()
        clock.now += intake_module.DOWN_INTERVAL
        way.intake.tend()
        assert way.broker.declared == ["a", "a"]
        assert way.consumed() == ["a"]
        assert first.written[-1] == ("close",)


class TestReading:
    def test_whether_something_came(self):
        way = Way()
        assert not way.intake.read(0)
        assert not way.intake.readable()
        way.arrives()
        assert way.intake.readable()
        before = way.amqp.bytes_recv
        assert way.intake.read(0)
        assert way.amqp.bytes_recv > before  # a sign of life
        assert way.intake.holds_some

    @pytest.mark.parametrize("error", [ConnectionResetError, KeyboardInterrupt])
    def test_an_exception_spoils_a_tls_connection_only(self, error):
        for readers_only in (False, True):
            way = Way()
            way.intake.readers_only = readers_only
            way.amqp.arriving.append(error())
            with pytest.raises(error):
                way.intake.read(0)
            assert way.intake.spoiled == readers_only

    def test_while_nothing_comes_the_channel_is_asked_whether_it_answers(self, clock):
        way = Way()
        asked = [("method", spec.Basic.Qos)]

        def questions():
            return [args[:2] for args in way.channel.written if args[0] == "method"]

        for _ in range(3):
            way.intake.read(0)
        assert questions() == asked
        way.channel._pending.pop(spec.Basic.QosOk)()
        clock.now += amqp_intake_module.ANSWER_TIMEOUT
        for _ in range(3):
            way.intake.read(0)
        assert questions() == asked, "it answers, and nothing is new"
        clock.now += amqp_intake_module.QUESTION_INTERVAL
        way.intake.read(0)
        assert questions() == asked * 2
        way.channel._pending.pop(spec.Basic.QosOk)()
        clock.now += amqp_intake_module.ANSWER_TIMEOUT
        way.intake.read(0)
        way.queues.use_at_least("new")
        way.intake.catch_up()
        way.intake.read(0)
        assert questions() == asked * 3, "it may wait for a queue that is consumed anew"
        clock.now += amqp_intake_module.ANSWER_TIMEOUT - 0.1
        way.intake.read(0)
        clock.now += 0.1
        with pytest.raises(RecoverableConnectionError, match=r"no answer to basic\.qos"):
            way.intake.read(0)
        assert way.intake.spoiled


class TestHandingOver:
    def test_the_slow_way_gets_id_body_format_and_queue(self):
        way = Way()
        way.arrives(b"body", content_type=b"t", consumer_tag=b"q")
        way.take_in()
        assert way.delivered == [(b"id", b"body", body_format("t", "utf-8"), "q")]
        assert (way.stats.received, way.intake.taken) == (1, 1)

    @pytest.mark.parametrize("listened", [True, False])
    def test_everything_goes_that_way_while_somebody_listens(self, listened):
        way = Way()
        if listened:
            way.watchers.watch([], Wait(None, print, "queue"))
        way.arrives(meta("id"))
        way.take_in()
        assert len(way.delivered) == listened

    def test_the_fast_way_counts_too(self):
        way = Way()
        way.matcher.table.finish("id")
        for _ in range(3):
            way.arrives(meta("id"))
        way.take_in()
        way.take_in()
        assert (way.stats.received, way.intake.taken, way.stats.duplicates) == (3, 3, 3)

    def test_what_was_counted_before_an_exception_stays_counted(self, monkeypatch):
        way = Way()
        way.arrives(meta("id"))
        way.arrives(b"x")
        way.intake.read(0)
        way.intake.read(0)

        def interrupted(*args) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(way.matcher, "deliver", interrupted)
        with pytest.raises(KeyboardInterrupt):
            way.intake.pump()
        assert way.stats.received == 1
        monkeypatch.undo()
        way.take_in()
        assert way.stats.received == 2
        assert len(way.delivered) == 1

    def test_the_size_of_a_body_that_is_too_large(self):
        way = Way()
        way.arrives(b"x" * 100_001)
        way.take_in()
        assert way.stats.bad_messages == {"too large": 1}
        assert way.delivered == []

    @pytest.mark.parametrize(
        ("headers", "compression"),
        [
            (None, ""),
            (b"\0\0\0\0", ""),
            (dumps("F", [{"compression": "z"}]), "z"),
            (dumps("F", [{"compression": None}]), ""),
            (dumps("F", [{"a": 1}]), ""),
            (b"\0\0\0\x03abc", "unreadable headers"),
            (b"\0\0\0\x0b\x01aT" + b"\xff" * 8, "unreadable headers"),
        ],
    )
    def test_the_compression_is_in_the_headers(self, headers, compression):
        way = Way()
        way.arrives(headers=headers, content_type=b"t")
        way.take_in()
        assert way.delivered[0][2] == body_format("t", "utf-8", compression)

    def test_formats_are_remembered_but_not_without_end(self):
        way = Way()
        for n in range(3 * MAX_FORMATS):
            way.arrives(content_type=b"t%d" % n)
        way.arrives(content_type=b"t0")
        way.take_in()
        assert way.delivered[-1][2] == body_format("t0", "utf-8")
        assert len(way.intake._formats) <= MAX_FORMATS

    def test_what_comes_while_an_answer_is_awaited_is_kept(self):
        way = Way()
        way.arrives()
        way.amqp.keeps = True
        way.intake.read(0)
        assert way.intake.holds_some
        way.take_in()
        assert len(way.delivered) == 1

    def test_on_another_channel_it_is_an_error(self):
        way = Way()
        way.amqp.keeps = True
        way.amqp.arriving.append(delivery(1, b"x", channel=99))
        with pytest.raises(ProtocolError, match="channel 99"):
            way.intake.read(0)

    def test_other_frames_go_to_py_amqp(self):
        way = Way()
        way.amqp.arriving.append(frame(8, 0))
        way.take_in()
        assert way.amqp.dispatched == [(8, 0, b"")]

    def test_while_an_event_loop_reads_they_wait_for_the_next_time_it_is_tended(self, clock):
        way = Way()
        way.intake.tend()
        rings: list[None] = []
        way.intake.put_off = lambda: rings.append(None)
        way.amqp.arriving.append(frame(8, 0))
        way.take_in()
        assert (way.amqp.dispatched, len(rings)) == ([], 1)
        way.intake.tend()
        assert way.amqp.dispatched == [(8, 0, b"")]


class TestAcknowledging:
    def test_all_at_once_and_only_what_is_owed(self):
        way = Way()
        assert not way.intake.owes_acknowledgement
        for _ in range(3):
            way.arrives()
        way.take_in()
        assert way.intake.owes_acknowledgement
        way.intake.acknowledge()
        way.intake.acknowledge()
        assert way.channel.acknowledged == [3]
        assert not way.intake.owes_acknowledgement

    def test_before_a_quarter_of_the_prefetch_is_used(self):
        way = Way(prefetch=8)
        for _ in range(5):
            way.arrives()
        way.take_in()
        assert way.channel.acknowledged == [2, 4]

    def test_a_prefetch_of_one_as_well(self):
        way = Way(prefetch=1)
        way.arrives()
        way.take_in()
        assert way.channel.acknowledged == [1]

    def test_when_the_connection_is_looked_after_but_seldom(self, clock):
        way = Way()
        for _ in range(3):
            way.arrives()
            way.take_in()
            way.intake.tend()
        assert way.channel.acknowledged == [1]
        assert way.amqp.heartbeat_ticks == 1
        clock.now += way.intake.interval
        way.intake.tend()
        assert way.channel.acknowledged == [1, 3]
        assert way.amqp.heartbeat_ticks == 2

    def test_one_that_is_interrupted_spoils_the_connection(self):
        way = Way()
        way.arrives()
        way.take_in()
        way.channel.fails = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            way.intake.acknowledge()
        assert way.intake.spoiled
        assert way.intake.owes_acknowledgement


class TestEnds:
    @pytest.mark.parametrize("delete", [True, False])
    def test_goodbye(self, delete):
        way = Way("a")
        way.arrives()
        way.take_in()
        way.intake.goodbye(1, delete_queues=delete)
        assert way.channel.acknowledged == [1]
        assert way.broker.deleted == (["a"] if delete else [])
        assert way.connection.ends == ["close"]
        assert way.amqp.answer_timeout == 10

    def test_hanging_up_acknowledges_nothing(self):
        way = Way()
        way.arrives()
        way.take_in()
        way.intake.close()
        assert way.channel.acknowledged == []
        assert way.connection.ends == ["collect"]

    def test_in_a_forked_child_nothing_is_said(self):
        way = Way()
        way.arrives()
        way.take_in()
        way.arrives()
        way.intake.read(0)
        way.intake.abandon()
        way.take_in()
        way.intake.acknowledge()
        assert way.amqp.abandoned
        assert len(way.delivered) == 1
        assert way.channel.acknowledged == []
        assert way.connection.ends == []
