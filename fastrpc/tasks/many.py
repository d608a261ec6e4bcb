"""``fastrpc.apply_many()`` sends the messages of ``apply_async``, thousands at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice, zip_longest
from types import FunctionType
from typing import Any

import celery.app.amqp
from celery import signals
from celery.app.base import Celery
from celery.app.routes import MapRoute
from celery.app.task import Task
from celery.canvas import Signature
from celery.result import ResultSet
from celery.utils.saferepr import saferepr
from kombu.utils.uuid import uuid

from .._borrowed import stands_for
from ..errors import NotAllSent
from ..serialization import encode
from ..transport.writer import encoded_body
from ._repr import simple_repr
from .amqp import AMQP, DEFAULT_MAXLEVELS
from .batch import Batch, Collected
from .producer import is_replaced

__all__ = ["apply_many"]

#: Options of ``apply_async`` whose effect is the same for every message.
COMMON = frozenset(
    {
        *("queue", "exchange", "routing_key", "priority", "serializer", "ignore_result"),
        *("delivery_mode", "time_limit", "soft_time_limit", "headers", "reply_to", "mandatory"),
        *("add_to_parent", "retry", "retry_policy"),
    }
)
TASK_METHODS = ("apply_async", "shadow_name", "AsyncResult", "_get_exec_options")
#: The functions between ``apply_async`` and the message. Tracing tools replace some of them.
METHODS = (
    *((Task, name) for name in TASK_METHODS),
    (Celery, "send_task"),
    (celery.app.amqp.AMQP, "as_task_v2"),
    (celery.app.amqp.AMQP, "_create_task_sender"),
    (AMQP, "as_task_v2"),
)
#: Signals that would have to be sent for each message.
SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
#: The last part of a task's body if no other task follows.
NOTHING_FOLLOWS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
#: What stands in the place of an item, where a list has ended.
MISSING: Any = object()

Call = tuple[Any, Any]


def apply_many(
    task: Any,
    argslist: Iterable[Any] | None = None,
    kwargslist: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> ResultSet:
    """Send one task many times, or many signatures.

    The messages are those of ``apply_async``, but many leave in one write. Iterables are consumed
    lazily, a batch at a time. Needs ``fastrpc.install()`` before the app is made; otherwise each
    task is sent by itself.

    Args:
        task: A task, or an iterable of signatures.
        argslist: The positional arguments of each call; None if there are only ``kwargslist``.
        kwargslist: The keyword arguments of each call, as many as ``argslist`` has items.
        options: Options of ``apply_async``, which apply to every call.

    Raises:
        NotAllSent: an error occurred, for example an argument that ``apply_async`` refuses. The
            exception holds the results of the tasks sent before, and names those in doubt.
    """
    task = stands_for(task)
    if isinstance(task, Task):
        return Sending(task.app, options).send_calls(task, calls(argslist, kwargslist))
    if isinstance(task, str):
        raise TypeError(
            f"apply_many() takes a task, not the name {task!r}: send signatures instead, as in "
            f"apply_many(app.signature({task!r}, args) for args in argslist)"
        )
    if argslist is not None or kwargslist is not None:
        raise TypeError("apply_many() takes arguments with a task, not with signatures")
    signatures = iter(task)
    first = next(signatures, None)
    if first is None:
        return ResultSet([])
    return Sending(first.app, options).send_signatures(chain((first,), signatures))


def calls(
    argslist: Iterable[Any] | None, kwargslist: Iterable[Mapping[str, Any]] | None
) -> Iterator[Call]:
    """(args, kwargs) of each call."""
    if argslist is None and kwargslist is None:
        raise TypeError("apply_many() needs argslist or kwargslist")
    if kwargslist is None:
        return ((args, None) for args in argslist or ())
    if argslist is None:
        return ((None, kwargs) for kwargs in kwargslist)
    return paired(argslist, kwargslist)


def paired(argslist: Iterable[Any], kwargslist: Iterable[Any]) -> Iterator[Call]:
    """The items of both, side by side."""
    for args, kwargs in zip_longest(argslist, kwargslist, fillvalue=MISSING):
        if args is MISSING or kwargs is MISSING:
            name = "argslist" if args is MISSING else "kwargslist"
            raise ValueError(f"{name} has too few items: one for each call is needed")
        yield args, kwargs


class Sending:
    """One call of ``apply_many()``."""

    def __init__(self, app: Any, options: dict[str, Any]) -> None:
        self.app, self.options = app, options
        self.results: list[Any] = []

    def send_signatures(self, signatures: Iterable[Signature]) -> ResultSet:
        def send(batch: Batch) -> None:
            for signature in signatures:
                self.results.append(signature.apply_async(**self.options))

        return self._in_batch(send)

    def send_calls(self, task: Task, calls: Iterator[Call]) -> ResultSet:
        def send(batch: Batch) -> None:
            add = self.results.append
            model = None
            for args, kwargs in islice(calls, 1):
                result = task.apply_async(args, kwargs, **self.options)
                add(result)
                model = Model.of(task, args, kwargs, result, batch.producer.collected, self.options)
            for args, kwargs in calls:
                if model is not None:
                    add(model.send(args, kwargs))
                else:
                    add(task.apply_async(args, kwargs, **self.options))

        return self._in_batch(send)

    def _in_batch(self, send: Any) -> ResultSet:
        batch = Batch(self.app)
        failure: BaseException | None = None
        in_doubt: list[str] = []
        try:
            with batch:
                try:
                    send(batch)
                except NotAllSent:
                    raise
                except Exception as exc:
                    # The tasks before the error are still sent, as by a loop of apply_async.
                    failure = exc
        except NotAllSent as exc:
            failure, in_doubt = failure or exc.__cause__ or exc, exc.in_doubt
        if failure is None:
            return ResultSet(self.results)
        doubted = set(in_doubt)
        sent = [result for result in self.results if result.id not in doubted]
        raise NotAllSent(
            f"tasks sent: {len(sent)}, in doubt: {len(in_doubt)}; then: {failure!r}",
            ResultSet(sent),
            in_doubt,
        ) from failure


class Model:
    """The first message, which Celery made. It is sent again for each call with only the id and the
    arguments changed."""

    def __init__(self, task: Task, collected: Collected, result: Any, options: Any) -> None:
        assert collected.last is not None
        message, self.publish_options = collected.last
        self.message = message
        self.task, self.collected = task, collected
        self.headers = message.properties["application_headers"]
        self.app = task.app
        self.ignored = result.ignored
        conf = self.app.conf
        self.serializer = options.get("serializer") or task.serializer or conf.task_serializer
        self.maxlevels = conf.get("task_repr_maxlevels", DEFAULT_MAXLEVELS)
        self.check = getattr(task, "__header__", None) if task.typing else None

    @classmethod
    def of(
        cls,
        task: Task,
        args: Any,
        kwargs: Any,
        result: Any,
        collected: Collected | None,
        options: Any,
    ) -> Model | None:
        """The model for further calls of ``task``; None if each must go through ``apply_async``.

        ``args``, ``kwargs`` and ``result`` are those of the first call.
        """
        if collected is None or collected.last is None:
            return None
        options = {**task._get_exec_options(), **options}
        if is_traced() or is_customized(task) or varies(task, options):
            return None
        model = cls(task, collected, result, options)
        return model if model.reproduces(result.id, args, kwargs) else None

    def reproduces(self, id: str, args: Any, kwargs: Any) -> bool:
        """Whether ``fill`` makes the same message of a call as Celery has made of it."""
        message = self.message
        headers, properties = dict(self.headers), dict(message.properties)
        body = encoded_body(message)
        self.fill(id, args, kwargs)
        is_same = (headers, properties, body) == (self.headers, message.properties, message.body)
        with_id = {name for name, value in headers.items() if value == id}
        return is_same and with_id == {"id", "root_id"}

    def fill(self, id: str, args: Any, kwargs: Any) -> None:
        """Turn the model into the message of a call."""
        args, kwargs = args or (), kwargs or {}
        if not isinstance(args, (list, tuple)):
            raise TypeError("task args must be a list or tuple")
        if not isinstance(kwargs, Mapping):
            raise TypeError("task keyword arguments must be a mapping")
        headers, message = self.headers, self.message
        amqp, levels = self.app.amqp, self.maxlevels
        headers["argsrepr"] = describe(args, amqp.argsrepr_maxsize, levels)
        headers["kwargsrepr"] = describe(kwargs, amqp.kwargsrepr_maxsize, levels)
        headers["id"] = headers["root_id"] = message.properties["correlation_id"] = id
        _, _, message.body = encode((args, kwargs, NOTHING_FOLLOWS), self.serializer)

    def send(self, args: Any, kwargs: Any) -> Any:
        """Collect the message of a call; return its AsyncResult."""
        if self.check is not None:
            self.check(*(args or ()), **(kwargs or {}))
        task, collected = self.task, self.collected
        id = uuid()
        self.fill(id, args, kwargs)
        if not collected.kept and not self.ignored:
            self.app.backend.on_task_call(collected.producer, id)
        result = task.AsyncResult(id)
        result.ignored = self.ignored
        collected.publish(self.message, *self.publish_options)
        return result


def is_traced() -> bool:
    """Whether a replaced function or a signal's receiver has to see each message."""
    return (
        is_replaced()
        or not all(is_own(vars(owner).get(name), owner.__module__) for owner, name in METHODS)
        or any(signal.receivers for signal in SIGNALS)
    )


def is_customized(task: Task) -> bool:
    """Whether the task or its app overrides a method between ``apply_async`` and the message."""
    app = task.app
    return (
        any(getattr(type(task), name) is not getattr(Task, name) for name in TASK_METHODS)
        or not vars(task).keys().isdisjoint(TASK_METHODS)
        or type(app).send_task is not Celery.send_task
        or "send_task" in vars(app)
        or type(app.amqp) is not AMQP
        or getattr(app.amqp.create_task_message, "__func__", None) is not AMQP.as_task_v2
        or not is_own(app.amqp.send_task_message, celery.app.amqp.__name__)
    )


def varies(task: Task, options: dict[str, Any]) -> bool:
    """Whether more than the id and the arguments may differ between two messages of ``task``."""
    app = task.app
    given = {name for name, value in options.items() if value is not None}
    return bool(
        not given <= COMMON
        or getattr(task, "_dump_pydantic_arguments", None) is not None
        or not all(type(route) is MapRoute for route in app.amqp.router.routes or ())
        or app.current_worker_task
        or app.conf.task_send_sent_event
        or app.conf.task_compression
    )


def is_own(method: Any, module: str) -> bool:
    """Whether ``method`` is a function that ``module`` defines, not a replacement."""
    return type(method) is FunctionType and method.__globals__["__name__"] == module


def describe(value: Any, maxsize: int, maxlevels: int) -> str:
    """Celery's repr of arguments, for the headers of the message."""
    text = simple_repr(value, maxsize, maxlevels)
    return saferepr(value, maxsize, maxlevels) if text is None else text
