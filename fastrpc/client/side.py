"""The client's side of one app: everything that receives results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery.exceptions import TimeoutError
from kombu import Queue
from kombu.utils.compat import detect_environment

from .._borrowed import is_leaf, task_join_will_block
from ..options import Options
from ..stats import ReceivedStats
from ._pending import PendingTable
from ._wait import ReadingRole, Wait, Watchers
from .matcher import ResultMatcher
from .names import QueueNames, is_unread
from .queues import ReplyQueues
from .reader import GOODBYE_TIMEOUT, ResultConsumer

__all__ = ["ClientSide", "Members"]

#: At least this many ids of delivered results are remembered, to recognise duplicates.
LEAST_REMEMBERED = 10_000


class ClientSide:
    """Owns all that receives results for an app: queues, table, matcher, reader and counters.

    There is one for each app, because two consumers of one reply queue would take each other's
    results.

    Args:
        app: The Celery app; its broker settings are used.
        names: The names of the app's reply queues, for each thread.
        options: The settings of the backend.
        make_queue: Makes the reply queue of a name, unbound.
        expires: ``result_expires`` in seconds, or None.
        accept: Content types that may be decoded (``result_accept_content``).
        to_python: Celery's ``Backend.meta_from_decoded``.
        consumer_class: The class of the reader: ResultConsumer, or a subclass.
    """

    #: The event loops that wait for results; None until the first ``await``, which imports
    #: ``client.aio``.
    loops: Any = None

    def __init__(
        self,
        app: Any,
        names: QueueNames,
        options: Options,
        *,
        make_queue: Callable[[str], Queue],
        expires: float | None,
        accept: frozenset[str] | None,
        to_python: Callable[[dict[str, Any]], dict[str, Any]],
        consumer_class: type[ResultConsumer] = ResultConsumer,
    ) -> None:
        self.app = app
        self.stats = ReceivedStats()
        self.names = names
        self.queues = ReplyQueues(make_queue, expires, app.connection_for_write().clone)
        self.table = PendingTable(
            max_unclaimed=options.max_unclaimed,
            max_unclaimed_bytes=options.max_unclaimed_bytes,
            # Enough for all results that the broker may send again after a lost connection, and for
            # all that are kept.
            max_done=max(LEAST_REMEMBERED, 2 * options.prefetch, options.max_claimed),
        )
        #: Which waits are told of which AsyncResults and messages.
        self.watchers = Watchers()
        #: Which thread reads the socket.
        self.role = ReadingRole(self.watchers)
        self.matcher = ResultMatcher(
            self.table,
            self.watchers,
            self.role,
            accept=accept,
            to_python=to_python,
            stats=self.stats,
            max_age=expires,
            max_claimed=options.max_claimed,
            max_claimed_bytes=options.max_claimed_bytes,
        )
        self.reader = consumer_class(
            app, self.queues, options, self.stats, self.matcher, self.watchers, self.role
        )

    # -- calling a task ------------------------------------------------------------------------

    def renew(self, task_id: str) -> None:
        """A task with this id is sent: forget a result that was delivered for that id before."""
        self.matcher.renew(task_id)

    def expect(self, producer: Any) -> None:
        """Declare the reply queue, so that it exists when the next task of ``producer`` arrives.

        The producer has an open channel then, even if the declaration had to connect again. Inside
        a task the declaration is not repeated for each call: tasks hardly ever wait for the tasks
        that they send, which should not pay for that.

        Raises:
            fastrpc.errors.ReplyQueueMismatch: it exists with other arguments.
            fastrpc.errors.ReplyQueueRefused: the broker refuses to make it.
        """
        if not self.names.may_declare:
            return  # the process ends, so the queue would not be deleted
        lease = self.names.lease()
        lease.hand_out()
        again = not task_join_will_block()
        # All names of the thread: a signature keeps the name that was current when it was made.
        channel = open_channel(producer)
        for name in lease.handed_out:
            self.queues.declare_for_call(name, channel, again and not is_unread(name))
            if channel.connection is None:  # lost meanwhile; kombu has connected again
                channel = open_channel(producer)
        self.reader.consume_new()

    # -- waiting -------------------------------------------------------------------------------

    def add(self, result: Any, weak: bool, read: bool) -> None:
        """Make ``result`` ready when its final state arrives.

        With ``read``, under gevent or eventlet, a greenlet reads even while no other one waits.
        """
        if result.on_ready.ready:
            return
        self.matcher.add(result, weak=weak)
        if read and detect_environment() != "default" and not result._cache:
            self.reader.read_in_background(self.names.lease().name)

    def ready_members(
        self, members: Iterable[Any], timeout: float | None, on_interval: Any, on_message: Any
    ) -> Iterator[Any]:
        """Like ``ready_ones``, for members that may be groups.

        A group is ready once all results in it are.
        """
        nested = Members(members)
        leaves = self.ready_ones(nested.leaves, timeout, on_interval, on_message)
        if nested.are_leaves:
            yield from leaves
            return
        yield from nested.empty
        for leaf in leaves:
            yield from nested.ready_with(leaf)

    def ready_ones(
        self, results: Iterable[Any], timeout: float | None, on_interval: Any, on_message: Any
    ) -> Iterator[Any]:
        """Yield each of ``results`` once it is ready, until all are.

        Raises:
            celery.exceptions.TimeoutError: not all were ready within ``timeout`` seconds.
            fastrpc.errors.ResultDropped: a result arrived, but is no longer kept.
        """
        waiting: dict[int, Any] = {}
        for node in results:
            # A result without a `_cache` that was ready before was forgotten since.
            if node._cache or node.on_ready.ready:
                yield node
            else:
                waiting[id(node)] = node
        nodes = list(waiting.values())
        if nodes:
            self._declare_for_wait()
        matcher = self.matcher
        wait = Wait(timeout, on_message, self.names.lease().name, on_interval)
        try:
            # Inside the `try`, because an exception may be thrown in right after any call.
            self.begin(nodes, wait)
            while waiting:
                late = not wait.remaining()
                self.reader.until_news(wait)
                wait.run_on_message()
                wait.raise_errors()
                if late and not wait.arrived:  # messages alone must not put the end off
                    raise TimeoutError("The operation timed out.")
                while wait.arrived:
                    node = wait.arrived.popleft()
                    if waiting.pop(id(node), None) is not None:
                        yield node
        finally:
            # One compiled call: an exception that is thrown in here is raised after it.
            matcher.fulfiller.give_up(nodes, wait)

    def begin(self, nodes: list[Any], wait: Wait, obtainable: bool = True) -> None:
        """Tell ``wait`` when each of ``nodes`` becomes ready, until ``Fulfiller.give_up``.

        Raises:
            fastrpc.errors.ResultDropped: with ``obtainable``, if a result arrived but is no longer
                kept.
        """
        matcher = self.matcher
        self.watchers.watch(nodes, wait)
        for node in nodes:
            # Registered again, after watch(): another wait for the same result may just have ended
            # and discarded it.
            waits = matcher.add(node)
            # The reader sets `_cache` before the id becomes DONE.
            if node._cache:  # it became ready before it was watched
                wait.hear(node)
            elif obtainable and not waits:
                matcher.check_obtainable(node.id)

    def _declare_for_wait(self) -> None:
        """Declare the queues whose names this thread gave to signatures that others may send."""
        names = self.names.lease().handed_out
        # If these are the first queues, they are declared when the intake opens, within the
        # deadline.
        self.queues.use_at_least(*names)
        for name in names:
            if name not in self.queues:
                with self.app.producer_or_acquire() as producer:
                    self.queues.declare_for_call(name, open_channel(producer))

    # -- looking -------------------------------------------------------------------------------

    def look(self) -> int:
        """Deliver what has arrived; see ``ResultConsumer.look``."""
        return self.reader.look(self.names.lease().name)

    def is_kept(self, task_id: str) -> bool:
        """Whether a state of ``task_id`` is kept in this process."""
        return self.matcher.is_kept(task_id)

    def forget(self, task_id: str) -> None:
        """Drop the kept state of ``task_id``. To ask for a result that arrived is then an error."""
        self.matcher.forget(task_id)

    def counters(self) -> dict[str, Any]:
        """Counters since this process began; see docs/stats.md."""
        return {
            **self.stats.as_dict(),
            "fulfilled": self.matcher.fulfiller.fulfilled,
            "waiting": self.table.waiting,
            "unclaimed": self.table.unclaimed,
            "unclaimed_bytes": self.table.unclaimed_bytes,
            "evicted": self.table.evicted,
        }

    # -- the end -------------------------------------------------------------------------------

    def close(self, delete_queues: bool) -> None:
        """Hang up; with ``delete_queues``, delete the reply queues and the messages in them."""
        self.reader.close(delete_queues, GOODBYE_TIMEOUT)

    def leave(self, delete_queues: bool, timeout: float) -> bool:
        """Do the same at the end of the process, within ``timeout`` seconds.

        Daemon threads may still run, but get no more results.

        Returns:
            Whether the broker answered.
        """
        return self.reader.close(delete_queues, timeout, for_good=True)

    def stop_reading(self) -> None:
        """The process ends in another thread: no other one may read, and so declare queues."""
        self.role.claim_for(self.names.ending_thread)

    def after_fork(self) -> None:
        """Start afresh in a forked child: the open connections belong to the parent."""
        self.stats.reset()
        self.queues.clear()
        self.matcher.clear()
        self.watchers.clear()
        self.role.after_fork()
        self.reader.after_fork()
        if self.loops is not None:
            self.loops.after_fork()


class Members:
    """The members of a ResultSet: results of tasks, and groups of them on any level.

    A member is ready once all results in it are.
    """

    def __init__(self, members: Iterable[Any]) -> None:
        members = list(members)
        #: Whether no member is a group.
        self.are_leaves = all(map(is_leaf, members))
        #: The results of tasks in all members, each once.
        self.leaves = members
        #: Groups without any result.
        self.empty: list[Any] = []
        self._owners: dict[int, list[Any]] = {}
        self._missing: Counter[int] = Counter()
        if not self.are_leaves:
            self._look_into(members)

    def _look_into(self, members: list[Any]) -> None:
        leaves: dict[int, Any] = {}
        for member in members:
            within = _leaves_of(member)
            self._missing[id(member)] += len(within)
            if not within:
                self.empty.append(member)
            for leaf in within:
                leaves[id(leaf)] = leaf
                self._owners.setdefault(id(leaf), []).append(member)
        self.leaves = list(leaves.values())

    def ready_with(self, leaf: Any) -> Iterator[Any]:
        """The members that become ready with ``leaf``. Call it once for each leaf."""
        if self.are_leaves:
            yield leaf
        for owner in self._owners.get(id(leaf), ()):
            self._missing[id(owner)] -= 1
            if not self._missing[id(owner)]:
                yield owner


def _leaves_of(node: Any) -> list[Any]:
    """The results in ``node``, on all levels."""
    if is_leaf(node):
        return [node]
    if not hasattr(node, "results"):
        raise TypeError(f"{type(node).__name__} is no result of a task, nor a group of results")
    return [leaf for member in node.results for leaf in _leaves_of(member)]


def open_channel(producer: Any) -> Any:
    """The channel of a producer, opened again if the producer has lost its connection."""
    channel = producer.channel
    if channel.connection is None and producer.__connection__ is not None:
        producer.revive(producer.__connection__.default_channel)
        channel = producer.channel
    return channel
