"""What is examined: an app or a URL with the user's options, and each node of its broker."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import celery

from .findings import Verdict, fail
from .settings import is_fastrpc
from .texts import reason

__all__ = ["Node", "Options", "Subject"]


@dataclass(frozen=True)
class Options:
    """What the user may choose."""

    #: Seconds that each answer of the broker or of a worker may take.
    timeout: float = 5.0
    #: Send one message of this many bytes; 0 sends none.
    message_size: int = 0
    #: The name of a reply queue whose arguments are compared with the app's; empty for none.
    reply_queue: str = ""
    #: Ask the workers, and send one task.
    workers: bool = True


@dataclass
class Subject:
    """What is examined. ``app`` is None if only a URL is known."""

    url: str | None = None
    app: Any = None
    options: Options = field(default_factory=Options)
    #: The open connection to the broker, once the login has succeeded.
    connection: Any = None
    #: The URL of that connection.
    reached: str = ""
    #: The names of the workers that have answered.
    workers: list[str] = field(default_factory=list)
    #: Worker -> its settings.
    worker_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Worker -> its answer to ``fastrpc_stats``; empty or an error if it lacks the command.
    fastrpc_answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The queue of the checks that send messages, once it is declared.
    scratch: Any = None

    def __post_init__(self) -> None:
        self.maker = self.app or celery.Celery("doctor", broker=self.url, set_as_current=False)

    def connect(self, url: str, **transport_options: Any) -> Any:
        """An open kombu connection to one URL.

        Raises:
            Exception: whatever the transport raises if it cannot connect.
        """
        connection = self.maker.connection_for_write(url)
        connection.connect_timeout = self.options.timeout
        extra = {"read_timeout": self.options.timeout, **transport_options}
        if is_fastrpc(connection.get_transport_cls()):
            extra["answer_timeout"] = self.options.timeout
        connection.transport_options = {**connection.transport_options, **extra}
        try:
            connection.ensure_connection(max_retries=0)
        except Exception:
            connection.release()
            raise
        return connection

    @property
    def node(self) -> Node:
        """The node that the open connection leads to."""
        return Node(self, self.reached)

    @property
    def control_timeout(self) -> float:
        """Seconds that the answers of workers to a remote control command may take."""
        return min(self.options.timeout, 2.0)

    def inspect(self, workers: list[str]) -> Any:
        """Celery's remote control commands that ask, addressed to ``workers``."""
        return self.app.control.inspect(workers, timeout=self.control_timeout)

    def urls(self) -> list[str]:
        """The URLs of the broker's nodes, with their passwords."""
        given = self.url or self.maker.conf.broker_write_url or ""
        urls = given.split(";") if isinstance(given, str) else list(given)
        return urls or [""]

    def reason(self, exc: BaseException) -> str:
        """The text of an exception without passwords."""
        return self.hide(reason(exc))

    def hide(self, text: str) -> str:
        """``text``, which an exception has said, without passwords.

        The doctor's own sentences are not searched: a gap in a known one would tell the password.
        """
        for password in self.passwords():
            text = text.replace(password, "**")
        return text

    def passwords(self) -> set[str]:
        """What no text of an exception may contain."""
        found = set()
        for url in self.urls():
            try:
                connection = self.maker.connection_for_write(url)
            except Exception:  # not a URL: the check "url" says so
                continue
            password = connection.password
            # Exceptions contain these for other reasons too.
            words = ("", "guest", "password", connection.userid)
            if isinstance(password, str) and password not in words:
                found |= {password, quote(password, safe="")}
        return found

    @property
    def backend(self) -> Any:
        """The app's result backend; None if it cannot be made: the check "backend" says why."""
        with suppress(Exception):
            return self.app.backend
        return None

    def forbidden(self, exc: BaseException, what: str) -> Verdict:
        """The user may log in, but lacks a permission: ``what`` is configure, write or read."""
        node = self.node
        return fail(
            self.reason(exc),
            f"Give user {node.user} the {what} permission: {node.permit_command}.",
        )

    def close(self) -> None:
        """Delete the scratch queue and close the connection."""
        if self.connection is None:
            return
        connection, self.connection = self.connection, None
        # A blocked connection takes nothing more: then the queue expires.
        with suppress(*connection.connection_errors, *connection.channel_errors):
            if self.scratch is not None:
                self.scratch.delete()
        connection.release()


@dataclass
class Node:
    """One node of the broker, named by its URL."""

    subject: Subject
    url: str

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if ":" in parts.netloc and "@" in parts.path + parts.query + parts.fragment:
            # A "/", "?" or "#" in the password ends the host: the rest would be shown as the vhost.
            raise ValueError("the password is not percent-encoded")
        self.link = self.subject.maker.connection_for_write(self.url)
        self.timeout = self.subject.options.timeout

    @property
    def host(self) -> str:
        return str(self.link.hostname or "localhost")

    @property
    def port(self) -> int:
        return int(self.link.port or (5671 if self.link.ssl else 5672))

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def user(self) -> str:
        return str(self.link.userid or "guest")

    @property
    def vhost(self) -> str:
        return str(self.link.virtual_host or "/")

    @property
    def is_local(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def tls_options(self) -> dict[str, Any]:
        """What ``broker_use_ssl`` says, if it is a dict."""
        return self.link.ssl if isinstance(self.link.ssl, dict) else {}

    @property
    def permit_command(self) -> str:
        """The command that gives the user every permission in the virtual host."""
        return f'rabbitmqctl set_permissions -p {self.vhost} {self.user} ".*" ".*" ".*"'

    def dial(self) -> socket.socket:
        """A TCP connection to the node."""
        return socket.create_connection((self.host, self.port), self.timeout)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """TLS over ``sock``, without verification: the login verifies with the app's settings."""
        given = self.tls_options
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if given.get("certfile"):
            context.load_cert_chain(given["certfile"], given.get("keyfile"))
        return context.wrap_socket(sock, server_hostname=self.host)
