"""The table of pending ids against an equivalent made of dicts.

pytest bench/bench_pending.py --benchmark-only
"""

import subprocess
import sys
import time
import uuid
from collections import OrderedDict

import pytest

from fastrpc.client._pending import PendingTable

from .arena import QUICK, ROOT, contestants, rounds
from .cost import timed

COUNT = 10_000 if QUICK else 50_000
BODY = b'{"status": "SUCCESS", "result": 42, "traceback": null, "children": []}'


class DictTable:
    """The table without C: dicts with str keys made from the wire's bytes, and the same rules."""

    def __init__(self, max_unclaimed=1_000_000, max_unclaimed_bytes=2**28, max_done=10_000):
        self.max_unclaimed = self.max_lost = max_unclaimed
        self.max_unclaimed_bytes = max_unclaimed_bytes
        self.max_done = max_done
        self._waiters = {}
        self._progress = {}
        self._unclaimed = OrderedDict()
        self._done = OrderedDict()
        self._lost = OrderedDict()
        self.unclaimed_bytes = 0
        self.evicted = 0

    def add(self, task_id, waiter):
        if isinstance(task_id, bytes):
            task_id = task_id.decode()
        waiters = self._waiters.get(task_id)
        if waiters is not None:
            if not any(w is waiter for w in waiters):
                self._waiters[task_id] = (*waiters, waiter)
            return 1
        if task_id in self._unclaimed:
            return 2
        if task_id in self._done:
            return 3
        if task_id in self._lost:
            return 4
        self._waiters[task_id] = (waiter,)
        return 0

    def discard(self, task_id, waiter):
        waiters = self._waiters.get(task_id)
        if waiters is None or not any(w is waiter for w in waiters):
            return False
        left = tuple(w for w in waiters if w is not waiter)
        if left:
            self._waiters[task_id] = left
        else:
            del self._waiters[task_id]
            kept = self._progress.pop(task_id, None)
            if kept is not None:
                self._unclaimed[task_id] = kept
                self._apply_caps()
        return True

    def finish(self, task_id):
        if isinstance(task_id, bytes):
            task_id = task_id.decode()
        waiters = self._waiters.pop(task_id, ())
        kept = (self._progress if waiters else self._unclaimed).pop(task_id, None)
        if kept is not None:
            self.unclaimed_bytes -= len(kept[0]) + len(kept[1])
        elif not waiters:
            self._lost.pop(task_id, None)
        if task_id not in self._done:
            self._done[task_id] = None
            if len(self._done) > self.max_done:
                self._done.popitem(last=False)
        return waiters

    def store(self, task_id, body, format=b"", now=None):
        if isinstance(task_id, bytes):
            task_id = task_id.decode()
        if now is None:
            now = time.monotonic()
        if task_id in self._done:
            return -1
        self._lost.pop(task_id, None)
        place = self._progress if task_id in self._waiters else self._unclaimed
        old = place.pop(task_id, None)
        if old is not None:
            self.unclaimed_bytes -= len(old[0]) + len(old[1])
        place[task_id] = (format, body, now)
        self.unclaimed_bytes += len(format) + len(body)
        return self._apply_caps()

    def _apply_caps(self):
        evicted = 0
        while self._unclaimed and (
            len(self._unclaimed) > self.max_unclaimed
            or self.unclaimed_bytes > self.max_unclaimed_bytes
        ):
            task_id, (format, body, _) = self._unclaimed.popitem(last=False)
            self.unclaimed_bytes -= len(format) + len(body)
            self._lost[task_id] = None
            if len(self._lost) > self.max_lost:
                self._lost.popitem(last=False)
            evicted += 1
        self.evicted += evicted
        return evicted

    def peek(self, task_id):
        kept = self._unclaimed.get(task_id) or self._progress.get(task_id)
        return None if kept is None else kept[:2]

    def drop(self, task_id, kept):
        place = self._unclaimed if task_id in self._unclaimed else self._progress
        found = place.get(task_id)
        if found is None or found[:2] != kept:
            return False
        del place[task_id]
        self.unclaimed_bytes -= len(kept[0]) + len(kept[1])
        return True


class Waiter:
    """Stands for an AsyncResult."""


TABLES = {"dict": DictTable, "table": PendingTable}
WAITER = Waiter()


def wire_ids(count):
    return [str(uuid.uuid4()).encode() for _ in range(count)]


def prepare_fulfil(make, count=COUNT):
    table, ids = make(), wire_ids(count)
    for task_id in ids:
        table.add(task_id.decode(), Waiter())
    # New objects, as they come from the socket: without a cached hash.
    return table, [bytes(bytearray(task_id)) for task_id in ids]


def fulfil(table, ids):
    finish = table.finish
    for task_id in ids:
        for _ in finish(task_id):
            pass


def prepare_store_drop(make, count=COUNT):
    ids = wire_ids(count)
    return make(), ids, [task_id.decode() for task_id in ids]


def store_drop(table, ids, asked):
    store, peek, drop, arrived = table.store, table.peek, table.drop, bytearray(BODY)
    for task_id in ids:
        store(task_id, bytes(arrived), b"", 1.0)
    for task_id in asked:
        drop(task_id, peek(task_id))


def prepare_discard_unknown(make, count=COUNT):
    table, ids = prepare_fulfil(make, count)
    fulfil(table, ids)
    return table, [task_id.decode() for task_id in ids]


def discard_unknown(table, ids):
    discard = table.discard
    for task_id in ids:
        discard(task_id, WAITER)


def prepare_outstanding(make, outstanding):
    """Keep this many waiting: whenever one finishes, in the order of sending, send another."""
    table = make()
    old = wire_ids(outstanding)
    for task_id in old:
        table.add(task_id, WAITER)
    fresh = [str(uuid.uuid4()) for _ in range(COUNT)]
    finished = (old + [task_id.encode() for task_id in fresh])[:COUNT]
    return table, fresh, finished


def churn(table, fresh, finished):
    add, finish = table.add, table.finish
    for sent, done in zip(fresh, finished, strict=True):
        add(sent, WAITER)
        finish(done)


WORK = {
    "fulfil": (prepare_fulfil, fulfil),
    "store_drop": (prepare_store_drop, store_drop),
    "discard_unknown": (prepare_discard_unknown, discard_unknown),
    "outstanding_1e3": (lambda make: prepare_outstanding(make, 1_000), churn),
    "outstanding_1e6": (lambda make: prepare_outstanding(make, 1_000_000), churn),
}

MEMORY = """
import gc, os, sys, time
from bench.bench_pending import BODY, TABLES
count = int(sys.argv[2])
def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGESIZE")
table = TABLES[sys.argv[1]](max_unclaimed_bytes=2**40)
body = bytearray(BODY)
for n in range(1000):  # what the first ones cost alone
    table.store(b"%08x-warm-up" % n, bytes(body), b"", 1.0)
gc.collect()
before, start = rss(), time.perf_counter()
for n in range(count):
    table.store(b"%08x-1111-2222-3333-444444444444" % n, bytes(body), b"", 1.0)
wall = time.perf_counter() - start
print((rss() - before) / count - len(BODY), wall / count)
"""


def memory_per_unclaimed(name, count):
    """Bytes of RSS per unclaimed result without its body, and the seconds to store it."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, name, str(count)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    beyond, seconds = map(float, done.stdout.split())
    return beyond, seconds


@pytest.mark.parametrize("work", [w for w in WORK if not QUICK or "1e6" not in w])
@contestants(*TABLES)
def test_pending(race, who, work):
    prepare, run = WORK[work]

    def sample(who):
        return timed(run, *prepare(TABLES[who]), operations=COUNT, at_least=0)

    race(sample, 3 if "1e6" in work else rounds(7))


@pytest.mark.parametrize("count", [100_000] if QUICK else [300_000, 1_000_000])
@contestants(*TABLES)
def test_table_memory(race, who, count):
    """`bytes_beyond_body` of each unclaimed result in the table."""

    def sample(who):
        beyond, seconds = memory_per_unclaimed(who, count)
        return {"wall": seconds, "bytes_beyond_body": beyond}

    race(sample, rounds(3))
