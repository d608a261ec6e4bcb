"""Private, throw-away servers for the tests: a RabbitMQ node and a Redis.

Each runs on free loopback ports with all of its files in one temporary folder, and leaves
nothing behind: no shared epmd, no cookie in the home folder, no node of the same name.

    with RabbitMQ() as broker:
        Celery(broker=broker.url, backend="fastrpc://")

`python -m tests.support.broker COMMAND` runs a command with BROKER_URL set to such a node.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.support.waiting import wait_until

__all__ = ["Cluster", "MissingServer", "RabbitMQ", "Redis", "free_port", "settle"]

# Debian's /usr/sbin/rabbitmq-server is a wrapper that switches user; these do not.
RABBITMQ_SCRIPTS = (
    "/usr/lib/rabbitmq/bin",
    "/usr/local/lib/rabbitmq/bin",
    "/opt/rabbitmq/sbin",
    "/usr/local/opt/rabbitmq/sbin",
)
#: The folder of an installed system, in which the node, rabbitmqctl and epmd run by chroot. Its
#: /tmp has to be ours, see `make test-rabbitmq4`.
ROOT = os.environ.get("FASTRPC_TEST_RABBITMQ_ROOT", "")
CHROOT = ["chroot", ROOT] if ROOT else []
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
START_TIMEOUT = 90.0


class MissingServer(RuntimeError):
    """A server binary that the tests need is not installed; the text says how to install it."""


#: UDP sockets, bound to the numbers of the ports that ``free_port`` gave out. A server listens on
#: its port only seconds later, and tests of another process ask for ports meanwhile.
_reserved: list[socket.socket] = []


def free_port() -> int:
    """A loopback port that no process listens on, and that no other caller is given.

    It is below the kernel's ephemeral range: otherwise, while a server is down, an outgoing
    connection of a client could be given this port, and even connect to itself.
    """
    for _ in range(200):
        port = random.randrange(20000, 32000)
        reserved = socket.socket(type=socket.SOCK_DGRAM)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                reserved.bind(("127.0.0.1", port))
            except OSError:
                reserved.close()
                continue
        _reserved.append(reserved)
        return port
    raise RuntimeError("no free port between 20000 and 32000")


def _end(process: subprocess.Popen, sig: int, timeout: float) -> None:
    """Signal a process that leads its own session; kill what is left of the session."""
    if process.poll() is None:
        process.send_signal(sig)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


class _Server:
    """The common parts of both servers: a folder, a log, a context manager."""

    host = "127.0.0.1"

    def __init__(self, name: str) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix=f"fastrpc-{name}-"))
        self.log = self.dir / "server.log"
        self.process: subprocess.Popen | None = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        """Stop cleanly and start again with the same data and ports."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Stop for good and remove every file."""
        try:
            self.stop()
        finally:
            shutil.rmtree(self.dir, ignore_errors=True)

    def _spawn(self, command: list[str], env: Mapping[str, str] | None = None) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.dir,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _await_answer(self) -> None:
        def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} ended at its start:\n{self.log_tail()}")
            return self.answers()

        try:
            wait_until(answers, START_TIMEOUT, f"{type(self).__name__} answers", 0.05)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}\n{self.log_tail()}") from None

    def answers(self) -> bool:
        raise NotImplementedError

    def log_tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class RabbitMQ(_Server):
    """A private RabbitMQ node (3.10 to 4.x).

    `config` are extra lines of rabbitmq.conf; `tls` names the files of a TLS listener
    (`cacertfile`, `certfile`, `keyfile`, and any other `ssl_options` key); `beside` is a node
    whose cookie and port mapper this one shares, so that it can join its cluster. `scripts` is
    the folder of rabbitmq-server and rabbitmqctl, for a version other than the installed one.
    """

    user = "guest"
    password = "guest"

    def __init__(
        self,
        *,
        config: Iterable[str] = (),
        tls: Mapping[str, object] | None = None,
        beside: RabbitMQ | None = None,
        scripts: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.scripts = self._find_scripts(scripts)
        super().__init__("rabbitmq")
        self.port = free_port()
        self.tls_port = free_port() if tls is not None else None
        self.dist_port = free_port()
        self.beside = beside
        self.epmd: subprocess.Popen | None = None
        self.epmd_port = beside.epmd_port if beside else free_port()
        self.nodename = f"fastrpc-{self.port}@localhost"
        self.pid_file = self.dir / "node.pid"
        self._write_files(config, tls)
        self.env = self._environment(env or {})

    # -- its addresses

    @property
    def url(self) -> str:
        return self.url_for()

    @property
    def tls_url(self) -> str:
        return f"amqps://{self.user}:{self.password}@localhost:{self.tls_port}//"

    def url_for(self, port: int | None = None, user: str = "", password: str = "") -> str:
        """The URL of this node, through another port (a proxy's) or as another user."""
        credentials = f"{user or self.user}:{password or self.password}"
        return f"amqp://{credentials}@{self.host}:{port or self.port}//"

    @contextlib.contextmanager
    def vhost(self, name: str) -> Iterator[str]:
        """The URL of a new virtual host. Remote control there reaches no workers of elsewhere."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "-p", name, self.user, ".*", ".*", ".*")
        try:
            yield self.url_for().removesuffix("/") + name
        finally:
            self.ctl("delete_vhost", name)

    @property
    def pid(self) -> int:
        """The process id of the Erlang machine itself, not of the script that started it."""
        return int(self.pid_file.read_text())

    # -- its life

    def start(self) -> None:
        if self.process is not None:
            raise RuntimeError("already started")
        self._start_epmd()
        self.pid_file.unlink(missing_ok=True)
        self.process = self._spawn([*CHROOT, f"{self.scripts}/rabbitmq-server"], self.env)
        self._await_answer()

    def join_cluster(self) -> None:
        """Join the cluster of the node `beside`; this node's own data is dropped."""
        self.ctl("stop_app")
        self.ctl("join_cluster", self.beside.nodename)
        self.ctl("start_app")
        self._await_answer()

    def stop(self) -> None:
        """Stop cleanly: durable data is kept for the next start()."""
        if self.process is not None:
            with contextlib.suppress(OSError, ValueError):
                os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            _end(self.process, signal.SIGKILL, 5)
            self.process = None

    def kill(self) -> None:
        """kill -9: no connection is closed, nothing is flushed."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        _end(self.process, signal.SIGKILL, 5)
        self.process = None

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._stop_epmd()

    def answers(self) -> bool:
        """Whether the node greets an AMQP client: its boot enables that last."""
        try:
            with socket.create_connection((self.host, self.port), 2) as sock:
                sock.sendall(AMQP_HEADER)
                return sock.recv(1) == b"\x01"  # the METHOD frame of Connection.Start
        except OSError:
            return False

    def ctl(self, *args: str, timeout: float = 60) -> str:
        """Run rabbitmqctl against this node; its output, or RuntimeError with it."""
        done = subprocess.run(
            [*CHROOT, f"{self.scripts}/rabbitmqctl", "-q", "-n", self.nodename, *args],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def set_alarm(self, on: bool) -> None:
        """Raise the memory alarm, or clear it; the change is in force when this returns."""
        self.ctl("set_vm_memory_high_watermark", "0" if on else "0.6")
        wait_until(
            lambda: ("memory" in self.ctl("eval", "rabbit_alarm:get_alarms().")) == on,
            10,
            "the alarm is set" if on else "the alarm is over",
        )
        time.sleep(0.2)  # the connections hear of it one by one

    def queues(self, vhost: str = "/") -> dict[str, int]:
        """Name -> number of messages (ready and unacknowledged), for every queue that is up."""
        table = self.ctl(
            "list_queues", "-p", vhost, "--no-table-headers", "name", "messages", "--silent"
        )
        rows = (line.rsplit("\t", 1) for line in table.splitlines() if "\t" in line)
        return {name: int(messages) for name, messages in rows if messages}

    # -- its files

    @staticmethod
    def _find_scripts(wanted: str | None) -> str:
        for folder in (wanted,) if wanted else RABBITMQ_SCRIPTS:
            if os.access(f"{ROOT}{folder}/rabbitmq-server", os.X_OK):
                return folder
        raise MissingServer(
            f"rabbitmq-server was not found in {wanted or ', '.join(RABBITMQ_SCRIPTS)}"
            f"{f' under {ROOT}' if ROOT else ''}: "
            "apt-get install rabbitmq-server, or name a broker that is safe to write to in "
            "FASTRPC_TEST_BROKER_URL"
        )

    def _write_files(self, config: Iterable[str], tls: Mapping[str, object] | None) -> None:
        lines = [
            f"listeners.tcp.1 = {self.host}:{self.port}",
            "disk_free_limit.absolute = 10MB",
            "max_message_size = 134217728",  # as before 4.0, which takes 16 MiB at the most
        ]
        if tls is not None:
            lines.append(f"listeners.ssl.1 = {self.host}:{self.tls_port}")
            lines += [f"ssl_options.{key} = {value}" for key, value in tls.items()]
        (self.dir / "rabbitmq.conf").write_text("\n".join([*lines, *config, ""]))
        (self.dir / "advanced.config").write_text("[].\n")
        (self.dir / "enabled_plugins").write_text("[].\n")
        (self.dir / "rabbitmq-env.conf").write_text("")
        cookie = self.dir / ".erlang.cookie"
        if self.beside:
            shutil.copy(self.beside.dir / ".erlang.cookie", cookie)
        else:
            cookie.write_text("".join(random.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=20)))
        cookie.chmod(0o400)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        # Nothing of the installed service's own settings may leak in.
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RABBITMQ_", "ERL_", "NOTIFY_SOCKET"))
        }
        return {
            **inherited,
            "HOME": str(self.dir),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_CRASH_DUMP": str(self.dir / "erl_crash.dump"),
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": self.host,
            "RABBITMQ_DIST_PORT": str(self.dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": ("-kernel inet_dist_use_interface {127,0,0,1}"),
            "RABBITMQ_MNESIA_BASE": str(self.dir / "data"),
            "RABBITMQ_LOG_BASE": str(self.dir / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(self.pid_file),
            "RABBITMQ_CONFIG_FILE": str(self.dir / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.dir / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.dir / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.dir / "rabbitmq-env.conf"),
            **extra,
        }

    # -- its port mapper: Erlang nodes find each other through it. One of our own, in the
    # foreground, ends when the node is closed, and serves its cluster while it is only stopped;
    # Erlang's own would stay behind as a daemon.

    def _start_epmd(self) -> None:
        if self.beside or self.epmd is not None:
            return
        command = self._find_epmd()
        self.epmd = self._spawn(
            [*CHROOT, command, "-port", str(self.epmd_port), "-address", self.host], self.env
        )
        wait_until(self._epmd_answers, 10, "epmd answers")

    def _stop_epmd(self) -> None:
        if self.epmd is not None:
            _end(self.epmd, signal.SIGTERM, 2)
            self.epmd = None

    def _epmd_answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.epmd_port), 1):
                return True
        except OSError:
            return False

    @staticmethod
    def _find_epmd() -> str:
        if not ROOT and (found := shutil.which("epmd")):
            return found
        for found in Path(f"{ROOT}/usr/lib/erlang").glob("erts-*/bin/epmd"):
            return str(found).removeprefix(ROOT)
        raise MissingServer("epmd was not found: apt-get install erlang-base")


class Cluster:
    """A cluster of RabbitMQ nodes on this machine.

    with Cluster(3) as cluster:
        Celery(broker=cluster.urls(), backend="fastrpc://")
    """

    def __init__(self, size: int) -> None:
        first = RabbitMQ()
        self.nodes = [first, *(RabbitMQ(beside=first) for _ in range(size - 1))]

    def __enter__(self) -> Cluster:
        try:
            self.nodes[0]._start_epmd()
            with ThreadPoolExecutor() as pool:
                list(pool.map(RabbitMQ.start, self.nodes))
            for node in self.nodes[1:]:
                node.join_cluster()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        # The first has the port mapper of all.
        for node in reversed(self.nodes):
            node.close()

    def urls(self, first: int = 0) -> list[str]:
        """The URLs of all nodes in turn, that of number `first` ahead."""
        return [node.url for node in self.nodes[first:] + self.nodes[:first]]


def settle() -> None:
    """Wait until the broker has written a new queue to disk, so that it survives a `kill -9`.

    RabbitMQ answers queue.declare at once and writes within two seconds. If it is killed before
    that, the queue is lost, with all confirmed messages in it.
    """
    time.sleep(2.5)


class Redis(_Server):
    """A private Redis that writes nothing to disk."""

    def __init__(self, *, args: Iterable[str] = ()) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            raise MissingServer("redis-server was not found: apt-get install redis-server")
        super().__init__("redis")
        self.port = free_port()
        self.command = [
            binary,
            *("--port", str(self.port), "--bind", self.host, "--dir", str(self.dir)),
            *("--save", "", "--appendonly", "no", "--daemonize", "no"),
            *args,
        ]

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    def start(self) -> None:
        if self.process is not None:
            raise RuntimeError("already started")
        self.process = self._spawn(self.command)
        self._await_answer()

    def stop(self) -> None:
        if self.process is not None:
            _end(self.process, signal.SIGTERM, 10)
            self.process = None

    def kill(self) -> None:
        _end(self.process, signal.SIGKILL, 5)
        self.process = None

    def answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 2) as sock:
                sock.sendall(b"PING\r\n")
                return sock.recv(7) == b"+PONG\r\n"
        except OSError:
            return False


def main(*command: str) -> int:
    """Run a command with BROKER_URL set to a private node."""
    # By default a SIGTERM ends only this process: the node, in a session of its own, goes on.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        with RabbitMQ() as node:
            return subprocess.call(command, env={**os.environ, "BROKER_URL": node.url})
    except MissingServer as exc:
        print(exc, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
