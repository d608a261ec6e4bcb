"""``fastrpc.apply_many()``: the messages of ``apply_async``, thousands at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
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

#: Options of ``apply_async`` that mean the same for each message.
COMMON = frozenset(
    {
        *("queue", "exchange", "routing_key", "priority", "serializer", "ignore_result"),
        *("delivery_mode", "time_limit", "soft_time_limit", "headers", "reply_to", "mandatory"),
        *("add_to_parent", "retry", "retry_policy"),
    }
)
TASK_METHODS = ("apply_async", "shadow_name", "AsyncResult", "_get_exec_options")
#: Methods on the way from ``apply_async`` to the message. Tracing tools replace some of them.
METHODS = (
    *((Task, name) for name in TASK_METHODS),
    (Celery, "send_task"),
    (celery.app.amqp.AMQP, "as_task_v2"),
    (celery.app.amqp.AMQP, "_create_task_sender"),
    (AMQP, "as_task_v2"),
)
#: Signals that would have to be sent for each message.
SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)
#: The last part of a task's body, where nothing follows the task.
NOTHING_FOLLOWS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

Call = tuple[Any, Any]


def apply_many(
    task: Any,
    argslist: Iterable[Any] | None = None,
    kwargslist: Iterable[Mapping[str, Any]] | None = None,
    **options: Any,
) -> ResultSet:
    """Send a task many times, or many signatures: as ``apply_async`` for each, many in one write.

    Iterables are consumed lazily, a batch at a time. Needs ``fastrpc.install()``.

    Args:
        task: A task, or an iterable of signatures.
        argslist: The positional arguments of each call; None if there are only ``kwargslist``.
        kwargslist: The keyword arguments of each call, as many.
        options: Those of ``apply_async``, for every call.

    Raises:
        NotAllSent: something failed on the way; also an argument that ``apply_async`` refuses. It
            holds the results of what was sent before, and says what is in doubt.
    """
    task = stands_for(task)
    if isinstance(task, Task):
        return Sending(task.app, options).send_calls(task, calls(argslist, kwargslist))
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
    return zip(argslist, kwargslist, strict=True)


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
                    # What was called before is sent, as by a loop of apply_async.
                    failure = exc
        except NotAllSent as exc:
            failure, in_doubt = failure or exc.__cause__ or exc, exc.in_doubt
        if failure is None:
            return ResultSet(self.results)
        doubted = set(in_doubt)
        sent = [result for result in self.results if result.id not in doubted]
        raise NotAllSent(
            f"{len(sent)} tasks were sent, {len(in_doubt)} are in doubt, then: {failure!r}",
            ResultSet(sent),
            in_doubt,
        ) from failure


class Model:
    """The first message, made by Celery, in which only the call changes."""

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
        """One for calls of ``task``, or None if somebody watches, or more than the call changes."""
        app = task.app
        options = {**task._get_exec_options(), **options}
        if (
            collected is None
            or collected.last is None
            or not all(is_own(vars(owner).get(name), owner.__module__) for owner, name in METHODS)
            or is_replaced()
            or any(getattr(type(task), n) is not getattr(Task, n) for n in TASK_METHODS)
            or type(app).send_task is not Celery.send_task
            or not vars(task).keys().isdisjoint(TASK_METHODS)
            or "send_task" in vars(app)
            or type(app.amqp) is not AMQP
            or getattr(app.amqp.create_task_message, "__func__", None) is not AMQP.as_task_v2
            or not is_own(app.amqp.send_task_message, celery.app.amqp.__name__)
            or any(signal.receivers for signal in SIGNALS)
            or not {name for name in options if options[name] is not None} <= COMMON
            or getattr(task, "_dump_pydantic_arguments", None) is not None
            or not all(type(route) is MapRoute for route in app.amqp.router.routes or ())
            or app.current_worker_task
            or app.conf.task_send_sent_event
            or app.conf.task_compression
        ):
            return None
        model = cls(task, collected, result, options)
        headers, properties = dict(model.headers), dict(model.message.properties)
        body = encoded_body(model.message)
        model.fill(result.id, args, kwargs)
        same = (headers, properties, body) == (
            model.headers,
            model.message.properties,
            model.message.body,
        )
        named = {name for name, value in headers.items() if value == result.id}
        return model if same and named == {"id", "root_id"} else None

    def fill(self, id: str, args: Any, kwargs: Any) -> None:
        """Make it the message of a call."""
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
        """Collect the message of a call; returns its result."""
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


def is_own(method: Any, module: str) -> bool:
    """Whether a method is a function of that module, and not one that somebody has put there."""
    return type(method) is FunctionType and method.__globals__["__name__"] == module


def describe(value: Any, maxsize: int, maxlevels: int) -> str:
    """What Celery shows of arguments."""
    text = simple_repr(value, maxsize, maxlevels)
    return saferepr(value, maxsize, maxlevels) if text is None else text
