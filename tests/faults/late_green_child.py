"""A client whose backend was made before gevent patched, as in a server that preloads and forks.

python -m tests.faults.late_green_child URL
"""

import sys

from tests.support.apps import client
from tests.support.results import answer, expect

URL = sys.argv[1]

app, sender = client(URL), client(URL)

import gevent  # noqa: E402
from gevent import monkey  # noqa: E402

monkey.patch_all()


def call(n):
    for i in range(20):
        results = expect(app, 1)
        gevent.spawn_later(0.01, answer, sender, app.backend.oid, results, [n, i])
        assert results[0].get(timeout=30) == [n, i]
    return n


calls = [gevent.spawn(call, n) for n in range(20)]
assert [call.get() for call in calls] == list(range(20))
assert app.backend.stats()["reconnects"] == 0
print("well")
