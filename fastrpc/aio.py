"""``await`` for the results of tasks, in any event loop of the process.

    from fastrpc import aio

    value = await aio.get(add.delay(2, 2), timeout=10)

It is ``get()`` for event loops: the same results, the same exceptions, over the same connection,
and threads may wait in ``get()`` meanwhile. Cancelling an await ends the await and nothing else:
the task goes on, and its result can be had later.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from celery import states as celery_states
from celery.result import assert_will_not_block

from ._lifecycle import making
from .backend import RPCBackend
from .client.aio import LoopReader, Loops
from .client.side import ClientSide, Members, is_leaf

__all__ = ["as_completed", "gather", "get", "states"]

#: Called with the meta of each message about one of the tasks.
OnMessage = Callable[[dict[str, Any]], Any]


async def get(
    result: Any,
    timeout: float | None = None,
    propagate: bool = True,
    *,
    on_message: OnMessage | None = None,
) -> Any:
    """The value of a result, once it is there; of a group or a ResultSet the list of values.

    Args:
        result: An AsyncResult (of a chain: its last), a GroupResult or a ResultSet.
        timeout: In seconds; None waits for ever.
        propagate: Raise what the task, or one it follows in a chain, has raised. Else the
            exception is the value.
        on_message: Called with each state of these tasks that comes meanwhile, as the dict that
            the worker sent.

    Raises:
        celery.exceptions.TimeoutError: it did not come in time.
        fastrpc.errors.ResultDropped: it came, but is no longer kept.
        kombu.exceptions.OperationalError: the broker refuses us; trying again is no use.
        RuntimeError: called in a task (see ``celery.result.allow_join_result``).
        Exception: what the task has raised.
    """
    if propagate and is_leaf(result) and result.parent is None and on_message is None:
        await _one_ready(result, timeout)
    else:
        await _all_ready([result], timeout, propagate, on_message)
    return _value(result, propagate)


async def gather(
    *results: Any,
    return_exceptions: bool = False,
    timeout: float | None = None,
    on_message: OnMessage | None = None,
) -> list[Any]:
    """The values of ``results``, in their order, once all are there.

    The first exception that comes is raised at once, and the results that did not come yet can be
    had later; with ``return_exceptions`` exceptions are values. All results are of one app. Else
    as ``get``.
    """
    await _all_ready(results, timeout, not return_exceptions, on_message)
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
    wait = reader.begin(nodes, timeout, [])
    try:
        while missing:
            await wait
            for leaf in reader.take(wait):
                if missing.pop(id(leaf), None) is not None:
                    for member in members.ready_with(leaf):
                        yield member
    finally:
        reader.end(nodes, wait, [])


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
        wait = reader.begin(nodes, timeout, [], listens=True)
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
            reader.end(nodes, wait, [])
    if result._cache:
        yield dict(result._cache)


async def _one_ready(result: Any, timeout: float | None) -> None:
    """Wait for one result that follows no other."""
    assert_will_not_block()
    if _is_ready(result):
        return
    nodes = [result]
    reader = _reader(nodes)
    wait = reader.begin(nodes, timeout, [])
    try:
        while not _is_ready(result):
            await wait
            reader.take(wait)
    finally:
        reader.end(nodes, wait, [])


async def _all_ready(
    results: Iterable[Any],
    timeout: float | None,
    propagate: bool,
    on_message: OnMessage | None,
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
                for meta in wait.take_metas():
                    if meta["task_id"] in ids:
                        on_message(meta)
            for leaf in arrived:
                missing.pop(id(leaf), None)
                if propagate:
                    _value(leaf, propagate)
    finally:
        reader.end(nodes, wait, parents)


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
