"""Every private name of Celery, kombu, py-amqp, vine and Python that fastrpc uses.

When one of them releases a new version, look here. ``BORROWED`` lists each name, why it is needed,
and which module uses it. Other modules use the names through the functions below. A name that a
subclass or compiled code must use directly is only listed. A test checks that each name exists.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import kombu.pools
import kombu.transport
from celery._state import (
    _get_active_apps,
    current_task,
    pop_current_task,
    push_current_task,
    task_join_will_block,
)
from celery.app.utils import Settings
from celery.backends.base import Backend
from celery.local import Proxy
from kombu.serialization import registry

__all__ = [
    "BORROWED",
    "TRIED",
    "Borrowed",
    "codecs",
    "current_task",
    "dates_are_always_utc",
    "end_threads",
    "forget_pools",
    "forget_schemes",
    "is_leaf",
    "replace_codec",
    "running",
    "spellings",
    "stands_for",
    "task_join_will_block",
]

#: The versions that the names below were tried with.
TRIED = {
    "celery": ("5.4", "5.5", "5.6", "5.7"),
    "kombu": ("5.4", "5.5", "5.6", "5.7"),
    "amqp": ("5.4",),
    "vine": ("5.1",),
    "threading": ("3.10", "3.11", "3.12", "3.13", "3.14"),
}


class Borrowed(NamedTuple):
    """One private name.

    ``where`` is ``module:attribute.attribute``. A class that sets an attribute only in ``__init__``
    is named with the instance attribute after a ``#``.
    """

    where: str
    why: str
    used_by: str


BORROWED = (
    Borrowed(
        "celery._state:current_task",
        "store_result without a request, as in Celery",
        "backend, chords.chords",
    ),
    Borrowed("celery._state:push_current_task", "the parent of a chord's body", "chords.body"),
    Borrowed("celery._state:pop_current_task", "the parent of a chord's body", "chords.body"),
    Borrowed(
        "celery._state:task_join_will_block",
        "true inside a task, where hardly any result is waited for",
        "backend, client.names, client.side",
    ),
    Borrowed("celery.app.base:Celery#_local", "where thread_oid keeps the names", "client.names"),
    Borrowed("celery._state:_get_active_apps", "apps with pools of the parent", "_lifecycle"),
    Borrowed("celery.app.base:Celery#_pool", "connections of the parent", "_lifecycle"),
    Borrowed("celery.app.amqp:AMQP._producer_pool", "producers of the parent", "_lifecycle"),
    Borrowed(
        "celery.local:Proxy._get_current_object", "the task behind a decorated name", "tasks.many"
    ),
    Borrowed("celery.app.utils:Settings._to_keys", "all spellings of a setting", "settings"),
    Borrowed(
        "celery.backends.base:Backend._get_result_meta",
        "what a meta holds; the fast way equals it",
        "worker.meta",
    ),
    Borrowed("celery.backends.base:Backend._ensure_not_eager", "warns in eager mode", "backend"),
    Borrowed("celery.result:AsyncResult#_cache", "the meta of a ready result", "client"),
    Borrowed("celery.result:AsyncResult._maybe_set_cache", "makes it ready", "client._matcher"),
    Borrowed("celery.result:AsyncResult._set_cache", "rebuilds the children", "client._matcher"),
    Borrowed(
        "celery.result:AsyncResult._on_fulfilled", "is replaced if it is Celery's", "client.matcher"
    ),
    Borrowed("vine.promises:promise._svpending", "the one listener", "client._matcher"),
    Borrowed("vine.promises:promise._lvpending", "several listeners", "client._matcher"),
    Borrowed("kombu.serialization:registry._encoders", "is `json` still kombu's?", "serialization"),
    Borrowed("kombu.serialization:registry._decoders", "is `json` still kombu's?", "serialization"),
    Borrowed(
        "kombu.serialization:registry._disabled_content_types",
        "may a content type be decoded?",
        "serialization",
    ),
    Borrowed(
        "kombu.serialization:registry._default_encode", "is `json` the default?", "serialization"
    ),
    Borrowed(
        "kombu.serialization:registry._set_default_serializer",
        "keeps `json` the default",
        "serialization",
    ),
    Borrowed("kombu.transport:_transport_cache", "a scheme is resolved once", "_install"),
    Borrowed("kombu.asynchronous.hub:Hub#_ready", "was a task acknowledged?", "transport.loop"),
    Borrowed("kombu.asynchronous.hub:Hub._pop_ready", "acknowledges it", "transport.loop"),
    Borrowed(
        "amqp.channel:Channel._on_basic_deliver", "a delivery's consumer", "transport.channel"
    ),
    Borrowed(
        "amqp.channel:Channel._ALLOWED_METHODS_WHEN_CLOSING",
        "an answer that is not awaited",
        "transport.channel",
    ),
    Borrowed("kombu.pools:Connections", "pools of the parent", "_lifecycle"),
    Borrowed("kombu.resource:Resource#_closed", "pools of the parent", "_lifecycle"),
    Borrowed("kombu.messaging:Producer.__connection__", "a pooled producer's own", "client.side"),
    Borrowed(
        "amqp.serialization:GenericContent._serialize_properties",
        "a message that encodes its properties in its own way",
        "transport.writer",
    ),
    Borrowed(
        "amqp.connection:Connection._on_tune", "the negotiated frame_max", "transport.connection"
    ),
    Borrowed(
        "amqp.connection:Connection#_transport", "lets go of the socket", "transport.connection"
    ),
    Borrowed(
        "amqp.abstract_channel:AbstractChannel#_pending",
        "an answer that is not awaited",
        "transport.connection",
    ),
    Borrowed(
        "amqp.connection:Connection#_handshake_complete",
        "during the handshake nothing else is awaited",
        "transport.connection",
    ),
    Borrowed(
        "amqp.connection:Connection.frame_writer", "frames of our own", "client.queues, sending"
    ),
    Borrowed(
        "amqp.connection:Connection.on_inbound_frame",
        "everything that is not a delivery of ours",
        "transport.connection",
    ),
    Borrowed("threading:_shutdown", "a child's threads end before its backends", "_lifecycle"),
)


def spellings(conf: Settings, name: str) -> Any:
    """The keys under which an app's settings may hold ``name``."""
    return conf._to_keys(name)


def stands_for(task: Any) -> Any:
    """The task behind a proxy that ``@app.task`` or ``@shared_task`` returned; else ``task``."""
    return task._get_current_object() if isinstance(task, Proxy) else task


def is_leaf(result: Any) -> TypeGuard[Any]:
    """Whether ``result`` is the result of one task, not a group."""
    return hasattr(result, "_cache")


def codecs() -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """kombu's own encoders by name, decoders by content type, and disabled content types.

    The registry changes these objects in place.
    """
    return registry._encoders, registry._decoders, registry._disabled_content_types


def replace_codec(name: str, encode: Any, decode: Any) -> None:
    """Register other functions for a serializer; if it is the default, it stays the default."""
    content_type, content_encoding, former = registry._encoders[name]
    is_default = registry._default_encode is former
    registry.register(name, encode, decode, content_type, content_encoding)
    if is_default:
        registry._set_default_serializer(name)


def forget_schemes(schemes: Iterable[str]) -> None:
    """Make kombu resolve the transports of these schemes again; it caches them."""
    for scheme in schemes:
        kombu.transport._transport_cache.pop(scheme, None)


def dates_are_always_utc() -> bool:
    """Whether this Celery puts the time of a result in UTC; newer ones use the app's time zone."""
    return "utc" in Backend._get_result_meta.__code__.co_names


@contextmanager
def running(app: Any, request: Any) -> Iterator[None]:
    """Let a task with ``request`` seem to run in this thread: it becomes the parent of the tasks
    that are sent in this context."""
    task = app.tasks["celery.accumulate"]  # any registered task will do
    push_current_task(task)
    task.request_stack.push(request)
    try:
        yield
    finally:
        task.request_stack.pop()
        pop_current_task()


def forget_pools() -> None:
    """In a forked child: forget kombu's pools, and write nothing to the parent's sockets.

    kombu does the same through multiprocessing, a moment later, but skips pools that are closed.
    """
    for pool in (*kombu.pools.connections.values(), *kombu.pools.producers.values()):
        pool._closed = True
    kombu.pools.connections.clear()
    kombu.pools.producers.clear()
    # Every app, whatever its backend: it keeps its pools, and they are closed now. Does not call
    # ``app._after_fork``: billiard calls it in its own children, where it is needed.
    for app in list(_get_active_apps()):
        app._pool = None
        if "amqp" in vars(app):
            app.amqp._producer_pool = None


def end_threads() -> None:
    """Wait until all threads but daemons have ended, as the interpreter does at its end.

    multiprocessing calls the same, too late for us; a second call does nothing. Joining the threads
    would not do: those of an idle executor end only when this tells them.
    """
    threading._shutdown()  # type: ignore[attr-defined]
