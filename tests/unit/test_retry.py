"""fastrpc.retry: the delays of a policy are the same as kombu's."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from kombu.utils.functional import retry_over_time

from fastrpc import BadOption
from fastrpc.retry import RetryPolicy, backoff

POLICIES = [
    {},
    {"max_retries": 3},
    {"max_retries": 5, "interval_start": 0.2, "interval_step": 0.3, "interval_max": 1},
    {"max_retries": 4, "interval_start": 2, "interval_step": 0, "interval_max": 5},
    {"max_retries": 4, "interval_start": 9, "interval_step": 1, "interval_max": 0.5},
    {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0},
]


class Down(Exception):
    pass


def kombus_delays(policy: RetryPolicy, monkeypatch) -> list[float]:
    """How long kombu sleeps between the tries of a call that never succeeds."""
    slept: list[float] = []
    told: list[float] = []

    def always_down():
        raise Down

    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    with pytest.raises(Down):
        retry_over_time(
            always_down,
            Down,
            errback=lambda exc, intervals, retries: told.append(next(intervals)) or told[-1],
            **policy.as_dict(),
        )
    return told


@pytest.mark.parametrize("given", POLICIES, ids=repr)
def test_the_delays_are_kombus(given, monkeypatch):
    policy = RetryPolicy.parse(given)
    ours = list(policy.delays())
    assert len(ours) == policy.max_retries
    theirs = kombus_delays(policy, monkeypatch)
    # kombu caps the step, and so goes at most one step beyond interval_max.
    assert ours == [min(delay, policy.interval_max) for delay in theirs]


def test_the_defaults_are_those_of_the_backend():
    assert list(RetryPolicy().delays()) == [0, *[1] * 19]


def test_without_a_limit_it_never_gives_up():
    policy = RetryPolicy.parse({"max_retries": None, "interval_step": 0.5})
    assert list(islice(policy.delays(), 5)) == [0, 0.5, 1, 1, 1]
    assert len(list(islice(policy.delays(), 1000))) == 1000


def test_no_retries_at_all():
    assert list(RetryPolicy.parse({"max_retries": 0}).delays()) == []


def test_each_use_begins_anew():
    policy = RetryPolicy(max_retries=2)
    assert list(policy.delays()) == list(policy.delays())


@pytest.mark.parametrize("key", ["max_retries", "interval_start", "interval_step", "interval_max"])
@pytest.mark.parametrize("value", [-1, "1", True, [], float("nan")])
def test_a_wrong_value_is_refused_by_name(key, value):
    with pytest.raises(BadOption, match=f"'{key}' in option 'retry_policy'"):
        RetryPolicy.parse({key: value})


def test_only_the_number_of_retries_may_be_none():
    with pytest.raises(BadOption, match="interval_max"):
        RetryPolicy.parse({"interval_max": None})


def test_an_unknown_key_is_refused_with_the_list_of_those_there_are():
    with pytest.raises(BadOption, match=r"unknown key 'retries'.*max_retries.*interval_max"):
        RetryPolicy.parse({"retries": 3})


def test_backoff_begins_at_once_then_grows_up_to_its_limit():
    pauses = list(islice(backoff(first=0.1, factor=2, most=1, rng=random.Random(1)), 50))
    assert pauses[0] == 0
    ceilings = [0.1, 0.2, 0.4, 0.8, *[1.0] * 45]
    for pause, ceiling in zip(pauses[1:], ceilings, strict=True):
        assert ceiling / 2 <= pause <= ceiling


def test_two_that_back_off_do_not_come_back_together():
    first = list(islice(backoff(rng=random.Random(1)), 1, 20))
    second = list(islice(backoff(rng=random.Random(2)), 1, 20))
    assert all(a != b for a, b in zip(first, second, strict=True))
