"""PendingTable against a model in plain Python, and with destructors that call back."""

import gc
import sys
import weakref
from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fastrpc.client._pending import DONE, LOST, UNCLAIMED, UNKNOWN, WAITING, PendingTable


class Waiter:
    """Like an AsyncResult: hashable, weakly referable."""


class Model:
    """The behaviour that PendingTable promises, in simple Python."""

    def __init__(self, max_unclaimed, max_unclaimed_bytes, max_done, max_lost):
        self.limits = (max_unclaimed, max_unclaimed_bytes, max_done, max_lost)
        self.waiters = {}
        self.bodies = {}  # id -> (format, body)
        self.unclaimed = OrderedDict()  # id -> arrived
        self.done = OrderedDict()
        self.lost = OrderedDict()
        self.evicted = 0
        self.clock = 0

    def state(self, key):
        groups = {
            WAITING: self.waiters,
            UNCLAIMED: self.unclaimed,
            DONE: self.done,
            LOST: self.lost,
        }
        return next((state for state, group in groups.items() if key in group), UNKNOWN)

    def bytes(self, keys=None):
        bodies = self.bodies if keys is None else [k for k in keys if k in self.bodies]
        return sum(len(f) + len(b) for f, b in (self.bodies[k] for k in bodies))

    def remember(self, order, key, most):
        order[key] = None
        while len(order) > most:
            order.popitem(last=False)

    def lose(self, key):
        del self.unclaimed[key], self.bodies[key]
        self.remember(self.lost, key, self.limits[3])
        self.evicted += 1

    def apply_caps(self, newest):
        before = self.evicted
        most, most_bytes = self.limits[:2]
        if newest in self.waiters:
            if self.bytes([newest]) > most_bytes - self.bytes(self.unclaimed):
                del self.bodies[newest]
        elif self.bytes([newest]) > most_bytes:
            self.lose(newest)
        while len(self.unclaimed) > most:
            self.lose(next(iter(self.unclaimed)))
        while self.bytes() > most_bytes:
            progress = [key for key in self.bodies if key in self.waiters]  # in order of arrival
            if progress:
                del self.bodies[progress[0]]
            else:
                self.lose(next(iter(self.unclaimed)))
        return self.evicted - before

    def add(self, key, waiter):
        state = self.state(key)
        if state in (UNKNOWN, WAITING) and waiter not in self.waiters.setdefault(key, []):
            self.waiters[key].append(waiter)
        return state

    def discard(self, key, waiter):
        if waiter not in self.waiters.get(key, ()):
            return False
        self.waiters[key].remove(waiter)
        if not self.waiters[key]:
            del self.waiters[key]
            if key in self.bodies:
                if len(self.unclaimed) < self.limits[0]:
                    self.unclaimed[key] = self.clock
                else:
                    del self.bodies[key]
        return True

    def finish(self, key):
        waiters = tuple(self.waiters.pop(key, ()))
        self.bodies.pop(key, None)
        self.unclaimed.pop(key, None)
        self.lost.pop(key, None)
        if key not in self.done:
            self.remember(self.done, key, self.limits[2])
        return waiters

    def store(self, key, body, format, now):
        if key in self.done:
            return -1
        self.lost.pop(key, None)
        self.clock = max(self.clock, int(now))
        self.bodies.pop(key, None)
        self.bodies[key] = (format, body)
        if key not in self.waiters:
            self.unclaimed.pop(key, None)
            self.unclaimed[key] = self.clock
        return self.apply_caps(key)

    def drop(self, key, kept):
        if self.bodies.get(key) != kept:
            return False
        self.unclaimed.pop(key, None)
        del self.bodies[key]
        return True

    def expire(self, before):
        expired = [key for key, arrived in self.unclaimed.items() if arrived < int(before)]
        for key in expired:
            self.lose(key)
        return len(expired)

    def forget(self, key):
        self.unclaimed.pop(key, None)
        self.bodies.pop(key, None)
        self.reset(key)

    def reset(self, key):
        self.done.pop(key, None)
        self.lost.pop(key, None)


KEYS = st.sampled_from(["a", "b", "ab", "x" * 36, "y" * 255, "héé", "\x00", "\x00\x00"])
WAITERS = [Waiter() for _ in range(3)]


class AgainstTheModel(RuleBasedStateMachine):
    @initialize(limits=st.tuples(*[st.integers(0, n) for n in (5, 40, 4, 4)]))
    def start(self, limits):
        self.table = PendingTable(*limits)
        self.model = Model(*limits)

    def both(self, name, key, *args):
        wire = key.encode()
        result = getattr(self.table, name)(wire if len(args) % 2 else key, *args)
        assert result == getattr(self.model, name)(key, *args)

    @rule(key=KEYS, waiter=st.sampled_from(WAITERS))
    def add(self, key, waiter):
        self.both("add", key, waiter)

    @rule(key=KEYS, waiter=st.sampled_from(WAITERS))
    def discard(self, key, waiter):
        self.both("discard", key, waiter)

    @rule(key=KEYS)
    def finish(self, key):
        self.both("finish", key)

    @rule(
        key=KEYS,
        body=st.binary(max_size=20),
        format=st.sampled_from([b"", b"gzip"]),
        now=st.floats(0, 100),
    )
    def store(self, key, body, format, now):
        self.both("store", key, body, format, now)

    @rule(key=KEYS, other=st.booleans())
    def drop(self, key, other):
        format, body = self.model.bodies.get(key, (b"", b""))
        self.both("drop", key, (format, body + b"x" if other else body))

    @rule(before=st.floats(0, 101))
    def expire(self, before):
        assert self.table.expire(before) == self.model.expire(before)

    @rule(key=KEYS)
    def forget(self, key):
        self.both("forget", key)

    @rule(key=KEYS)
    def reset(self, key):
        self.both("reset", key)

    @rule()
    def clear(self):
        self.table.clear()
        evicted = self.model.evicted
        self.model.__init__(*self.model.limits)
        self.model.evicted = evicted

    @invariant()
    def same(self):
        if not hasattr(self, "table"):
            return
        table, model = self.table, self.model
        assert table._check() == 0
        assert sorted(table.waiting_ids()) == sorted(model.waiters)
        assert table.waiting == len(model.waiters)
        assert table.unclaimed == len(model.unclaimed)
        assert table.unclaimed_bytes == model.bytes()
        assert table.done == len(model.done)
        assert table.lost == len(model.lost)
        assert table.evicted == model.evicted
        for key in {*model.waiters, *model.bodies, *model.done, *model.lost, "a", "absent"}:
            assert table.state(key) == model.state(key)
            assert table.waiters(key) == tuple(model.waiters.get(key, ()))
            assert table.peek(key) == model.bodies.get(key)


TestAgainstTheModel = AgainstTheModel.TestCase
TestAgainstTheModel.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


# ---- progress and results


def test_progress_of_waiting_tasks_evicts_no_result():
    table, waiter = PendingTable(max_unclaimed_bytes=1024 * 1024), Waiter()
    for n in range(10):
        assert table.store(f"result{n}", b"r" * 1000) == 0
    for n in range(11):
        table.add(f"task{n}", waiter)
        assert table.store(f"task{n}", b"p" * 100_000) == 0
    assert table.evicted == table.lost == 0
    assert [table.state(f"result{n}") for n in range(10)] == [UNCLAIMED] * 10
    # The oldest progress was dropped, but its task still has its waiter.
    assert [n for n in range(11) if table.peek(f"task{n}") is None] == [0]
    assert table.finish("task0") == (waiter,)


def test_a_result_evicts_progress_before_another_result():
    table, waiter = PendingTable(max_unclaimed_bytes=1000), Waiter()
    for task_id in ("task0", "task1"):
        table.add(task_id, waiter)
        table.store(task_id, b"p" * 300)
    assert [table.store(f"result{n}", b"r" * 300) for n in range(3)] == [0, 0, 0]
    assert table.peek("task0") is table.peek("task1") is None
    assert table.waiting == 2
    assert table.unclaimed == 3
    assert table.store("result3", b"r" * 300) == 1
    assert table.state("result0") == LOST


# ---- ids


def test_str_and_bytes_are_the_same_id():
    table, waiter = PendingTable(), Waiter()
    table.add("id-é", waiter)
    assert table.waiters("id-é".encode()) == (waiter,)


def test_an_id_that_is_no_utf8_comes_back_from_waiting_ids():
    table, waiter = PendingTable(), Waiter()
    table.add(b"\xff\xfe", waiter)
    (task_id,) = table.waiting_ids()
    assert table.finish(task_id) == (waiter,)
    assert table.state(b"\xff\xfe") == DONE


@pytest.mark.parametrize("task_id", ["", b"", "x" * 256, "é" * 128])
def test_ids_of_an_impossible_length(task_id):
    table = PendingTable()
    for change in (
        lambda: table.add(task_id, Waiter()),
        lambda: table.finish(task_id),
        lambda: table.store(task_id, b""),
    ):
        with pytest.raises(ValueError, match="255"):
            change()
    assert table.state(task_id) == UNKNOWN
    assert table.waiters(task_id) == ()
    assert table.discard(task_id, Waiter()) is False
    assert table.peek(task_id) is None
    assert table.drop(task_id, (b"", b"")) is False
    table.forget(task_id)
    table.reset(task_id)


@pytest.mark.parametrize("task_id", [None, 1, bytearray(b"a"), memoryview(b"a")])
def test_ids_of_a_wrong_type(task_id):
    table = PendingTable()
    for name in ("state", "waiters", "finish", "peek", "forget", "reset"):
        with pytest.raises(TypeError, match="task id"):
            getattr(table, name)(task_id)


def test_arguments_are_checked():
    table = PendingTable()
    with pytest.raises(TypeError, match="None"):
        table.add("a", None)
    with pytest.raises(TypeError):
        table.store("a", "text")
    with pytest.raises(ValueError, match="number"):
        table.store("a", b"", now=float("nan"))
    with pytest.raises(ValueError, match="255"):
        table.store("a", b"", b"f" * 256)
    with pytest.raises(ValueError, match="max_done"):
        PendingTable(max_done=-1)
    with pytest.raises(TypeError, match="max_lost"):
        PendingTable(max_lost=1.5)
    assert table._check() == 0
    assert table.unclaimed == 0


# ---- objects


def test_none_of_the_calls_keeps_a_reference():
    table, waiter, other = PendingTable(), Waiter(), Waiter()
    before = sys.getrefcount(waiter)
    for _ in range(3):
        table.add("a", waiter)
        table.add("a", waiter)
        table.add("a", other)
        assert sys.getrefcount(waiter) == before + 1
        assert table.waiters("a") == (waiter, other)
        table.discard("a", other)
        table.discard("a", waiter)
        assert sys.getrefcount(waiter) == before
        table.add("b", waiter)
        table.add("b", other)
        table.finish("b")
        table.reset("b")
        assert sys.getrefcount(waiter) == before
        table.add("c", waiter)
        table.add("c", other)
        table.clear()
        assert sys.getrefcount(waiter) == before
    table.add("d", waiter)
    del table
    assert sys.getrefcount(waiter) == before


def test_a_cycle_through_the_table_is_collected():
    class Holder(Waiter):
        pass

    holder = Holder()
    holder.table = PendingTable()
    holder.table.add("a", holder)
    holder.table.add("b", holder)
    holder.table.add("b", Waiter())
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None


class CallsBack:
    """Its destructor calls the table as the test wants."""

    def __init__(self, table, do):
        self.table = table
        self.do = do

    def __del__(self):
        self.do(self.table)


def hostile(table):
    for task_id in ("a", "b", "c"):
        table.discard(task_id, None)
        table.add(task_id + "new", Waiter())
        table.store(task_id, b"from a destructor")
        table.finish(task_id)
        table.forget(task_id)
    table.waiting_ids()
    table.clear()


@pytest.mark.parametrize("last", ["finish", "discard", "clear", "several"])
def test_a_destructor_that_changes_the_table(last):
    for size in (1, 3, 2000):
        table = PendingTable()
        for n in range(size):
            table.add(f"other{n}", Waiter())
        table.add("a", CallsBack(table, hostile))
        if last == "several":
            table.add("a", CallsBack(table, hostile))
            table.discard("a", table.waiters("a")[0])
            table.clear()
        elif last == "discard":
            table.discard("a", table.waiters("a")[0])
        else:
            getattr(table, last)(*["a"][: last == "finish"])
        assert table._check() == 0
        assert table.add("a", Waiter()) == UNKNOWN
        assert table._check() == 0


def test_a_destructor_that_the_collector_runs_in_any_call():
    """Before Python 3.12 an allocation of a tracked object may collect; here most of them do."""
    table = PendingTable(max_unclaimed=5, max_done=5)
    runs = []

    def do(table):
        runs.append(1)
        for n in range(6):
            table.discard(f"id{n}", keep)
        table.finish("id1")
        table.reset("id1")

    keep = Waiter()
    threshold = gc.get_threshold()
    try:
        gc.set_threshold(1, 1, 1)
        for round_ in range(300):
            cycle = CallsBack(table, do)
            cycle.itself = cycle
            del cycle
            task_id = f"id{round_ % 6}"
            table.add(task_id, keep)
            table.add(task_id, Waiter())
            table.add(task_id, [])
            table.store(task_id, b"body", now=round_)
            table.waiters(task_id)
            table.discard(task_id, keep)
            table.drop(task_id, table.peek(task_id) or (b"", b""))
            table.waiting_ids()
            if round_ % 2:
                table.finish(task_id)
                table.reset(task_id)
            assert table._check() == 0
    finally:
        gc.set_threshold(*threshold)
    assert len(runs) > 100


def test_the_collector_may_empty_the_table_before_its_owner():
    """Code that runs after the collector has cleared the list of waiters finds no waiters."""
    table, waiter = PendingTable(), Waiter()
    table.add("a", waiter)
    table.add("b", waiter)
    (waiters,) = (o for o in gc.get_referents(table) if isinstance(o, list))
    waiters.clear()  # as the collector's tp_clear would
    assert table.waiters("a") == ()
    assert table.finish("a") == ()
    assert table.discard("b", waiter) is False
    with pytest.raises(RuntimeError, match="collected"):
        table.add("c", waiter)
    table.clear()
    assert table.add("c", waiter) == UNKNOWN


def test_a_waiter_that_is_a_tuple_or_weakref():
    table, waiter = PendingTable(), Waiter()
    for obj in ((1, 2), weakref.ref(waiter), [], 0):
        table.add("a", obj)
        (found,) = table.finish("a")
        assert found is obj
        table.reset("a")


# ---- memory


def test_memory_comes_back_after_a_flood():
    table, waiter = PendingTable(), Waiter()
    empty = table.__sizeof__()
    for n in range(20_000):
        table.add(f"w{n}", waiter)
        table.store(f"u{n}", b"x" * 50)
    assert table.__sizeof__() > empty + 20_000 * 150
    for n in range(20_000):
        assert table.discard(f"w{n}", waiter)
        assert table.drop(f"u{n}", (b"", b"x" * 50))
    assert table.__sizeof__() <= empty + 2048 * 12


@pytest.mark.parametrize("count", [20_000, 61_500])
def test_an_unclaimed_result_costs_its_body_and_130_bytes(count):
    table = PendingTable()
    empty = table.__sizeof__()
    for n in range(count):
        table.store(f"{n:08x}-1111-2222-3333-444444444444", b"x" * 100)
    assert (table.__sizeof__() - empty) / count <= 100 + 130
