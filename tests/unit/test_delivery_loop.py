"""DeliveryLoop by itself: order, counting, and its state after an exception at any point."""

from __future__ import annotations

import gc
from collections import deque
from struct import pack
from typing import Any
from weakref import ref

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import AsyncResult

from fastrpc.client._matcher import DeliveryLoop
from fastrpc.client._pending import DONE, UNCLAIMED, UNKNOWN, PendingTable
from fastrpc.client._wait import ReadingRole, Watchers
from fastrpc.client.matcher import READY_STATES, ResultMatcher, load_large
from fastrpc.errors import ProtocolError
from fastrpc.stats import ReceivedStats
from fastrpc.wire._reader import DELIVERY, FRAME, FrameReader
from tests.support.amqp_bytes import delivery, frame
from tests.support.results import meta

CHANNEL = 3
LARGE = 4 * 1024 * 1024
HEARTBEAT = frame(8, 0)


class Looping:
    """A loop, and a record of its calls."""

    def __init__(self, ack_every: int = 1000, max_body: int = 8 * 1024 * 1024) -> None:
        self.reader = FrameReader(max_body=max_body)
        self.table = PendingTable()
        watchers = Watchers()
        self.role = ReadingRole(watchers)
        self.matcher = ResultMatcher(
            self.table,
            watchers,
            self.role,
            accept=None,
            to_python=dict,
            stats=ReceivedStats(),
            max_age=None,
            max_claimed=0,
            max_claimed_bytes=0,
        )
        self.tag = 0
        #: Delivery tags that took the slow path, and the tags that were acknowledged.
        self.slow: list[int] = []
        self.acks: list[int] = []
        self.deliveries: list[Any] = []
        #: Events that were not our deliveries: (kind, channel).
        self.dispatched: list[tuple[int, int]] = []
        #: Raised, or called, by the next calls of each; None behaves normally.
        self.on_slow: deque[Any] = deque()
        self.on_acknowledge: deque[Any] = deque()
        self.on_dispatch: deque[Any] = deque()
        self.on_load: deque[Any] = deque()
        self.loop = DeliveryLoop(
            self.reader,
            self.table,
            CHANNEL,
            ack_every,
            fulfiller=self.matcher.fulfiller,
            ready_states=READY_STATES,
            load_text=self.load_text,
            sink=self,
        )

    def happens(self, planned: deque[Any]) -> None:
        what = planned.popleft() if planned else None
        if isinstance(what, BaseException):
            raise what
        if what is not None:
            what()

    def load_text(self, text: str) -> Any:
        self.happens(self.on_load)
        return load_large(text)

    def deliver(self, delivery: Any) -> None:
        self.happens(self.on_slow)
        self.slow.append(delivery.tag)
        self.deliveries.append(delivery)
        self.matcher.deliver(delivery.correlation_id, delivery.body)

    def dispatch(self, kind: int) -> None:
        self.dispatched.append((kind, self.reader.channel))
        self.happens(self.on_dispatch)

    def write_acknowledgement(self) -> None:
        self.happens(self.on_acknowledge)
        self.acks.append(self.loop.last_tag)
        self.loop.acked_tag = self.loop.last_tag

    def wait_for(self, task_id: str, callback: Any = None) -> AsyncResult:
        result = AsyncResult(task_id, backend=self, app=self)
        self.table.add(task_id, result)
        if callback is not None:
            result.on_ready.then(lambda ready: callback())
        return result

    def remove_pending_result(self, result: Any) -> None:
        """Called by a result that is collected, as on a backend."""

    def frames(self, task_id: str, **properties: Any) -> bytes:
        self.tag += 1
        properties.setdefault("body", meta(task_id))
        properties.setdefault("channel", CHANNEL)
        return delivery(self.tag, correlation_id=task_id.encode(), **properties)

    def arrives(self, *task_ids: str, **properties: Any) -> None:
        self.reader.feed(b"".join(self.frames(task_id, **properties) for task_id in task_ids))

    def run(self, fast_path: bool = True) -> None:
        self.loop.run(fast_path, 1.0)

    @property
    def counted(self) -> tuple[int, int]:
        return self.loop.taken, self.loop.last_tag


#: A property with which a delivery takes the slow path, with the same outcome.
SLOW = {"content_encoding": b"UTF-8"}


@pytest.fixture
def looping() -> Looping:
    return Looping()


class TestWays:
    def test_plain_json_takes_the_fast_path(self, looping):
        result = looping.wait_for("a")
        looping.arrives("a", "b")
        looping.run()
        assert result.state == "SUCCESS"
        assert looping.table.state("b") == UNCLAIMED
        assert not looping.slow

    def test_a_cycle_that_is_put_into_a_result_is_collected(self, looping):
        """Results are hidden from the garbage collector only while they hold no cycle."""
        result = looping.wait_for("a")
        looping.arrives("a")
        looping.run()
        assert not looping.slow
        holder = deque([result._cache])
        result._cache["holder"] = holder
        remains = ref(holder)
        del result, holder
        gc.collect()
        assert remains() is None

    def test_without_permission_nothing_does(self, looping):
        result = looping.wait_for("a")
        looping.arrives("a", "b")
        looping.run(fast_path=False)
        assert looping.slow == [1, 2]
        assert result.state == "SUCCESS"

    def test_other_events_are_dispatched_in_order(self, looping):
        looping.reader.feed(HEARTBEAT)
        looping.arrives("a", channel=CHANNEL + 1)
        looping.arrives("b")
        looping.on_dispatch += [None, lambda: looping.slow.append(0)]
        looping.arrives("c", **SLOW)
        looping.run()
        assert looping.dispatched == [(FRAME, 0), (DELIVERY, CHANNEL + 1)]
        assert looping.slow == [0, 3]
        assert looping.counted == (2, 3)

    def test_part_of_a_delivery_waits_for_the_rest(self, looping):
        frames = looping.frames("a")
        looping.reader.feed(frames[:-1])
        looping.run()
        assert looping.counted == (0, 0)
        looping.reader.feed(frames[-1:])
        looping.run()
        assert looping.counted == (1, 1)
        assert not looping.loop.holds_some

    def test_what_the_sink_gets(self, looping):
        looping.arrives("a", body=b"x", headers=b"\0\0\0\0", **SLOW, consumer_tag=b"q\xff")
        looping.run()
        [given] = looping.deliveries
        assert (given.tag, given.correlation_id, given.body, given.dropped) == (1, b"a", b"x", 0)
        assert given.consumer_tag == "q\ufffd"
        assert given.format_key == (b"application/json", b"UTF-8", b"\0\0\0\0")

    def test_the_sink_gets_the_size_of_a_body_that_is_too_large(self):
        looping = Looping(max_body=10)
        looping.arrives("a", body=b"x" * 11)
        looping.run()
        [given] = looping.deliveries
        assert (given.body, given.dropped) == (b"", 11)
        assert looping.counted == (1, 1)

    def test_a_protocol_error_is_raised_after_earlier_deliveries(self, looping):
        looping.arrives("a")
        looping.reader.feed(pack(">BHI", 9, 1, 0) + b"\xce")
        with pytest.raises(ProtocolError):
            looping.run()
        assert looping.counted == (1, 1)


class TestAcknowledging:
    @pytest.mark.parametrize("properties", [{}, SLOW], ids=["fast", "slow"])
    @pytest.mark.parametrize("at_once", [True, False])
    def test_after_every_ack_every_deliveries(self, properties, at_once):
        looping = Looping(ack_every=3)
        for _ in range(7):
            looping.arrives("a", **properties)
            if not at_once:
                looping.run()
        looping.run()
        assert looping.acks == [3, 6]
        assert (looping.loop.last_tag, looping.loop.acked_tag, looping.loop.taken) == (7, 6, 7)

    def test_an_acknowledgement_made_meanwhile_counts(self):
        looping = Looping(ack_every=3)
        looping.arrives("a", "b")
        looping.run()
        looping.write_acknowledgement()
        looping.arrives("c", "d")
        looping.run()
        assert looping.acks == [2]
        looping.arrives("e")
        looping.run()
        assert looping.acks == [2, 5]

    def test_duplicates_are_counted_and_acknowledged(self):
        looping = Looping(ack_every=2)
        looping.wait_for("a")
        looping.arrives("a", "a", "a", "a")
        looping.run()
        assert looping.loop.duplicates == 3
        assert looping.acks == [2, 4]

    @pytest.mark.parametrize("properties", [{}, SLOW], ids=["fast", "slow"])
    @pytest.mark.parametrize("error", [ConnectionResetError, KeyboardInterrupt])
    def test_a_failed_acknowledgement_spoils_the_connection(self, properties, error):
        """The delivery counts. Half of a frame may be written, so the connection is unusable."""
        looping = Looping(ack_every=1)
        looping.on_acknowledge.append(error())
        looping.arrives("a", "b", **properties)
        with pytest.raises(error):
            looping.run()
        assert looping.counted == (1, 1)
        assert looping.loop.acked_tag == 0
        assert looping.loop.spoiled

    def test_the_acknowledged_tag_never_decreases(self):
        """A callback that reads has later deliveries acknowledged before its own is counted."""
        looping = Looping(ack_every=2)
        looping.wait_for("a", looping.run)
        looping.arrives("a", "b", "c")
        looping.run()
        assert looping.counted == (3, 3)
        assert looping.acks == [2]


class TestExceptions:
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded, RuntimeError])
    def test_on_the_slow_path_the_delivery_comes_next_again(self, looping, error):
        looping.on_slow += [None, error(), error()]
        looping.arrives("a", "b", "c", **SLOW)
        for _ in range(2):
            with pytest.raises(error):
                looping.run()
            assert looping.slow == [1]
            assert looping.counted == (1, 1)
            assert looping.loop.holds_some
        looping.arrives("d")
        looping.run()
        assert looping.slow == [1, 2, 3]
        assert looping.counted == (4, 4)
        assert not looping.loop.spoiled

    @pytest.mark.parametrize("fast_path", [True, False])
    def test_while_a_large_body_is_decoded_too(self, looping, fast_path):
        result = looping.wait_for("a")
        looping.on_load.append(KeyboardInterrupt())
        looping.arrives("a", body=meta("a", "x" * LARGE))
        with pytest.raises(KeyboardInterrupt):
            looping.run()
        assert looping.counted == (0, 0)
        assert looping.loop.holds_some
        assert result._cache is None
        looping.run(fast_path)
        assert len(result._cache["result"]) == LARGE
        assert looping.counted == (1, 1)
        assert not looping.loop.spoiled

    @pytest.mark.parametrize("error", [KeyboardInterrupt, ConnectionResetError, ProtocolError])
    def test_in_dispatch_they_spoil_the_connection(self, looping, error):
        looping.on_dispatch.append(error())
        looping.reader.feed(HEARTBEAT)
        looping.arrives("a")
        with pytest.raises(error):
            looping.run()
        assert looping.loop.spoiled
        assert looping.loop.holds_some
        looping.run()  # what was read may be had all the same
        assert looping.counted == (1, 1)
        assert looping.dispatched == [(FRAME, 0)]

    def test_a_timeout_spoils_nothing(self, looping):
        """For example of an answer that does not arrive."""
        looping.on_dispatch.append(TimeoutError())
        looping.reader.feed(HEARTBEAT)
        with pytest.raises(TimeoutError):
            looping.run()
        with pytest.raises(TimeoutError):
            looping.loop.guarded(looping.happens, deque([TimeoutError()]))
        assert not looping.loop.spoiled

    def test_guarded_returns_the_result_of_the_function(self, looping):
        assert looping.loop.guarded(max, 1, 2) == 2
        assert not looping.loop.spoiled

    @pytest.mark.parametrize("properties", [{}, SLOW], ids=["fast", "slow"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, SoftTimeLimitExceeded])
    def test_thrown_into_a_callback_are_raised_after_the_delivery_is_counted(
        self, properties, error
    ):
        looping = Looping(ack_every=1)

        def interrupted() -> None:
            raise error

        first, second = looping.wait_for("a", interrupted), looping.wait_for("a")
        looping.arrives("a", **properties)
        looping.arrives("b")
        with pytest.raises(error):
            looping.role.run(looping.run)
        assert first._cache["result"] == second._cache["result"] == 1
        assert looping.acks == [1]
        looping.role.run(looping.run)
        assert looping.acks == [1, 2]
        assert looping.loop.duplicates == looping.matcher.stats.duplicates == 0
        assert not looping.loop.spoiled

    def test_thrown_into_a_callback_while_acknowledging_fails(self):
        looping = Looping(ack_every=1)
        looping.on_acknowledge.append(ConnectionResetError())

        def interrupted() -> None:
            raise KeyboardInterrupt

        looping.wait_for("a", interrupted)
        looping.arrives("a")
        with pytest.raises(KeyboardInterrupt) as raised:
            looping.run()
        assert isinstance(raised.value.__context__, ConnectionResetError)
        assert looping.loop.spoiled

    def test_of_the_application_stay_with_the_callback(self, looping, caplog):
        looping.wait_for("a", lambda: 1 / 0)
        looping.arrives("a", "b")
        looping.run()
        assert looping.counted == (2, 2)
        assert "a callback of the result of task a failed" in caplog.text


class TestCallbacksThatRead:
    @pytest.mark.parametrize("fast_path", [True, False])
    def test_go_on_with_the_next_delivery(self, looping, fast_path):
        seen: list[str] = []

        def read() -> None:
            looping.run(fast_path)
            seen.append(f"a, after {other.state}")

        result = looping.wait_for("a", read)
        other = looping.wait_for("b", lambda: seen.append("b"))
        looping.arrives("a", "b", "c")
        looping.run(fast_path)
        assert seen == ["b", "a, after SUCCESS"]
        assert result.state == "SUCCESS"
        assert looping.counted == (3, 3)
        assert [looping.table.state(task_id) for task_id in "abc"] == [DONE, DONE, UNCLAIMED]

    @pytest.mark.parametrize("fast_path", [True, False])
    def test_see_a_copy_of_their_own_and_hand_it_out_once(self, looping, fast_path):
        seen: list[str] = []

        def read() -> None:
            seen.append("a")
            looping.run(fast_path)

        looping.wait_for("a", read)
        late = looping.wait_for("a", lambda: seen.append("late"))
        looping.arrives("a", body=meta("a", "first"))
        looping.arrives("a", body=meta("a", "second"))
        looping.run(fast_path)
        assert seen == ["a", "late"]
        assert late._cache is not None
        assert looping.counted == (2, 2)

    def test_may_read_more_meanwhile(self, looping):
        """The buffer may move: the delivery is not used after its callbacks have begun."""

        def more() -> None:
            looping.arrives(*(f"t{n}" for n in range(2_000)))
            looping.run()

        looping.wait_for("a", more)
        looping.arrives("a")
        looping.run()
        assert looping.counted == (2_001, 2_001)
        assert looping.table.state("a") == DONE
        assert looping.table.unclaimed == 2_000


class TestKeep:
    """Deliveries that arrive while an answer of the broker is awaited."""

    def keep(self, looping: Looping, task_id: str, **properties: Any) -> None:
        looping.arrives(task_id, **properties)
        assert looping.reader.next() == DELIVERY
        looping.loop.keep()

    def test_they_come_first_and_take_the_slow_path(self, looping):
        result = looping.wait_for("a")
        self.keep(looping, "a")
        self.keep(looping, "b")
        assert looping.counted == (0, 0)
        assert looping.loop.holds_some
        looping.arrives("c", **SLOW)
        looping.run()
        assert looping.slow == [1, 2, 3]
        assert result.state == "SUCCESS"
        assert not looping.loop.holds_some

    def test_also_if_they_arrive_during_a_run(self, looping):
        """An acknowledgement covers all tags up to its own: none may be left out."""
        looping.arrives("a", **SLOW)
        looping.reader.feed(HEARTBEAT)
        looping.on_dispatch.append(lambda: self.keep(looping, "b"))
        looping.run()
        looping.arrives("c", **SLOW)
        looping.run()
        assert looping.slow == [1, 2, 3]

    def test_before_the_deliveries_that_are_read_later(self):
        looping = Looping(ack_every=1)
        looping.reader.feed(HEARTBEAT)
        first, second = looping.frames("a"), looping.frames("b")
        looping.reader.feed(first + second)

        def answered() -> None:
            assert looping.reader.next() == DELIVERY
            looping.loop.keep()

        looping.on_dispatch.append(answered)
        looping.run()
        assert looping.acks == [1, 2]
        assert looping.slow == [1]

    def test_an_exception_leaves_them_in_order(self, looping):
        for task_id in "abc":
            self.keep(looping, task_id)
        looping.on_slow += [None, KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            looping.run()
        self.keep(looping, "d")
        looping.run()
        assert looping.slow == [1, 2, 3, 4]
        assert looping.counted == (4, 4)

    def test_one_on_a_channel_without_a_consumer_is_an_error(self, looping):
        with pytest.raises(ProtocolError, match=f"delivery on channel {CHANNEL + 1}"):
            self.keep(looping, "a", channel=CHANNEL + 1)
        looping.run()
        assert looping.counted == (0, 0)


class TestEnd:
    def test_nothing_more_is_delivered_or_acknowledged(self, looping):
        looping.arrives("a")
        looping.run()
        looping.arrives("b")
        assert looping.reader.next() == DELIVERY
        looping.loop.keep()
        looping.arrives("c")
        looping.loop.end()
        looping.run()
        assert looping.loop.ended
        assert looping.counted == (1, 1)
        assert looping.loop.acked_tag == looping.loop.last_tag
        assert [looping.table.state(task_id) for task_id in "bc"] == [UNKNOWN, UNKNOWN]

    @pytest.mark.parametrize("fast_path", [True, False])
    def test_in_a_callback_that_forks(self, looping, fast_path):
        looping.wait_for("a", looping.loop.end)
        looping.arrives("a", "b")
        looping.run(fast_path)
        assert looping.table.state("b") == UNKNOWN
