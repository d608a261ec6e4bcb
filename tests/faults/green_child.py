"""A client process that is monkey-patched before anything else is imported.

python -m tests.faults.green_child gevent URL SCENARIO [QUEUE]
"""

import sys

LIBRARY, URL, SCENARIO = sys.argv[1:4]
if LIBRARY == "gevent":
    from gevent import Timeout, monkey

    monkey.patch_all()
else:
    import eventlet
    from eventlet import Timeout

    eventlet.monkey_patch()

import random  # noqa: E402
import time  # noqa: E402
from itertools import pairwise  # noqa: E402

from celery.exceptions import TimeoutError  # noqa: E402

from fastrpc.client import reader  # noqa: E402
from fastrpc.transport import connection  # noqa: E402
from tests.support import inside  # noqa: E402
from tests.support.apps import client  # noqa: E402
from tests.support.proxy import Proxy  # noqa: E402
from tests.support.results import answer, expect  # noqa: E402
from tests.support.waiting import LATE, wait_until  # noqa: E402


def spawn(function, *args):
    if LIBRARY == "gevent":
        import gevent

        return gevent.spawn(function, *args).get
    return eventlet.spawn(function, *args).wait


def each(count, function):
    """Run `function(n)` in `count` greenlets at the same time."""
    return [wait() for wait in [spawn(function, n) for n in range(count)]]


def many_wait():
    """Hundreds sleep; one at a time reads; each gets its own result."""
    app, sender = client(URL), client(URL)
    results = expect(app, 400)
    oid = app.backend.oid
    waits = [spawn(result.get, 30) for result in results]
    wait_until(lambda: inside.sleepers(app) >= 399, 20, "all wait")
    answer(sender, oid, results)
    assert [wait() for wait in waits] == list(range(400))


def call_and_wait():
    """Each greenlet calls and waits for itself, through one connection."""
    app, sender = client(URL), client(URL)
    oid = app.backend.oid

    def call(n):
        results = expect(app, 10)
        answer(sender, app.backend.oid, results, [n])
        return [result.get(timeout=30) for result in results]

    assert each(100, call) == [[[n]] * 10 for n in range(100)]
    assert oid == app.backend.oid


def latency():
    """As in threads, a result reaches a sleeper, though no step wakes it."""
    reader.INTERVAL = 60.0
    app, sender = client(URL), client(URL)
    results = expect(app, 100)
    oid = app.backend.oid
    sent = {}

    def wait(n):
        results[n].get(timeout=30)
        return time.monotonic() - sent[n]

    waits = [spawn(wait, n) for n in range(100)]
    wait_until(lambda: inside.sleepers(app) >= 99, 20, "all wait")
    for n in reversed(range(100)):
        sent[n] = time.monotonic()
        answer(sender, oid, [results[n]])
    assert max(wait() for wait in waits) < 5


def callbacks():
    """They are called without a get(); afterwards no greenlet reads."""
    app, sender = client(URL), client(URL)
    heard = []
    for n in range(2):
        first, second = expect(app, 2)
        oid = app.backend.oid
        first.then(lambda result: heard.append(result.result))
        second.then(lambda result: heard.append(result.result))
        time.sleep(0.1)
        answer(sender, oid, [first, second], n)
        wait_until(lambda: heard == [n, n], 10, "they are called")  # noqa: B023
        heard.clear()
        consumer = app.backend.result_consumer
        wait_until(lambda: consumer._background is None, 10, "nobody reads")  # noqa: B023


def timeouts():
    """Each timeout holds while another greenlet reads, and the event loop keeps running."""
    app = client(URL)
    results = expect(app, 50)
    ticks = []

    def tick(_n):
        for _ in range(20):
            time.sleep(0.05)
            ticks.append(time.monotonic())

    def wait(n):
        timeout = 0.2 + n / 50
        began = time.monotonic()
        try:
            results[n].get(timeout=timeout)
        except TimeoutError:
            return time.monotonic() - began - timeout
        raise AssertionError("there is no result")

    ticking = spawn(tick, 0)
    late = max(each(50, wait))
    ticking()
    assert late < LATE, late
    gaps = [after - before for before, after in pairwise(ticks)]
    assert max(gaps) < 0.9, gaps


def cuts():
    """The connection is cut while hundreds wait."""
    host, port = URL.split("@")[1].rstrip("/").split(":")
    with Proxy(host, int(port)) as proxy:
        app = client(URL.replace(port, str(proxy.port)))
        sender = client(URL)
        results = expect(app, 300)
        oid = app.backend.oid
        waits = [spawn(result.get, 30) for result in results]
        wait_until(lambda: inside.sleepers(app) >= 299, 20, "all wait")
        for n in range(0, 300, 50):
            wait_until(lambda: inside.intake(app) is not None, 10, "it is connected")
            proxy.cut()
            answer(sender, oid, results[n : n + 50], [n])
            assert [wait() for wait in waits[n : n + 50]] == [[n]] * 50
        assert app.backend.stats()["reconnects"] >= 5


def struck():
    """Timeouts of the library strike waits and sends, again and again; nothing is left behind."""
    app, sender = client(URL), client(URL)
    results = expect(app, 50)
    oid = app.backend.oid
    rng = random.Random(1)
    strikes = []

    def until_done(function, *args):
        while True:
            try:
                with Timeout(rng.expovariate(20)):
                    return function(*args)
            except Timeout as strike:
                strikes.append(strike)

    def send(n):
        for result in results[n::5]:
            time.sleep(0.2)
            until_done(answer, sender, oid, [result], result.id)

    waits = [spawn(until_done, result.get, 30) for result in results]
    each(5, send)
    assert [wait() for wait in waits] == [result.id for result in results]
    assert len(strikes) > 100, len(strikes)
    for one in (app, sender):
        wait_until(lambda: not any(inside.leftovers(one).values()), 20, "all is over")  # noqa: B023


def busy_wait():
    """busy_wait has no effect: the other greenlets could not run meanwhile."""
    app, sender = client(URL, options={"busy_wait": 0.01}), client(URL)
    results = expect(app, 20)
    looked = []
    readable = connection.readable
    connection.readable = lambda fd, busy_wait=0: (
        looked.append(busy_wait) or readable(fd, busy_wait)
    )
    waits = [spawn(result.get, 30) for result in results]
    answer(sender, app.backend.oid, results)
    assert [wait() for wait in waits] == list(range(20))
    assert not any(looked), looked


def tasks():
    """Real tasks of a real worker."""
    app = client(URL, sys.argv[4])
    echo = app.tasks["tests.echo"]
    assert each(30, lambda n: echo.delay(n).get(timeout=30)) == list(range(30))


globals()[SCENARIO]()
print("well")
