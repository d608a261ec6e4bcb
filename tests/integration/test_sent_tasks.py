"""The messages of tasks equal stock's field by field, however they were sent."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.processes import run_child
from tests.support.sent_tasks import CALLS, HOW, VALUES

CASES = [*CALLS, *VALUES, "picklable", "broadcast", "signals", "canvas"]
#: The cases in which apply_many() lets Celery make each message.
ONE_BY_ONE = {
    *("router", "yaml", "gzip", "compressed", "expires", "expires at", "countdown", "eta", "link"),
    *("link_error", "shadow", "retries", "stamps", "group", "protocol 1", "event", "signals"),
}


@pytest.fixture(scope="module")
def received(broker) -> dict[str, dict[str, Any]]:
    return {how: json.loads(run_child("tests.support.sent_tasks", how, broker.url)) for how in HOW}


@pytest.mark.parametrize("how", HOW[1:])
@pytest.mark.parametrize("case", CASES)
def test_a_raw_consumer_receives_what_stock_sends(received, how, case):
    assert len(received["stock"][case]) >= 3
    assert received[how][case] == received["stock"][case]


def test_the_fast_path_of_a_call_is_taken_where_it_can_be(received):
    assert not any(received["stock"]["fast"].values())
    for how in ("single", "batch"):
        counts = {case: n.get("Producer", 0) for case, n in received[how]["fast"].items()}
        assert {case for case, n in counts.items() if n == 0} == {"gzip", "compressed"}


def test_the_fast_path_of_many_calls_is_taken_where_only_the_call_changes(received):
    counts = {case: n.get("Model", 0) for case, n in received["many"]["fast"].items()}
    assert {case for case, n in counts.items() if n == 0} == ONE_BY_ONE
    assert {n for n in counts.values()} == {0, 2}  # the first is Celery's
