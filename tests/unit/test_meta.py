"""fastrpc.worker.meta builds the same dict as Celery's own Backend._get_result_meta."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from celery import Celery, states
from celery.app.task import Context
from celery.result import AsyncResult, GroupResult

from fastrpc.worker.meta import ALWAYS_UTC, Clock
from tests.support.apps import make_app

NOW = datetime(2024, 2, 29, 12, 30, 1, 250000, tzinfo=timezone.utc)

FULL = {
    "id": "the-task",
    "task": "tests.add",
    "args": [1, "two"],
    "kwargs": {"three": 3},
    "hostname": "w1@host",
    "retries": 2,
    "delivery_info": {"routing_key": "the-queue"},
    "reply_to": "queue",
    "children": [],
}
STAMPS = {"stamped_headers": ["customer"], "stamps": {"customer": ["acme"], "hidden": [1]}}

REQUESTS = {
    "plain": FULL,
    "group": {**FULL, "group": "the-group"},
    "parent": {**FULL, "parent_id": "the-parent"},
    "group and parent": {**FULL, "group": "the-group", "parent_id": "the-parent"},
    "stamps": {**FULL, **STAMPS},
    "no delivery info": {**FULL, "delivery_info": None},
    "nearly nothing": {"children": []},
}
CONFS = {
    "plain": {},
    "extended": {"result_extended": True},
    "not extended": {"result_extended": False},
    "old name": {"CELERY_RESULT_EXTENDED": True},
    "local time": {"enable_utc": False, "timezone": "Europe/Paris"},
    "other zone": {"timezone": "Asia/Tokyo"},
}
STATES = [states.SUCCESS, states.FAILURE, states.REVOKED, states.RETRY, states.STARTED, "PROGRESS"]


def same(backend, task_id, state, result, traceback, request) -> dict:
    """Check that our meta equals Celery's, also in the order of keys; return it."""
    theirs = backend._get_result_meta(
        result=result, state=state, traceback=traceback, request=request
    )
    ours = backend.worker.metas.build(task_id, state, result, traceback, request)
    theirs["task_id"] = task_id  # as Celery's rpc backend adds it
    assert list(ours) == list(theirs)
    for meta in (ours, theirs):
        if meta["date_done"] is not None:
            when = datetime.fromisoformat(meta["date_done"])
            assert when.utcoffset() is not None
            meta["date_done"] = (
                abs(datetime.now(timezone.utc) - when) < timedelta(minutes=1),
                when.utcoffset(),
            )
            assert meta["date_done"][0]
    assert ours == theirs
    return ours


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_meta_is_celerys(conf, request_, state):
    backend = make_app(**CONFS[conf]).backend
    meta = same(backend, "id", state, {"r": 1}, "tb", Context(REQUESTS[request_]))
    assert (meta["date_done"] is not None) == (state in states.READY_STATES)
    assert ("name" in meta) == (conf in ("extended", "old name"))
    assert meta.get("group_id") == REQUESTS[request_].get("group")
    assert meta.get("parent_id") == REQUESTS[request_].get("parent_id")


def test_stamps_are_there_when_extended():
    backend = make_app(result_extended=True).backend
    meta = same(backend, "id", states.SUCCESS, 1, None, Context(REQUESTS["stamps"]))
    assert meta["customer"] == ["acme"]


def test_children_are_told_as_tuples():
    app = make_app()
    child = AsyncResult("child", app=app)
    members = GroupResult("group", [AsyncResult("member", app=app)], app=app)
    request = Context(FULL)
    request.children.extend([child, members])
    meta = same(app.backend, "id", states.SUCCESS, 1, None, request)
    assert meta["children"] == [child.as_tuple(), members.as_tuple()]


def test_a_request_may_be_something_that_has_no_children_at_all():
    class Bare:
        pass

    meta = same(make_app().backend, "id", states.SUCCESS, 1, None, Bare())
    assert meta["children"] == []


def test_without_a_request_it_is_celerys_too():
    same(make_app().backend, "id", states.SUCCESS, 1, None, None)


def test_a_setting_that_changes_at_run_time_counts_from_then_on():
    app = make_app()
    request = Context(FULL)
    assert "name" not in same(app.backend, "id", states.SUCCESS, 1, None, request)
    app.conf["result_extended"] = True
    assert "name" in same(app.backend, "id", states.SUCCESS, 1, None, request)
    app.conf["result_extended"] = False
    assert "name" not in same(app.backend, "id", states.SUCCESS, 1, None, request)


def test_its_old_name_counts_where_celery_counts_it():
    app = make_app()
    app.backend  # noqa: B018
    app.conf["CELERY_RESULT_EXTENDED"] = True
    same(app.backend, "id", states.SUCCESS, 1, None, Context(FULL))


def test_an_attribute_of_the_settings_that_changes_counts_too():
    app = make_app()
    app.backend  # noqa: B018
    app.conf.result_extended = True
    assert "name" in same(app.backend, "id", states.SUCCESS, 1, None, Context(FULL))


own_clock = pytest.mark.skipif(ALWAYS_UTC, reason="this Celery asks no app for the time")


@own_clock
def test_an_app_may_have_a_clock_of_its_own():
    class Timeless(Celery):
        def now(self):
            return NOW

    metas = make_app(cls=Timeless).backend.worker.metas
    meta = metas.build("id", states.SUCCESS, 1, None, Context(FULL))
    assert meta["date_done"] == NOW.isoformat()


@own_clock
def test_also_one_that_was_put_there_afterwards():
    app = make_app()
    app.backend  # noqa: B018
    app.now = lambda: NOW
    meta = app.backend.worker.metas.build("id", states.SUCCESS, 1, None, Context(FULL))
    assert meta["date_done"] == NOW.isoformat()


@own_clock
def test_also_one_that_was_put_in_the_place_of_every_apps(monkeypatch):
    app = make_app()
    monkeypatch.setattr(Celery, "now", lambda self: NOW)
    meta = app.backend.worker.metas.build("id", states.SUCCESS, 1, None, Context(FULL))
    assert meta["date_done"] == NOW.isoformat()


#: Summer time ends here in Paris.
OCTOBER = datetime(2024, 10, 27, 1, 0, 0, tzinfo=timezone.utc).timestamp()


@pytest.mark.parametrize("zone", ["UTC", "Europe/Paris", "Asia/Kolkata", "America/St_Johns"])
def test_the_time_is_written_as_datetime_does(zone, monkeypatch):
    zone, clock = ZoneInfo(zone), Clock()
    for micros in (-2_000_001, -1_000_000, -1, 0, 1, 10, 999_999, 1_000_000, 86_400_000_000):
        at = int(OCTOBER) * 1_000_000 + micros
        monkeypatch.setattr(time, "time_ns", lambda at=at: at * 1000 + 999)
        moment = datetime.fromtimestamp(at // 1_000_000, zone).replace(microsecond=at % 1_000_000)
        assert clock.iso(zone) == moment.isoformat()


def test_the_clock_follows_a_change_of_zone(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: int(OCTOBER) * 10**9)
    assert clock.iso(ZoneInfo("UTC")) == "2024-10-27T01:00:00+00:00"
    assert clock.iso(ZoneInfo("Asia/Tokyo")) == "2024-10-27T10:00:00+09:00"
