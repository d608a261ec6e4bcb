"""Metrics and spans of results for OpenTelemetry; needs ``opentelemetry-api``.

    from fastrpc.contrib.opentelemetry import observe, trace_results

    observe(app)        # the counters of backend.stats()
    trace_results(app)  # a span for each result that is sent or waited for

Both use the global providers unless they are given others. The counters are read when they are
collected. Spans cost time for each result, so they are a call of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Observation

from .. import __version__
from .metrics import METRICS, read_stats

__all__ = ["observe", "trace_results"]

SCOPE = "fastrpc"
#: https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
MESSAGING: dict[str, str | bool] = {
    "messaging.system": "rabbitmq",
    "messaging.destination.temporary": True,
    "messaging.destination.anonymous": True,
}


def observe(
    app: Any,
    meter_provider: metrics.MeterProvider | None = None,
    attributes: Mapping[str, str] | None = None,
) -> None:
    """Make observable instruments over the counters of an app's backend.

    ``attributes`` are those of all observations. In a worker with the pool prefork, call it in
    each child (``celery.signals.worker_process_init``): the children send the results.
    """
    meter = metrics.get_meter(SCOPE, __version__, meter_provider)
    for metric in METRICS:
        make = meter.create_observable_counter
        if not metric.grows:
            make = meter.create_observable_up_down_counter  # type: ignore[assignment]
        read = partial(_observations, app, metric.key, dict(attributes or {}))
        make(metric.name, [read], metric.unit, metric.help)


def _observations(
    app: Any, key: str, attributes: dict[str, Any], options: CallbackOptions
) -> Iterable[Observation]:
    value = read_stats(app).get(key)
    if isinstance(value, Mapping):
        return [Observation(n, {**attributes, "reason": reason}) for reason, n in value.items()]
    return [] if value is None else [Observation(value, attributes)]


def trace_results(app: Any, tracer_provider: trace.TracerProvider | None = None) -> None:
    """Make a span for each result that this process sends, and for each wait for results.

    It replaces ``store_result``, ``wait_for_pending`` and ``iter_native`` of the app's backend by
    functions that call them inside a span. A second call changes nothing.
    """
    backend = app.backend
    if getattr(backend, "traces_results", False):
        return
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider)
    backend.store_result = _sending(backend, tracer)
    backend.wait_for_pending = _receiving_one(backend, tracer)
    backend.iter_native = _receiving_many(backend, tracer)
    backend.traces_results = True


def _sending(backend: Any, tracer: trace.Tracer) -> Callable[..., Any]:
    store_result = backend.store_result

    @wraps(store_result)
    def traced(task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        with tracer.start_as_current_span(
            "send (anonymous)",
            kind=trace.SpanKind.PRODUCER,
            attributes={
                **MESSAGING,
                "messaging.operation.name": "send",
                "messaging.operation.type": "send",
                "messaging.message.conversation_id": task_id,
                "celery.state": state,
            },
        ):
            return store_result(task_id, result, state, *args, **kwargs)

    return traced


def _receiving_one(backend: Any, tracer: trace.Tracer) -> Callable[..., Any]:
    wait_for_pending = backend.wait_for_pending

    @wraps(wait_for_pending)
    def traced(result: Any, *args: Any, **kwargs: Any) -> Any:
        with _receive_span(tracer, **{"messaging.message.conversation_id": result.id}):
            return wait_for_pending(result, *args, **kwargs)

    return traced


def _receiving_many(backend: Any, tracer: trace.Tracer) -> Callable[..., Any]:
    iter_native = backend.iter_native

    @wraps(iter_native)
    def traced(result: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        count = len(result.results)
        # Not the current span between two results: the code there is the caller's.
        span = tracer.start_span(
            "receive (anonymous)",
            kind=trace.SpanKind.CONSUMER,
            attributes={**_receiving_attributes(), "messaging.batch.message_count": count},
        )
        try:
            yield from iter_native(result, *args, **kwargs)
        except Exception as exc:
            span.record_exception(exc)
            span.set_status(trace.Status(trace.StatusCode.ERROR, str(exc)))
            raise
        finally:
            span.end()

    return traced


def _receiving_attributes() -> dict[str, Any]:
    operation = {"messaging.operation.name": "receive", "messaging.operation.type": "receive"}
    return {**MESSAGING, **operation}


def _receive_span(tracer: trace.Tracer, **attributes: Any) -> Any:
    return tracer.start_as_current_span(
        "receive (anonymous)",
        kind=trace.SpanKind.CONSUMER,
        attributes={**_receiving_attributes(), **attributes},
    )
