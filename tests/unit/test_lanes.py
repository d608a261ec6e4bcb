"""fastrpc.sending.lanes: which connection a result takes, with a fake broker."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from fastrpc.options import Options
from fastrpc.sending import lanes as lanes_module
from fastrpc.sending.lanes import LARGE_LANE_BYTES, Lanes
from fastrpc.sending.publisher import AMQPPublisher
from fastrpc.stats import SentStats
from tests.support.publishing import Broker, apology, connected_broker, message
from tests.support.threads import Background
from tests.support.waiting import wait_until


@pytest.fixture
def broker(monkeypatch) -> Broker:
    return connected_broker(monkeypatch)


@pytest.fixture
def make(broker, monkeypatch):
    """make(publisher_confirms=False) -> lanes without watching threads."""
    monkeypatch.setattr(AMQPPublisher, "_ensure_watched", lambda self: None)
    app = SimpleNamespace(connection_for_write=dict)

    def make(**options) -> Lanes:
        return Lanes(app, 1, Options.parse(options), SentStats(), apology)

    return make


def ids(publisher: AMQPPublisher) -> list[str]:
    return [message.correlation_id for message in publisher.window]


def test_each_lane_connects_at_its_first_result(make, broker):
    lanes = make()
    lanes.publish(message("small"))
    assert len(broker.links) == 1
    lanes.publish(message("large", LARGE_LANE_BYTES))
    assert len(broker.links) == 2
    assert (ids(lanes.small), ids(lanes.large)) == (["small"], ["large"])
    assert lanes.unconfirmed == 2


def test_a_small_result_passes_a_large_one_that_is_being_written(make, broker):
    lanes = make()
    lanes.publish(message("first", LARGE_LANE_BYTES))
    broker.link.confirm(1)
    go_on = threading.Event()
    broker.link.on_send = lambda: go_on.wait(10)
    sending = Background(lambda: lanes.publish(message("large", LARGE_LANE_BYTES)))
    wait_until(lanes.large._lock.locked, 5, "it is being written")
    lanes.publish(message("small"))
    assert broker.got == ["first", "small"]
    go_on.set()
    sending.result(5)
    assert broker.got[2:] == ["large"]


class TestTheOrderOfOneTask:
    def test_a_small_result_follows_the_large_one_of_its_task(self, make):
        lanes = make()
        lanes.publish(message("task", LARGE_LANE_BYTES))
        lanes.publish(message("task"))
        lanes.publish(message("another"))
        assert (ids(lanes.small), ids(lanes.large)) == (["another"], ["task", "task"])

    def test_a_large_result_waits_for_the_confirm_of_the_small_one(self, make, broker):
        lanes = make()
        lanes.publish(message("task"))
        timer = threading.Timer(0.1, lambda: broker.links[0].confirm(1))
        timer.start()
        lanes.publish(message("task", LARGE_LANE_BYTES))
        assert (ids(lanes.small), ids(lanes.large)) == ([], ["task"])
        timer.join()

    def test_it_stops_waiting_for_the_confirm_after_order_patience(self, make, monkeypatch):
        monkeypatch.setattr(lanes_module, "ORDER_PATIENCE", 0.1)
        lanes = make()
        lanes.publish(message("task"))
        lanes.publish(message("task", LARGE_LANE_BYTES))
        assert ids(lanes.small) == ["task", "task"]

    def test_in_a_signal_handler_it_does_not_wait(self, make, broker):
        lanes = make()
        lanes.publish(message("task"))
        broker.link.on_send = lambda: lanes.publish(message("task", LARGE_LANE_BYTES))
        lanes.publish(message("interrupted"))
        assert ids(lanes.small) == ["task", "interrupted"]
        assert [m.correlation_id for m in lanes.small.window.again] == ["task"]

    def test_a_result_that_is_to_be_sent_again_keeps_the_order(self, make, broker):
        lanes = make()
        lanes.publish(message("task", LARGE_LANE_BYTES))
        broker.link.cut = True
        lanes.large.look(0)
        lanes.publish(message("task"))
        assert broker.got == ["task", "task", "task"]
        assert ids(lanes.large) == ["task", "task"]

    def test_without_confirms_all_results_take_one_connection(self, make, broker):
        lanes = make(publisher_confirms=False)
        lanes.publish(message("task"))
        lanes.publish(message("task", LARGE_LANE_BYTES))
        assert len(broker.links) == 1


def test_both_lanes_are_closed(make, broker):
    lanes = make()
    lanes.publish(message("small"))
    lanes.publish(message("large", LARGE_LANE_BYTES))
    for link in broker.links:
        link.confirm(1)
    lanes.close(5)
    assert lanes.unconfirmed == 0
    assert [link.said_goodbye for link in broker.links] == [True, True]


def test_a_forked_child_abandons_both_connections(make, broker):
    lanes = make()
    lanes.publish(message("small"))
    lanes.publish(message("large", LARGE_LANE_BYTES))
    lanes.after_fork()
    assert [link.abandoned for link in broker.links] == [True, True]
    assert lanes.unconfirmed == 0
