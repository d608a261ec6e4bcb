"""``await`` for the results of tasks, in any event loop of the process.

    from fastrpc import aio

    value = await aio.get(add.delay(2, 2), timeout=10)

It is ``get()`` for event loops: the same results, the same exceptions, over the same connection.
Threads may wait in ``get()`` meanwhile. Cancelling an await ends only the await: the task goes on,
and its result can be fetched later.

``add.delay()`` blocks while it connects, and while the broker accepts nothing. In an event loop
send with ``await aio.apply_async(add, (2, 2))``. After ``aio.install(app)`` a result can be awaited
itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from celery import states as celery_states
from celery.exceptions import TimeoutError
from celery.result import EagerResult, assert_will_not_block

from ._borrowed import is_leaf
from ._lifecycle import register
from ._lock import Lock, Signal, start_thread
from .backend import RPCBackend
from .client.aio import Loops, ResultWait
from .client.side import ClientSide, Members

__all__ = ["apply_async", "apply_many", "as_completed", "gather", "get", "install", "states"]

logger = logging.getLogger("fastrpc")

#: How long, in seconds, the thread that sends waits for another job before it ends.
LINGER = 1.0

#: How long, in seconds, a process that ends waits for what is still to be sent.
FLUSH_TIMEOUT = 2.0

#: Called with the meta of each message about one of the awaited tasks.
OnMessage = Callable[[dict[str, Any]], Any]

AnyResult = TypeVar("AnyResult")
Value = TypeVar("Value")
Returned = TypeVar("Returned", covariant=True)


class Result(Protocol[Returned]):
    """To a type checker: what has a ``get()``, whose type is then that of the awaited value."""

    def get(self) -> Returned:
        """The value."""


class Call(Protocol[Returned]):
    """To a type checker: a task, or a signature."""

    def apply_async(self, args: Any, kwargs: Any, /) -> Returned:
        """The result."""


async def get(
    result: Result[Value],
    timeout: float | None = None,
    propagate: bool = True,
    *,
    on_message: OnMessage | None = None,
    revoke: bool = False,
) -> Value:
    """Wait for a result and return its value; for a group or a ResultSet the list of values.

    Args:
        result: An AsyncResult (of a chain: its last), a GroupResult or a ResultSet.
        timeout: In seconds; None waits for ever.
        propagate: Raise the exception of the task, or of one that it follows in a chain. If False,
            the exception is the value.
        on_message: Called with each state of these tasks that arrives meanwhile, as the dict that
            the worker sent.
        revoke: Revoke the tasks that are not ready if the await is cancelled or times out.

    Raises:
        celery.exceptions.TimeoutError: the result did not arrive in time.
        fastrpc.errors.ResultDropped: the result arrived, but is no longer kept.
        kombu.exceptions.OperationalError: the broker refuses the connection for good.
        RuntimeError: called in a task (see ``celery.result.allow_join_result``).
        Exception: what the task has raised.
    """
    if not is_leaf(result) or result.parent is not None or on_message is not None or revoke:
        await _all_ready([result], timeout, propagate, on_message, revoke)
    else:  # a shorter way: ten thousand may be awaited at once
        assert_will_not_block()
        if not _is_ready(result):
            with _wait_for([result], timeout) as wait:
                while not _is_ready(result):
                    await wait
    value: Value = _value(result, propagate)
    return value


async def gather(
    *results: Any,
    return_exceptions: bool = False,
    timeout: float | None = None,
    on_message: OnMessage | None = None,
    revoke: bool = False,
) -> list[Any]:
    """Wait for all ``results`` and return their values, in the order of ``results``.

    The first exception that arrives is raised at once; the other results can be fetched later. With
    ``return_exceptions`` exceptions are values. All results must be of one app. Everything else is
    as in ``get``.
    """
    await _all_ready(results, timeout, not return_exceptions, on_message, revoke)
    return [_value(result, not return_exceptions) for result in results]


async def as_completed(
    results: Iterable[AnyResult], timeout: float | None = None
) -> AsyncGenerator[AnyResult, None]:
    """Yield each of ``results`` once, when it becomes ready.

    A group is ready when all its members are. One that follows a task of a chain that has failed
    never becomes ready; it is yielded when that failure arrives. No exception of a task is raised
    here, but by ``await get(result)``, which returns or raises at once.

    Raises:
        celery.exceptions.TimeoutError: not all were ready within ``timeout`` seconds from the first
            step.
        fastrpc.errors.ResultDropped: one arrived, but is no longer kept.
    """
    assert_will_not_block()
    completion = _Completion(results)
    for result in completion.first():
        yield result
    if not completion.left:
        return
    with _wait_for(
        list(completion.missing.values()), timeout, completion.awaited_parents()
    ) as wait:
        while completion.left:
            for leaf in await wait:
                for result in completion.ended_by(leaf):
                    yield result


class _Completion:
    """Results that end one after the other; each is returned once.

    One ends when it becomes ready, or when a task that it follows in a chain has failed.
    """

    def __init__(self, results: Iterable[Any]) -> None:
        #: Those that have not ended, by id().
        self.left = {id(result): result for result in results}
        self._members = Members(self.left.values())
        #: Their leaves that are not known to be ready, by id().
        self.missing = {id(leaf): leaf for leaf in self._members.leaves}
        #: The results of the tasks that they follow, by id(). ``first`` removes those that are
        #: ready when it looks; another one may become ready before it is awaited.
        self._parents: dict[int, Any] = {}
        #: The id() of each of them -> who follows it.
        self._followers: dict[int, list[Any]] = {}
        for result in self.left.values():
            for parent in _earlier([result]):
                self._parents[id(parent)] = parent
                self._followers.setdefault(id(parent), []).append(result)

    def first(self) -> Iterator[Any]:
        """Those that have ended already."""
        yield from self._end(self._members.empty)
        for leaf in (*self._members.leaves, *self._parents.values()):
            if _is_ready(leaf):
                self._parents.pop(id(leaf), None)
                yield from self.ended_by(leaf)

    def awaited_parents(self) -> list[Any]:
        """The results of the tasks that they follow, unless they are among ``missing``."""
        return [parent for key, parent in self._parents.items() if key not in self.missing]

    def ended_by(self, leaf: Any) -> Iterator[Any]:
        """Those that end with ``leaf``, which is ready."""
        if self.missing.pop(id(leaf), None) is not None:
            yield from self._end(self._members.ready_with(leaf))
        if _has_failed(leaf):
            yield from self._end(self._followers.get(id(leaf), ()))

    def _end(self, results: Iterable[Any]) -> Iterator[Any]:
        for result in results:
            if self.left.pop(id(result), None) is not None:
                yield result


async def states(result: Any, timeout: float | None = None) -> AsyncGenerator[dict[str, Any], None]:
    """Yield each state of a task as it arrives: STARTED, PROGRESS, RETRY, …; the final one is last.

    Each is a dict with ``status`` and ``result``; if the result is an exception, it is rebuilt. If
    states have arrived before, the newest of them comes first.

    Raises:
        celery.exceptions.TimeoutError: the final state did not arrive within ``timeout`` seconds.
        fastrpc.errors.ResultDropped: the final state arrived, but is no longer kept.
    """
    assert_will_not_block()
    if not is_leaf(result):
        raise TypeError(f"a {type(result).__name__} has no states, only the results in it have")
    if not _is_ready(result):
        matcher = _client(result).matcher
        with _wait_for([result], timeout, listens=True) as wait:
            newest = matcher.newest(result.id)
            heard = _unfinished(result.id, wait, matcher)
            if newest is not None and newest["status"] not in celery_states.READY_STATES:
                yield newest
                # A wait is told of a state before that state is kept as the newest.
                heard = _those_after(newest, heard)
            for meta in heard:
                yield meta
            while not _is_ready(result):
                await wait
                for meta in _unfinished(result.id, wait, matcher):
                    yield meta
    if result._cache:
        yield dict(result._cache)


def _unfinished(task_id: str, wait: Any, matcher: Any) -> list[dict[str, Any]]:
    """The states of a task that ``wait`` was told of since the last call, without the final one."""
    return [
        matcher.to_python(meta)
        for meta in wait.take_metas()
        if meta["task_id"] == task_id and meta["status"] not in celery_states.READY_STATES
    ]


def _those_after(state: dict[str, Any], states: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ``states`` that follow ``state``: all, if it is not among them."""

    def told(meta: dict[str, Any]) -> tuple[str, str]:
        return meta["status"], repr(meta["result"])  # an exception equals no other one

    places = [place for place, other in enumerate(states) if told(other) == told(state)]
    return states[places[-1] + 1 :] if places else states


async def apply_async(
    task: Call[AnyResult], args: Any = None, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> AnyResult:
    """Call a task, or a signature, without blocking the loop: ``task.apply_async`` in a thread.

    One thread sends for all loops, in the order of the calls. The loops go on while it connects,
    and while it waits for a broker that accepts nothing.

    A call that is cancelled before it has begun is not sent. A call that has begun may be sent even
    if it is cancelled.

    Returns:
        What ``task.apply_async`` returns.

    Raises:
        Exception: what ``task.apply_async`` raises.
    """
    result: AnyResult = await _send(partial(task.apply_async, args, kwargs, **options))
    return result


async def apply_many(
    task: Any,
    argslist: Iterable[Any] | None = None,
    kwargslist: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Any:
    """Call ``fastrpc.apply_many`` without blocking the loop, as ``apply_async`` calls a task.

    The thread also iterates over ``argslist`` and ``kwargslist``.
    """
    from .tasks.many import apply_many

    return await _send(partial(apply_many, task, argslist, kwargslist, **options))


def install(app: Any) -> None:
    """Make the results of an app awaitable: ``await add.delay(2, 2)`` is ``await aio.get(…)``.

    So are groups, result sets and the results of eager tasks. Results that were made before stay as
    they are.
    """
    for name in ("AsyncResult", "GroupResult", "ResultSet"):
        usual = getattr(app, name)
        if not hasattr(usual, "__await__"):
            attributes = {"__await__": _await, "__doc__": usual.__doc__}
            setattr(app, name, type(usual.__name__, (usual,), attributes))
    EagerResult.__await__ = _await


def _await(result: Any) -> Generator[Any]:
    return get(result).__await__()


async def _all_ready(
    results: Iterable[Any],
    timeout: float | None,
    propagate: bool,
    on_message: OnMessage | None,
    revoke: bool,
) -> None:
    """Wait until all are ready; with ``propagate`` raise the first exception that arrives."""
    assert_will_not_block()
    results = list(results)
    leaves = Members(results).leaves
    parents = _unready_parents(results) if propagate else []
    missing: dict[int, Any] = {}
    for leaf in leaves:
        if not _is_ready(leaf):
            missing[id(leaf)] = leaf
        elif propagate:
            _value(leaf, propagate)
    if not missing:
        return
    nodes = list(missing.values())
    ids = {node.id for node in (*nodes, *parents)}
    with _wait_for(nodes, timeout, parents, listens=on_message is not None) as wait:
        while missing:
            try:
                arrived = await wait
            except (asyncio.CancelledError, TimeoutError):
                # One may be ready that this await has not been told of yet.
                if revoke and (left := [n.id for n in missing.values() if not _is_ready(n)]):
                    _sender.send(partial(nodes[0].app.control.revoke, left), _log_failure)
                raise
            if on_message is not None:
                _tell(on_message, ids, wait.take_metas())
            for leaf in arrived:
                missing.pop(id(leaf), None)
                if propagate:
                    _value(leaf, propagate)  # a task, too, may have raised a TimeoutError


def _tell(on_message: OnMessage, ids: set[str], metas: Iterable[dict[str, Any]]) -> None:
    """Call ``on_message`` with those of ``metas`` that are about the tasks of ``ids``."""
    for meta in metas:
        if meta["task_id"] in ids:
            on_message(meta)


def _earlier(results: list[Any]) -> list[Any]:
    """The results of the tasks that ``results``, or members of them, follow in a chain.

    If such a task fails, those that follow it never run.
    """
    earlier: dict[int, Any] = {}
    seen: set[int] = set()  # all members of a group may follow the same task
    nodes = list(results)
    while nodes:
        node = nodes.pop()
        if not is_leaf(node):
            nodes.extend(node.results)
        parent = getattr(node, "parent", None)
        if parent is None or id(parent) in seen:
            continue
        seen.add(id(parent))
        nodes.append(parent)
        earlier.update((id(leaf), leaf) for leaf in Members([parent]).leaves)
    return list(earlier.values())


def _unready_parents(results: list[Any]) -> list[Any]:
    """Those of ``_earlier`` that are not ready.

    Raises:
        Exception: what one of the others has raised.
    """
    unready = []
    for parent in _earlier(results):
        if _is_ready(parent):
            _value(parent, True)
        else:
            unready.append(parent)
    return unready


def _is_ready(leaf: Any) -> bool:
    # One that is ready without a value was forgotten: nothing more arrives for it.
    return bool(leaf._cache or leaf.on_ready.ready or leaf.ignored)


def _has_failed(leaf: Any) -> bool:
    return bool(leaf._cache and leaf._cache["status"] in celery_states.PROPAGATE_STATES)


def _value(result: Any, propagate: bool) -> Any:
    """The value of a result that is ready."""
    if not is_leaf(result):
        return [_value(member, propagate) for member in result.results]
    if result.ignored or not result._cache:
        return None
    return result.maybe_throw(propagate=propagate)


def _client(leaf: Any) -> ClientSide:
    backend = leaf.backend
    if not isinstance(backend, RPCBackend):
        raise TypeError(
            f"only results of fastrpc:// can be awaited, {leaf.id} is of {type(backend).__name__}: "
            "make the app with backend='fastrpc://'"
        )
    return backend.client


def _wait_for(
    nodes: list[Any],
    timeout: float | None,
    parents: list[Any] | None = None,
    listens: bool = False,
) -> ResultWait:
    """A wait for ``nodes`` in the running loop; see ``ResultWait``."""
    client = _client(nodes[0])
    if len(nodes) > 1 and any(_client(node) is not client for node in nodes):
        raise ValueError("results of several apps: await those of each app by themselves")
    loops: Loops = client.loops or vars(client).setdefault("loops", Loops(client))
    reader = loops.reader(asyncio.get_running_loop())
    return ResultWait(reader, nodes, timeout, parents, listens)


# -- sending -----------------------------------------------------------------------------------


class _Sender:
    """One thread that sends for all event loops; it runs while there is something to send."""

    def __init__(self) -> None:
        self.after_fork()
        register(self)

    def after_fork(self) -> None:
        """Begin without a thread: a forked child does not have the parent's."""
        self._lock = Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[..., None]]]
        self._jobs = queue.SimpleQueue()
        self._running = False

    def send(self, job: Callable[[], Any], done: Callable[..., None]) -> None:
        """Have ``job()`` called in the thread, and then ``done(value, error)``."""
        with self._lock:
            if not self._running:
                start_thread(self._run)
                self._running = True
            self._jobs.put((job, done))  # last: a job whose thread cannot start is not sent later

    def _run(self) -> None:
        while True:
            try:
                job, done = self._jobs.get(timeout=LINGER)
            except queue.Empty:
                with self._lock:
                    if self._jobs.empty():
                        self._running = False
                        return
                continue
            value = error = None
            try:
                value = job()
            except BaseException as exc:
                error = exc
            done(value, error)
            del job, done, value, error  # else they would be kept until the next job comes

    def flush(self) -> None:
        """Wait for the jobs, because the process ends: tasks that were to be revoked would run."""
        reached = Signal()
        with self._lock:
            if not self._running:
                return
            self._jobs.put((reached.set, _ignore))
        reached.wait(FLUSH_TIMEOUT)

    def load(self) -> None:
        """Nothing to load: it runs no code of its own in tasks."""

    def leave(self, timeout: float) -> bool:
        """Nothing to close: the connections are those of the apps."""
        return True


_sender = _Sender()


async def _send(job: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    # Tracing tools keep the current span in it.
    context = contextvars.copy_context()

    def run() -> Any:
        if not future.cancelled():
            return context.run(job)

    def done(value: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, (value, error))

    def settle(outcome: tuple[Any, BaseException | None]) -> None:
        if not future.done():
            # Not set_exception(): a future refuses StopIteration, and would never be done.
            future.set_result(outcome)

    _sender.send(run, done)
    value, error = await future
    if error is not None:
        raise error
    return value


def _ignore(value: Any, error: BaseException | None) -> None:
    """For a job that nobody waits for, and that cannot fail."""


def _log_failure(value: Any, error: BaseException | None) -> None:
    if error is not None:
        logger.error("cannot revoke tasks that nobody awaits any more", exc_info=error)
