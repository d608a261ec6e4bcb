"""Random canvases, run by a worker, end as Celery runs them in this process."""

from __future__ import annotations

import pytest
from celery import chain, chord, group
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

WAIT = 30
FAST = "fastrpc://?chords=1"

# A canvas as data: ("echo", n), ("chain", [...]), ("chord", [header], body), ("add", n).
leaf = st.tuples(st.just("echo"), st.integers(-9, 9))
step = st.tuples(st.just("add"), st.integers(-9, 9))


def deeper(canvas):
    """One level more: what stands first takes no argument, what follows takes one."""
    chains = st.tuples(st.just("chain"), canvas, st.lists(step, min_size=1, max_size=2))
    chords = st.tuples(
        st.just("chord"),
        st.lists(canvas, min_size=1, max_size=3),
        st.lists(step, max_size=2),
    )
    return chains | chords


canvases = st.recursive(leaf, deeper, max_leaves=8).filter(lambda tree: tree[0] != "echo")


def build(tree, tasks):
    kind = tree[0]
    if kind in ("echo", "add"):
        return tasks[f"tests.{kind}"].s(tree[1])
    if kind == "chain":
        return chain(build(tree[1], tasks), *(build(s, tasks) for s in tree[2]))
    body = tasks["tests.total"].s()
    for following in tree[2]:
        body |= build(following, tasks)
    return chord([build(part, tasks) for part in tree[1]], body)


@pytest.fixture(scope="module")
def app(make_worker, make_client):
    return make_client(FAST, make_worker(FAST, "threads", concurrency=4))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tree=canvases)
def test_a_worker_gives_what_eager_mode_gives(app, tree):
    app.conf.task_always_eager = True
    try:
        expected = build(tree, app.tasks).apply_async().get()
    finally:
        app.conf.task_always_eager = False
    assert build(tree, app.tasks).apply_async().get(timeout=WAIT) == expected


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(trees=st.lists(canvases, min_size=1, max_size=3))
def test_a_chord_of_groups(app, trees):
    """Groups within a header are flattened; the order is that of eager mode."""
    header = group(build(tree, app.tasks) for tree in trees)
    total = chord(header, app.tasks["tests.collect"].s())
    [got] = total.apply_async().get(timeout=WAIT)
    expected = [build(tree, app.tasks).apply_async().get(timeout=WAIT) for tree in trees]
    assert got == expected
