"""fastrpc bench and fastrpc top, against a real broker and real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fastrpc import cli
from fastrpc.bench import MEASUREMENTS, Outcome, broker_settings
from fastrpc.top import Management, Sampler, WorkerRow, rate
from tests.support.apps import make_app
from tests.support.backends import FAST, STOCK
from tests.support.broker import RabbitMQ, free_port
from tests.support.waiting import wait_until
from tests.support.worker import Worker


def run(*args):
    return CliRunner().invoke(cli.main, [str(arg) for arg in args], env={"COLUMNS": "140"})


@pytest.mark.parametrize("command", [("bench",), ("top", "--count", 1)], ids=lambda c: c[0])
@pytest.mark.parametrize("url", ["http://user:hunter2@host/", "amqp://user:hunter2@host:99999//"])
def test_what_is_not_the_url_of_a_broker(command, url):
    done = run(*command, url)
    assert done.exit_code == 1
    assert "Write amqp://user:password@host:5672/vhost" in done.output
    assert "hunter2" not in done.output


class TestBench:
    @pytest.mark.slow
    def test_stock_and_fast_take_turns(self, private_broker, tmp_path):
        figure = tmp_path / "rates.svg"
        options = ("--tasks", 60, "--rounds", 2, "--plot", figure)
        done = run("bench", private_broker.url, *options)
        assert done.exit_code == 0, done.output
        for name in MEASUREMENTS:
            assert name in done.output
        assert "superuser" not in done.output
        assert figure.read_text().startswith("<?xml")
        assert not [name for name in private_broker.queues() if "fastrpc-bench" in name]

    @pytest.mark.slow
    def test_the_broker_of_an_app_as_json(self, private_broker, tmp_path, monkeypatch):
        (tmp_path / "benched.py").write_text(
            "import celery, fastrpc\nfastrpc.install()\n"
            f"app = celery.Celery(broker={private_broker.url!r}, set_as_current=False)\n"
        )
        monkeypatch.chdir(tmp_path)
        options = ("--tasks", "20", "--rounds", "1", "--json")
        done = subprocess.run(
            [sys.executable, "-m", "fastrpc", "-A", "benched", "bench", *options],
            capture_output=True,
            text=True,
            timeout=110,
            check=True,
        )
        report = json.loads(done.stdout)
        assert [row["name"] for row in report] == list(MEASUREMENTS)
        assert all(row["stock"] > 0 and row["fastrpc"] > 0 for row in report)

    def test_no_broker(self):
        done = run("bench", "amqp://user:hunter2@127.0.0.1:1//")
        assert done.exit_code == 1
        assert "no connection to amqp://user:**@127.0.0.1:1//" in done.output
        assert "fastrpc doctor" in done.output
        assert "hunter2" not in done.output

    def test_settings_of_an_app(self):
        app = make_app("amqp://host//", FAST, broker_use_ssl={"ca_certs": "ca.pem"})
        settings = broker_settings(app)
        assert settings["broker_url"] == "amqp://host//"
        assert settings["broker_use_ssl"] == {"ca_certs": "ca.pem"}

    def test_ratio(self):
        outcome = Outcome("x", {"stock": [1.0, 2.0, 9.0], "fastrpc": [4.0, 4.0, 4.0]})
        assert outcome.as_dict()["ratio"] == 2.0


class TestTop:
    def test_workers_and_queues(self, own_vhost):
        queue = "fastrpc-tests-top"
        app = make_app(own_vhost, FAST, queue)
        sampler = Sampler(app, ("fastrpc-tests-nosuch",), timeout=3.0)
        with Worker(own_vhost, FAST, pool="solo", queues=(queue,)) as worker:
            sampler.sample()
            assert app.tasks["tests.add"].delay(1, 2).get(timeout=20) == 3
            sampler.sample()
        row = sampler.workers[worker.name]
        assert row.answer["backend"] == "fastrpc.backend:RPCBackend"
        assert row.stats["published"] == 1
        assert row.tasks_rate > 0
        assert row.results_rate > 0
        assert sampler.depths[queue].consumers == 1
        assert sampler.depths["fastrpc-tests-nosuch"].messages is None
        with open(os.devnull, "w") as nowhere:
            screen = cli.console(width=140, record=True, file=nowhere)
            screen.print(cli.top_tables(sampler))
        assert worker.name in screen.export_text()
        json.dumps(sampler.as_dict())
        sampler.close()

    def test_what_is_not_the_url_of_the_management_plugin(self):
        done = run("top", "amqp://host//", "--management", "host:15672")
        assert done.exit_code == 2
        assert "must begin with http:// or https://" in done.output

    def test_a_stock_worker(self, own_vhost):
        queue = "fastrpc-tests-top-stock"
        with Worker(own_vhost, STOCK, pool="solo", queues=(queue,)) as worker:
            sampler = Sampler(make_app(own_vhost, STOCK, queue), timeout=3.0)
            sampler.sample()
            sampler.close()
        assert sampler.workers[worker.name].stats == {}

    def test_a_worker_that_answers_with_pickle(self, own_vhost):
        """An app that knows only the URL does not read that. What else there is, is shown."""
        conf = {"task_serializer": "pickle", "accept_content": ["json", "pickle"]}
        queue = "fastrpc-tests-top-pickle"
        with Worker(own_vhost, FAST, pool="solo", queues=(queue,), conf=conf):
            done = run("top", own_vhost, "--count", 1, "--queue", queue)
        assert done.exit_code == 0, done.output
        assert "untrusted content of type pickle" in " ".join(done.output.split())
        assert "accept_content" in done.output
        assert queue in done.output

    @pytest.mark.slow
    def test_reply_queues(self, tmp_path):
        plugins = tmp_path / "plugins"
        plugins.write_text("[rabbitmq_management].\n")
        port = free_port()
        config = [f"management.tcp.port = {port}", "management.tcp.ip = 127.0.0.1"]
        env = {"RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins)}
        with RabbitMQ(config=config, env=env) as node:
            app = make_app(node.url, FAST, "fastrpc-tests-top-replies")
            app.tasks["tests.add"].delay(1, 2)
            at = f"http://guest:guest@127.0.0.1:{port}"
            management = Management(at)
            wait_until(management.reply_queues, 20, "the plugin lists the reply queue", 0.2)
            assert [row.name for row in management.reply_queues()] == [app.backend.oid]
            done = run("-b", node.url, "top", "--count", 1, "--management", at)
            assert app.backend.oid in done.output
            assert "1 reply queues, 0 results in them" in done.output
            wrong = f"http://guest:hunter2@127.0.0.1:{port}"
            done = run("-b", node.url, "top", "--count", 1, "--management", wrong)
            assert done.exit_code == 1
            assert "management plugin: HTTP Error 401" in done.output
            assert "hunter2" not in done.output
            app.close()

    def test_no_broker(self):
        done = run("-b", "amqp://user:hunter2@127.0.0.1:1//", "top", "--count", 1)
        assert done.exit_code == 1
        assert "no connection to the broker" in done.output
        assert "Traceback" not in done.output

    def test_eighty_columns(self):
        """Numbers are whole, and so is a name, on as many lines as it takes."""
        sampler = Sampler(None)
        stats = {"published": 1_234_567, "unconfirmed": 12, "resent": 0, "returned": 0}
        answer = {"backend": "fastrpc.backend:RPCBackend", "tasks": 7_654_321, "stats": stats}
        sampler.workers["celery@a-long-name"] = WorkerRow("celery@a-long-name", answer, 871.0)
        with open(os.devnull, "w") as nowhere:
            screen = cli.console(width=80, record=True, file=nowhere)
            screen.print(cli.top_tables(sampler))
        lines = screen.export_text().splitlines()
        assert "unconfirmed" in lines[0]
        assert {"fastrpc", "7,654,321", "871", "1,234,567", "12"} <= set(lines[1].split())
        folded = "".join(line.split(" ")[0] for line in lines[1 : lines.index("", 1)])
        assert folded == "celery@a-long-name"

    def test_the_main_process_of_a_prefork_pool_sends_no_results(self):
        sampler = Sampler(None)
        pool = "celery.concurrency.prefork:TaskPool"
        answer = {"pool": pool, "tasks": 5, "stats": {"published": 0, "unconfirmed": 0}}
        sampler.workers["celery@a"] = WorkerRow("celery@a", answer, 1.0, 0.0)
        with open(os.devnull, "w") as nowhere:
            screen = cli.console(width=80, record=True, file=nowhere)
            screen.print(cli.top_tables(sampler))
        assert screen.export_text().splitlines()[1].split()[-7:] == ["5", "1", *"-----"]

    def test_each_look_in_a_pipe(self, private_broker):
        done = run("top", private_broker.url, "--count", 2, "--interval", 0.01)
        assert done.exit_code == 0, done.output
        assert done.output.count("grows/s") == 2
        assert done.output.endswith("\n")

    def test_wrong_password(self, private_broker):
        done = run("top", private_broker.url.replace(":guest@", ":hunter2@"), "--count", 1)
        assert done.exit_code == 1
        assert "no connection to the broker" in done.output
        assert "ACCESS_REFUSED" in done.output
        assert "hunter2" not in done.output

    def test_rate(self):
        assert rate(1, 5, 2.0) == 2.0
        assert rate(None, 5, 2.0) is None
