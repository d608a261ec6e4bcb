"""Finds out why nothing comes back: looks at a broker, an app and its workers, step by step.

Each check is a function that returns what it found, a mark, and what to do about it. The checks run
in the order of this file; one that needs another is skipped where the other failed. Nothing is
changed on the broker except for scratch queues, which are deleted or expire after a minute.

Only public names of fastrpc, Celery and kombu are used, so the doctor works with an installation
that is broken in any way that can be imported. The texts never contain a password.
"""

from __future__ import annotations

import os
import platform
import re
import socket
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from traceback import extract_tb
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4

import celery
import kombu
from amqp.exceptions import AccessRefused, NotAllowed, NotFound, PreconditionFailed
from celery.app.utils import find_app
from kombu.exceptions import OperationalError
from kombu.serialization import registry

from . import __version__

__all__ = ["Finding", "Mark", "Options", "Subject", "examine", "load_app"]

#: The RabbitMQ versions that fastrpc's tests were run with, first and last.
TESTED_BROKERS = ((3, 10), (4, 3))
#: Milliseconds from which on a round trip is worth a word.
SLOW_ROUND_TRIP = 20.0
#: Seconds that the clocks of two machines may differ before timings of tasks suffer.
CLOCK_DIFFERENCE = 2.0
ROUND_TRIPS = 100
SCRATCH_SECONDS = 60
#: Seconds after which a message that has not come is taken to be held back.
UNSEEN_SECONDS = 0.3
#: Schemes of backends whose results go to the caller's reply queue.
REPLYING = ("rpc", "fastrpc")


class Mark(str, Enum):
    """How good or bad a finding is. Only FAIL changes the exit status."""

    OK = "ok"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check found, and one sentence on what to do, if anything is to be done."""

    check: str
    mark: Mark
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding as JSON."""
        return {**asdict(self), "mark": self.mark.value}


class Verdict(NamedTuple):
    """A finding before it has the name of its check."""

    mark: Mark
    found: str
    advice: str = ""


def ok(found: str) -> Verdict:
    return Verdict(Mark.OK, found)


def note(found: str, advice: str = "") -> Verdict:
    return Verdict(Mark.NOTE, found, advice)


def warn(found: str, advice: str) -> Verdict:
    return Verdict(Mark.WARN, found, advice)


def fail(found: str, advice: str) -> Verdict:
    return Verdict(Mark.FAIL, found, advice)


@dataclass(frozen=True)
class Options:
    """What the user may choose."""

    #: Seconds that each answer of the broker or of a worker may take.
    timeout: float = 5.0
    #: Send one message of so many bytes; 0 sends none.
    message_size: int = 0
    #: The name of a reply queue whose arguments are compared with what exists; empty for none.
    reply_queue: str = ""
    #: Ask the workers, and send one task.
    workers: bool = True


@dataclass
class Subject:
    """What is examined. ``app`` is None where only a URL is known."""

    url: str | None = None
    app: Any = None
    options: Options = field(default_factory=Options)
    #: The open connection to the broker, once the login has succeeded.
    connection: Any = None
    #: The URL that it was opened with.
    reached: str = ""
    #: The names of the workers that have answered.
    workers: list[str] = field(default_factory=list)
    #: Their settings, by worker.
    worker_settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: The messages and consumers of the app's own task queues, by name.
    task_queues: dict[str, tuple[int, int]] = field(default_factory=dict)
    scratch: Any = None

    def __post_init__(self) -> None:
        self.maker = self.app or celery.Celery("doctor", broker=self.url, set_as_current=False)

    def connect(self, url: str, **transport_options: Any) -> Any:
        """A kombu connection to one URL, not yet open."""
        connection = self.maker.connection_for_write(url)
        connection.connect_timeout = self.options.timeout
        extra = {"read_timeout": self.options.timeout, **transport_options}
        if is_fastrpc(connection.get_transport_cls()):
            extra["answer_timeout"] = self.options.timeout
        connection.transport_options = {**connection.transport_options, **extra}
        return connection

    def urls(self) -> list[str]:
        """The URLs of the broker's nodes, with their passwords."""
        given = self.url or self.maker.conf.broker_write_url or ""
        urls = given.split(";") if isinstance(given, str) else list(given)
        return urls or [""]

    def passwords(self) -> set[str]:
        """What no text may contain."""
        found = set()
        for url in self.urls():
            try:
                connection = self.maker.connection_for_write(url)
            except Exception:  # no URL at all: the check of that name says so
                continue
            password = connection.password
            # guest, the password, is also a user, whose name the advice contains.
            if isinstance(password, str) and password not in ("", "guest", connection.userid):
                found |= {password, quote(password, safe="")}
        return found

    def close(self) -> None:
        """Delete the scratch queue and hang up."""
        if self.connection is None:
            return
        connection, self.connection = self.connection, None
        # A blocked connection takes nothing more: the queue expires by itself.
        with suppress(*connection.connection_errors, *connection.channel_errors):
            if self.scratch is not None:
                self.scratch.delete()
        connection.release()


@dataclass
class Node:
    """One URL of the broker, while it is looked at."""

    subject: Subject
    url: str

    def __post_init__(self) -> None:
        self.link = self.subject.maker.connection_for_write(self.url)
        self.timeout = self.subject.options.timeout

    @property
    def host(self) -> str:
        return str(self.link.hostname or "localhost")

    @property
    def port(self) -> int:
        return int(self.link.port or (5671 if self.link.ssl else 5672))

    @property
    def user(self) -> str:
        return str(self.link.userid or "guest")

    @property
    def vhost(self) -> str:
        return str(self.link.virtual_host or "/")

    @property
    def is_local(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def dial(self) -> socket.socket:
        """A TCP connection of our own."""
        return socket.create_connection((self.host, self.port), self.timeout)

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """TLS over it, without verification: the login verifies, with the app's own settings."""
        given = self.link.ssl if isinstance(self.link.ssl, dict) else {}
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if given.get("certfile"):
            context.load_cert_chain(given["certfile"], given.get("keyfile"))
        return context.wrap_socket(sock, server_hostname=self.host)


Run = Callable[[Any], "Verdict | None"]


class Check(NamedTuple):
    """One step. ``run`` gets a Node or a Subject; None says that the check does not apply."""

    name: str
    needs: str
    run: Run


NODE_CHECKS: list[Check] = []
BROKER_CHECKS: list[Check] = []
APP_CHECKS: list[Check] = []


def check(checks: list[Check], name: str, needs: str = "") -> Callable[[Run], Run]:
    """Make a function the next of ``checks``; ``needs`` names one that must not have failed."""

    def add(run: Run) -> Run:
        checks.append(Check(name, needs, run))
        return run

    return add


# -- reaching one node


@check(NODE_CHECKS, "url")
def look_at_url(node: Node) -> Verdict:
    """Is it the URL of an AMQP broker?"""
    shown = node.link.as_uri()
    try:
        driver = node.link.get_transport_cls().driver_type
    except (KeyError, ImportError) as exc:
        return fail(*explain_url(exc))
    if driver != "amqp":
        return fail(
            f"{shown} is not an AMQP broker",
            "Results travel over any broker of kombu, but the doctor and the fast path are for "
            "RabbitMQ: name an amqp:// or amqps:// URL.",
        )
    return ok(f"{shown}, user {node.user}, vhost {node.vhost}")


def explain_url(exc: Exception) -> tuple[str, str]:
    """What is wrong with a URL, and what to do; errors of urllib quote parts of the password."""
    found = str(exc.args[0]) if isinstance(exc, KeyError) else "this is no URL of a broker"
    return found, (
        "Write amqp://user:password@host:5672/vhost, or amqps:// for TLS, with special characters "
        "of the password percent-encoded (%23 for #, %2F for /, %40 for @)."
    )


@check(NODE_CHECKS, "address", needs="url")
def look_up_host(node: Node) -> Verdict:
    """Does the name of the host have an address?"""
    try:
        found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        return fail(
            f"{node.host} has no address: {exc.strerror}",
            "Correct the host in the URL, or the name service of this machine or container.",
        )
    return ok(f"{node.host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}")


@check(NODE_CHECKS, "port", needs="address")
def knock(node: Node) -> Verdict:
    """Does anything listen on the port?"""
    where = f"{node.host}:{node.port}"
    started = time.perf_counter()
    try:
        node.dial().close()
    except ConnectionRefusedError:
        return fail(
            f"nothing listens on {where}",
            "Start the broker (systemctl start rabbitmq-server), or correct host and port: "
            "5672 is AMQP, 5671 AMQP over TLS, 15672 the management page.",
        )
    except TimeoutError:
        return fail(
            f"no answer from {where} within {node.timeout:g} s",
            "Look at firewalls and security groups between this machine and the broker.",
        )
    return ok(f"{where} accepts connections ({(time.perf_counter() - started) * 1000:.1f} ms)")


@check(NODE_CHECKS, "tls", needs="port")
def shake_hands(node: Node) -> Verdict | None:
    """Does the port speak TLS, where the URL asks for it?"""
    if not node.link.ssl:
        return None
    try:
        with node.dial() as sock, node.wrap(sock) as wrapped:
            cipher = wrapped.cipher()
            found = f"{wrapped.version()}, {cipher[0] if cipher else 'no cipher'}"
    except (OSError, ssl.SSLError) as exc:
        return fail(
            f"no TLS on {node.host}:{node.port}: {reason(exc)}",
            "Use amqp:// if the port is for plain AMQP (5672), or the port for TLS (5671); "
            "if the broker asks for a client certificate, set broker_use_ssl.",
        )
    given = node.link.ssl
    verified = isinstance(given, dict) and given.get("cert_reqs") == ssl.CERT_REQUIRED
    if isinstance(given, dict) and given.get("cert_reqs") == ssl.CERT_NONE:
        return warn(
            f"{found}, but the broker's certificate is not verified",
            "Set cert_reqs to ssl.CERT_REQUIRED and ca_certs in broker_use_ssl: otherwise "
            "anybody on the way can read the password.",
        )
    return ok(f"{found}{', the certificate is verified at the login' if verified else ''}")


@check(NODE_CHECKS, "protocol", needs="tls")
def greet(node: Node) -> Verdict:
    """Does the port speak AMQP 0-9-1?"""
    where = f"{node.host}:{node.port}"
    answer = first_bytes(node, b"AMQP\x00\x00\x09\x01")
    if answer.startswith(b"\x01"):  # the METHOD frame of connection.start
        return ok("AMQP 0-9-1")
    if answer.startswith(b"AMQP"):
        spoken = ".".join(str(byte) for byte in answer[4:8])
        return fail(f"{where} speaks another AMQP: {spoken}", "Use a broker with AMQP 0-9-1.")
    # A web server may wait for the end of the line.
    if b"HTTP/" in answer + first_bytes(node, b"GET / HTTP/1.0\r\n\r\n"):
        return fail(
            f"{where} speaks HTTP",
            "This is a web server, or RabbitMQ's management page (15672): AMQP is on port 5672.",
        )
    if not node.link.ssl and (answer.startswith(b"\x15\x03") or speaks_tls(node)):
        return fail(f"{where} speaks TLS", "Write amqps:// in place of amqp://.")
    if answer:
        return fail(
            f"{where} does not speak AMQP, it says {answer!r}",
            "Correct the port: 5672 is AMQP, 5671 AMQP over TLS.",
        )
    return fail(
        f"{where} does not answer AMQP's greeting",
        "If this is the broker, it may still be starting or be overloaded (rabbitmqctl status); "
        "otherwise correct the port.",
    )


def first_bytes(node: Node, greeting: bytes) -> bytes:
    """What the port answers to a greeting; nothing if it hangs up or is silent."""
    try:
        with node.dial() as plain:
            sock = node.wrap(plain) if node.link.ssl else plain
            sock.settimeout(node.timeout)
            sock.sendall(greeting)
            return sock.recv(8)
    except OSError:
        return b""


def speaks_tls(node: Node) -> bool:
    """Whether a handshake succeeds on the port."""
    try:
        with node.dial() as sock, node.wrap(sock):
            return True
    except OSError:
        return False


@check(NODE_CHECKS, "login", needs="protocol")
def log_in(node: Node) -> Verdict:
    """Does the broker take user, password and virtual host?"""
    subject = node.subject
    connection = subject.connect(
        node.url,
        confirm_publish=True,
        client_properties={"connection_name": "fastrpc doctor"},
    )
    try:
        connection.ensure_connection(max_retries=0)
    except Exception as exc:
        connection.release()
        return explain_login(node, root_of(exc))
    if subject.connection is None:
        subject.connection, subject.reached = connection, node.url
    else:
        connection.release()
    return ok(f"user {node.user}, vhost {node.vhost}")


def explain_login(node: Node, exc: BaseException) -> Verdict:
    """Why the broker does not let us in."""
    said = reason(exc)
    if isinstance(exc, AccessRefused):
        remote_guest = node.user == "guest" and not node.is_local
        return fail(
            f"the broker refuses user {node.user}: wrong password, or no such user",
            "guest may log in from the broker's own machine only: make a user (rabbitmqctl "
            "add_user, set_permissions)."
            if remote_guest
            else "Correct user and password in the URL (special characters as in %40 for @), or "
            f"set it: rabbitmqctl change_password {node.user}.",
        )
    if isinstance(exc, NotAllowed) and "not found" in said:
        return fail(
            f"there is no vhost {node.vhost}",
            f"Make it (rabbitmqctl add_vhost {node.vhost}), or correct the end of the URL: "
            "amqp://host// is the vhost /, amqp://host/name the vhost name.",
        )
    if isinstance(exc, NotAllowed) and "refused for user" in said:
        return fail(
            f"user {node.user} may not use vhost {node.vhost}",
            f'Allow it: rabbitmqctl set_permissions -p {node.vhost} {node.user} ".*" ".*" ".*".',
        )
    if isinstance(exc, NotAllowed):
        return fail(said, "Look at the limits of the vhost and of the user, and its log.")
    if isinstance(exc, ssl.SSLCertVerificationError):
        return fail(
            f"the broker's certificate is not trusted: {exc.verify_message}",
            "Set ca_certs in broker_use_ssl to the certificate of the authority that signed it, "
            "and use the host name that it is for.",
        )
    if isinstance(exc, ssl.SSLError):
        return fail(
            f"TLS fails at the login: {said}",
            "The broker may ask for a client certificate: set certfile and keyfile in "
            "broker_use_ssl.",
        )
    return fail(
        f"no login: {said}",
        "Look at the broker's log; a broker that hangs up here may be out of memory or file "
        "descriptors (rabbitmqctl status).",
    )


# -- what the broker is and does


@check(BROKER_CHECKS, "broker")
def look_at_version(subject: Subject) -> Verdict:
    """Product and version, and whether it was tested."""
    properties = subject.connection.connection.server_properties
    product, number = str(properties.get("product", "?")), str(properties.get("version", "?"))
    found = f"{product} {number}, {properties.get('platform', '?')}"
    if product != "RabbitMQ":
        return note(found, "fastrpc is tested with RabbitMQ 3.10 to 4.3 only.")
    numbers = broker_version(subject)
    if numbers < TESTED_BROKERS[0]:
        return warn(found, "This is older than what fastrpc is tested with: move to 3.10 or later.")
    if numbers > TESTED_BROKERS[1]:
        return note(found, "This is newer than what fastrpc was tested with (4.3).")
    return ok(found)


@check(BROKER_CHECKS, "cores")
def look_at_cores(subject: Subject) -> Verdict | None:
    """Does the broker share few cores with its clients?"""
    cores = os.cpu_count() or 1
    if cores > 4 or not Node(subject, subject.reached).is_local:
        return None
    return note(
        f"the broker shares {cores} cores with its clients",
        "Idle schedulers of Erlang then take CPU time by busy waiting: try "
        'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none".',
    )


@check(BROKER_CHECKS, "limits")
def look_at_limits(subject: Subject) -> Verdict:
    """What was agreed on at the login."""
    link = subject.connection.connection
    found = (
        f"frame_max {link.frame_max:,} bytes, channel_max {link.channel_max}, "
        f"heartbeat {link.heartbeat or 'off'}"
    )
    if link.frame_max < 131072:
        return note(found, "Large messages are cut into many frames: frame_max is 131,072 bytes.")
    return ok(found)


@check(BROKER_CHECKS, "declare")
def declare(subject: Subject) -> Verdict:
    """May we make a queue like a reply queue?"""
    name = f"fastrpc-doctor-{uuid4()}"
    queue = kombu.Queue(
        name,
        kombu.Exchange(None),
        name,
        durable=True,
        expires=SCRATCH_SECONDS,
        queue_arguments={"x-queue-type": "classic"},
    )
    channel = subject.connection.default_channel
    try:
        queue(channel).declare()
    except AccessRefused as exc:
        return fail(reason(exc), permit("configure", subject))
    subject.scratch = queue(channel)
    return ok("a durable queue, as for replies")


@check(BROKER_CHECKS, "publish", needs="declare")
def publish(subject: Subject) -> Verdict:
    """Does the broker confirm a message?"""
    started = time.perf_counter()
    try:
        send(subject, b"x")
    except AccessRefused as exc:
        return fail(reason(exc), permit("write", subject))
    except TimeoutError:
        return fail(
            f"no confirm within {subject.options.timeout:g} s",
            "The broker blocks publishers while memory or disk run out: look for alarms "
            "(rabbitmq-diagnostics alarms) and free what is short.",
        )
    return ok(f"confirmed after {(time.perf_counter() - started) * 1000:.1f} ms")


@check(BROKER_CHECKS, "consume", needs="publish")
def consume(subject: Subject) -> Verdict:
    """Does a message come back?"""
    try:
        receive(subject, 1)
    except AccessRefused as exc:
        return fail(reason(exc), permit("read", subject))
    except TimeoutError:
        return fail(
            f"the message does not come back within {subject.options.timeout:g} s",
            "Look at the broker's log and load (rabbitmq-diagnostics status).",
        )
    return ok("the message came back")


@check(BROKER_CHECKS, "round trip", needs="consume")
def measure_round_trips(subject: Subject) -> Verdict:
    """How long a message takes there and back."""
    taken = []
    with receiving(subject) as wait:
        for _ in range(ROUND_TRIPS):
            started = time.perf_counter()
            send(subject, b"x")
            wait()
            taken.append((time.perf_counter() - started) * 1000)
    centiles = statistics.quantiles(taken, n=100)
    median = statistics.median(taken)
    found = f"p50 {median:.2f} ms, p99 {centiles[98]:.2f} ms, with confirms"
    if median > SLOW_ROUND_TRIP:
        return note(found, "The broker is far away or busy: send many tasks at once (apply_many).")
    return ok(found)


@check(BROKER_CHECKS, "message size", needs="consume")
def send_large_message(subject: Subject) -> Verdict:
    """How large a message may be: AMQP cannot ask, so one of the wanted size is sent."""
    wanted = subject.options.message_size
    default = "16 MiB" if broker_version(subject) >= (4, 0) else "128 MiB"
    if not wanted:
        return ok(f"{default} unless max_message_size is set (--message-size tries a size)")
    url = subject.reached
    with subject.connect(url, confirm_publish=True) as connection:
        try:
            connection.ensure_connection(max_retries=0)
            connection.Producer().publish(
                bytes(wanted),
                exchange="",
                routing_key=subject.scratch.name,
                content_type="application/octet-stream",
                content_encoding="binary",
                confirm_timeout=max(subject.options.timeout, wanted / 1e6),
            )
        except PreconditionFailed as exc:
            return fail(
                reason(exc),
                "Send a reference to large data in place of the data, or raise max_message_size "
                "in rabbitmq.conf.",
            )
    subject.scratch.purge()
    return ok(f"a message of {wanted:,} bytes is accepted")


@check(BROKER_CHECKS, "deprecated features", needs="consume")
def ask_for_deprecated_features(subject: Subject) -> Verdict:
    """Does the broker deny what Celery before 5.7 asks for?"""
    old = tuple(int(part) for part in celery.__version__.split(".")[:2]) < (5, 7)
    if error := refuses_transient_queues(subject):
        found = f"the broker denies transient queues: {error}"
        if not old:
            return note(found, f"Celery {celery.__version__} asks for none, older workers do.")
        return fail(
            found,
            f"Workers of Celery {celery.__version__} do not start here: move to Celery 5.7, or put "
            "deprecated_features.permit.transient_nonexcl_queues = true into rabbitmq.conf.",
        )
    if not shares_prefetch(subject):
        found = "the broker applies a global prefetch to each consumer (global_qos is denied)"
        if not old:
            return note(found, f"Celery {celery.__version__} asks for none.")
        return note(
            found, "A worker that consumes N queues prefetches N times worker_prefetch_multiplier."
        )
    return ok("transient queues and a global prefetch are permitted")


def refuses_transient_queues(subject: Subject) -> str:
    """Why a queue like those of older Celery's remote control cannot be made; or nothing."""
    queue = kombu.Queue(f"fastrpc-doctor-{uuid4()}", kombu.Exchange(None), durable=False)
    with subject.connect(subject.reached) as connection:
        connection.ensure_connection(max_retries=0)
        bound = queue(connection.default_channel)
        try:
            bound.declare()
            bound.delete()
        except (*connection.connection_errors, *connection.channel_errors) as exc:
            return reason(exc).splitlines()[0]
    return ""


def shares_prefetch(subject: Subject) -> bool:
    """Whether two consumers of a channel share a global prefetch of one message.

    RabbitMQ 4.3 says yes to the request, and applies the prefetch to each of them.
    """
    arrived: list[Any] = []
    with subject.connect(subject.reached) as connection:
        connection.ensure_connection(max_retries=0)
        channel = connection.default_channel
        channel.basic_qos(0, 1, True)
        queue = kombu.Queue(subject.scratch.name, kombu.Exchange(None))
        options = {"on_message": arrived.append, "auto_declare": False}
        consumers = [kombu.Consumer(channel, [queue], **options) for _ in range(2)]
        for consumer in consumers:
            consumer.consume()
        for _ in range(2):
            send(subject, b"x")
        end = time.monotonic() + UNSEEN_SECONDS
        while len(arrived) < 2 and (left := end - time.monotonic()) > 0:
            with suppress(TimeoutError):
                connection.drain_events(timeout=left)
        for consumer in consumers:
            consumer.cancel()
        for message in arrived:
            message.ack()
    subject.scratch.purge()
    return len(arrived) < 2


@check(BROKER_CHECKS, "reply queue", needs="publish")
def look_at_reply_queue(subject: Subject) -> Verdict | None:
    """Can the app's reply queue be made; does one of that name exist with other arguments?"""
    if subject.app is None or not is_fastrpc(type(subject.app.backend)):
        return None
    queue = subject.app.backend.binding
    if name := subject.options.reply_queue:
        queue.name = queue.routing_key = name
    with subject.connection.channel() as channel:
        bound = queue(channel)
        try:
            if name:  # do not make it where it is not
                bound.queue_declare(passive=True)
            bound.declare()
        except NotFound:
            return note(f"there is no queue {name}", "Take the name from the log or the caller.")
        except PreconditionFailed as exc:
            return fail(
                f"{queue.name} exists with other arguments: {reason(exc)}",
                "Give all processes the same result_expires and queue_type, or delete the queue "
                f"(rabbitmqctl delete_queue {queue.name}).",
            )
        except AccessRefused as exc:
            return fail(reason(exc), permit("configure", subject))
        if not name:
            bound.delete(if_unused=True, if_empty=True)
    return ok(f"{queue.name}, {describe(queue)}")


@check(BROKER_CHECKS, "task queues", needs="publish")
def look_at_task_queues(subject: Subject) -> Verdict | None:
    """Does anybody consume the queues that the app sends its tasks to?"""
    if subject.app is None:
        return None
    missing = []
    for name, queue in subject.app.amqp.queues.items():
        with subject.connection.channel() as channel:
            try:
                answer = queue(channel).queue_declare(passive=True)
            except subject.connection.channel_errors:
                missing.append(name)
                continue
        subject.task_queues[name] = (answer.message_count, answer.consumer_count)
    idle = [f"{name} ({n[0]} messages)" for name, n in subject.task_queues.items() if not n[1]]
    if missing or idle:
        parts = [f"{name} does not exist" for name in missing]
        parts += [f"nobody consumes {name}" for name in idle]
        return warn(
            "; ".join(parts),
            "Start a worker for it: celery -A proj worker -Q "
            f"{','.join([*missing, *(n for n, c in subject.task_queues.items() if not c[1])])}.",
        )
    return ok(
        ", ".join(
            f"{name}: {messages} messages, {consumers} consumers"
            for name, (messages, consumers) in subject.task_queues.items()
        )
    )


# -- the app and its workers


@check(APP_CHECKS, "versions")
def look_at_versions(subject: Subject) -> Verdict:
    """What is installed here."""
    names = ("celery", "kombu", "amqp", "orjson")
    found = ", ".join(f"{name} {installed(name)}" for name in names)
    return ok(f"fastrpc {__version__}, {found}, Python {platform.python_version()}")


@check(APP_CHECKS, "backend")
def look_at_backend(subject: Subject) -> Verdict:
    """Which result backend the app has."""
    backend, conf = subject.app.backend, subject.app.conf
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


@check(APP_CHECKS, "transport")
def look_at_transport(subject: Subject) -> Verdict:
    """Are tasks sent over our transport, and if not, why?"""
    link = subject.connection or subject.app.connection_for_write()
    cls = link.get_transport_cls()
    shown = f"{cls.__module__}:{cls.__name__}"
    if is_fastrpc(cls):
        if is_fastrpc(type(subject.app.amqp)):
            return ok(f"{shown}, {type(subject.app.amqp).__module__}")
        return note(
            f"{shown}, but the app sends tasks by {type(subject.app.amqp).__module__}",
            "Call fastrpc.install() before the app is made, and leave amqp_cls alone.",
        )
    if cls.driver_type != "amqp":
        return note(f"{shown}: not AMQP", "Only AMQP brokers take the accelerated path.")
    return note(
        f"{shown} is not fastrpc's: tasks are sent at Celery's own speed",
        "Call fastrpc.install() in the module of the app, before the first connection.",
    )


@check(APP_CHECKS, "serializers")
def look_at_serializers(subject: Subject) -> Verdict:
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


@check(APP_CHECKS, "workers", needs="login")
def ask_workers(subject: Subject) -> Verdict | None:
    """Does a worker answer?"""
    if not subject.options.workers:
        return None
    timeout = min(subject.options.timeout, 2.0)
    answers = subject.app.control.ping(timeout=timeout)
    subject.workers = sorted(name for answer in answers for name in answer)
    if not subject.workers:
        return warn(
            f"no worker answers within {timeout:g} s",
            "Start one: celery -A proj worker. A worker is silent while a solo pool runs a task, "
            "and where its accept_content lacks the app's task_serializer.",
        )
    inspect = subject.app.control.inspect(subject.workers, timeout=timeout)
    subject.worker_settings = inspect.conf(with_defaults=True) or {}
    return ok(", ".join(subject.workers))


@check(APP_CHECKS, "worker backends", needs="workers")
def compare_backends(subject: Subject) -> Verdict | None:
    """Do the workers send results to where the app waits for them?"""
    if not subject.worker_settings:
        return None
    ours = scheme_of(subject.app.conf.result_backend)
    theirs = {w: str(c.get("result_backend")) for w, c in subject.worker_settings.items()}
    wrong = [
        f"{worker} has {backend}"
        for worker, backend in theirs.items()
        if family(scheme_of(backend)) != family(ours)
    ]
    if wrong:
        return fail(
            f"the app waits at {ours}://, but {', '.join(wrong)}",
            "Give client and workers the same result_backend: rpc:// and fastrpc:// go together, "
            "nothing else does.",
        )
    return ok(", ".join(f"{worker}: {backend}" for worker, backend in theirs.items()))


@check(APP_CHECKS, "worker serializers", needs="workers")
def compare_serializers(subject: Subject) -> Verdict | None:
    """Does each side read what the other writes?"""
    if not subject.worker_settings:
        return None
    conf = subject.app.conf
    ours = conf.result_accept_content or conf.accept_content
    faults = []
    for worker, theirs in subject.worker_settings.items():
        if not accepts(theirs.get("accept_content") or ["json"], conf.task_serializer):
            faults.append(f"{worker} does not accept tasks in {conf.task_serializer}")
        if not accepts(ours, theirs.get("result_serializer") or "json"):
            faults.append(f"results of {worker} in {theirs['result_serializer']} are not accepted")
    if faults:
        return fail("; ".join(faults), "Give both sides the same serializers and accept_content.")
    return ok("each side reads what the other writes")


@check(APP_CHECKS, "clocks", needs="workers")
def compare_clocks(subject: Subject) -> Verdict | None:
    """Do the clocks of the workers agree with ours?"""
    asked = [
        worker
        for worker, conf in subject.worker_settings.items()
        if scheme_of(str(conf.get("result_backend"))) in REPLYING
    ]
    if not asked:
        return None
    timeout = min(subject.options.timeout, 2.0)
    before = time.time()
    answers = subject.app.control.broadcast(
        "fastrpc_stats", destination=asked, reply=True, timeout=timeout, limit=len(asked)
    )
    after = time.time()
    apart = {
        worker: max(before - said["time"], said["time"] - after, 0.0)
        for answer in answers or ()
        for worker, said in answer.items()
        if "time" in said
    }
    if not apart:
        return note(
            "not known: no worker has the remote control command fastrpc_stats",
            "Install fastrpc in the workers, and import fastrpc.contrib.control where a worker is "
            "not started by the command celery.",
        )
    worst = max(apart, key=lambda worker: apart[worker])
    if apart[worst] > CLOCK_DIFFERENCE:
        return warn(
            f"the clock of {worst} differs by {apart[worst]:.1f} s",
            "Let both machines keep time (chrony, systemd-timesyncd): expires, eta and countdown "
            "compare their clocks.",
        )
    return ok(f"{len(apart)} workers within {CLOCK_DIFFERENCE:g} s")


@check(APP_CHECKS, "task", needs="worker backends")
def send_task(subject: Subject) -> Verdict | None:
    """Does the result of a task come back? It is one of Celery's own, which does nothing."""
    if not subject.workers or scheme_of(subject.app.conf.result_backend) == "disabled":
        return None
    timeout = subject.options.timeout
    started = time.perf_counter()
    result = subject.app.send_task(
        "celery.accumulate", ("fastrpc",), {"index": 0}, expires=timeout, ignore_result=False
    )
    try:
        result.get(timeout=timeout)
    except celery.exceptions.TimeoutError:
        queue = subject.app.conf.task_default_queue
        return fail(
            f"no result within {timeout:g} s",
            f"Look whether a worker consumes {queue} and is not busy, whether clients and workers "
            "have the same result_backend, and at the worker's log.",
        )
    return ok(f"a result came back after {(time.perf_counter() - started) * 1000:.1f} ms")


@check(APP_CHECKS, "chord", needs="task")
def send_chord(subject: Subject) -> Verdict | None:
    """Does a chord work, where the backend supports them?"""
    if not subject.workers:
        return None
    try:
        subject.app.backend.ensure_chords_allowed()
    except NotImplementedError:
        return note("the backend supports no chords", "fastrpc://?chords=1 switches them on.")
    timeout = subject.options.timeout
    part = subject.app.signature("celery.accumulate", (1,), {"index": 0})
    body = subject.app.signature("celery.accumulate", kwargs={"index": 0})
    result = celery.chord([part.clone(), part.clone()], app=subject.app)(body)
    try:
        result.get(timeout=timeout)
    except celery.exceptions.TimeoutError:
        return fail(f"no result within {timeout:g} s", "Look at the logs of the workers.")
    return ok("a chord of two tasks came back")


# -- what the checks share


def root_of(exc: BaseException) -> BaseException:
    """The first of a chain of exceptions."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def reason(exc: BaseException) -> str:
    """What an exception says, as short as can be."""
    if isinstance(exc, OperationalError):
        exc = root_of(exc)
    text = str(getattr(exc, "reply_text", "") or exc or "").strip()
    return text or type(exc).__name__


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "?"


def is_fastrpc(cls: type) -> bool:
    """Whether a class is ours, or derives from one of ours."""
    return any(base.__module__.partition(".")[0] == "fastrpc" for base in cls.__mro__)


def broker_version(subject: Subject) -> tuple[int, ...]:
    """Major and minor number; (0, 0) where the broker does not say it in this way."""
    number = str(subject.connection.connection.server_properties.get("version", ""))
    found = re.match(r"(\d+)\.(\d+)", number)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def permit(what: str, subject: Subject) -> str:
    """Advice where the user may log in but not ``what`` (configure, write, read)."""
    node = Node(subject, subject.reached)
    return (
        f"Give user {node.user} the {what} permission: rabbitmqctl set_permissions -p "
        f'{node.vhost} {node.user} ".*" ".*" ".*".'
    )


def send(subject: Subject, body: bytes) -> None:
    """Publish to the scratch queue and wait for the confirm."""
    subject.connection.Producer(subject.connection.default_channel).publish(
        body,
        exchange="",
        routing_key=subject.scratch.name,
        content_type="application/octet-stream",
        content_encoding="binary",
        delivery_mode=1,
        confirm_timeout=subject.options.timeout,
    )


class receiving:
    """Consume the scratch queue; calling what it yields waits for the next message."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.arrived = 0
        self.consumer = kombu.Consumer(
            subject.connection.default_channel,
            [subject.scratch],
            on_message=self._on_message,
            no_ack=True,
        )

    def __enter__(self) -> receiving:
        self.consumer.consume()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.consumer.cancel()

    def _on_message(self, message: Any) -> None:
        self.arrived += 1

    def __call__(self) -> None:
        while not self.arrived:
            self.subject.connection.drain_events(timeout=self.subject.options.timeout)
        self.arrived -= 1


def receive(subject: Subject, count: int) -> None:
    with receiving(subject) as wait:
        for _ in range(count):
            wait()


def describe(queue: Any) -> str:
    expires = f"expires after {queue.expires:g} s unused" if queue.expires else "never expires"
    return f"{(queue.queue_arguments or {}).get('x-queue-type', 'classic')}, {expires}"


def scheme_of(backend: Any) -> str:
    """The scheme of a result_backend; "disabled" where there is none."""
    text = str(backend or "disabled")
    return text.partition("://")[0].partition("+")[0] if text != "None" else "disabled"


def family(scheme: str) -> str:
    return "rpc" if scheme in REPLYING else scheme


def accepts(accepted: Any, serializer: str) -> bool:
    """Whether a list of names and content types covers a serializer."""
    names = registry.name_to_type
    types = {names.get(str(entry), str(entry)) for entry in accepted or ()}
    return names.get(serializer, serializer) in types


def load_app(name: str) -> Any:
    """The app that ``-A name`` means to Celery.

    Raises:
        Exception: whatever the import of the user's modules raises.
    """
    app = find_app(name)
    if not isinstance(app, celery.Celery):
        raise TypeError(f"{name} is not a Celery app, it is a {type(app).__name__}")
    app.loader.import_default_modules()
    return app


def explain_import(name: str, exc: BaseException) -> Finding:
    """What to say where the app cannot be loaded."""
    frames = [f for f in extract_tb(exc.__traceback__) if "importlib" not in f.filename]
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    module = name.partition(":")[0]
    advice = f"Correct that line; python -c 'import {module}' shows the whole traceback."
    if isinstance(exc, ModuleNotFoundError) and exc.name == module.split(".")[0]:
        where = ""
        advice = "Run this in the folder of your project, or install the project here."
    elif isinstance(exc, (AttributeError, TypeError)):
        advice = "Name the app as module:attribute, for example -A proj.celery:app."
    text = f"cannot load {name}: {type(exc).__name__}: {exc}{where}"
    return Finding("app", Mark.FAIL, mask_urls(text), advice)


def mask_urls(text: str) -> str:
    """``text`` with the passwords of URLs replaced."""
    return re.sub(r"(://[^:/@\s]*:)\S*@", r"\1**@", text)


# -- running them


class Examination:
    """One run over all checks; knows what failed, and keeps passwords out of the texts."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        #: Check -> the one because of which it failed: itself, or the first that it needs.
        self.failed: dict[str, str] = {}
        self.passwords = subject.passwords()

    def run(self, checks: list[Check], target: Any, label: str = "") -> Iterator[Finding]:
        for step in checks:
            if cause := self.failed.get(step.needs):
                self.failed[step.name] = cause
                found = f"not looked at, because {cause} failed"
                yield Finding(step.name + label, Mark.SKIPPED, found)
                continue
            verdict = self._verdict(step, target)
            if verdict is None:
                continue
            if verdict.mark is Mark.FAIL:
                self.failed[step.name] = step.name
            yield Finding(
                step.name + label,
                verdict.mark,
                self.clean(verdict.found),
                self.clean(verdict.advice),
            )

    def _verdict(self, step: Check, target: Any) -> Verdict | None:
        try:
            return step.run(target)
        except Exception as exc:
            said = f"{type(exc).__name__}: {reason(exc)}"
            return fail(said, "This was not foreseen: look at the broker's log, or report it.")

    def clean(self, text: str) -> str:
        text = mask_urls(text)
        for password in self.passwords:
            text = text.replace(password, "**")
        return text

    def all(self) -> Iterator[Finding]:
        subject = self.subject
        urls = subject.urls()
        unreached: dict[str, str] = {}
        for number, url in enumerate(urls, 1):
            self.failed.clear()
            label = f" {number}/{len(urls)}" if len(urls) > 1 else ""
            try:
                node = Node(subject, url)
            except Exception as exc:
                self.failed = {"url": "url", "login": "url"}
                yield Finding("url" + label, Mark.FAIL, *explain_url(exc))
            else:
                yield from self.run(NODE_CHECKS, node, label)
            unreached = self.failed.copy() if subject.connection is None else {}
        self.failed = unreached
        if subject.connection is not None:
            yield from self.run(BROKER_CHECKS, subject)
        if subject.app is not None:
            yield from self.run(APP_CHECKS, subject)


def examine(subject: Subject) -> Iterator[Finding]:
    """Run all checks and yield each finding as it is made; hang up at the end."""
    try:
        yield from Examination(subject).all()
    finally:
        subject.close()
