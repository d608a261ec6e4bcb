"""TLS with a certificate authority of our own: verified, or refused."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from celery.exceptions import SoftTimeLimitExceeded, TimeoutError
from kombu.exceptions import OperationalError

from fastrpc import aio, apply_many
from fastrpc.sending import link, publisher
from fastrpc.transport.transports import SSLTransport, Transport
from tests.support import inside
from tests.support.apps import make_app
from tests.support.authority import Authority
from tests.support.broker import RabbitMQ
from tests.support.installed import installed
from tests.support.loops import run
from tests.support.processes import Child, sys_exit_with_atexit
from tests.support.proxy import Proxy
from tests.support.results import answer, await_confirms, expect
from tests.support.threads import Background, run_threads
from tests.support.waiting import stopwatch, wait_until


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls_broker(broker, authority):
    """A broker that asks each client for a certificate, and whose own is for localhost only."""
    del broker
    tls = {
        "cacertfile": authority.cafile,
        **authority.issue("server", "localhost"),
        "verify": "verify_peer",
        "fail_if_no_peer_cert": "true",
    }
    # Erlang's TLS takes a hundred packets ahead of its reader: small ones, so that it soon stops.
    sizes = [f"tcp_listen_options.{name} = 65536" for name in ("recbuf", "buffer")]
    with RabbitMQ(tls=tls, config=sizes) as node:
        yield node


@pytest.fixture(scope="module")
def trusting(authority) -> dict:
    mine = authority.issue("client", "fastrpc-client")
    return {"ca_certs": authority.cafile, "cert_reqs": ssl.CERT_REQUIRED, **mine}


def round_trip(app, count: int = 10, value=None) -> None:
    results = expect(app, count)
    answer(app, app.backend.oid, results, value)
    want = list(range(count)) if value is None else [value] * count
    assert [result.get(timeout=20) for result in results] == want


def url_through(proxy: Proxy, broker: RabbitMQ) -> str:
    return broker.tls_url.replace(str(broker.tls_port), str(proxy.port))


def refused(app, words: str) -> None:
    with stopwatch(5, "get()"), pytest.raises(OperationalError, match=words):
        app.AsyncResult("some-id").get(timeout=20)
    with stopwatch(5, "store_result"), pytest.raises(OperationalError, match=words):
        answer(app, "some-queue", ["some-id"])


def test_results_travel_over_tls(tls_broker, make_client, trusting):
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    round_trip(app)
    sock = inside.intake_socket(app)
    assert isinstance(sock, ssl.SSLSocket)
    assert sock.version() in ("TLSv1.2", "TLSv1.3")


@pytest.mark.parametrize("method", ["do_handshake", "unwrap"])
def test_a_time_limit_in_the_middle_of_tls(tls_broker, make_client, trusting, monkeypatch, method):
    """It ends the wait in which it strikes, and no later one."""
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    if method == "unwrap":
        round_trip(app)
    stock, struck = getattr(ssl.SSLSocket, method), []

    def strike(sock: ssl.SSLSocket, *args: object, **kwargs: object) -> object:
        if struck:
            return stock(sock, *args, **kwargs)
        struck.append(sock)
        if method == "unwrap":
            stock(sock)
        raise SoftTimeLimitExceeded

    monkeypatch.setattr(ssl.SSLSocket, method, strike)
    interrupted = inside.intake(app).close if method == "unwrap" else app.AsyncResult("some-id").get
    with pytest.raises(SoftTimeLimitExceeded):
        interrupted()
    assert struck
    round_trip(app)
    assert [sock.fileno() for sock in struck] == [-1]


@pytest.mark.parametrize("confirm", [False, True, "pipelined"])
def test_tasks_travel_over_tls(tls_broker, make_client, trusting, confirm):
    """With install(): one call, large and small, and many."""
    with installed():
        conf = {
            "broker_use_ssl": trusting,
            "broker_transport_options": {"confirm_publish": confirm},
        }
        queue = f"fastrpc-faults-tls-{confirm}"
        app = make_app(tls_broker.tls_url, "rpc://", queue, **conf)
        echo = app.tasks["tests.echo"]
        sent = [echo.apply_async(("x" * size,)).id for size in (1, 16_384, 1_000_000, 5_000_000)]
        sent += [result.id for result in apply_many(echo, (("y" * 500,) for _ in range(2_000)))]
        with app.connection_for_read() as connection:
            assert isinstance(connection.transport, SSLTransport | Transport)
            channel = connection.default_channel
            assert isinstance(connection.connection.sock, ssl.SSLSocket)
            wait_until(
                lambda: channel.queue_declare(queue, passive=True).message_count == len(sent),
                20,
                "all have arrived",
            )
            got = [channel.basic_get(queue, no_ack=True) for _ in sent]
        arrived = [message.properties["correlation_id"] for message in got]
        if confirm == "pipelined":  # many go over another connection than one, and may pass it
            assert sorted(arrived) == sorted(sent)
        else:
            assert arrived == sent
        app.backend.close()
        app.close()


@pytest.mark.parametrize("size", [16_000, 16_384, 131_072, 1_000_000, 5_000_000])
def test_big_results_across_records(tls_broker, make_client, trusting, size):
    """A record holds 16 KiB; decrypted but unread bytes are no longer in the socket."""
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    round_trip(app, 3, "x" * size)
    round_trip(app, 50)


def test_a_stream_while_others_sleep(tls_broker, make_client, trusting):
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    results = [expect(app, 200) for _ in range(8)]
    oid = app.backend.oid
    waiting = Background(lambda: run_threads(8, lambda n: [r.get(timeout=30) for r in results[n]]))
    for each in results:
        answer(app, oid, each)
    assert waiting.result(40) == [list(range(200))] * 8


def test_threads_call_and_wait_over_one_connection(tls_broker, make_client, trusting):
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)

    def call(n: int) -> list[int]:
        results = expect(app, 50)
        answer(app, app.backend.oid, results)
        return [result.get(timeout=30) for result in results]

    assert run_threads(16, call) == [list(range(50))] * 16


@pytest.mark.parametrize("size", [10, 131_072])
def test_awaits_over_tls(tls_broker, make_client, trusting, size):
    """Only who reads may write here; and what was decrypted no socket tells of."""
    with Proxy("localhost", tls_broker.tls_port) as proxy:
        app = make_client(url_through(proxy, tls_broker), broker_use_ssl=trusting)
        sender = make_client(tls_broker.tls_url, broker_use_ssl=trusting)

        async def main():
            for _ in range(3):
                results = await asyncio.to_thread(expect, app, 100)
                gathering = asyncio.create_task(aio.gather(*results, timeout=30))
                oid = inside.reply_queues(app)[-1]
                await asyncio.to_thread(answer, sender, oid, results, "x" * size)
                in_thread = await asyncio.to_thread(expect, app, 1)
                await asyncio.to_thread(answer, sender, inside.reply_queues(app)[-1], in_thread)
                assert await asyncio.to_thread(in_thread[0].get, 20) == 0
                assert await gathering == ["x" * size] * 100
                await asyncio.to_thread(proxy.cut)

        run(main())


def test_verified_by_default(tls_broker, make_client, authority):
    """amqps:// alone: the certificate must come from an authority the system trusts."""
    app = make_client(tls_broker.tls_url)
    refused(app, "(?i)certificate verify failed|unknown ca|self.signed")


@pytest.mark.parametrize(
    "more",
    [
        {"server_hostname": None},  # kombu's way to say: that of the URL
        {"server_hostname": "elsewhere.example"},
        pytest.param(
            {},
            marks=pytest.mark.xfail(
                strict=True,
                reason="py-amqp compares the name in the certificate only where server_hostname "
                "is set, for tasks as for results",
            ),
        ),
    ],
    ids=["of the URL", "given", "default"],
)
def test_the_wrong_host_is_refused(tls_broker, make_client, trusting, more):
    url = tls_broker.tls_url.replace("localhost", "127.0.0.1")
    app = make_client(url, broker_use_ssl={**trusting, **more})
    with stopwatch(5, "get()"), pytest.raises(OperationalError, match=r"(?i)mismatch"):
        app.AsyncResult("some-id").get(timeout=4)
    with stopwatch(5, "store_result"), pytest.raises(OperationalError, match=r"(?i)mismatch"):
        answer(app, "some-queue", ["some-id"])


@contextmanager
def tls_server(files: dict[str, str]) -> Iterator[int]:
    """A server that speaks only TLS, for clients that fail in the handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["certfile"], files["keyfile"])

    def serve() -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with suppress(OSError), context.wrap_socket(sock, server_side=True) as secure:
                    secure.recv(100)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = Background(serve)
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        serving.result(5)


def test_an_expired_certificate_is_refused(make_client, authority, trusting):
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    with tls_server(authority.issue("expired", "localhost", not_after=past)) as port:
        app = make_client(f"amqps://guest:guest@localhost:{port}//", broker_use_ssl=trusting)
        refused(app, "(?i)expired")


def test_a_client_without_a_certificate_is_refused(tls_broker, make_client, trusting):
    """The broker refuses it in the middle of connecting; we cannot know that this is final."""
    only_trusting = {k: v for k, v in trusting.items() if k not in ("certfile", "keyfile")}
    app = make_client(tls_broker.tls_url, broker_use_ssl=only_trusting)
    with stopwatch(2.5, "get(1)"), pytest.raises((OperationalError, TimeoutError)):
        app.AsyncResult("some-id").get(timeout=1)


def test_cut_in_the_middle_of_a_record(tls_broker, make_client, trusting):
    with Proxy("localhost", tls_broker.tls_port) as proxy:
        app = make_client(url_through(proxy, tls_broker), broker_use_ssl=trusting)
        sender = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
        round_trip(app, 5)
        results = expect(app, 50)
        proxy.cut_after(100_000)
        answer(sender, app.backend.oid, results, "x" * 10_000)
        assert [result.get(timeout=20) for result in results] == ["x" * 10_000] * 50
        assert app.backend.stats()["reconnects"] == 1


def test_a_silent_peer_is_given_up(tls_broker, make_client, trusting, monkeypatch):
    """It does not answer the shutdown handshake of TLS either."""
    monkeypatch.setattr(publisher, "SILENCE", 2.0)
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    with Proxy("localhost", tls_broker.tls_port) as proxy:
        sender = make_client(url_through(proxy, tls_broker), broker_use_ssl=trusting)
        first, last = expect(app, 2)
        answer(sender, app.backend.oid, [first])
        await_confirms(sender)
        link = inside.link(sender)
        proxy.freeze()
        answer(sender, app.backend.oid, [last])
        wait_until(lambda: inside.link(sender) is not link, 10, "it is given up")
        proxy.thaw()
        assert last.get(timeout=10) == 0
        await_confirms(sender)
        sender.backend.close()


def test_a_long_alarm_in_the_middle_of_a_large_result(
    tls_broker, make_client, trusting, monkeypatch
):
    """The unsent rest of a TLS write must be written again unchanged."""
    monkeypatch.setattr(publisher, "SILENCE", 3.0)
    monkeypatch.setattr(publisher, "HEARTBEAT", 2, raising=False)
    monkeypatch.setattr(link, "WRITE_TIMEOUT", 3)
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    once = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1}
    sender = make_client(
        tls_broker.tls_url, broker_use_ssl=trusting, options={"retry_policy": once}
    )
    small, large = expect(app, 2)
    oid = app.backend.oid
    answer(sender, oid, [small])
    await_confirms(sender)
    tls_broker.set_alarm(True)
    try:
        sending = Background(lambda: answer(sender, oid, [large], "xyz" * (16 << 20)))
        sending.thread.join(10)
        assert sending.running
        assert inside.link(sender, large=True).blocked
    finally:
        tls_broker.set_alarm(False)
    sending.result(30)
    assert large.get(timeout=30) == "xyz" * (16 << 20)
    assert small.get(timeout=10) == 0
    await_confirms(sender)


def test_a_fork_leaves_the_parents_tls_connection_alone(tls_broker, make_client, trusting):
    app = make_client(tls_broker.tls_url, broker_use_ssl=trusting)
    round_trip(app)
    intake = inside.intake(app)
    for _ in range(3):
        Child(lambda: round_trip(app), sys_exit_with_atexit).result()
    round_trip(app)
    wait_until(lambda: app.backend.stats()["unconfirmed"] == 0, 5, "all is confirmed")
    assert inside.intake(app) is intake
    assert app.backend.stats()["reconnects"] == 0
