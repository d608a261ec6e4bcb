"""Tracing tools join the caller and each of its tasks, whichever way the tasks were sent."""

from __future__ import annotations

import json

import pytest

from tests.support.processes import run_child
from tests.support.sent_tasks import HOW

#: Tool -> the header that names trace and span.
TOOLS = {"sentry": "sentry-trace", "opentelemetry": "traceparent"}


def ids(tool: str, header: str) -> tuple[str, str]:
    """The trace and the span of a header."""
    parts = header.split("-")
    return (parts[0], parts[1]) if tool == "sentry" else (parts[1], parts[2])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("tool", TOOLS)
def test_each_task_is_a_span_of_the_callers_trace(broker, tool, how):
    said = run_child("tests.support.traced_tasks", tool, how, broker.url)
    headers = json.loads(said.splitlines()[-1])
    traces, spans = zip(*(ids(tool, each[TOOLS[tool]]) for each in headers), strict=True)
    assert len(set(traces)) == 1
    assert len(set(spans)) == 3


@pytest.mark.parametrize("tool", TOOLS)
def test_the_headers_are_those_that_the_tool_writes_on_stock(broker, tool):
    names = {
        how: [
            sorted(headers)
            for headers in json.loads(
                run_child("tests.support.traced_tasks", tool, how, broker.url).splitlines()[-1]
            )
        ]
        for how in HOW
    }
    assert all(names[how] == names["stock"] for how in HOW)
