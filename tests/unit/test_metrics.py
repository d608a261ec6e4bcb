"""The counters for Prometheus and OpenTelemetry."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery
from celery.app.task import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry, generate_latest

from fastrpc.contrib import prometheus
from fastrpc.contrib.metrics import BAD_REASONS, METRICS
from fastrpc.contrib.opentelemetry import observe, trace_results
from tests.support.apps import make_app

#: The sources: the tests may be a copy, run against an installed package.
ROOT = next(p for p in Path(__file__).parents if (p / "fastrpc" / "backend.py").exists())
DASHBOARD = ROOT / "examples" / "grafana-dashboard.json"


@pytest.fixture
def app():
    app = make_app("memory://")
    stats = {metric.key: number for number, metric in enumerate(METRICS, 1)}
    stats["bad_messages"] = {"too large": 5, "not a result": 6}
    app.backend.stats = lambda: stats
    return app


def samples(app, **options):
    registry = CollectorRegistry()
    prometheus.register(app, registry, **options)
    lines = generate_latest(registry).decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))


def test_every_counter_is_a_metric():
    assert make_app("memory://").backend.stats().keys() == {metric.key for metric in METRICS}


def test_prometheus(app):
    found = samples(app)
    for metric in METRICS:
        if metric.key != "bad_messages":
            suffix = "_total" if metric.grows else ""
            name = "fastrpc_results_unclaimed_bytes"
            if metric.key != "unclaimed_bytes":
                name = metric.name.replace(".", "_") + suffix
            assert float(found[name]) == app.backend.stats()[metric.key]
    bad = {name: value for name, value in found.items() if "messages_bad" in name}
    assert bad == {
        'fastrpc_messages_bad_total{reason="undecodable"}': "0.0",
        'fastrpc_messages_bad_total{reason="content type not accepted"}': "0.0",
        'fastrpc_messages_bad_total{reason="not a result"}': "6.0",
        'fastrpc_messages_bad_total{reason="empty body"}': "0.0",
        'fastrpc_messages_bad_total{reason="too large"}': "5.0",
    }
    assert any(name.startswith("fastrpc_info{") for name in found)


def test_every_reason_of_a_bad_message_is_known():
    sources = "".join(path.read_text() for path in (ROOT / "fastrpc").rglob("*.py"))
    assert set(re.findall(r'BadMessage\(\s*"([^"]+)"', sources)) == set(BAD_REASONS)


def test_labels_tell_apps_apart(app):
    assert 'fastrpc_results_received_total{app="one"}' in samples(app, labels={"app": "one"})


def test_another_backend_shows_its_class():
    found = samples(Celery(broker="memory://", backend="cache+memory://", set_as_current=False))
    (name,) = found
    assert 'backend="celery.backends.cache:CacheBackend"' in name


def test_registering_does_not_make_the_backend():
    app = Celery(broker="memory://", backend="nosuch://", set_as_current=False)
    prometheus.register(app, CollectorRegistry())


def test_the_documentation_names_every_metric(app):
    page = (ROOT / "docs" / "monitoring.md").read_text()
    for name in samples(app):
        assert f"`{name.partition('{')[0]}`" in page


def test_the_dashboard_shows_every_metric(app):
    text = DASHBOARD.read_text()
    json.loads(text)
    shown = set(re.findall(r"fastrpc_\w+", text))
    assert shown == {name.partition("{")[0] for name in samples(app)}


def test_opentelemetry(app):
    reader = InMemoryMetricReader()
    observe(app, MeterProvider([reader]), {"app": "one"})
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    found = {metric.name: list(metric.data.data_points) for metric in scope.metrics}
    assert found.keys() == {metric.name for metric in METRICS}
    (point,) = found["fastrpc.results.received"]
    assert (point.value, point.attributes) == (1, {"app": "one"})
    assert {point.attributes["reason"]: point.value for point in found["fastrpc.messages.bad"]} == {
        "too large": 5,
        "not a result": 6,
    }


class TestSpans:
    @pytest.fixture
    def spans(self):
        return InMemorySpanExporter()

    @pytest.fixture
    def traced(self, spans):
        app = make_app("memory://")
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(spans))
        trace_results(app, provider)
        trace_results(app, provider)  # once is enough
        return app

    def test_a_result_that_is_sent_and_received(self, traced, spans):
        request = Context(id="task-1", correlation_id="task-1", reply_to=traced.backend.oid)
        with traced.connection_for_write() as connection, connection.Producer() as producer:
            traced.backend.on_task_call(producer, "task-1")
        traced.backend.mark_as_done("task-1", 5, request=request)
        assert traced.AsyncResult("task-1").get(timeout=5) == 5
        sent, received = spans.get_finished_spans()
        assert (sent.name, sent.kind) == ("send (anonymous)", SpanKind.PRODUCER)
        assert sent.attributes["messaging.message.conversation_id"] == "task-1"
        assert sent.attributes["celery.state"] == "SUCCESS"
        assert (received.name, received.kind) == ("receive (anonymous)", SpanKind.CONSUMER)

    def test_a_wait_that_fails(self, traced, spans):
        results = traced.ResultSet([traced.AsyncResult("nobody")], app=traced)
        with pytest.raises(Exception, match="timed out"):
            list(traced.backend.iter_native(results, timeout=0.05))
        (span,) = spans.get_finished_spans()
        assert span.attributes["messaging.batch.message_count"] == 1
        assert not span.status.is_ok


def test_nothing_is_imported_unless_used():
    code = (
        "import sys, fastrpc, fastrpc.backend\n"
        "assert not [m for m in sys.modules if m.startswith(('fastrpc.contrib', 'prometheus',"
        " 'opentelemetry', 'rich'))]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
