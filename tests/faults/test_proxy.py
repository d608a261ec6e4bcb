"""The fault-injecting proxy works as documented: the fault tests rely on it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.support.proxy import TO_CLIENT, TO_SERVER, Proxy
from tests.support.waiting import wait_until


class EchoServer:
    """Sends back what it gets, and remembers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received = bytearray()
        self.endings: list[str] = []
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.accepted += 1
                threading.Thread(target=self._echo, args=(sock,), daemon=True).start()

    def _echo(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    self.received += data
                    sock.sendall(data)
                self.endings.append("fin")
            except OSError:
                self.endings.append("rst")


@pytest.fixture
def echo():
    server = EchoServer()
    yield server
    server.listener.close()


@pytest.fixture
def proxy(echo):
    with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy):
    with contextlib.ExitStack() as stack:

        def connect() -> socket.socket:
            sock = socket.create_connection(("127.0.0.1", proxy.port), 5)
            return stack.enter_context(sock)

        yield connect


def read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            break
        data += chunk
    return bytes(data)


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return read_exactly(sock, len(data))


def ask_forever(connect) -> None:
    sock = connect()
    while True:
        if not ask(sock, b"x"):
            raise OSError("no answer")


def is_silent(sock: socket.socket, seconds: float = 0.2) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)
    return False


def test_bytes_pass_both_ways_and_are_counted(proxy, connect):
    sock = connect()
    assert ask(sock, b"hello") == b"hello"
    assert ask(sock, b"again") == b"again"
    stats = proxy.stats
    assert (stats[TO_SERVER], stats[TO_CLIENT]) == (10, 10)
    assert (stats["accepted"], stats["open"], stats["cut"]) == (1, 1, 0)


def test_megabytes_pass_unharmed_while_the_reader_is_slow_to_start(connect):
    sock, data = connect(), bytes(range(256)) * 40_000
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    assert read_exactly(sock, len(data)) == data
    sender.join(5)


def test_a_limited_path_is_shared(echo, proxy, connect):
    socks, data = [connect() for _ in range(2)], b"x" * 100_000
    proxy.limit(1_000_000)
    started = time.monotonic()
    for sock in socks:
        threading.Thread(target=sock.sendall, args=(data,), daemon=True).start()
    for sock in socks:
        assert read_exactly(sock, len(data)) == data
    assert time.monotonic() - started >= 0.15
    proxy.limit(None)
    assert ask(socks[0], data) == data
    assert proxy.stats[TO_SERVER] == 300_000


def test_end_of_stream_is_passed_on_and_the_answer_still_arrives(echo, proxy, connect):
    sock = connect()
    sock.sendall(b"last words")
    sock.shutdown(socket.SHUT_WR)
    assert read_exactly(sock, 100) == b"last words"
    wait_until(lambda: echo.endings == ["fin"], 5, "the server sees FIN")
    wait_until(lambda: proxy.stats["open"] == 0, 5, "the connection is gone")


def test_cut_resets_every_connection_at_both_ends(echo, proxy, connect):
    socks = [connect() for _ in range(3)]
    assert [ask(sock, b"x") for sock in socks] == [b"x"] * 3
    assert proxy.cut() == 3
    for sock in socks:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wait_until(lambda: echo.endings == ["rst"] * 3, 5, "the server sees RST")
    assert ask(connect(), b"new") == b"new"


def test_cut_by_fin_looks_like_a_clean_close(proxy, connect):
    sock = connect()
    ask(sock, b"x")
    proxy.cut(rst=False)
    assert sock.recv(1) == b""


def test_cut_every_goes_on_until_it_is_ended(proxy, connect):
    proxy.cut_every(0.05)
    for _ in range(3):
        with pytest.raises(OSError, match=r"reset|Broken pipe|no answer"):
            ask_forever(connect)
    proxy.cut_every(None)
    sock = connect()
    assert ask(sock, b"x") == b"x"
    assert is_silent(sock)
    assert ask(sock, b"y") == b"y"


def test_frozen_connections_are_silent_and_deliver_after_the_thaw(echo, proxy, connect):
    old = connect()
    ask(old, b"before")
    proxy.freeze()
    new = connect()
    old.sendall(b"held")
    new.sendall(b"back")
    assert is_silent(old)
    assert is_silent(new)
    assert echo.accepted == 1
    assert echo.endings == []
    proxy.thaw()
    assert read_exactly(old, 4) == b"held"
    assert read_exactly(new, 4) == b"back"


def test_a_frozen_proxy_holds_the_servers_bytes_back_too(proxy, connect):
    sock = connect()
    data = b"x" * 5_000_000
    sender = threading.Thread(target=sock.sendall, args=(data,))
    sender.start()
    assert read_exactly(sock, 1000) == data[:1000]
    proxy.freeze()
    assert proxy.stats == proxy.stats
    proxy.thaw()
    assert read_exactly(sock, len(data) - 1000) == data[1000:]
    sender.join(5)


def test_every_client_reads_what_is_injected_after_what_was_sent(proxy, connect):
    socks = connect(), connect()
    for sock in socks:
        assert ask(sock, b"sent") == b"sent"
    proxy.inject(b"\x00\xff")
    for sock in socks:
        assert read_exactly(sock, 2) == b"\x00\xff"
        assert ask(sock, b"still here") == b"still here"


def test_refuse_turns_new_clients_away_and_keeps_the_old_ones(proxy, connect):
    old = connect()
    ask(old, b"x")
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    assert ask(old, b"still here") == b"still here"
    proxy.listen()
    assert ask(connect(), b"back") == b"back"


@pytest.mark.parametrize("count", [1, 7, 8, 100_000])
def test_cut_after_lets_exactly_so_many_bytes_reach_the_client(proxy, connect, count):
    sock = connect()
    ask(sock, b"warm")
    proxy.cut_after(count, TO_CLIENT)
    sender = threading.Thread(target=lambda: _send_quietly(sock, b"z" * 200_000))
    sender.start()
    got = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := sock.recv(65536):
            got += chunk
    sender.join(5)
    assert len(got) == count
    assert proxy.stats[TO_CLIENT] == 4 + count


@pytest.mark.parametrize("count", [1, 7, 100_000])
def test_cut_after_lets_exactly_so_many_bytes_reach_the_server(echo, proxy, connect, count):
    sock = connect()
    ask(sock, b"warm")
    proxy.cut_after(count, TO_SERVER)
    _send_quietly(sock, b"z" * 200_000)
    wait_until(lambda: echo.endings == ["rst"], 5, "the server sees RST")
    assert proxy.stats[TO_SERVER] == 4 + count
    assert len(echo.received) <= 4 + count


def test_a_server_that_is_down_resets_the_client(echo, proxy, connect):
    echo.listener.close()
    wait_until(lambda: not _connects(echo.port), 5, "the server is down")
    with pytest.raises(ConnectionResetError):
        connect().recv(1)


def test_one_connection_passes_a_hundred_thousand_small_messages_quickly(connect):
    sock, count = connect(), 100_000
    started = time.monotonic()
    sender = threading.Thread(target=lambda: [sock.sendall(b"0123456789") for _ in range(count)])
    sender.start()
    assert len(read_exactly(sock, 10 * count)) == 10 * count
    sender.join(5)
    assert time.monotonic() - started < 20


def _send_quietly(sock: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(data)


def _connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
