"""install(): which names refer to fastrpc afterwards. Each case runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROLOGUE = """
import sys, types
import fastrpc
from celery import Celery
from kombu import Connection
from kombu.transport import pyamqp
"""
OURS = "fastrpc.transport.transports"


def in_a_process(source: str) -> str:
    """Run a program and return its output; the test fails if the program does."""
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::DeprecationWarning",
            "-c",
            PROLOGUE + textwrap.dedent(source),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        ("amqp", "Transport"),
        ("pyamqp", "Transport"),
        ("librabbitmq", "Transport"),
        ("amqps", "SSLTransport"),
    ],
)
def test_each_scheme_is_ours(scheme, name):
    said = in_a_process(f"""
        Connection("amqp://"), Connection("amqps://")  # kombu has resolved them before
        fastrpc.install()
        fastrpc.install()
        transport = Connection("{scheme}://h//").transport
        print(type(transport).__module__, type(transport).__name__, transport.driver_type)
    """)
    assert said.split() == [OURS, name, "amqp"]


def test_without_it_all_is_stock():
    said = in_a_process("""
        app = Celery(broker="amqp://h//", backend="fastrpc://")
        app.backend
        print(type(app.connection().transport).__module__, app.backend.__class__.__module__)
        print(type(Celery(backend="rpc://").backend).__module__)
    """)
    assert said.split() == ["kombu.transport.pyamqp", "fastrpc.backend", "celery.backends.rpc"]


@pytest.mark.parametrize(
    ("arguments", "transport", "backend"),
    [
        ("", OURS, "fastrpc.backend"),
        ("backend=False", OURS, "celery.backends.rpc"),
        ("transport=False", "kombu.transport.pyamqp", "fastrpc.backend"),
    ],
)
def test_each_half_alone(arguments, transport, backend):
    said = in_a_process(f"""
        fastrpc.install({arguments})
        app = Celery(broker="amqp://h//", backend="rpc://")
        print(type(app.connection().transport).__module__, type(app.backend).__module__)
    """)
    assert said.split() == [transport, backend]


def test_the_transport_stays_after_a_failover():
    said = in_a_process("""
        fastrpc.install()
        connection = Connection("amqp://a//;amqp://b//;pyamqp://c//")
        for _ in range(4):
            print(connection.hostname, type(connection.transport).__module__)
            connection.maybe_switch_next()
    """)
    assert said.split() == ["a", OURS, "b", OURS, "c", OURS, "a", OURS]


def test_a_librabbitmq_package_does_not_take_its_place():
    said = in_a_process("""
        sys.modules["librabbitmq"] = types.ModuleType("librabbitmq")
        fastrpc.install()
        for url in ("amqp://h//", "librabbitmq://h//"):
            connection = Connection(url)
            print(connection.transport_cls, type(connection.transport).__module__)
    """)
    assert said.split() == ["librabbitmq", OURS, "librabbitmq", OURS]


def test_another_transport_is_left_alone():
    said = in_a_process("""
        fastrpc.install()
        print(type(Connection("memory://").transport).__module__)
        print(type(Connection("amqp://", transport=pyamqp.Transport).transport).__module__)
    """)
    assert said.split() == ["kombu.transport.memory", "kombu.transport.pyamqp"]


def test_the_log_says_what_it_did():
    said = in_a_process("""
        import logging
        logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(name)s %(message)s")
        fastrpc.install()
    """)
    assert said.splitlines() == [
        "fastrpc installed: rpc:// is fastrpc's result backend",
        "fastrpc installed: the serializer json uses orjson",
        "fastrpc installed: amqp, amqps, pyamqp, librabbitmq use fastrpc's transport",
    ]


@pytest.mark.parametrize(
    ("minor", "is_fast"), [("kombu.VERSION.minor", True), ("3", False), ("99", False)]
)
def test_the_fast_paths_are_for_versions_of_kombu_that_were_tried(minor, is_fast):
    """With others kombu itself sends the tasks, and Celery makes each message."""
    said = in_a_process(f"""
        import kombu
        kombu.VERSION = kombu.VERSION._replace(minor={minor})
        fastrpc.install()
        from fastrpc.tasks.many import is_traced
        from fastrpc.tasks.producer import Producer
        tries = []
        Producer._ready_channel = lambda self, options: tries.append(options)
        app = Celery(broker="memory://")
        app.send_task("any")
        arrived = app.connection_for_read().default_channel.basic_get("celery") is not None
        print(arrived, bool(tries), not is_traced())
    """)
    assert said.split() == ["True", str(is_fast), str(is_fast)]
