"""Batches and pipelines by themselves: what is left of one that a time limit strikes."""

from __future__ import annotations

from pathlib import Path

from celery.exceptions import SoftTimeLimitExceeded

import fastrpc
from fastrpc import _lifecycle
from fastrpc.tasks import batch
from fastrpc.tasks.batch import _current, current_producers
from fastrpc.tasks.pipeline import Pipeline
from tests.support.apps import make_app
from tests.support.installed import installed
from tests.support.steps import each_step


def test_a_time_limit_at_any_step_leaves_no_batch_and_takes_no_connection():
    """Later tasks of the thread would be collected, and never sent."""

    def call(app) -> None:
        with fastrpc.batch(app):
            assert current_producers(app) is not None

    def interrupt() -> None:
        raise SoftTimeLimitExceeded

    with installed():
        app = make_app("memory://", "disabled://")
        pool = app.amqp.producer_pool.connections
        seen = set()
        for where, _, error in each_step(lambda: app, call, interrupt, ("tasks/batch.py",)):
            assert isinstance(error, SoftTimeLimitExceeded), where
            name = where.split()[-1]
            if name == "__exit__" and name not in seen:
                # Before its first line. Nothing can be done there: the batch goes on.
                _current.set(None)
            elif "acquire(" not in line_of(where):  # kombu's caller has not got it yet
                assert not pool._dirty, where
            seen.add(name)
            assert current_producers(app) is None, where
            pool._dirty.clear()
        assert {"__enter__", "__exit__"} <= seen
        app.close()


def test_a_pipeline_that_a_time_limit_strikes_is_flushed_at_exit():
    def interrupt() -> None:
        raise SoftTimeLimitExceeded

    def prepare() -> Pipeline:
        return Pipeline(None)

    def call(pipeline: Pipeline) -> None:
        pipeline._make_publisher()

    for where, pipeline, _ in each_step(prepare, call, interrupt, ("tasks/pipeline.py",)):
        assert pipeline._publisher is None or pipeline in _lifecycle._closeables, where


def line_of(where: str) -> str:
    number = int(where.partition(":")[2].split()[0])
    return Path(batch.__file__).read_text().splitlines()[number - 1]
