"""The doctor without a broker: ports that speak something else, apps that cannot be loaded."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from celery import Celery
from click.testing import CliRunner

from fastrpc import cli, doctor
from fastrpc.doctor import Mark, Options, Subject, examine
from fastrpc.doctor.connection import explain_refused_vhost, negotiate_tls
from fastrpc.doctor.green_workers import has_heartbeats, is_green, waits
from fastrpc.doctor.subject import Node

QUICK = Options(timeout=0.5)


@contextlib.contextmanager
def port(answer: bytes, hears: bytes = b"") -> Iterator[int]:
    """A port that sends `answer` once it has heard `hears`, and is silent otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def serve() -> None:
            while True:
                client, _ = server.accept()
                if done.is_set():
                    return
                with client:
                    client.settimeout(2)
                    with contextlib.suppress(OSError):
                        if hears in client.recv(4096):
                            client.sendall(answer)
                        client.recv(1)  # until the other side hangs up

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            done.set()
            socket.create_connection(server.getsockname()).close()
            thread.join(10)


def findings(url: str, app: Celery | None = None) -> dict[str, doctor.Finding]:
    return {finding.check: finding for finding in examine(Subject(url, app, QUICK))}


@pytest.mark.parametrize(
    ("answer", "hears", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"AMQP", "HTTP"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n", "HTTP"),
        (b"AMQP\x03\x01\x00\x00", b"AMQP", "speaks AMQP 1-0-0, not 0-9-1"),
        (b"\x15\x03\x03\x00\x02\x02\x46", b"AMQP", "TLS"),
        (b"220 mail ESMTP\r\n", b"", "does not speak AMQP, it says b'220 mail'"),
        (b"", b"", "does not answer"),
    ],
)
def test_what_speaks_on_the_port(answer, hears, says):
    with port(answer, hears) as number:
        found = findings(f"amqp://user:hunter2@127.0.0.1:{number}//")
    assert found["port"].mark is Mark.OK
    assert found["protocol"].mark is Mark.FAIL
    assert says in found["protocol"].found
    assert found["protocol"].advice
    assert found["login"].mark is Mark.SKIPPED
    assert "because protocol failed" in found["login"].found
    assert "hunter2" not in str(found)


def test_a_closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    found = findings(f"amqp://127.0.0.1:{number}//")
    assert "nothing listens" in found["port"].found


def test_a_host_that_cannot_be_reached(monkeypatch):
    def dial(node):
        raise OSError(errno.EHOSTUNREACH, "No route to host")

    monkeypatch.setattr(Node, "dial", dial)
    found = findings("amqp://[::1]//")["port"]
    assert found.found == "cannot connect to [::1]:5672: No route to host"
    assert "routes" in found.advice


def test_a_file_for_tls_that_is_not_there():
    app = Celery(broker="amqps://127.0.0.1//", backend="rpc://", set_as_current=False)
    app.conf.broker_use_ssl = {"ca_certs": __file__, "certfile": "nosuch.pem"}
    found = negotiate_tls(Node(Subject(app=app), app.conf.broker_url))
    assert "certfile in broker_use_ssl names no file: nosuch.pem" in found.found


@pytest.mark.parametrize("who", ["vhost '/' refused for user 'u'", "user 'u'"])
def test_a_limit_of_connections(who):
    said = f"NOT_ALLOWED - access to {who}: connection limit (5) is reached"
    verdict = explain_refused_vhost(Node(Subject("amqp://"), "amqp://"), said)
    assert verdict.found == said
    assert "raise the limit" in verdict.advice


@pytest.mark.parametrize("password", ["found", "vhost"])
def test_a_reason_is_understood_although_the_password_is_a_word_of_it(password):
    url = f"amqp://u:{password}@127.0.0.1/nosuch"
    said = "NOT_ALLOWED - vhost nosuch not found"
    assert explain_refused_vhost(Node(Subject(url), url), said).found == "there is no vhost nosuch"


def test_tls_to_a_port_without():
    with port(b"AMQP\x00\x00\x09\x01") as number:
        found = findings(f"amqps://127.0.0.1:{number}//")
    assert found["tls"].mark is Mark.FAIL
    assert "Use amqp://" in found["tls"].advice
    assert "because tls failed" in found["login"].found


def test_a_host_without_an_address():
    assert "has no address" in findings("amqp://nosuch.invalid//")["address"].found


@pytest.mark.parametrize("password", ["hunter2", "word", "#1"])
def test_the_text_of_an_exception_is_without_the_password(password, monkeypatch):
    def dial(node):
        raise OSError(f"cannot use {node.link.password!r}")

    monkeypatch.setattr(Node, "dial", dial)
    found = findings(f"amqp://u:{quote(password)}@127.0.0.1//")["port"]
    assert found.found == "cannot connect to 127.0.0.1:5672: cannot use '**'"


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:se#cret@127.0.0.1:x//",
        "amqp://u:12/secret@127.0.0.1//",
        "amqp://u:p@x/secret@127.0.0.1//",
        "nosuch://u:secret@host",
        "redis://:secret@host/0",
    ],
)
def test_no_amqp_url(url):
    found = findings(url)
    assert found["url"].mark is Mark.FAIL
    assert found["url"].advice
    assert "cret" not in str(found)


def test_each_node_of_a_failover_list():
    found = findings("amqp://127.0.0.1:1//;amqp://127.0.0.1:2//")
    assert "127.0.0.1:1" in found["port 1/2"].found
    assert "127.0.0.1:2" in found["port 2/2"].found


def test_an_app_is_looked_at_without_its_broker():
    app = Celery(broker="amqp://127.0.0.1:1//", backend="disabled://", set_as_current=False)
    app.conf.task_serializer = "pickle"
    found = findings("", app)
    assert "no result backend" in found["backend"].found
    assert "task_serializer pickle" in found["serializers"].found
    assert found["workers"].mark is Mark.SKIPPED


@pytest.mark.parametrize("backend", ["fastrpc://?nosuch=1", "nosuch://"])
def test_a_backend_that_cannot_be_made(backend):
    app = Celery(broker="amqp://127.0.0.1:1//", backend=backend, set_as_current=False)
    found = findings("", app)
    assert {name for name in found if found[name].mark is Mark.FAIL} == {"port", "backend"}
    assert "cannot be made" in found["backend"].found
    assert "nosuch" in found["backend"].found


def test_a_content_type_accepts_its_serializer():
    assert doctor.accepts(["application/json"], "json")
    assert doctor.accepts({"json", "pickle"}, "pickle")
    assert not doctor.accepts(["json"], "yaml")


@pytest.mark.parametrize(
    ("celery", "answer", "expected"),
    [
        ("5.7.0", {}, True),
        ("5.10.1", {}, True),
        ("5.6.2", {}, False),
        ("", {}, False),
        ("5.7.0", {"transport": "kombu.transport.pyamqp:Transport", "events": True}, True),
        ("5.7.0", {"transport": "kombu.transport.pyamqp:Transport", "events": False}, False),
        ("5.7.0", {"transport": "fastrpc.transport.transports:Transport"}, False),
    ],
)
def test_which_green_workers_wait(celery, answer, expected):
    assert waits(celery, answer) is expected


@pytest.mark.parametrize(
    ("stats", "green", "heartbeats"),
    [
        (
            {
                "pool": {"implementation": "celery.concurrency.gevent:TaskPool"},
                "broker": {"heartbeat": 120.0},
            },
            True,
            True,
        ),
        (
            {
                "pool": {"implementation": "celery.concurrency.eventlet:TaskPool"},
                "broker": {"heartbeat": 0},
            },
            True,
            False,
        ),
        ({"pool": {"implementation": "celery.concurrency.solo:TaskPool"}}, False, False),
        ({"pool": "N/A", "broker": "N/A"}, False, False),
        ({"error": "KeyError('stats')"}, False, False),
    ],
)
def test_what_workers_say_of_their_pool_and_heartbeats(stats, green, heartbeats):
    assert is_green(stats) is green
    assert has_heartbeats(stats) is heartbeats


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "ModuleNotFoundError"),
        ("raise ValueError('at amqp://u:hunter2@host//')", "amqp://u:**@host//"),
        ("import nosuchmodule", "nosuchmodule"),
        ("x = 1", "AttributeError"),
        ("app = 5", "not a Celery app, it is of type int"),
        ("def f(:", "invalid syntax (doctored"),
        (
            "import celery\napp = celery.Celery(set_as_current=False)\n"
            "app.config_from_object('nosuchsettings')",
            "No module named 'nosuchsettings'",
        ),
    ],
)
def test_an_app_that_cannot_be_loaded(source, says, tmp_path, monkeypatch):
    name = f"doctored_{abs(hash(source))}"
    if source:
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli.main, ["-A", name, "doctor", "--json"])
    report = json.loads(done.output)
    assert (done.exit_code, report["ok"]) == (1, False)
    assert says in report["findings"][0]["found"]
    assert report["findings"][0]["advice"]
    # The line that is shown is the user's.
    assert all(end.startswith(str(tmp_path)) for end in re.findall(r" \((/.*)", done.output))
    assert "hunter2" not in done.output


def test_without_a_target():
    done = CliRunner().invoke(cli.main, ["doctor"], env={"APP": "", "BROKER_URL": ""})
    assert done.exit_code == 2
    assert "-A proj" in done.output


@pytest.mark.parametrize(
    ("args", "port"),
    [((), 3), (("amqp://127.0.0.1:2//",), 2), (("-A", "named"), 1)],
)
def test_the_command_line_wins_over_the_environment(args, port, tmp_path, monkeypatch):
    (tmp_path / "named.py").write_text(
        "import celery\napp = celery.Celery(broker='amqp://127.0.0.1:1//', set_as_current=False)"
    )
    monkeypatch.chdir(tmp_path)
    env = {"BROKER_URL": "amqp://127.0.0.1:3//"}
    done = CliRunner().invoke(cli.main, ["doctor", "--json", *args], env=env)
    assert f"nothing listens on 127.0.0.1:{port}" in done.output


def test_a_url_in_place_of_the_apps(tmp_path, monkeypatch):
    (tmp_path / "elsewhere.py").write_text(
        "import celery\napp = celery.Celery(broker='amqp://127.0.0.1:1//', set_as_current=False)"
    )
    monkeypatch.chdir(tmp_path)
    url = "amqp://127.0.0.1:2//"
    done = CliRunner().invoke(cli.main, ["-A", "elsewhere", "doctor", "--json", url])
    assert "nothing listens on 127.0.0.1:2" in done.output
    assert "serializers" in done.output


@pytest.mark.parametrize(
    "args",
    [
        ("doctor", "--timeout", "-1"),
        ("doctor", "--timeout", "0"),
        ("bench", "--tasks", "0"),
        ("bench", "--rounds", "0"),
        ("top", "--interval", "-1"),
        ("top", "--interval", "0"),
        ("top", "--count", "-1"),
    ],
)
def test_a_number_without_a_meaning(args):
    done = CliRunner().invoke(cli.main, ["-b", "amqp://127.0.0.1:1//", *args])
    assert done.exit_code == 2
    assert f"Invalid value for '{args[1]}'" in done.output


def test_what_a_person_sees():
    done = CliRunner().invoke(cli.main, ["doctor", "amqp://u:hunter2@127.0.0.1:1//"])
    assert done.exit_code == 1
    assert "nothing listens on 127.0.0.1:1" in done.output
    assert "Start the broker" in done.output
    assert done.output.endswith("1 of 3 checks failed: port\n")
    assert "hunter2" not in done.output


def test_a_terminal_without_unicode():
    code = "from fastrpc.cli import main; main(['doctor', 'amqp://127.0.0.1:1//'])"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1", "TERM": "xterm"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.returncode == 1
    assert "FAIL" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    done = CliRunner().invoke(cli.main, ["doctor", "amqp://127.0.0.1:1//"])
    assert done.exit_code == 1
    assert "pip install 'fastrpc[cli]'" in done.output
    done = CliRunner().invoke(cli.main, ["doctor", "--json", "amqp://127.0.0.1:1//"])
    assert json.loads(done.output)["ok"] is False


@pytest.mark.parametrize(
    "command", [["-m", "fastrpc", "doctor", "--help"], ["-m", "celery", "fastrpc", "doctor", "-h"]]
)
def test_its_other_names(command, tmp_path):
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "Find out why nothing comes back" in done.stdout


@pytest.mark.parametrize(("text", "size"), [("1000", 1000), ("20MB", 20_000_000), ("1MiB", 2**20)])
def test_sizes(text, size):
    assert cli.size(text) == size
