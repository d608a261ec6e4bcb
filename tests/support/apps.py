"""The apps of the tests: all have the tasks of tasks.py, none is the current app."""

from __future__ import annotations

from typing import Any

from celery import Celery

from tests.support.backends import FAST
from tests.support.tasks import add_tasks

_apps: list[Celery] = []


def make_app(
    broker: str = "memory://",
    backend: str = FAST,
    queue: str = "celery",
    *,
    cls: type[Celery] = Celery,
    **conf: Any,
) -> Celery:
    """An app with all the tasks; `conf` are Celery settings."""
    app = cls("tests", broker=broker, backend=backend, set_as_current=False)
    # Defaults: Celery refuses a mix of settings with old and new names.
    app.add_defaults(
        {
            "task_default_queue": queue,
            "broker_connection_retry_on_startup": True,
            "worker_hijack_root_logger": False,
            "worker_cancel_long_running_tasks_on_connection_loss": False,
        }
    )
    app.conf.update(conf)
    add_tasks(app)
    # The name of a reply queue comes from the address of the app: one that is collected
    # could hand its queue, with what is left in it, to the next.
    _apps.append(app)
    return app


def client(url: str, queue: str = "fastrpc-faults-nobody", **conf: Any) -> Celery:
    """An app whose results come over fastrpc://; `conf` are Celery settings."""
    options = conf.pop("options", {})
    app = make_app(
        url,
        FAST,
        queue,
        **{"result_backend_transport_options": options, "result_expires": 60, **conf},
    )
    # Made here: threads that ask for it for the first time at once get one each (see the xfail
    # in test_threads.py).
    _ = app.backend
    return app
