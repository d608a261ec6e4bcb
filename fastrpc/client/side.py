"""The client's side of one app: whoever has to do with results on their way in finds it here."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakValueDictionary

from kombu import Queue
from kombu.utils.compat import detect_environment

from .._borrowed import task_join_will_block
from ..options import Options
from ..stats import Stats
from ._pending import PendingTable
from ._wait import ReadingRole, Wait, Watchers
from .matcher import ResultMatcher
from .names import QueueNames, is_unread
from .queues import ReplyQueues
from .reader import GOODBYE_TIMEOUT, ResultConsumer

__all__ = ["ClientSide", "Members", "client_side", "is_leaf"]

#: How many ids of results that were handed out are remembered, at least.
LEAST_REMEMBERED = 10_000

#: ``id(app)`` -> its client's side, which keeps the app alive.
_sides: WeakValueDictionary[int, ClientSide] = WeakValueDictionary()


def client_side(app: Any, make: Callable[[], ClientSide]) -> ClientSide:
    """The client's side of ``app``, made by ``make()`` where there is none. The caller has a lock.

    One for each app: two consumers of one reply queue would take each other's results. Celery makes
    a second backend when two threads ask for the first one at once, or when a result is unpickled.
    """
    side = _sides.get(id(app))
    if side is None:
        side = _sides[id(app)] = make()
    return side


class ClientSide:
    """The one owner of what comes in for an app: queues, table, matcher, reader and counters.

    Args:
        app: The Celery app; its broker settings are used.
        options: The settings of the backend.
        make_queue: Makes the reply queue of a name, unbound.
        expires: ``result_expires`` in seconds, or None.
        accept: Content types that may be decoded (``result_accept_content``).
        to_python: Celery's ``Backend.meta_from_decoded``.
        consumer_class: What reads: ResultConsumer, or a subclass.
    """

    def __init__(
        self,
        app: Any,
        options: Options,
        *,
        make_queue: Callable[[str], Queue],
        expires: float | None,
        accept: frozenset[str] | None,
        to_python: Callable[[dict[str, Any]], dict[str, Any]],
        consumer_class: type[ResultConsumer] = ResultConsumer,
    ) -> None:
        self.app = app
        self.stats = Stats()
        #: The names of this app's reply queues, for each thread.
        self.names = QueueNames.of(app)
        self.queues = ReplyQueues(make_queue, expires, app.connection_for_write().clone)
        #: The thread in which the process ends.
        self._ended_in: int | None = None
        self.table = PendingTable(
            max_unclaimed=options.max_unclaimed,
            max_unclaimed_bytes=options.max_unclaimed_bytes,
            # All that the broker may send again after a cut has to be known, and all that is kept.
            max_done=max(LEAST_REMEMBERED, 2 * options.prefetch, options.max_claimed),
        )
        #: Who waits for which AsyncResult, and for which messages.
        self.watchers = Watchers()
        #: Who reads the socket.
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
        #: The event loops that wait, once there were any: the asyncio part is imported for them.
        self.loops: Any = None

    # -- calling a task ------------------------------------------------------------------------

    def renew(self, task_id: str) -> None:
        """A task with this id is sent: what comes for it is not what was handed out before."""
        self.matcher.renew(task_id)

    def expect(self, channel: Any) -> None:
        """Have the reply queue exist when the task that is published next on ``channel`` arrives.

        Inside a task only the first one is declared: nearly all that tasks send is never waited
        for, and must not pay for it.

        Raises:
            fastrpc.errors.ReplyQueueMismatch: it exists with other arguments.
            fastrpc.errors.ReplyQueueRefused: the broker does not make it.
        """
        if self._ended_in not in (None, threading.get_ident()):
            return  # the process ends, nobody would delete it
        lease = self.names.lease()
        lease.hand_out()
        again = not task_join_will_block()
        # All of them: a signature has the name that was right when it was made.
        for name in lease.handed_out:
            self.queues.declare_for_call(name, channel, again and not is_unread(name))
        self.reader.consume_new()

    # -- waiting -------------------------------------------------------------------------------

    def add(self, result: Any, weak: bool, read: bool) -> None:
        """Let ``result`` become ready when its final state arrives.

        With ``read`` and among greenlets also while nobody waits for it.
        """
        if result.on_ready.ready:
            return
        self.matcher.add(result, weak=weak)
        if read and detect_environment() != "default" and not result._cache:
            self.reader.read_in_background(self.names.lease().name)

    def ready_members(
        self, members: Iterable[Any], timeout: float | None, on_interval: Any, on_message: Any
    ) -> Iterator[Any]:
        """As ``ready_ones``, where a member may be a group: ready once all that is in it is."""
        within = Members(members)
        leaves = self.ready_ones(within.leaves, timeout, on_interval, on_message)
        if within.are_leaves:
            yield from leaves
            return
        yield from within.empty
        for leaf in leaves:
            yield from within.ready_with(leaf)

    def ready_ones(
        self, results: Iterable[Any], timeout: float | None, on_interval: Any, on_message: Any
    ) -> Iterator[Any]:
        """Yield each of ``results`` once it is ready, until all are.

        Raises:
            celery.exceptions.TimeoutError: not all within ``timeout`` seconds.
            fastrpc.errors.ResultDropped: one came, but is no longer kept.
        """
        waiting: dict[int, Any] = {}
        for node in results:
            if node._cache or node.on_ready.ready:  # ready once, and forgotten: no more will come
                yield node
            else:
                waiting[id(node)] = node
        nodes = list(waiting.values())
        if nodes:
            self._declare_for_wait()
        matcher = self.matcher
        wait = Wait(timeout, on_message, self.names.lease().name, on_interval)
        try:
            # Within: an exception thrown in may follow any call.
            self.begin(nodes, wait)
            while waiting:
                self.reader.until_news(wait)
                wait.run_on_message()
                wait.raise_errors()
                while wait.arrived:
                    node = wait.arrived.popleft()
                    if waiting.pop(id(node), None) is not None:
                        yield node
        finally:
            # Compiled, and called at once: what is thrown in here comes after it.
            matcher.fulfiller.give_up(nodes, wait)

    def begin(self, nodes: list[Any], wait: Wait, obtainable: bool = True) -> None:
        """Have ``wait`` hear of each of ``nodes``, until ``Fulfiller.give_up``.

        Raises:
            fastrpc.errors.ResultDropped: one has to be ``obtainable``, but came and is no longer
                kept.
        """
        matcher = self.matcher
        self.watchers.watch(nodes, wait)
        for node in nodes:
            # Once more, now that it is watched: another wait for it may just have ended.
            waits = matcher.add(node)
            # The reader fills in a result before its id counts as handed out.
            if node._cache:  # it came before it was watched
                wait.hear(node)
            elif obtainable and not waits:
                matcher.check_obtainable(node.id)

    def _declare_for_wait(self) -> None:
        """Have the queues of this thread exist whose names a signature took that others send."""
        names = self.names.lease().handed_out
        # The first ones are declared when the intake opens, within the deadline.
        self.queues.use_at_least(*names)
        for name in names:
            if name not in self.queues:
                with self.app.producer_or_acquire() as producer:
                    self.queues.declare_for_call(name, open_channel(producer))

    # -- looking -------------------------------------------------------------------------------

    def look(self) -> int:
        """Take in what has arrived; see ``ResultConsumer.look``."""
        return self.reader.look(self.names.lease().name)

    def is_kept(self, task_id: str) -> bool:
        """Whether a state of ``task_id`` is kept in this process."""
        return self.matcher.is_kept(task_id)

    def forget(self, task_id: str) -> None:
        """Drop what is kept of ``task_id``; asking for a result that came is an error from here."""
        self.matcher.forget(task_id)

    def counters(self) -> dict[str, Any]:
        """What came in since this process began; see docs/stats.md."""
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
        """Hang up; with ``delete_queues`` the reply queues go, with all that is in them."""
        self.reader.close(delete_queues, GOODBYE_TIMEOUT)

    def leave(self, delete_queues: bool, timeout: float) -> bool:
        """The same at the end of the process, within ``timeout`` seconds.

        Daemon threads may still run; they get no more results.

        Returns:
            Whether the broker answered.
        """
        self._ended_in = threading.get_ident()
        return self.reader.close(delete_queues, timeout, for_good=True)

    def after_fork(self) -> None:
        """Begin anew in a forked child; what is open belongs to the parent and stays as it is."""
        self.stats.reset()
        self._ended_in = None
        self.names.after_fork()
        self.queues.clear()
        self.matcher.clear()
        self.watchers.clear()
        self.role.after_fork()
        self.reader.after_fork()
        if self.loops is not None:
            self.loops.after_fork()


def is_leaf(node: Any) -> bool:
    """Whether ``node`` is the result of one task, not a group."""
    return hasattr(node, "_cache")


class Members:
    """Members of a set, each ready once all the results in it are: a result, or a group of such.

    Args:
        members: Results of tasks, and groups, on any level.
    """

    def __init__(self, members: Iterable[Any]) -> None:
        members = list(members)
        #: Whether no member is a group.
        self.are_leaves = all(map(is_leaf, members))
        #: The results of tasks in them, each once.
        self.leaves = members
        #: Groups with nothing in them.
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
        """The members that are ready now that ``leaf`` is; once for each leaf."""
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
    return [leaf for member in node.results for leaf in _leaves_of(member)]


def open_channel(producer: Any) -> Any:
    """The channel of a producer; one from the pool may have lost its connection meanwhile."""
    channel = producer.channel
    if channel.connection is None and producer.__connection__ is not None:
        producer.revive(producer.__connection__.default_channel)
        channel = producer.channel
    return channel
