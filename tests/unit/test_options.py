"""fastrpc.options: every option, from both sources, and the errors for wrong values."""

from __future__ import annotations

import socket
import sys
import threading

import pytest
from celery import Celery
from celery.exceptions import ImproperlyConfigured

from fastrpc import BadOption
from fastrpc.options import Options
from fastrpc.retry import RetryPolicy
from fastrpc.wire._reader import FrameReader

#: option -> (default, as in Python, as in a URL, what both mean)
OPTIONS = {
    "retry_policy": (RetryPolicy(), {"max_retries": 3}, None, RetryPolicy(max_retries=3)),
    "prefetch": (4000, 65535, "65535", 65535),
    "max_unclaimed": (1_000_000, 1, "1", 1),
    "max_unclaimed_bytes": (256 * 2**20, 1024, "1024", 1024),
    "max_claimed": (1000, 0, "0", 0),
    "max_claimed_bytes": (4 * 2**20, 0, "0", 0),
    "max_queue_bytes": (2**30, 1024, "1024", 1024),
    "max_unread": (1000, 50, "50", 50),
    "max_unread_bytes": (16 * 2**20, 1024, "1024", 1024),
    "max_body": (512 * 2**20, 1024, "1024", 1024),
    "busy_wait": (0.0, 0.0002, "2e-4", 0.0002),
    "queue_type": ("classic", "quorum", "quorum", "quorum"),
    "chords": (False, True, "1", True),
    "heartbeat": (None, 2.5, "2.5", 2.5),
    "publisher_confirms": (True, False, "false", False),
    "confirm_window": (None, 7, "7", 7),
    "confirm_window_bytes": (64 * 2**20, 4096, "4096", 4096),
    "shutdown_timeout": (10.0, 0, "0", 0.0),
}

WRONG = {
    "retry_policy": ["fast", 5, None, {"tries": 3}, {"max_retries": -1}, {"interval_max": "1"}],
    "prefetch": [0, -1, 65536, 1.5, "many", True, None, "", float("nan")],
    "max_unclaimed": [0, -1, 1.5, "x", False, None, float("inf"), 2**64],
    "max_unclaimed_bytes": [0, "1 MB", None, [1], 2**63],
    "max_claimed": [-1, 1.5, "x", None, 2**64],
    "max_claimed_bytes": [-1, "1 MB", None, 2**63],
    "max_queue_bytes": [0, "1 GB", 1.5, 2**63],
    "max_unread": [0, -1, 1.5, "x", None, 2**64],
    "max_unread_bytes": [0, "1 MB", None, 2**63],
    "max_body": [0, "", None, 2**64, "1" + "0" * 400],
    "busy_wait": [-0.1, 0.02, 200, "x", True, None, float("nan")],
    "queue_type": ["stream", "", None, 1],
    "chords": ["maybe", "", None, 2],
    "heartbeat": [-1, "soon", True, float("inf"), float("nan"), 65536],
    "publisher_confirms": ["maybe", "", 2, 0.5, None],
    "confirm_window": [0, "x", 1.5, 2**63],
    "confirm_window_bytes": [0, "x", None, 2**63],
    "shutdown_timeout": [-0.1, "x", None, float("inf"), 1e300],
}
WRONG_CASES = [(name, value) for name, values in WRONG.items() for value in values]


def test_the_table_above_has_every_option():
    assert OPTIONS.keys() == WRONG.keys() == set(Options._fields)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_not_given_has_its_default(name):
    assert getattr(Options.parse({}), name) == OPTIONS[name][0]


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_taken_from_the_transport_options(name):
    _, given, _, meant = OPTIONS[name]
    value = getattr(Options.parse({name: given}), name)
    assert value == meant
    assert type(value) is type(meant) or isinstance(meant, (int, float))


@pytest.mark.parametrize("name", [name for name in OPTIONS if OPTIONS[name][2] is not None])
def test_an_option_is_taken_from_the_url(name):
    _, _, spelled, meant = OPTIONS[name]
    assert getattr(Options.parse({}, f"fastrpc://?{name}={spelled}"), name) == meant


def test_the_url_wins():
    both = Options.parse({"prefetch": 10, "confirm_window": 5}, "fastrpc://?prefetch=20")
    assert (both.prefetch, both.confirm_window) == (20, 5)


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [("true", True), ("True", True), ("1", True), ("yes", True), ("NO", False), ("0", False)],
)
def test_a_flag_may_be_spelled_in_several_ways(spelled, meant):
    assert Options.parse({}, f"fastrpc://?publisher_confirms={spelled}").publisher_confirms is meant


@pytest.mark.parametrize("value", [True, 1, "yes"])
def test_a_flag_is_written_in_a_dict_as_in_a_url(value):
    assert Options.parse({"chords": value}).chords is True


def test_heartbeat_may_be_none():
    assert Options.parse({"heartbeat": None}).heartbeat is None


@pytest.mark.parametrize(("name", "value"), WRONG_CASES)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises(BadOption) as refused:
        Options.parse({name: value})
    assert repr(name) in str(refused.value)


def test_a_wrong_value_is_shown_with_what_is_allowed():
    with pytest.raises(BadOption, match=r"'prefetch' must be a whole number of at least 1, .*'x'"):
        Options.parse({"prefetch": "x"})
    with pytest.raises(BadOption, match=r"'prefetch' must be at most 65535, not 70000"):
        Options.parse({"prefetch": 70000})
    with pytest.raises(BadOption, match=r"'queue_type' must be 'classic' or 'quorum'"):
        Options.parse({"queue_type": "stream"})


@pytest.mark.parametrize("spelled", [int, str])
def test_a_limit_may_be_as_large_as_any_size(spelled):
    """As "no limit": the value is too large for a float to hold exactly."""
    names = ("max_unclaimed", "max_unclaimed_bytes", "max_body")
    names += ("confirm_window", "confirm_window_bytes")
    app = Celery(broker="memory://", backend="fastrpc://", set_as_current=False)
    app.conf.result_backend_transport_options = dict.fromkeys(names, spelled(sys.maxsize))
    assert {getattr(app.backend.options, name) for name in names} == {sys.maxsize}
    FrameReader(max_body=app.backend.options.max_body)


def test_the_longest_shutdown_can_be_waited_for():
    longest = Options.parse({"shutdown_timeout": 2_000_000}).shutdown_timeout
    assert threading.Lock().acquire(timeout=longest)
    with socket.socket() as sock:
        sock.settimeout(longest)


def test_an_unknown_option_is_refused_with_the_list_of_options():
    with pytest.raises(BadOption, match="unknown option 'prefetsch'") as refused:
        Options.parse({"prefetsch": 1})
    for name in OPTIONS:
        assert name in str(refused.value)


def test_an_unknown_option_in_the_url_is_refused():
    with pytest.raises(BadOption, match="unknown option 'speed'"):
        Options.parse({}, "fastrpc://?speed=high")


@pytest.mark.parametrize(
    "url", ["fastrpc://host", "fastrpc://user:secret@", "fastrpc:///path", "fastrpc://host:5672//"]
)
def test_a_url_names_no_broker(url):
    with pytest.raises(BadOption, match="broker_url") as refused:
        Options.parse({}, url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", [None, "", "fastrpc://", "fastrpc:///", "fastrpc://?"])
def test_a_url_may_be_empty(url):
    assert Options.parse({}, url) == Options()


@pytest.mark.parametrize(("name", "value"), [(n, v[0]) for n, v in WRONG.items()])
def test_celery_users_see_improperly_configured(name, value):
    app = Celery(broker="memory://", backend="fastrpc://", set_as_current=False)
    app.conf.result_backend_transport_options = {name: value}
    with pytest.raises(ImproperlyConfigured, match=f"'{name}'"):
        _ = app.backend


@pytest.mark.parametrize("value", ["prefetch=5", ["prefetch"], 5])
def test_options_that_are_no_dict_are_refused(value):
    app = Celery(broker="memory://", backend="fastrpc://", set_as_current=False)
    app.conf.result_backend_transport_options = value
    with pytest.raises(ImproperlyConfigured, match="transport_options must be a dict, not "):
        _ = app.backend


def test_celery_users_see_improperly_configured_for_the_url_too():
    app = Celery(broker="memory://", backend="fastrpc://?prefetch=none", set_as_current=False)
    with pytest.raises(ImproperlyConfigured, match="'prefetch'"):
        _ = app.backend


def test_options_reach_the_backend():
    app = Celery(broker="memory://", backend="fastrpc://?prefetch=17", set_as_current=False)
    app.conf.result_backend_transport_options = {"retry_policy": {"max_retries": 2}}
    assert app.backend.options.prefetch == 17
    assert app.backend.retry_policy["max_retries"] == 2
    assert app.backend.client.table.max_unclaimed == 1_000_000
