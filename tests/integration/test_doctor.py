"""The doctor against a real broker and real workers, healthy and not."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from contextlib import contextmanager, suppress

import kombu
import pytest
import trustme
from celery import VERSION as version_info

from fastrpc.doctor import Mark, Options, Subject, examine
from tests.support.apps import make_app
from tests.support.backends import FAST
from tests.support.broker import RabbitMQ
from tests.support.waiting import wait_until
from tests.support.worker import Worker

QUICK = Options(timeout=2.0)


def findings(url=None, app=None, options=QUICK):
    found = {finding.check: finding for finding in examine(Subject(url, app, options))}
    for finding in found.values():
        assert finding.found
        assert finding.mark in (Mark.OK, Mark.NOTE, Mark.SKIPPED) or finding.advice
    return found


def failed(found):
    return {name for name, finding in found.items() if finding.mark is Mark.FAIL}


def test_a_healthy_broker(private_broker):
    found = findings(private_broker.url)
    assert failed(found) == set()
    for name in ("login", "declare", "publish", "consume", "round trip", "limits"):
        assert found[name].mark is Mark.OK
    assert "p99" in found["round trip"].found
    assert "RabbitMQ" in found["broker"].found
    assert not [name for name in private_broker.queues() if name.startswith("fastrpc-doctor")]


def test_the_second_node_of_a_failover_list(private_broker):
    found = findings(f"amqp://127.0.0.1:1//;{private_broker.url}")
    assert failed(found) == {"port 1/2"}
    assert found["login 2/2"].mark is Mark.OK
    assert found["deprecated features"].mark in (Mark.OK, Mark.NOTE)


def test_a_wrong_password(private_broker):
    found = findings(private_broker.url_for(password="hunter2"))
    assert failed(found) == {"login"}
    assert "wrong password" in found["login"].found
    assert "hunter2" not in str(found)


@pytest.mark.parametrize("password", ["password", "wrong", "a", "rabbitmq"])
def test_a_password_that_is_a_word_of_the_texts(private_broker, password):
    """A gap in a known sentence would tell it, and spoil the commands of the advice."""
    found = findings(private_broker.url_for(password=password))
    assert "amqp://guest:**@127.0.0.1:" in found["url"].found
    assert "wrong password" in found["login"].found
    assert "rabbitmqctl change_password guest" in found["login"].advice


def test_a_wrong_vhost(private_broker):
    found = findings(private_broker.url.removesuffix("//") + "/nosuch")
    assert failed(found) == {"login"}
    assert "no vhost nosuch" in found["login"].found


@contextmanager
def user(broker, *permissions):
    broker.ctl("add_user", "anna", "hunter2")
    try:
        if permissions:
            broker.ctl("set_permissions", "-p", "/", "anna", *permissions)
        yield broker.url_for(user="anna", password="hunter2")
    finally:
        broker.ctl("delete_user", "anna")


@pytest.mark.parametrize(
    ("permissions", "name", "advice"),
    [
        ((), "login", "set_permissions -p / anna"),
        (("^$", ".*", ".*"), "declare", "configure permission"),
        ((".*", "^$", ".*"), "publish", "write permission"),
        ((".*", ".*", "^$"), "consume", "read permission"),
    ],
)
def test_missing_permissions(private_broker, permissions, name, advice):
    with user(private_broker, *permissions) as url:
        found = findings(url)
    assert found[name].mark is Mark.FAIL
    assert advice in found[name].advice
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("limit", "name", "advice"),
    [("max-connections", "login", "Close connections"), ("max-queues", "declare", "Delete queues")],
)
def test_limits_of_the_vhost(private_broker, limit, name, advice):
    private_broker.ctl("set_vhost_limits", "-p", "/", f'{{"{limit}": 0}}')
    try:
        found = findings(private_broker.url)
    finally:
        private_broker.ctl("clear_vhost_limits", "-p", "/")
    assert failed(found) == {name}
    assert "(0) is reached" in found[name].found
    assert found[name].advice.startswith(advice)


@pytest.mark.parametrize(
    ("policy", "name"),
    [('{"max-length":0}', "consume"), ('{"max-length":0,"overflow":"reject-publish"}', "publish")],
)
def test_a_policy_for_full_queues(private_broker, policy, name):
    private_broker.ctl("set_policy", "full", "^fastrpc-doctor", policy)
    try:
        found = findings(private_broker.url)
    finally:
        private_broker.ctl("clear_policy", "full")
    assert failed(found) == {name}
    assert "list_policies" in found[name].advice


def test_an_alarm(private_broker):
    private_broker.set_alarm(True)
    try:
        found = findings(private_broker.url)
    finally:
        private_broker.set_alarm(False)
    assert failed(found) == {"publish"}
    assert "blocks publishers" in found["publish"].advice


def test_a_silent_broker(private_broker):
    os.kill(private_broker.pid, signal.SIGSTOP)
    try:
        found = findings(private_broker.url, options=Options(timeout=0.5))
    finally:
        os.kill(private_broker.pid, signal.SIGCONT)
    assert failed(found) == {"protocol"}


def test_a_message_that_is_too_large(private_broker):
    # As the nodes of the tests are configured.
    too_large = Options(timeout=10.0, message_size=128 * 2**20 + 1)
    assert failed(findings(private_broker.url, options=too_large)) == {"message size"}
    fits = Options(timeout=10.0, message_size=2**20)
    assert failed(findings(private_broker.url, options=fits)) == set()


def test_a_reply_queue_with_other_arguments(private_broker):
    app = make_app(private_broker.url, FAST)
    with kombu.Connection(private_broker.url) as connection:
        queue = kombu.Queue("other-replies", kombu.Exchange(None), durable=True, expires=60)
        queue(connection.default_channel).declare()
        options = Options(timeout=2.0, reply_queue="other-replies", workers=False)
        found = findings(app=app, options=options)
        assert failed(found) == {"reply queue"}
        assert "x-expires" in found["reply queue"].found
        queue(connection.default_channel).delete()
    assert "no queue other-replies" in findings(app=app, options=options)["reply queue"].found
    assert "other-replies" not in private_broker.queues()


def test_a_queue_of_tasks_is_no_reply_queue(private_broker):
    """Nobody is told to delete it."""
    app = make_app(private_broker.url, FAST, "some-tasks")
    options = Options(timeout=2.0, reply_queue="some-tasks", workers=False)
    found = findings(app=app, options=options)["reply queue"]
    assert (found.mark, found.found) == (Mark.FAIL, "some-tasks is a queue of tasks")
    assert "delete" not in found.advice


def test_a_reply_queue_whose_caller_has_ended(private_broker):
    app = make_app(private_broker.url, FAST)
    queue = app.backend.binding
    options = Options(timeout=2.0, reply_queue=queue.name, workers=False)
    sure = {"confirm_publish": True}
    with kombu.Connection(private_broker.url, transport_options=sure) as connection:
        bound = queue(connection.default_channel)
        bound.declare()
        assert findings(app=app, options=options)["reply queue"].mark is Mark.OK
        connection.Producer().publish("result", routing_key=queue.name)
        found = findings(app=app, options=options)["reply queue"]
        assert (found.mark, found.found) == (Mark.WARN, f"nobody consumes {queue.name} (1 message)")
        bound.delete()


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    files = {"cacertfile": "ca", "certfile": "cert", "keyfile": "key"}
    return {option: f"{folder}/{name}.pem" for option, name in files.items()}


@contextmanager
def node_with_tls(options):
    with RabbitMQ(tls=options) as node:
        wait_until(lambda: listens(node.tls_port), 20, "the TLS listener is there")  # starts later
        yield node


@pytest.fixture(scope="module")
def tls_node(tls_files):
    with node_with_tls(tls_files) as node:
        yield node, tls_files["cacertfile"]


def listens(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class TestTLS:
    def test_verified(self, tls_node):
        broker, authority = tls_node
        app = make_app(broker.tls_url, FAST)
        app.conf.broker_use_ssl = {"ca_certs": authority, "cert_reqs": ssl.CERT_REQUIRED}
        found = findings(app=app, options=Options(workers=False))
        assert failed(found) == set()
        assert "TLSv1" in found["tls"].found
        assert "not the host name" in found["tls"].found
        app.conf.broker_use_ssl["server_hostname"] = "localhost"
        found = findings(app=app, options=Options(workers=False))
        assert (failed(found), found["tls"].mark) == (set(), Mark.OK)
        app.conf.broker_use_ssl["server_hostname"] = "elsewhere.example"
        found = findings(app=app, options=Options(workers=False))
        assert failed(found) == {"login"}
        assert "not trusted" in found["login"].found

    def test_a_client_certificate_that_is_wanted(self, tls_files):
        wanted = {"verify": "verify_peer", "fail_if_no_peer_cert": "true"}
        with node_with_tls({**tls_files, **wanted}) as node:
            app = make_app(node.tls_url, FAST)
            app.conf.broker_use_ssl = {
                "ca_certs": tls_files["cacertfile"],
                "cert_reqs": ssl.CERT_REQUIRED,
            }
            found = findings(app=app, options=Options(workers=False))
        assert failed(found) == {"protocol"}
        assert "set certfile and keyfile" in found["protocol"].advice

    def test_an_unknown_authority(self, tls_node):
        found = findings(tls_node[0].tls_url)
        assert failed(found) == {"login"}
        assert "not trusted" in found["login"].found

    def test_no_verification_is_worth_a_warning(self, tls_node):
        app = make_app(tls_node[0].tls_url, FAST)
        app.conf.broker_use_ssl = {"cert_reqs": ssl.CERT_NONE}
        assert findings(app=app, options=Options(workers=False))["tls"].mark is Mark.WARN

    def test_plain_amqp_to_the_tls_port(self, tls_node):
        found = findings(tls_node[0].url_for(tls_node[0].tls_port))
        assert failed(found) == {"protocol"}
        assert "amqps://" in found["protocol"].advice


class TestWorkers:
    def test_no_worker(self, own_vhost):
        found = findings(app=make_app(own_vhost, FAST, "fastrpc-tests-doctor-none"))
        assert failed(found) == set()
        assert found["task queues"].mark is Mark.WARN
        assert found["workers"].mark is Mark.WARN

    def test_a_worker_answers(self, own_vhost):
        queue = "fastrpc-tests-doctor"
        app = make_app(own_vhost, FAST, queue)
        with Worker(own_vhost, FAST, pool="solo", queues=(queue,)) as worker:
            found = findings(app=app)
        assert failed(found) == set()
        assert worker.name in found["workers"].found
        assert "fastrpc://" in found["worker backends"].found
        assert "1 worker within" in found["clocks"].found
        assert "a result came back" in found["task"].found
        assert "supports no chords" in found["chord"].found
        assert "worker loops" not in found

    def test_a_worker_with_another_backend(self, own_vhost, redis_server):
        queue = "fastrpc-tests-doctor-redis"
        app = make_app(own_vhost, FAST, queue)
        yaml = {"result_serializer": "yaml", "accept_content": ["json", "yaml"]}
        options = {"pool": "solo", "queues": (queue,), "conf": yaml}
        with Worker(own_vhost, redis_server.url, **options):
            found = findings(app=app)
        assert failed(found) == {"worker backends", "worker serializers"}
        assert "redis://" in found["worker backends"].found
        assert "in yaml are not accepted" in found["worker serializers"].found
        assert found["task"].mark is Mark.SKIPPED

    def test_a_result_that_is_not_accepted(self, own_vhost):
        queue = "fastrpc-tests-doctor-yaml"
        yaml = {"result_serializer": "yaml", "accept_content": ["json", "yaml"]}
        with Worker(own_vhost, FAST, pool="solo", queues=(queue,), conf=yaml):
            found = findings(app=make_app(own_vhost, FAST, queue))
        assert failed(found) == {"worker serializers", "task"}
        assert "get() raises ContentDisallowed" in found["task"].found

    def test_an_app_that_waits_for_no_result(self, own_vhost):
        queue = "fastrpc-tests-doctor-disabled"
        with Worker(own_vhost, FAST, pool="solo", queues=(queue,)):
            eager = findings(app=make_app(own_vhost, FAST, queue, task_always_eager=True))
            found = findings(app=make_app(own_vhost, "disabled://", queue))
        assert failed(found) == {"backend"}
        assert not {"worker backends", "task", "chord"} & found.keys()
        assert eager["backend"].mark is Mark.WARN
        assert not {"task", "chord"} & eager.keys()

    def test_a_gevent_worker_that_waits_after_each_task(self, own_vhost):
        found, worker = self.examine_gevent(own_vhost)
        assert failed(found) == set()
        if version_info[:2] < (5, 7):
            assert found["worker loops"].mark is Mark.OK
            return
        assert found["worker loops"].mark is Mark.WARN
        assert f"0.1 s after each task in {worker}: about 10 tasks/s" in found["worker loops"].found
        assert "fastrpc.install()" in found["worker loops"].advice
        assert "--without-heartbeat" in found["worker loops"].advice

    @pytest.mark.parametrize(
        "options",
        [
            {"install": True},
            {"args": ("--without-heartbeat",)},
            {"conf": {"broker_heartbeat": 0}},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_a_gevent_worker_that_does_not_wait(self, own_vhost, options):
        found, worker = self.examine_gevent(own_vhost, **options)
        assert failed(found) == set()
        assert found["worker loops"].mark is Mark.OK
        assert worker in found["worker loops"].found

    def test_events_make_a_worker_without_heartbeat_wait(self, own_vhost):
        found, _ = self.examine_gevent(own_vhost, args=("--without-heartbeat", "-E"))
        assert found["worker loops"].mark is (Mark.OK if version_info[:2] < (5, 7) else Mark.WARN)

    def examine_gevent(self, url, **options):
        pytest.importorskip("gevent")
        queue = "fastrpc-tests-doctor-gevent"
        app = make_app(url, FAST, queue)
        with Worker(url, FAST, pool="gevent", queues=(queue,), **options) as worker:
            return findings(app=app), worker.name

    def test_a_chord_where_it_is_switched_on(self, own_vhost):
        queue, backend = "fastrpc-tests-doctor-chord", f"{FAST}?chords=1"
        app = make_app(own_vhost, backend, queue)
        with Worker(own_vhost, backend, pool="solo", queues=(queue,)):
            found = findings(app=app)
        assert failed(found) == set()
        assert "a chord of two tasks" in found["chord"].found

    def test_a_chord_whose_parts_a_stock_worker_runs(self, own_vhost, private_broker):
        queue = "fastrpc-tests-doctor-stock"
        app = make_app(own_vhost, f"{FAST}?chords=1", queue)
        with Worker(own_vhost, "rpc://", pool="solo", queues=(queue,)) as worker:
            found = findings(app=app)
        assert failed(found) == {"chord"}
        assert found["chord"].found.endswith(f"perhaps without fastrpc: {worker.name}")
        assert "move all workers" in found["chord"].advice
        assert not [name for name in private_broker.queues(__name__) if "chord." in name]


@pytest.mark.slow
@pytest.mark.parametrize(("celery", "mark"), [("5.7.0", Mark.NOTE), ("5.6.1", Mark.FAIL)])
def test_a_broker_without_transient_queues(private_broker, celery, mark, monkeypatch):
    if int(private_broker.ctl("version").split(".")[0]) < 4:
        pytest.skip("RabbitMQ before 4 cannot deny them")
    monkeypatch.setattr("celery.__version__", celery)
    config = ["deprecated_features.permit.transient_nonexcl_queues = false"]
    with RabbitMQ(config=config) as node:
        found = findings(node.url)["deprecated features"]
    assert found.mark is mark
    assert "transient_nonexcl_queues" in found.found
    assert "\n" not in found.found
