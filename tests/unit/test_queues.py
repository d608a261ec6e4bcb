"""fastrpc.client.queues: which declarations wait for an answer. No server."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import kombu
import pytest
from amqp import spec
from amqp.exceptions import PreconditionFailed
from amqp.serialization import loads
from celery.result import denied_join_result
from kombu.transport.virtual import Channel as VirtualChannel

from fastrpc import ReplyQueueMismatch, ReplyQueueRefused
from fastrpc.client import queues as queues_module
from fastrpc.client.names import Lease, owner_of
from fastrpc.client.queues import ReplyQueues, make_queue

EXPIRES = 100.0


class Channel:
    """A fake channel that records the methods that were called."""

    def __init__(self, driver_type="amqp", declared=None, messages=0) -> None:
        self.declared_entities = set() if declared is None else declared
        client = SimpleNamespace(
            declared_entities=self.declared_entities,
            transport=SimpleNamespace(
                driver_type=driver_type, implements=SimpleNamespace(asynchronous=False)
            ),
            ensure=lambda obj, fun, **policy: fun,
            recoverable_connection_errors=(OSError,),
        )
        sock, self.peer = socket.socketpair()
        self.connection = SimpleNamespace(client=client, frame_writer=self.write_frame, sock=sock)
        #: Further channels of the connection.
        self.others: list[Channel] = []
        self.connection.channel = self.open_another
        self.channel_id = 7
        self.messages = messages
        self.calls: list[tuple] = []
        self.refuses = ""
        #: The method that is refused.
        self.refused_method = spec.Queue.Declare
        self.silent = False

    def queue_declare(self, queue, nowait=False, **kwargs):
        self.calls.append(("declare, no answer" if nowait else "declare", queue))
        self.arguments = kwargs
        if self.refuses:
            raise PreconditionFailed(self.refuses, self.refused_method)
        return queue, self.messages, 0

    def write_frame(self, type_, channel_id, method, arguments, content):
        assert (type_, channel_id, method, content) == (1, 7, spec.Queue.Declare, None)
        (_, queue, passive, durable, exclusive, auto_delete, nowait, table), _ = loads(
            "BsbbbbbF", arguments, 0
        )
        assert not passive
        self.queue_declare(
            queue,
            nowait=nowait,
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=table,
        )

    def queue_bind(self, **kwargs):
        pytest.fail("the default exchange binds every queue by its name")

    def open_another(self):
        self.others.append(Channel())
        return self.others[-1]

    def queue_delete(self, queue, nowait=False, **kwargs):
        self.calls.append(("delete, no answer" if nowait else "delete", queue))
        if self.silent:
            raise TimeoutError

    def exchange_declare(self, **kwargs):
        pytest.fail("the default exchange is there")

    def prepare_queue_arguments(self, arguments, **kwargs):
        return {**arguments, **{k: v for k, v in kwargs.items() if v is not None}}

    def __call__(self):
        return self


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(queues_module, "time", clock)
    return clock


class Queue(kombu.Queue):
    can_cache_declaration = False


def make(name: str, **options) -> kombu.Queue:
    given = {
        "exchange": kombu.Exchange(None),
        "expires": EXPIRES,
        "queue_type": "classic",
        "max_bytes": None,
        "max_unread": 10,
        "max_unread_bytes": 1000,
    }
    return make_queue(name, queue_class=Queue, **{**given, **options})


def connect():
    pytest.fail("nothing here needs a connection")


@pytest.fixture
def queues(clock) -> ReplyQueues:
    return ReplyQueues(make, EXPIRES, connect)


class TestDeclaringForCalls:
    def test_the_first_call_waits_for_the_answer(self, queues):
        channel = Channel()
        queues.declare_for_call("q", channel)
        assert channel.calls == [("declare", "q")]
        assert "q" in queues
        assert queues.names == ["q"]

    def test_the_next_calls_do_not_wait(self, queues):
        channel = Channel()
        for _ in range(3):
            queues.declare_for_call("q", channel)
        assert channel.calls == [("declare", "q")] + [("declare, no answer", "q")] * 2

    def test_the_next_calls_declare_the_same_queue(self, queues):
        channel = Channel()
        queues.declare_for_call("q", channel)
        first = channel.arguments
        queues.declare_for_call("q", channel)
        assert channel.arguments == first

    def test_each_connection_has_its_own_first_call(self, queues):
        first, second = Channel(), Channel()
        for channel in (first, second, first):
            queues.declare_for_call("q", channel)
        assert first.calls == [("declare", "q"), ("declare, no answer", "q")]
        assert second.calls == [("declare", "q")]

    def test_two_channels_of_one_connection_share_their_first_call(self, queues):
        first = Channel()
        second = Channel(declared=first.declared_entities)
        queues.declare_for_call("q", first)
        queues.declare_for_call("q", second)
        assert second.calls == [("declare, no answer", "q")]

    def test_each_queue_has_its_own_first_call(self, queues):
        channel = Channel()
        queues.declare_for_call("a", channel)
        queues.declare_for_call("b", channel)
        assert channel.calls == [("declare", "a"), ("declare", "b")]

    def test_a_call_waits_again_well_before_the_queue_expires(self, queues, clock):
        """A declaration without an answer does not renew x-expires."""
        channel = Channel()
        queues.declare_for_call("q", channel)
        clock.now += EXPIRES * 0.24
        queues.declare_for_call("q", channel)
        clock.now += EXPIRES * 0.02
        queues.declare_for_call("q", channel)
        queues.declare_for_call("q", channel)
        kinds = [kind for kind, _ in channel.calls]
        assert kinds == ["declare", "declare, no answer", "declare", "declare, no answer"]

    def test_no_call_waits_again_if_the_queue_never_expires(self, clock):
        queues = ReplyQueues(make, None, connect)
        channel = Channel()
        queues.declare_for_call("q", channel)
        clock.now += 10**9
        queues.declare_for_call("q", channel)
        assert channel.calls[-1] == ("declare, no answer", "q")

    def test_the_next_call_waits_if_the_queue_is_in_doubt(self, queues):
        channel = Channel()
        queues.declare_for_call("q", channel)
        queues.doubt("q")
        queues.doubt("not ours")
        queues.declare_for_call("q", channel)
        assert channel.calls == [("declare", "q")] * 2
        assert queues.names == ["q"]

    def test_nothing_is_written_to_a_connection_that_the_broker_has_closed(self, queues):
        """The kernel would accept the declaration, and it would be lost."""
        channel = Channel()
        queues.declare_for_call("q", channel)
        channel.peer.close()
        queues.declare_for_call("q", channel)
        assert channel.calls == [("declare", "q")] * 2

    def test_the_declaration_is_not_repeated_on_other_transports(self, queues):
        channel = Channel(driver_type="redis")
        queues.declare_for_call("q", channel)
        queues.declare_for_call("q", channel)
        assert channel.calls == [("declare", "q")]

    def test_the_declaration_is_not_repeated_inside_a_task(self, queues, clock):
        """Tasks hardly ever wait for the tasks that they send. But the queue must not expire."""
        channel = Channel()
        for _ in range(3):
            queues.declare_for_call("q", channel, again=False)
        assert channel.calls == [("declare", "q")]
        clock.now += EXPIRES * 0.26
        queues.declare_for_call("q", channel, again=False)
        assert channel.calls == [("declare", "q")] * 2

    def test_a_queue_with_other_arguments_is_explained(self, queues):
        channel = Channel()
        channel.refuses = "inequivalent arg 'durable'"
        with pytest.raises(ReplyQueueMismatch, match=r"reply queue q .*inequivalent arg"):
            queues.declare_for_call("q", channel)
        assert "q" not in queues

    def test_an_error_about_an_earlier_message_is_passed_on(self, queues):
        """For example, the broker closes the channel after an invalid expiration, and the next call
        gets the error."""
        channel = Channel()
        channel.refuses, channel.refused_method = "invalid expiration 'x'", spec.Basic.Publish
        with pytest.raises(PreconditionFailed, match="invalid expiration"):
            queues.declare_for_call("q", channel)

    def test_the_error_says_why_the_broker_refuses_to_make_the_queue(self, queues):
        channel = Channel()
        channel.refuses = "queue limit in vhost '/' (0) is reached"
        with pytest.raises(ReplyQueueRefused, match=r"refuses .* queue q: queue limit") as refused:
            queues.declare_for_call("q", channel)
        assert not isinstance(refused.value, ReplyQueueMismatch)
        assert "q" not in queues


class TestDeclaringForReading:
    def test_declare_returns_the_number_of_messages(self, queues):
        channel = Channel(messages=7)
        assert queues.declare("q", channel) == 7
        assert channel.calls == [("declare", "q")]

    def test_each_declare_asks_the_broker(self, queues):
        channel = Channel()
        queues.declare("q", channel)
        queues.declare("q", channel)
        assert channel.calls == [("declare", "q")] * 2

    def test_a_queue_with_other_arguments_is_explained(self, queues):
        channel = Channel()
        channel.refuses = "inequivalent arg 'durable'"
        with pytest.raises(ReplyQueueMismatch):
            queues.declare("q", channel)

    def test_a_process_that_has_sent_no_task_has_a_queue_to_wait_on(self, queues):
        queues.use_at_least("mine")
        assert queues.names == ["mine"]
        queues.use_at_least("other")
        assert queues.names == ["mine"]

    def test_the_first_call_declares_that_queue(self, queues):
        queues.use_at_least("mine")
        channel = Channel()
        queues.declare_for_call("mine", channel)
        assert channel.calls == [("declare", "mine")]


class TestTheEnd:
    def test_every_queue_is_deleted(self, queues):
        channel = Channel()
        for name in "ab":
            queues.declare_for_call(name, channel)
        channel.calls.clear()
        queues.delete(channel)
        # Only the last deletion waits for its answer.
        assert channel.calls == [("delete, no answer", "a"), ("delete", "b")]
        assert queues.names == []

    def test_several_channels_delete_many_queues(self, queues):
        """The broker deletes the queues of one channel one after the other."""
        channel = Channel()
        for n in range(1001):
            queues.declare_for_call(str(n), channel)
        channel.calls.clear()
        queues.delete(channel)
        assert queues.names == []
        shares = [channel.calls, *(other.calls for other in channel.others)]
        assert len(shares) == 4
        assert {name for calls in shares for _, name in calls} == {str(n) for n in range(1001)}
        for calls in shares:
            answered = [kind == "delete" for kind, _ in calls]
            assert answered[-1]
            assert sum(answered) <= 4

    def test_one_channel_deletes_the_queues_of_other_transports(self, queues):
        channel = Channel(driver_type="redis")
        for n in range(100):
            queues.declare_for_call(str(n), channel)
        queues.delete(channel)
        assert channel.others == []

    def test_a_deletion_without_an_answer_can_be_repeated(self, queues):
        channel = Channel()
        for name in "ab":
            queues.declare_for_call(name, channel)
        channel.silent = True
        with pytest.raises(TimeoutError):
            queues.delete(channel)
        channel.silent = False
        channel.calls.clear()
        queues.delete(channel)
        assert channel.calls == [("delete, no answer", "a"), ("delete", "b")]

    def test_a_forked_child_deletes_no_queue(self, queues):
        channel = Channel()
        queues.declare_for_call("q", channel)
        queues.clear()
        channel.calls.clear()
        queues.delete(channel)
        assert channel.calls == []


class TestTheQueue:
    def test_the_queue_for_tasks_sent_inside_a_task_is_bounded(self):
        lease = Lease("q", [])
        with denied_join_result():
            name = lease.hand_out()
        assert lease.handed_out == (name,)
        assert make(name).queue_arguments == {
            "x-queue-type": "classic",
            "x-max-length": 10,
            "x-max-length-bytes": 1000,
        }
        assert make(lease.hand_out()).queue_arguments == {"x-queue-type": "classic"}
        assert owner_of(name) == "q"

    def test_it_is_durable_and_expires_and_names_its_type(self, queues):
        channel = Channel()
        queues.declare_for_call("q", channel)
        assert channel.arguments["durable"] is True
        assert channel.arguments["auto_delete"] is False
        assert channel.arguments["exclusive"] is False
        assert channel.arguments["arguments"] == {"x-queue-type": "classic", "expires": EXPIRES}

    def test_it_refuses_more_than_max_bytes(self):
        assert make("q", max_bytes=5000).queue_arguments == {
            "x-queue-type": "classic",
            "x-max-length-bytes": 5000,
            "x-overflow": "reject-publish",
        }

    @pytest.mark.parametrize("expires", [None, 0])
    def test_it_may_live_for_ever(self, expires):
        assert make("q", expires=expires).expires is None

    def test_it_may_be_a_quorum_queue(self):
        """Each reconnect counts as a redelivery, so its delivery limit is the largest."""
        assert make("q", queue_type="quorum").queue_arguments == {
            "x-queue-type": "quorum",
            "x-delivery-limit": 2**31 - 1,
        }


def test_the_fake_channel_has_the_methods_of_kombus():
    """If kombu's channels change, these tests must change too."""
    for name in ("queue_declare", "queue_delete", "prepare_queue_arguments"):
        assert hasattr(VirtualChannel, name)
