"""``fastrpc://``: Celery's result backend API over reply queues.

The path of a result: ``store_result`` in the worker -> ``fastrpc.worker`` -> ``fastrpc.sending`` ->
the caller's reply queue -> ``fastrpc.client`` -> the AsyncResult that waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import kombu
from celery import states
from celery.backends.asynchronous import AsyncBackendMixin
from celery.backends.base import Backend
from celery.exceptions import ImproperlyConfigured

from ._borrowed import current_task, is_leaf, task_join_will_block
from ._lifecycle import bequeath, register
from .client.names import QueueNames
from .errors import BacklogLimitExceeded, BadOption
from .options import Options
from .replace import keep_reply_queue
from .retry import RetryPolicy
from .settings import Setting
from .stats import CHORDS, RECEIVED, SENT, zeros

if TYPE_CHECKING:
    from .chords.chords import Chords
    from .client.reader import ResultConsumer
    from .client.side import ClientSide
    from .worker.side import WorkerSide

__all__ = ["RPCBackend"]

NO_CHORDS = """\
The fastrpc result backend does not support chords, nor a group chained into a task, which
Celery turns into a chord, unless the option chords is on (fastrpc://?chords=1). It collects the
results of the header in a queue of the broker; all workers that run the header's tasks then need
fastrpc:// too. Without it, call the group, get() its results and send the next task with them, or
give the tasks of the chord a backend that stores results, such as redis://."""

CHORDS_NEED_AMQP = """\
The fastrpc result backend joins chords in a queue of RabbitMQ, and this broker does not speak \
AMQP."""

NO_SAVED_GROUPS = """\
{} is not supported by the fastrpc backend, which does not store groups: the caller has the results.
In the same process pass on the GroupResult, or its as_tuple() for result_from_tuple(). For another
process, give the tasks a backend that stores results, such as redis://."""


class _ReaderClass:
    """``RPCBackend.ResultConsumer`` unless a subclass sets its own; imported when it is read."""

    def __get__(self, backend: Any, backend_class: Any) -> type[ResultConsumer]:
        from .client.reader import ResultConsumer

        return ResultConsumer


class RPCBackend(AsyncBackendMixin, Backend):
    """Result backend that sends each result to the reply queue of its caller."""

    Exchange = kombu.Exchange
    Producer = kombu.Producer
    ResultConsumer = _ReaderClass()
    BacklogLimitExceeded = BacklogLimitExceeded

    persistent = False
    supports_autoexpire = True
    supports_native_join = True

    #: ``{'max_retries': 20, 'interval_start': 0, 'interval_step': 1, 'interval_max': 1}``
    retry_policy: dict[str, Any] = RetryPolicy().as_dict()

    class Consumer(kombu.Consumer):
        """A consumer that does not declare its queues."""

        auto_declare = False

    class Queue(kombu.Queue):
        """A queue whose declaration kombu does not cache: ``client.queues`` does that."""

        can_cache_declaration = False

    # Made at their first use, as the client's side is: a process seldom needs all of them, and each
    # imports much.
    _worker: WorkerSide | None = None
    _chords: Chords | None = None

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
        keep_reply_queue()
        # One backend serves all threads of the process, whatever result_backend_thread_safe says.
        # Otherwise Celery would make one for each thread.
        self.thread_safe = True
        self.auto_delete = auto_delete
        self.persistent = self.prepare_persistent(persistent)
        self.delivery_mode = 2 if self.persistent else 1
        # The default exchange routes a result to the queue that its routing key names.
        self.exchange = self.Exchange(None)
        self.options = self._options()
        self.retry_policy = self.options.retry_policy.as_dict()
        self._connection = connection
        self._always_eager = Setting(app, "task_always_eager")
        # Made now, because the names decide what ``app.thread_oid`` returns.
        self._names = QueueNames.of(app)
        register(self)

    def load(self) -> None:
        """Make now what a task would make at its first use, where a soft time limit may strike."""
        _ = self.client, self.worker
        if self.options.chords:
            _ = self.chords

    @property
    def client(self) -> ClientSide:
        """The client's side of the app, which all of its backends share."""
        return self._names.side or self._make_client()

    def _make_client(self) -> ClientSide:
        from .client.side import ClientSide

        made = ClientSide(
            self.app,
            self._names,
            self.options,
            make_queue=self._queue_maker(),
            expires=self.expires,
            accept=self.accept,
            to_python=self.meta_from_decoded,
            consumer_class=self.ResultConsumer,
        )
        if self.auto_delete:
            bequeath(made, made.queues)
        if not self._names.may_declare:  # ``leave`` found no side that it could close
            made.stop_reading()
        side: ClientSide = self._names.keep(made)
        if not self._names.may_declare:  # nor did it if the end has just begun
            side.stop_reading()
        return side

    @property
    def worker(self) -> WorkerSide:
        """The worker's side of the backend."""
        return self._worker or self._make_worker()

    def _make_worker(self) -> WorkerSide:
        from .worker.side import WorkerSide

        side: WorkerSide = self._keep("_worker", WorkerSide(self, self.options))
        return side

    @property
    def chords(self) -> Chords:
        """The chords of the backend."""
        return self._chords or self._make_chords()

    def _make_chords(self) -> Chords:
        from .chords.chords import Chords

        made = Chords(self, self.options, self._make_chord_queue)
        chords: Chords = self._keep("_chords", made)
        return chords

    def _keep(self, name: str, made: Any) -> Any:
        """Keep what was just made as the attribute ``name``, unless there is one; return the kept.

        Nothing is locked meanwhile: a destructor or a signal handler may interrupt the making, ask
        for a result, and so make the same.
        """
        return self.__dict__.setdefault(name, made)

    def _queue_maker(self, **arguments: Any) -> Callable[[str], kombu.Queue]:
        """Return a function that makes the queue of a name.

        It does not refer to the backend, because queues outlive it.
        """
        from .client.queues import make_queue

        options = self.options
        return partial(
            make_queue,
            **{
                "queue_class": self.Queue,
                "exchange": self.exchange,
                "expires": self.expires,
                "queue_type": options.queue_type,
                "max_bytes": options.max_queue_bytes,
                "max_unread": options.max_unread,
                "max_unread_bytes": options.max_unread_bytes,
                **arguments,
            },
        )

    @property
    def result_consumer(self) -> Any:
        """The reader of results, under Celery's name."""
        return self.client.reader

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

    # -- calling a task ------------------------------------------------------------------------

    @property
    def oid(self) -> str:
        """The name of the reply queue of the current thread (``app.thread_oid``)."""
        return str(self.app.thread_oid)

    @property
    def binding(self) -> kombu.Queue:
        """The reply queue of the current thread, unbound."""
        return self._queue_maker()(self.oid)

    def _create_binding(self, task_id: str) -> kombu.Queue:
        """The reply queue of a task, unbound: that of the current thread."""
        return self.binding

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Declare the reply queue before the task is sent.

        Raises:
            fastrpc.errors.ReplyQueueMismatch: it exists with other arguments.
            fastrpc.errors.ReplyQueueRefused: the broker refuses to make it.
        """
        client = self.client
        client.renew(task_id)
        client.expect(producer)

    @contextmanager
    def answering_to(self, reply_to: str) -> Iterator[None]:
        """In this context the tasks that this thread sends are answered to the queue ``reply_to``,
        not to the thread's own."""
        lease = self._names.lease()
        before, lease.lent = lease.lent, reply_to
        try:
            yield
        finally:
            lease.lent = before

    # -- chords --------------------------------------------------------------------------------

    def _make_chord_queue(self, name: str) -> kombu.Queue:
        queue = self._queue_maker(expires=self.chord_expires, max_bytes=None)(name)
        # Only one process may consume the queue. (Quorum queues have no exclusive consumers.)
        queue.queue_arguments["x-single-active-consumer"] = True
        return queue

    @property
    def chord_expires(self) -> float | None:
        """Seconds after which the broker drops the unused queue of a chord, or None."""
        own = self.app.conf.get("result_chord_expires")
        expires: float | None = self.expires if own is None else self.prepare_expires(own)
        return expires

    @cached_property
    def _broker_is_amqp(self) -> bool:
        from .transport.transports import is_amqp

        return is_amqp(self.app.connection_for_write())

    def ensure_chords_allowed(self) -> None:
        """
        Raises:
            NotImplementedError: the option ``chords`` is off, or the broker does not speak AMQP.
        """
        if not self.options.chords:
            raise NotImplementedError(NO_CHORDS)
        if not self._broker_is_amqp:
            raise NotImplementedError(CHORDS_NEED_AMQP)

    def apply_chord(self, header_result_args: Any, body: Any, **kwargs: Any) -> None:
        """Declare the queue of a chord, before Celery sends its header.

        Raises:
            NotImplementedError: see ``ensure_chords_allowed``.
            fastrpc.errors.ReplyQueueRefused: the broker refuses to make the queue.
        """
        self.ensure_chords_allowed()
        group_id, results = header_result_args
        self.chords.declare(group_id, results, body)

    def set_chord_size(self, group_id: str, chord_size: int) -> None:
        """Set the number of parts in the header of a chord."""
        self.chords.set_size(group_id, chord_size)

    def get_state(self, task_id: str) -> str:
        """The state of a task. Inside a task it is always PENDING, and the broker is not asked.

        There Celery asks before it fails the rest of a chain that is part of a chord, so that no
        part is returned twice. This backend drops a part that arrives twice.
        """
        state: str = states.PENDING if task_join_will_block() else super().get_state(task_id)
        return state

    def add_to_chord(self, group_id: str, result: Any) -> None:
        """Announce one more part of the chord, the one of ``result``."""
        self.chords.add(group_id, result)

    def on_chord_part_return(self, request: Any, state: str, result: Any, **kwargs: Any) -> None:
        """A task of the header has ended: send its part, and check whether it was the last."""
        self.chords.return_part(request, state, result)

    # -- storing a result ----------------------------------------------------------------------

    def destination_for(self, task_id: str, request: Any) -> tuple[str | None, str]:
        """``(reply queue, correlation id)`` for a result.

        Raises:
            RuntimeError: there is neither a request nor a current task.
        """
        if request:
            return request.reply_to, request.correlation_id or task_id
        try:
            request = current_task.request
        except AttributeError:
            raise RuntimeError(f"fastrpc backend missing task request for {task_id!r}") from None
        # Inside a task Celery also stores the results of others, for example of the body of a
        # failed chord.
        is_own = request.id in (None, task_id)
        return request.reply_to, (is_own and request.correlation_id) or task_id

    def on_reply_declare(self, task_id: str) -> None:
        """Nothing to declare: the caller has declared its reply queue."""

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Send a state and its result to the caller; return ``result``.

        Raises:
            kombu.exceptions.EncodeError: the result cannot be serialized.
            kombu.exceptions.OperationalError: the retries of the retry policy are used up.
        """
        routing_key, correlation_id = self.destination_for(task_id, request)
        if not routing_key:
            return result
        meta = self._to_result(task_id, state, result, traceback, request)
        self.worker.send(routing_key, correlation_id, meta)
        return result

    def _to_result(
        self, task_id: str, state: str, result: Any, traceback: Any, request: Any
    ) -> dict[str, Any]:
        """The meta that is sent. A subclass may override this, and the caller gets its meta."""
        return self.worker.metas.build(
            task_id, state, self.encode_result(result, state), traceback, request
        )

    # -- waiting for a result ------------------------------------------------------------------

    def add_pending_result(
        self, result: Any, weak: bool = False, start_drainer: bool = True
    ) -> Any:
        """Make ``result`` ready when its final state arrives.

        With ``start_drainer``, under gevent or eventlet, a greenlet reads even while no other one
        waits, as in Celery.
        """
        self.client.add(result, weak=weak, read=start_drainer)
        return result

    def add_pending_results(self, results: Iterable[Any], weak: bool = False) -> list[Any]:
        return [self.add_pending_result(result, weak=weak) for result in results]

    def remove_pending_result(self, result: Any) -> Any:
        """Stop ``result`` from waiting. A message for its id is kept for other AsyncResults."""
        # Called by the destructor of an AsyncResult, which shall make nothing.
        if self._names.side is not None:
            self._names.side.matcher.discard(result)
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Nothing to cancel: the queue of a thread serves all of its results."""

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
            celery.exceptions.TimeoutError: it was not ready within ``timeout`` seconds.
            fastrpc.errors.ResultDropped: it arrived, but is no longer kept.
            Exception: with ``propagate``, the exception of the task.
        """
        self._ensure_not_eager()
        for _ in self.client.ready_ones([result], timeout, on_interval, on_message):
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

        A nested group is yielded as ``(group id, its results)`` once all results in it are ready,
        on every level. There is one wait, with one deadline. A forgotten result is left out.

        Raises:
            celery.exceptions.TimeoutError: not all were ready within ``timeout`` seconds.
            fastrpc.errors.ResultDropped: a result arrived, but is no longer kept.
        """
        self._ensure_not_eager()
        for node in self.client.ready_members(result.results, timeout, on_interval, on_message):
            meta = node._cache if is_leaf(node) else node.children
            if meta is not None:
                yield node.id, meta

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
        """Yield ``(task id, meta)`` of each of ``task_ids`` as it becomes ready.

        Raises:
            celery.exceptions.TimeoutError: not all were ready within ``timeout`` seconds.
        """
        results = {task_id: self.app.AsyncResult(task_id) for task_id in task_ids}
        if max_iterations:
            for task_id in results:
                meta = self.get_task_meta(task_id)
                if meta["status"] in READY_STATES:
                    yield task_id, meta
            return
        waits = self.client.ready_ones(results.values(), timeout, on_interval, on_message)
        for node in waits:
            yield node.id, node._cache

    # -- looking at a result -------------------------------------------------------------------

    def get_task_meta(self, task_id: str, backlog_limit: int = 1000) -> dict[str, Any]:
        """The newest known state of a task, without waiting; PENDING if there is none.

        Raises:
            BacklogLimitExceeded: this look made the process's first connection for results, and
                more than ``backlog_limit`` messages were found. They are being read, so try again.
        """
        client = self.client
        waiters = client.table.waiters(task_id)
        if client.look() > backlog_limit:
            raise self.BacklogLimitExceeded(task_id)
        meta = client.matcher.newest(task_id) or client.matcher.handed_to(waiters)
        return {"status": states.PENDING, "result": None} if meta is None else meta

    poll = get_task_meta

    def is_cached(self, task_id: str) -> bool:
        """Whether a result of ``task_id`` is kept in this process."""
        return self.client.is_kept(task_id)

    def on_out_of_band_result(self, task_id: str, message: Any) -> None:
        """Keep the result in a kombu message that was received for another task."""
        self.client.matcher.deliver_message(task_id, message)
        message.ack()

    def task_result_exists(self, task_id: str) -> bool:
        """Whether any state of ``task_id`` is known."""
        self.client.look()
        return self.is_cached(task_id)

    def forget(self, task_id: str) -> None:
        """Drop what is kept for ``task_id``. A result that arrived is not delivered again."""
        self.client.forget(task_id)

    # -- the rest of Celery's API --------------------------------------------------------------

    def as_uri(self, include_password: bool = True) -> str:
        """Always ``rpc://``: Celery's worker compares with it, and it contains no password."""
        return "rpc://"

    def revive(self, channel: Any) -> None:
        """Nothing to do: the reader and the publisher reopen their connections themselves."""

    def reload_task_result(self, task_id: str) -> None:
        raise NotImplementedError("reload_task_result is not supported by the fastrpc backend")

    def reload_group_result(self, group_id: str) -> None:
        raise NotImplementedError("reload_group_result is not supported by the fastrpc backend")

    def save_group(self, group_id: str, result: Any) -> None:
        raise NotImplementedError(NO_SAVED_GROUPS.format("save_group"))

    def restore_group(self, group_id: str, cache: bool = True) -> None:
        raise NotImplementedError(NO_SAVED_GROUPS.format("restore_group"))

    def delete_group(self, group_id: str) -> None:
        raise NotImplementedError("delete_group is not supported by the fastrpc backend")

    def stats(self) -> dict[str, Any]:
        """Counters since this process began; see docs/stats.md."""
        client, worker, chords = self._names.side, self._worker, self._chords
        return {
            **(client.counters() if client else {**zeros(RECEIVED), "bad_messages": {}}),
            **(worker.counters() if worker else zeros(SENT)),
            **(chords.counters() if chords else zeros(CHORDS)),
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

    def leave(self, timeout: float) -> bool:
        """Hang up at the end of the process, after ``flush``.

        Returns:
            Whether the broker answered within ``timeout`` seconds.
        """
        self._names.end()
        side = self._names.side
        return side is None or side.leave(self.auto_delete, timeout)

    def close(self) -> None:
        """``flush``, then hang up and delete the reply queues, unless ``auto_delete=False``."""
        try:
            self.flush()
        finally:
            if self._names.side is not None:
                self._names.side.close(delete_queues=self.auto_delete)

    def drain(self, timeout: float) -> bool:
        """Wait until all results are confirmed, at most ``timeout`` seconds.

        Returns:
            Whether they are.
        """
        return self._worker is None or self._worker.publisher.drain(timeout)

    def flush(self) -> None:
        """Wait until all results are confirmed, at most for ``shutdown_timeout``.

        Before that, the chords whose parts this process has sent are checked, which may take as
        long again.
        """
        if self._chords is not None:
            self._chords.close(self.options.shutdown_timeout)
        if self._worker is not None:
            self._worker.publisher.close(self.options.shutdown_timeout)

    def after_fork(self) -> None:
        """Start afresh in a forked child: the open connections belong to the parent."""
        self._names.after_fork()
        if self._names.side is not None:
            self._names.side.after_fork()
        if self._worker is not None:
            self._worker.after_fork()
        if self._chords is not None:
            self._chords.after_fork()
