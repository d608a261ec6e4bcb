"""A TCP proxy that breaks connections on command.

It runs in a process of its own, so that neither the tests' GIL nor their monkey-patching
slows it, and is driven by lines of JSON over its standard input and output:

    with Proxy(broker.host, broker.port) as proxy:
        app = Celery(broker=broker.url_for(proxy.port), ...)
        proxy.cut()

Every command has taken effect when its method returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from typing import Any

from tests.support.processes import ROOT

__all__ = ["Proxy"]

TO_SERVER = "to_server"
TO_CLIENT = "to_client"
CHUNK = 1 << 18
#: Seconds between two shares of what a limited path lets pass.
SHARE_INTERVAL = 0.005


class Proxy:
    """The handle that a test holds; the proxy itself is the child process."""

    def __init__(self, host: str, port: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.proxy", host, str(port)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.host = "127.0.0.1"
        self.port: int = self._reply()["port"]

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        """End the proxy, and with it every connection."""
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.process.stdout.close()

    def cut(self, *, rst: bool = True) -> int:
        """Break every connection, by RST or by FIN; return how many there were."""
        return self._do("cut", rst=rst)["cut"]

    def cut_every(self, seconds: float | None) -> None:
        """Break every connection again and again; None ends it."""
        self._do("cut_every", seconds=seconds)

    def cut_after(self, count: int, direction: str = TO_CLIENT) -> None:
        """Let exactly `count` more bytes pass in that direction, then break every connection."""
        self._do("cut_after", count=count, direction=direction)

    def limit(self, rate: float | None, direction: str = TO_SERVER) -> None:
        """Let `rate` bytes a second pass in that direction, shared by all connections that have
        any; None lets all pass."""
        self._do("limit", rate=rate, direction=direction)

    def freeze(self) -> None:
        """Half-open: connections are accepted and stay open, but no byte passes."""
        self._do("freeze")

    def freeze_after(self, count: int, direction: str = TO_CLIENT) -> None:
        """Let exactly `count` more bytes pass in that direction, then freeze()."""
        self._do("freeze_after", count=count, direction=direction)

    def inject(self, data: bytes) -> None:
        """Insert `data` into the stream to every client, after what the server has sent so far."""
        self._do("inject", data=data.hex())

    def thaw(self) -> None:
        """Pass on what freeze() held back, and everything after it."""
        self._do("thaw")

    def refuse(self) -> None:
        """Stop listening. Open connections stay; cut() breaks them."""
        self._do("refuse")

    def listen(self) -> None:
        """Listen again, on the same port."""
        self._do("listen")

    @property
    def stats(self) -> dict[str, int]:
        """`to_server` and `to_client` (bytes), `accepted`, `open` and `cut` (connections)."""
        return self._do("stats")

    def _do(self, command: str, **args: Any) -> dict[str, Any]:
        self.process.stdin.write(json.dumps({"do": command, **args}) + "\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with status {self.process.wait(5)}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"the proxy failed: {reply['error']}")
        return reply


# -- the child process


class _Pipe:
    """One direction of one connection: what was read and not yet written."""

    def __init__(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.held = bytearray()
        self.ended = False  # the source has said FIN


class _Connection:
    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.pipes: list[_Pipe] = []

    def connect(self, target: tuple[str, int]) -> None:
        self.server = socket.create_connection(target, 5)
        for sock in (self.client, self.server):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.pipes = [
            _Pipe(self.client, self.server, TO_SERVER),
            _Pipe(self.server, self.client, TO_CLIENT),
        ]

    @property
    def sockets(self) -> list[socket.socket]:
        return [sock for sock in (self.client, self.server) if sock is not None]


class _Serve:
    """The event loop."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.selector = selectors.DefaultSelector()
        self.connections: list[_Connection] = []
        self.counts = {TO_SERVER: 0, TO_CLIENT: 0, "accepted": 0, "cut": 0}
        self.budget: dict[str, int] = {}  # direction -> bytes until the cut
        self.frozen = False
        self.freezes = False  # what is to happen when a budget is used up: a cut, or this
        self.interval: float | None = None
        self.next_cut = 0.0
        self.rates: dict[str, float] = {}  # direction -> bytes a second
        self.next_share = 0.0
        self.port = 0
        self.listener: socket.socket | None = None
        #: Keeps the port while there is no listener.
        self.holder: socket.socket | None = None
        self.commands = b""
        self.do_listen()
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, self.on_command)
        self.say({"port": self.port})

    def run(self) -> None:
        while True:
            ends = [self.next_cut] if self.interval is not None else []
            ends += [self.next_share] if self.rates else []
            timeout = max(0.0, min(ends) - time.monotonic()) if ends else None
            for key, mask in self.selector.select(timeout):
                # A handler may have closed the socket of a later event.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(mask)
            if self.interval is not None and time.monotonic() >= self.next_cut:
                self.next_cut = time.monotonic() + self.interval
                self.do_cut()
            if self.rates and time.monotonic() >= self.next_share:
                self.share_out()

    # -- commands

    @staticmethod
    def say(reply: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()

    def on_command(self, _mask: int) -> None:
        data = os.read(0, CHUNK)
        if not data:
            raise SystemExit(0)
        *lines, self.commands = (self.commands + data).split(b"\n")
        for line in lines:
            args = json.loads(line)
            try:
                self.say(getattr(self, f"do_{args.pop('do')}")(**args) or {})
            except Exception as exc:
                self.say({"error": repr(exc)})

    def do_cut(self, rst: bool = True) -> dict[str, int]:
        count = len(self.connections)
        for connection in list(self.connections):
            self.drop(connection, rst=rst)
        self.counts["cut"] += count
        return {"cut": count}

    def do_cut_every(self, seconds: float | None) -> None:
        self.interval = seconds
        if seconds is not None:
            self.next_cut = time.monotonic() + seconds

    def do_cut_after(self, count: int, direction: str) -> None:
        if direction not in (TO_SERVER, TO_CLIENT):
            raise ValueError(direction)
        self.budget[direction] = count
        self.freezes = False

    def do_freeze_after(self, count: int, direction: str) -> None:
        self.do_cut_after(count, direction)
        self.freezes = True

    def do_limit(self, rate: float | None, direction: str) -> None:
        self.rates.pop(direction, None)
        if rate is not None:
            self.rates[direction] = rate
        self.watch_all()

    def share_out(self) -> None:
        """Let pass as many bytes as the limits allow until the next call."""
        self.next_share = max(self.next_share + SHARE_INTERVAL, time.monotonic())
        for direction, rate in self.rates.items():
            waiting = [
                (connection, pipe)
                for connection in self.connections
                for pipe in connection.pipes
                if pipe.direction == direction and pipe.held and not self.frozen
            ]
            for connection, pipe in waiting:
                share = int(rate * SHARE_INTERVAL / len(waiting))
                self.serve(connection, lambda pipe=pipe, share=share: self.flush(pipe, share))

    def do_freeze(self) -> None:
        self.frozen = True
        self.watch_all()

    def do_thaw(self) -> None:
        self.frozen = False
        for connection in list(self.connections):
            if connection.server is None:
                self.connect(connection)
        self.watch_all()

    def do_inject(self, data: str) -> None:
        for connection in self.connections:
            for pipe in connection.pipes:
                if pipe.direction == TO_CLIENT:
                    pipe.held += bytes.fromhex(data)
        self.watch_all()

    def do_refuse(self) -> None:
        if self.listener is not None:
            self.selector.unregister(self.listener)
            self.listener.close()
            self.listener = None
            # It is bound, but does not listen: nobody else gets the port meanwhile.
            self.holder = socket.socket()
            self.holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.holder.bind(("127.0.0.1", self.port))

    def do_listen(self) -> None:
        if self.listener is None:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
            self.listener.setblocking(False)
            if self.holder is not None:
                self.holder.close()
                self.holder = None
            self.port = self.listener.getsockname()[1]
            self.selector.register(self.listener, selectors.EVENT_READ, self.on_accept)

    def do_stats(self) -> dict[str, int]:
        return {**self.counts, "open": len(self.connections)}

    # -- connections

    def on_accept(self, _mask: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = self.listener.accept()
            self.counts["accepted"] += 1
            connection = _Connection(client)
            self.connections.append(connection)
            if not self.frozen:
                self.connect(connection)

    def connect(self, connection: _Connection) -> None:
        try:
            connection.connect(self.target)
        except OSError:
            self.drop(connection)
        else:
            self.watch(connection)

    def drop(self, connection: _Connection, rst: bool = True) -> None:
        if connection not in self.connections:
            return  # it was cut meanwhile
        for sock in connection.sockets:
            with contextlib.suppress(KeyError, ValueError):
                self.selector.unregister(sock)
            if rst:
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.close()
        self.connections.remove(connection)

    def watch_all(self) -> None:
        for connection in self.connections:
            self.watch(connection)

    def watch(self, connection: _Connection) -> None:
        """Register for the events that can be handled next; for none while frozen."""
        for sock in connection.sockets:
            events = 0
            if not self.frozen:
                for pipe in connection.pipes:
                    # A slow reader slows the writer, as on a direct connection.
                    if pipe.source is sock and not pipe.ended and len(pipe.held) < CHUNK:
                        events |= selectors.EVENT_READ
                    if pipe.sink is sock and pipe.held and pipe.direction not in self.rates:
                        events |= selectors.EVENT_WRITE
            self.set_events(sock, events, connection)

    def set_events(self, sock: socket.socket, events: int, connection: _Connection) -> None:
        known = self.selector.get_map().get(sock.fileno())
        if not events:
            if known is not None:
                self.selector.unregister(sock)
        elif known is None:
            self.selector.register(sock, events, lambda mask: self.on_data(connection, sock, mask))
        elif known.events != events:
            self.selector.modify(sock, events, known.data)

    def on_data(self, connection: _Connection, sock: socket.socket, mask: int) -> None:
        def pass_on() -> None:
            for pipe in connection.pipes:
                if mask & selectors.EVENT_READ and pipe.source is sock:
                    self.fill(pipe)
                    self.flush(pipe)
                elif mask & selectors.EVENT_WRITE and pipe.sink is sock:
                    self.flush(pipe)

        self.serve(connection, pass_on)

    def serve(self, connection: _Connection, step: Callable[[], None]) -> None:
        try:
            step()
        except BlockingIOError:
            pass
        except OSError:
            # The broken end's news is passed on as it came.
            self.drop(connection)
            return
        if connection not in self.connections:
            return
        if connection.pipes and all(p.ended and not p.held for p in connection.pipes):
            self.drop(connection, rst=False)
        else:
            self.watch(connection)

    def fill(self, pipe: _Pipe) -> None:
        data = pipe.source.recv(CHUNK)
        pipe.held += data
        if not data:
            pipe.ended = True

    def flush(self, pipe: _Pipe, share: int | None = None) -> None:
        if pipe.held:
            if pipe.direction in self.rates and share is None:
                return  # share_out() does it
            allowed = self.budget.get(pipe.direction, len(pipe.held))
            allowed = min(allowed, share or allowed)
            sent = pipe.sink.send(memoryview(pipe.held)[:allowed]) if allowed else 0
            del pipe.held[:sent]
            self.counts[pipe.direction] += sent
            if pipe.direction in self.budget:
                self.budget[pipe.direction] -= sent
                if not self.budget[pipe.direction]:
                    del self.budget[pipe.direction]
                    self.await_delivery(pipe.sink)
                    if self.freezes:
                        self.do_freeze()
                    else:
                        self.do_cut()
                    return
        if pipe.ended and not pipe.held:
            pipe.sink.shutdown(socket.SHUT_WR)

    @staticmethod
    def await_delivery(sock: socket.socket) -> None:
        """A reset discards what the kernel has not sent yet: let it go out first."""
        for _ in range(500):
            unsent = fcntl.ioctl(sock, termios.TIOCOUTQ, struct.pack("i", 0))
            if not struct.unpack("i", unsent)[0]:
                return
            time.sleep(0.001)


if __name__ == "__main__":
    _Serve((sys.argv[1], int(sys.argv[2]))).run()
