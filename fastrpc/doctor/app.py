"""The app: what is installed, its backend, its transport, its serializers."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from .. import __version__
from .findings import Checks, Verdict, fail, note, ok, warn
from .settings import accepts, is_fastrpc, scheme_of
from .subject import Subject

__all__ = ["SETUP_CHECKS"]

SETUP_CHECKS = Checks()


@SETUP_CHECKS.add("versions")
def check_versions(subject: Subject) -> Verdict:
    """What is installed here?"""
    names = ("celery", "kombu", "amqp", "orjson")
    found = ", ".join(f"{name} {installed(name)}" for name in names)
    return ok(f"fastrpc {__version__}, {found}, Python {platform.python_version()}")


@SETUP_CHECKS.add("backend")
def check_backend(subject: Subject) -> Verdict:
    """Which result backend does the app have?"""
    conf = subject.app.conf
    try:
        backend = subject.app.backend
    except Exception as exc:
        return fail(
            f"the result backend cannot be made: {subject.reason(exc)}",
            "Correct result_backend, and result_backend_transport_options if there are any.",
        )
    shown = f"{type(backend).__module__}:{type(backend).__name__}"
    if conf.task_always_eager:
        return warn(
            "task_always_eager is on: no task is sent at all", "Switch it off, except in tests."
        )
    if scheme_of(conf.result_backend) == "disabled":
        return fail(
            "the app has no result backend, so get() never returns a result",
            'Set result_backend to "fastrpc://".',
        )
    if conf.task_ignore_result:
        return warn(
            f"{shown}, but task_ignore_result is on: no task has a result",
            "Switch it off, or set ignore_result=False for the tasks whose results you want.",
        )
    if is_fastrpc(type(backend)):
        return ok(shown)
    return note(f"{shown} is not fastrpc", 'Set result_backend to "fastrpc://".')


@SETUP_CHECKS.add("transport")
def check_transport(subject: Subject) -> Verdict:
    """Are tasks sent over our transport, and if not, why?"""
    link = subject.connection or subject.app.connection_for_write()
    cls = link.get_transport_cls()
    shown = f"{cls.__module__}:{cls.__name__}"
    if is_fastrpc(cls):
        if is_fastrpc(type(subject.app.amqp)):
            return ok(f"{shown}, {type(subject.app.amqp).__module__}")
        return note(
            f"{shown}, but {type(subject.app.amqp).__module__} makes the messages of tasks, at "
            "Celery's own speed",
            "Call fastrpc.install() before the app is made, and set no amqp_cls of your own.",
        )
    if cls.driver_type != "amqp":
        return note(
            f"{shown} is not AMQP: tasks are sent at Celery's own speed",
            "Use RabbitMQ: fastrpc speeds up AMQP brokers only.",
        )
    return note(
        f"{shown} is not fastrpc's: tasks are sent at Celery's own speed",
        "Call fastrpc.install() in the module of the app, before the app is made.",
    )


@SETUP_CHECKS.add("serializers")
def check_serializers(subject: Subject) -> Verdict:
    """Does the app read what it writes?"""
    conf = subject.app.conf
    results = conf.result_accept_content or conf.accept_content
    faults = []
    if not accepts(conf.accept_content, conf.task_serializer):
        faults.append(f"task_serializer {conf.task_serializer} is not in accept_content")
    if not accepts(results, conf.result_serializer):
        faults.append(f"result_serializer {conf.result_serializer} is not in accept_content")
    if faults:
        return fail("; ".join(faults), "Add the serializer to accept_content, on both sides.")
    return ok(f"tasks {conf.task_serializer}, results {conf.result_serializer}, both accepted")


def installed(name: str) -> str:
    """The version of a distribution; "?" if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"
