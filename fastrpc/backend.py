"""``fastrpc://``: Celery's result backend API over the reply queues of the process.

The way of a result: the worker's ``store_result`` -> ``publisher`` -> the caller's reply
queue -> ``intake`` -> ``matching`` -> the AsyncResult that waits in ``consumer``.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import methodcaller
from typing import Any

import kombu
import kombu.pools
from celery import states
from celery._state import current_task, task_join_will_block
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend
from celery.exceptions import ImproperlyConfigured
from celery.signals import worker_process_shutdown, worker_shutdown
from kombu.utils.compat import detect_environment

from .client._pending import PendingTable
from .client._wait import Wait
from .client.matcher import ResultMatcher
from .client.queues import ReplyQueues, make_queue
from .client.reader import ResultConsumer
from .errors import BacklogLimitExceeded, BadOption, ResultTooLarge
from .options import Options
from .retry import RetryPolicy
from .sending.publisher import AMQPPublisher, KombuPublisher, Message, make_publisher
from .serialization import decode, encode
from .settings import Setting
from .stats import Stats
from .worker.meta import MetaBuilder

__all__ = ["RPCBackend"]

logger = logging.getLogger("fastrpc")

#: How many ids of results that were handed out are remembered, at least.
LEAST_REMEMBERED = 10_000

NO_CHORDS = """\
The fastrpc result backend does not support chords, nor a group chained into a task, which
Celery turns into a chord: results go to the caller, not to a store that workers can read.
Call the group, get() its results and send the next task with them; or give the tasks of the
chord a backend that stores results, such as redis://."""


class RPCBackend(AsyncBackendMixin, Backend):
    """Result backend that sends each result to the reply queue of its caller."""

    Exchange = kombu.Exchange
    Producer = kombu.Producer
    ResultConsumer = ResultConsumer
    BacklogLimitExceeded = BacklogLimitExceeded

    persistent = False
    supports_autoexpire = True
    supports_native_join = True

    #: ``{'max_retries': 20, 'interval_start': 0, 'interval_step': 1, 'interval_max': 1}``
    retry_policy: dict[str, Any] = RetryPolicy().as_dict()

    class Consumer(kombu.Consumer):
        """A consumer that declares nothing by itself."""

        auto_declare = False

    class Queue(kombu.Queue):
        """A queue whose declaration kombu does not cache; ``queues`` knows when it is due."""

        can_cache_declaration = False

    def __init__(
        self,
        app: Any,
        connection: Any = None,
        exchange: Any = None,
        exchange_type: str | None = None,
        persistent: bool | None = None,
        serializer: str | None = None,
        auto_delete: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, serializer=serializer, **kwargs)
        # One object serves all threads of the process, whatever result_backend_thread_safe
        # says: Celery would make one for each thread otherwise.
        self.thread_safe = True
        self.auto_delete = auto_delete
        self.persistent = self.prepare_persistent(persistent)
        self.delivery_mode = 2 if self.persistent else 1
        # Results go through the default exchange, straight to the queue of that name.
        self.exchange = self.Exchange(None)
        self.options = self._options()
        self.retry_policy = self.options.retry_policy.as_dict()
        self._connection = connection
        with _making:
            twin = next((backend for backend in _living if backend.app is app), None)
            if twin is None:
                self._make_client_side()
            else:
                self._share_client_side(twin)
            _living.add(self)
        self._always_eager = Setting(app, "task_always_eager")
        self._meta = MetaBuilder(self)
        self._publisher: AMQPPublisher | KombuPublisher | None = None

    def _make_client_side(self) -> None:
        self._counters = Stats()
        self._queues = ReplyQueues(self._make_queue, self.expires)
        self.result_consumer = self.ResultConsumer(
            self.app, self._queues, self.options, self._counters
        )
        self._table = PendingTable(
            max_unclaimed=self.options.max_unclaimed,
            max_unclaimed_bytes=self.options.max_unclaimed_bytes,
            # All that the broker may send again after a cut has to be known.
            max_done=max(LEAST_REMEMBERED, 2 * self.options.prefetch),
        )
        self._matcher = self.result_consumer.matcher = ResultMatcher(
            table=self._table,
            accept=self.accept,
            to_python=self.meta_from_decoded,
            stats=self._counters,
            max_age=self.expires,
        )

    def _share_client_side(self, twin: RPCBackend) -> None:
        # Two consumers of one reply queue would take each other's results. Celery makes a second
        # backend when two threads ask for the first one at once, or when a result is unpickled.
        self._counters = twin._counters
        self._queues = twin._queues
        self.result_consumer = twin.result_consumer
        self._table = twin._table
        self._matcher = twin._matcher

    def _options(self) -> Options:
        options = self.app.conf.result_backend_transport_options or {}
        if not isinstance(options, Mapping):
            raise ImproperlyConfigured(
                f"result_backend_transport_options must be a dict, not {type(options).__name__}"
            )
        given = {"retry_policy": type(self).retry_policy, **options}
        try:
            return Options.parse(given, self.url)
        except BadOption as exc:
            raise ImproperlyConfigured(str(exc)) from exc

    def _make_queue(self, name: str) -> kombu.Queue:
        return make_queue(
            name,
            queue_class=self.Queue,
            exchange=self.exchange,
            expires=self.expires,
            queue_type=self.options.queue_type,
        )

    # -- calling a task ------------------------------------------------------------------------

    @property
    def oid(self) -> str:
        """The name of the reply queue of the current thread (``app.thread_oid``)."""
        return self.app.thread_oid

    @property
    def binding(self) -> kombu.Queue:
        """The reply queue of the current thread, unbound."""
        return self._make_queue(self.oid)

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Have the reply queue exist before the task is sent.

        Raises:
            fastrpc.errors.ReplyQueueMismatch: it exists with other arguments.
            fastrpc.errors.ReplyQueueRefused: the broker does not make it.
        """
        if not task_join_will_block():
            self._table.reset(task_id)
            self._queues.declare_for_call(self.oid, open_channel(producer))
            self.result_consumer.consume_new()

    def ensure_chords_allowed(self) -> None:
        raise NotImplementedError(NO_CHORDS)

    # -- storing a result ----------------------------------------------------------------------

    def destination_for(self, task_id: str, request: Any) -> tuple[str | None, str]:
        """``(reply queue, correlation id)`` for a result.

        Raises:
            RuntimeError: there is neither a request nor a current task.
        """
        try:
            request = request or current_task.request
        except AttributeError:
            raise RuntimeError(f"fastrpc backend missing task request for {task_id!r}") from None
        return request.reply_to, request.correlation_id or task_id

    def on_reply_declare(self, task_id: str) -> None:
        """Nothing is declared when a result is sent: the caller did it."""

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Send a state and its result to the caller; returns ``result``.

        Raises:
            kombu.exceptions.EncodeError: the result cannot be serialized.
            kombu.exceptions.OperationalError: the retries of the retry policy are used up.
        """
        routing_key, correlation_id = self.destination_for(task_id, request)
        if not routing_key:
            return result
        meta = self._meta.build(
            task_id, state, self.encode_result(result, state), traceback, request
        )
        publisher = self._publisher or self._make_publisher()
        publisher.publish(self._message(routing_key, correlation_id, meta))
        return result

    def _message(self, routing_key: str, correlation_id: str, meta: dict[str, Any]) -> Message:
        content_type, content_encoding, body = encode(meta, self.serializer)
        if isinstance(body, str):  # yaml, or a serializer of the application's own
            body = body.encode(content_encoding)
        return Message(routing_key, correlation_id, body, content_type, content_encoding)

    def _apologize(self, message: Message) -> Message | None:
        """What the caller gets in place of a result that the broker does not take.

        None in place of another state: the task goes on.
        """
        accept = frozenset({message.content_type})
        meta = decode(message.body, message.content_type, message.content_encoding, accept)
        if meta["status"] not in states.READY_STATES:
            return None
        exc = ResultTooLarge(
            f"the result of task {meta['task_id']} is larger than the broker takes "
            f"(max_message_size): {len(message.body)} bytes"
        )
        failure = self.encode_result(exc, states.FAILURE)
        meta.update(status=states.FAILURE, result=failure, traceback=None, children=[])
        return self._message(message.routing_key, message.correlation_id, meta)

    def _make_publisher(self) -> AMQPPublisher | KombuPublisher:
        with _making:
            if self._publisher is None:
                self._publisher = make_publisher(
                    self.app,
                    self.exchange,
                    self.delivery_mode,
                    self.options,
                    self._counters,
                    self._apologize,
                )
            return self._publisher

    # -- waiting for a result ------------------------------------------------------------------

    def add_pending_result(
        self, result: Any, weak: bool = False, start_drainer: bool = True
    ) -> Any:
        """Let ``result`` become ready when its final state arrives.

        With ``start_drainer`` and among greenlets also while nobody waits for it, as in Celery.
        """
        self._matcher.add(result, weak=weak)
        if start_drainer and detect_environment() != "default" and not result._cache:
            self.result_consumer.read_in_background(self.oid)
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:
        return [self.add_pending_result(result, weak=weak) for result in results]

    def remove_pending_result(self, result: Any) -> Any:
        """``result`` waits no longer; what arrives for its id is kept for others."""
        self._matcher.discard(result)
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Nothing to cancel: one queue serves the thread, whatever it waits for."""

    def wait_for_pending(
        self,
        result: Any,
        callback: Any = None,
        propagate: bool = True,
        timeout: float | None = None,
        on_interval: Any = None,
        on_message: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Wait until ``result`` is ready and return its value.

        Raises:
            celery.exceptions.TimeoutError: not within ``timeout`` seconds.
            fastrpc.errors.ResultDropped: it came, but is no longer kept.
            Exception: with ``propagate``, what the task raised.
        """
        self._ensure_not_eager()
        for _ in self._ready_ones([result], timeout, on_interval, on_message):
            pass
        return result.maybe_throw(callback=callback, propagate=propagate)

    def _ensure_not_eager(self) -> None:
        if self._always_eager():
            super()._ensure_not_eager()

    def iter_native(
        self,
        result: Any,
        no_ack: bool = True,
        timeout: float | None = None,
        on_interval: Any = None,
        on_message: Any = None,
        **kwargs: Any,
    ) -> Iterator[tuple[str, Any]]:
        """Yield ``(task id, meta)`` of each result of a ResultSet as it becomes ready.

        A nested group comes as ``(group id, its results)``.
        """
        self._ensure_not_eager()
        groups = [node for node in result.results if not hasattr(node, "_cache")]
        for node in groups:
            yield node.id, node.children
        results = [node for node in result.results if hasattr(node, "_cache")]
        for node in self._ready_ones(results, timeout, on_interval, on_message):
            yield node.id, node._cache

    def _ready_ones(
        self, results: list[Any], timeout: float | None, on_interval: Any, on_message: Any
    ) -> Iterator[Any]:
        """Yield each of ``results`` once it is ready, until all are."""
        waiting: dict[int, Any] = {}
        for node in results:
            if node._cache:
                yield node
            else:
                waiting[id(node)] = node
        nodes = list(waiting.values())
        if nodes and task_join_will_block():
            self._declare_for_wait()
        consumer, matcher = self.result_consumer, self._matcher
        wait = Wait(timeout, on_message, self.oid, on_interval)
        try:
            # Within: an exception thrown in may follow any call.
            matcher.watchers.watch(nodes, wait)
            for node in nodes:
                # Once more, now that it is watched: another wait for it may just have ended.
                waits = matcher.add(node)
                # The reader fills in a result before its id counts as handed out.
                if node._cache:  # it came before it was watched
                    wait.arrived.append(node)
                elif not waits:
                    matcher.check_obtainable(node.id)
            while waiting:
                consumer.until_news(wait)
                wait.run_on_message()
                wait.raise_errors()
                while wait.arrived:
                    node = wait.arrived.popleft()
                    if waiting.pop(id(node), None) is not None:
                        yield node
        finally:
            matcher.fulfiller.give_up(nodes, wait)

    def _declare_for_wait(self) -> None:
        """Have this thread's queue exist where sends, in tasks, declare none: as in Celery."""
        # The first queue of a process is declared when the intake opens, within the deadline.
        if len(self._queues) and self.oid not in self._queues:
            with self.app.producer_or_acquire() as producer:
                self._queues.declare_for_call(self.oid, open_channel(producer))

    def get_many(
        self,
        task_ids: Iterable[str],
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Any = None,
        on_interval: Any = None,
        max_iterations: int | None = None,
        READY_STATES: frozenset[str] = states.READY_STATES,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield ``(task id, meta)`` of those of ``task_ids`` that are ready, as they become so.

        Raises:
            celery.exceptions.TimeoutError: not all within ``timeout`` seconds.
        """
        results = {task_id: self.app.AsyncResult(task_id) for task_id in task_ids}
        if max_iterations:
            for task_id in results:
                meta = self.get_task_meta(task_id)
                if meta["status"] in READY_STATES:
                    yield task_id, meta
            return
        for node in self._ready_ones(list(results.values()), timeout, on_interval, on_message):
            yield node.id, node._cache

    # -- looking at a result -------------------------------------------------------------------

    def get_task_meta(self, task_id: str, backlog_limit: int = 1000) -> dict[str, Any]:
        """The newest known state of a task, without waiting; PENDING if there is none.

        Raises:
            BacklogLimitExceeded: this process had not yet consumed its results, and more than
                ``backlog_limit`` messages were found; they are being read, look again.
        """
        waiters = self._table.waiters(task_id)
        if self.result_consumer.look(self.oid) > backlog_limit:
            raise self.BacklogLimitExceeded(task_id)
        meta = self._matcher.newest(task_id) or self._matcher.handed_to(waiters)
        return {"status": states.PENDING, "result": None} if meta is None else meta

    poll = get_task_meta

    def is_cached(self, task_id: str) -> bool:
        """Whether a result of ``task_id`` is kept in this process."""
        return self._table.peek(task_id) is not None

    def on_out_of_band_result(self, task_id: str, message: Any) -> None:
        """Keep a kombu message nobody waits for, for later."""
        self._matcher.deliver_message(task_id, message)
        message.ack()

    def task_result_exists(self, task_id: str) -> bool:
        """Whether any state of ``task_id`` is known."""
        self.result_consumer.look(self.oid)
        return self.is_cached(task_id)

    def forget(self, task_id: str) -> None:
        """Drop whatever is kept for ``task_id``."""
        self._table.forget(task_id)

    # -- the rest of Celery's API --------------------------------------------------------------

    def as_uri(self, include_password: bool = True) -> str:
        """Always ``rpc://``: Celery's worker tests for it, and there is no password in it."""
        return "rpc://"

    def revive(self, channel: Any) -> None:
        """Nothing to do: connections are looked after where they are used."""

    def reload_task_result(self, task_id: str) -> None:
        raise NotImplementedError("reload_task_result is not supported by the fastrpc backend")

    def reload_group_result(self, group_id: str) -> None:
        raise NotImplementedError("reload_group_result is not supported by the fastrpc backend")

    def save_group(self, group_id: str, result: Any) -> None:
        raise NotImplementedError("save_group is not supported by the fastrpc backend")

    def restore_group(self, group_id: str, cache: bool = True) -> None:
        raise NotImplementedError("restore_group is not supported by the fastrpc backend")

    def delete_group(self, group_id: str) -> None:
        raise NotImplementedError("delete_group is not supported by the fastrpc backend")

    def stats(self) -> dict[str, Any]:
        """Counters since this process began; see docs/stats.md."""
        return {
            **self._counters.as_dict(),
            "fulfilled": self._matcher.fulfiller.fulfilled,
            "waiting": self._table.waiting,
            "unclaimed": self._table.unclaimed,
            "unclaimed_bytes": self._table.unclaimed_bytes,
            "evicted": self._table.evicted,
            "unconfirmed": self._publisher.unconfirmed if self._publisher else 0,
        }

    def __reduce__(self, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {} if kwargs is None else kwargs
        return super().__reduce__(
            args,
            dict(
                kwargs,
                serializer=self.serializer,
                persistent=self.persistent,
                auto_delete=self.auto_delete,
                url=self.url,
            ),
        )

    def close(self) -> None:
        """Hang up, once the results sent are confirmed (for ``shutdown_timeout`` at most).

        The reply queues of this process are deleted, unless ``auto_delete=False``.
        """
        try:
            self._flush()
        finally:
            self.result_consumer.close(delete_queues=self.auto_delete)

    def _flush(self) -> None:
        if self._publisher is not None:
            self._publisher.close(self.options.shutdown_timeout)

    def _after_fork(self) -> None:
        """Begin anew in a forked child; what is open belongs to the parent and stays as it is."""
        self._counters.reset()
        self._queues.clear()
        self._matcher.clear()
        self.result_consumer.after_fork()
        if self._publisher is not None:
            self._publisher.after_fork()
        # Celery caches the name of the thread's reply queue, and keeps pooled connections. Not
        # `app._after_fork`: where that is due, in children of billiard, billiard calls it.
        vars(self.app._local).pop("oid", None)
        self.app._pool = None
        if "amqp" in vars(self.app):
            self.app.amqp._producer_pool = None


def open_channel(producer: Any) -> Any:
    """The channel of a producer; one from the pool may have lost its connection meanwhile."""
    channel = producer.channel
    if channel.connection is None and producer.__connection__ is not None:
        producer.revive(producer.__connection__.default_channel)
        channel = producer.channel
    return channel


#: Every backend of this process, and the lock under which they, and their parts, are made.
_living: weakref.WeakSet[RPCBackend] = weakref.WeakSet()
_making = threading.Lock()


def _close_all(**kwargs: Any) -> None:
    _with_all(methodcaller("close"))


def _flush_all(**kwargs: Any) -> None:
    _with_all(methodcaller("_flush"))


def _with_all(end: Callable[[RPCBackend], None]) -> None:
    for backend in list(_living):
        try:
            end(backend)
        except Exception as exc:  # the others must not lose what they have not sent yet
            logger.error("a result backend was not closed in order", exc_info=exc)


def _after_fork_in_child() -> None:
    global _making
    _making = threading.Lock()
    # Only forgotten: to close one would say goodbye on the parent's socket. That is what
    # kombu has multiprocessing do in a moment, but for pools that are closed already.
    for pool in (*kombu.pools.connections.values(), *kombu.pools.producers.values()):
        pool._closed = True
    kombu.pools.connections.clear()
    kombu.pools.producers.clear()
    for backend in list(_living):
        backend._after_fork()


# A prefork child leaves without running atexit's; Celery tells it first. The process of a
# worker may live on, and wait for results, as it does in tests.
worker_process_shutdown.connect(_close_all, weak=False)
worker_shutdown.connect(_flush_all, weak=False)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
