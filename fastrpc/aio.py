"""``await`` for the results of tasks, in any event loop of the process.

    from fastrpc import aio

    value = await aio.get(add.delay(2, 2), timeout=10)

It is ``get()`` for event loops: the same results, the same exceptions, over the same connection,
and threads may wait in ``get()`` meanwhile. Cancelling an await ends the await and nothing else:
the task goes on, and its result can be had later.

``add.delay()`` connects, and waits for a broker that takes nothing: in an event loop send with
``await aio.apply_async(add, (2, 2))``. After ``aio.install(app)`` a result can be awaited itself.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import queue
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from celery import states as celery_states
from celery.exceptions import TimeoutError
from celery.result import EagerResult, assert_will_not_block

from ._lifecycle import making
from ._lock import Lock, start_thread
from .backend import RPCBackend
from .client.aio import LoopReader, Loops
from .client.side import ClientSide, Members, is_leaf

__all__ = ["apply_async", "apply_many", "as_completed", "gather", "get", "install", "states"]

logger = logging.getLogger("fastrpc")

#: Seconds that the thread that sends waits for more before it ends.
LINGER = 1.0

#: Called with the meta of each message about one of the tasks.
OnMessage = Callable[[dict[str, Any]], Any]


async def get(
    result: Any,
    timeout: float | None = None,
    propagate: bool = True,
    *,
    on_message: OnMessage | None = None,
    revoke: bool = False,
) -> Any:
    """The value of a result, once it is there; of a group or a ResultSet the list of values.

    Args:
        result: An AsyncResult (of a chain: its last), a GroupResult or a ResultSet.
        timeout: In seconds; None waits for ever.
        propagate: Raise what the task, or one it follows in a chain, has raised. Else the
            exception is the value.
        on_message: Called with each state of these tasks that comes meanwhile, as the dict that
            the worker sent.
        revoke: Revoke what is still missing if the await is cancelled or times out.

    Raises:
        celery.exceptions.TimeoutError: it did not come in time.
        fastrpc.errors.ResultDropped: it came, but is no longer kept.
        kombu.exceptions.OperationalError: the broker refuses us; trying again is no use.
        RuntimeError: called in a task (see ``celery.result.allow_join_result``).
        Exception: what the task has raised.
    """
    if not is_leaf(result) or result.parent is not None or on_message is not None or revoke:
        await _all_ready([result], timeout, propagate, on_message, revoke)
        return _value(result, propagate)
    # The same for a single result, without what each of ten thousand at once need not have.
    assert_will_not_block()
    if not _is_ready(result):
        nodes = [result]
        reader = _reader(nodes)
        wait = reader.begin(nodes, timeout)
        try:
            while not _is_ready(result):
                await wait
                reader.take(wait)
        finally:
            reader.end(nodes, wait)
    return _value(result, propagate)


async def gather(
    *results: Any,
    return_exceptions: bool = False,
    timeout: float | None = None,
    on_message: OnMessage | None = None,
    revoke: bool = False,
) -> list[Any]:
    """The values of ``results``, in their order, once all are there.

    The first exception that comes is raised at once, and the results that did not come yet can be
    had later; with ``return_exceptions`` exceptions are values. All results are of one app. Else
    as ``get``.
    """
    await _all_ready(results, timeout, not return_exceptions, on_message, revoke)
    return [_value(result, not return_exceptions) for result in results]


async def as_completed(results: Iterable[Any], timeout: float | None = None) -> AsyncIterator[Any]:
    """Yield each of ``results`` once it is ready, in the order in which they become so.

    A group among them is ready once all that is in it is. What a task has raised is not raised
    here: ``await get(result)`` returns, or raises, at once.

    Raises:
        celery.exceptions.TimeoutError: not all within ``timeout`` seconds from the first step.
        fastrpc.errors.ResultDropped: one came, but is no longer kept.
    """
    assert_will_not_block()
    members = Members(results)
    for member in members.empty:
        yield member
    missing: dict[int, Any] = {}
    for leaf in members.leaves:
        if _is_ready(leaf):
            for member in members.ready_with(leaf):
                yield member
        else:
            missing[id(leaf)] = leaf
    if not missing:
        return
    nodes = list(missing.values())
    reader = _reader(nodes)
    wait = reader.begin(nodes, timeout)
    try:
        while missing:
            await wait
            for leaf in reader.take(wait):
                if missing.pop(id(leaf), None) is not None:
                    for member in members.ready_with(leaf):
                        yield member
    finally:
        reader.end(nodes, wait)


async def states(result: Any, timeout: float | None = None) -> AsyncIterator[dict[str, Any]]:
    """Yield each state of a task as it comes, the final one last: STARTED, PROGRESS, RETRY, …

    Each is a dict with ``status`` and ``result``, where an exception is an exception. The newest
    that came before comes first.

    Raises:
        celery.exceptions.TimeoutError: the final one did not come within ``timeout`` seconds.
        fastrpc.errors.ResultDropped: it came, but is no longer kept.
    """
    assert_will_not_block()
    if not _is_ready(result):
        nodes = [result]
        reader = _reader(nodes)
        matcher = _client(result).matcher
        wait = reader.begin(nodes, timeout, listens=True)
        try:
            newest = matcher.newest(result.id)
            if newest is not None and newest["status"] not in celery_states.READY_STATES:
                yield newest
            while not _is_ready(result):
                await wait
                reader.take(wait)
                for meta in wait.take_metas():
                    if (
                        meta["task_id"] == result.id
                        and meta["status"] not in celery_states.READY_STATES
                    ):
                        yield matcher.to_python(meta)
        finally:
            reader.end(nodes, wait)
    if result._cache:
        yield dict(result._cache)


async def apply_async(
    task: Any, args: Any = None, kwargs: Mapping[str, Any] | None = None, **options: Any
) -> Any:
    """Call a task, or a signature, without blocking the loop: ``task.apply_async`` in a thread.

    One thread sends for all loops, in the order of the calls. It may have to connect, and to wait
    for a broker that takes nothing for the time being; the loops go on meanwhile.

    A cancelled call that has not begun is not sent. One that has begun is, and may arrive.

    Returns:
        What ``task.apply_async`` returns.

    Raises:
        Exception: what ``task.apply_async`` raises.
    """
    return await _send(partial(task.apply_async, args, kwargs, **options))


async def apply_many(
    task: Any,
    argslist: Iterable[Any] | None = None,
    kwargslist: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> Any:
    """``fastrpc.apply_many``, as ``apply_async`` here; the arguments are made in the thread."""
    from .tasks.many import apply_many

    return await _send(partial(apply_many, task, argslist, kwargslist, **options))


def install(app: Any) -> None:
    """Make the results of an app awaitable: ``await add.delay(2, 2)`` is ``await aio.get(…)``.

    This is for those that are made afterwards. Groups, result sets and the results of eager tasks
    are awaitable, too.
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
    """Wait for all; with ``propagate`` raise the first exception that comes."""
    assert_will_not_block()
    results = list(results)
    leaves = Members(results).leaves
    parents = _parents(results) if propagate else []
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
    reader = _reader(nodes)
    wait = reader.begin(nodes, timeout, parents, listens=on_message is not None)
    try:
        while missing:
            await wait
            arrived = reader.take(wait)
            if on_message is not None:
                _tell(on_message, ids, wait.take_metas())
            for leaf in arrived:
                missing.pop(id(leaf), None)
                if propagate:
                    _value(leaf, propagate)
    except (asyncio.CancelledError, TimeoutError):
        if revoke:
            left = [leaf.id for leaf in missing.values()]
            _sender.send(partial(nodes[0].app.control.revoke, left), _log_failure)
        raise
    finally:
        reader.end(nodes, wait, parents)


def _tell(on_message: OnMessage, ids: set[str], metas: Iterable[dict[str, Any]]) -> None:
    for meta in metas:
        if meta["task_id"] in ids:
            on_message(meta)


def _parents(results: list[Any]) -> list[Any]:
    """The results of the tasks that ``results`` follow in a chain: if one fails, they never come.

    Raises:
        Exception: what one of them has raised.
    """
    parents: dict[int, Any] = {}
    for result in results:
        parent = getattr(result, "parent", None)
        while parent is not None:
            for leaf in Members([parent]).leaves:
                if _is_ready(leaf):
                    _value(leaf, True)
                else:
                    parents[id(leaf)] = leaf
            parent = parent.parent
    return list(parents.values())


def _is_ready(leaf: Any) -> bool:
    # One that is ready and has nothing was forgotten: no more will come.
    return bool(leaf._cache or leaf.on_ready.ready or leaf.ignored)


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
            f"only results of fastrpc:// can be awaited, {leaf.id} is of {type(backend).__name__}"
        )
    return backend.client


def _reader(nodes: list[Any]) -> LoopReader:
    """What waits for ``nodes`` in the running loop."""
    client = _client(nodes[0])
    if len(nodes) > 1 and any(_client(node) is not client for node in nodes):
        raise ValueError("results of several apps: await those of each app by themselves")
    if client.loops is None:
        with making():
            client.loops = client.loops or Loops(client)
    loops: Loops = client.loops
    return loops.reader(asyncio.get_running_loop())


# -- sending -----------------------------------------------------------------------------------


class _Sender:
    """One thread that sends what event loops have to send, while there is something."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """As at first; in a forked child the thread is the parent's."""
        self._lock = Lock()
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[..., None]]]
        self._jobs = queue.SimpleQueue()
        self._running = False

    def send(self, job: Callable[[], Any], done: Callable[..., None]) -> None:
        """Have ``job()`` called in the thread, and then ``done(value, error)``."""
        with self._lock:
            self._jobs.put((job, done))
            if not self._running:
                start_thread(self._run)
                self._running = True

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
            del job, done, value, error  # else they would stay until the next comes


_sender = _Sender()
os.register_at_fork(after_in_child=_sender.begin)


async def _send(job: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()
    # Tracing tools keep in it what the task is to be sent with.
    context = contextvars.copy_context()

    def run() -> Any:
        if not future.cancelled():
            return context.run(job)

    def done(value: Any, error: BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)

    _sender.send(run, done)
    return await future


def _log_failure(value: Any, error: BaseException | None) -> None:
    if error is not None:
        logger.error("cannot revoke tasks that nobody awaits any more", exc_info=error)
