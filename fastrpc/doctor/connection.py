"""Can a node of the broker be reached? From its URL over port, TLS and protocol to the login."""

from __future__ import annotations

import os
import re
import socket
import ssl
import time

from amqp.exceptions import AccessRefused, NotAllowed

from .findings import Checks, Verdict, fail, note, ok, warn
from .subject import Node
from .texts import milliseconds_since, reason, root_of

__all__ = ["CONNECTION_CHECKS", "explain_url"]

CONNECTION_CHECKS = Checks()


@CONNECTION_CHECKS.add("url")
def check_url(node: Node) -> Verdict:
    """Is it the URL of an AMQP broker?"""
    shown = node.link.as_uri()
    try:
        driver = node.link.get_transport_cls().driver_type
    except (KeyError, ImportError) as exc:
        return fail(*explain_url(exc))
    if driver != "amqp":
        return fail(
            f"{shown} is not an AMQP broker",
            "Name an amqp:// or amqps:// URL: results travel over any broker of kombu, but the "
            "doctor and the fast path are for RabbitMQ.",
        )
    return ok(f"{shown}, user {node.user}, vhost {node.vhost}")


def explain_url(exc: Exception) -> tuple[str, str]:
    """What is wrong with a URL, and what to do; errors of urllib quote parts of the password."""
    found = str(exc.args[0]) if isinstance(exc, KeyError) else "this is not the URL of a broker"
    return found, (
        "Write amqp://user:password@host:5672/vhost, or amqps:// for TLS, with special characters "
        "of the password percent-encoded (%23 for #, %2F for /, %40 for @)."
    )


@CONNECTION_CHECKS.add("address", needs="url")
def resolve_host(node: Node) -> Verdict:
    """Does the name of the host have an address?"""
    try:
        found = socket.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        return fail(
            f"{node.host} has no address: {exc.strerror}",
            "Correct the host in the URL, or the name service of this machine or container. To "
            "name an app, write -A before it.",
        )
    return ok(f"{node.host} is {', '.join(sorted({str(entry[4][0]) for entry in found}))}")


@CONNECTION_CHECKS.add("port", needs="address")
def connect_to_port(node: Node) -> Verdict:
    """Does anything listen on the port?"""
    started = time.perf_counter()
    try:
        node.dial().close()
    except ConnectionRefusedError:
        return fail(
            f"nothing listens on {node.address}",
            "Start the broker (systemctl start rabbitmq-server), or correct host and port: "
            "5672 is AMQP, 5671 AMQP over TLS, 15672 the management page.",
        )
    except TimeoutError:
        return fail(
            f"no answer from {node.address} within {node.timeout:g} s",
            "Look at firewalls and security groups between this machine and the broker.",
        )
    except OSError as exc:
        return fail(
            f"cannot connect to {node.address}: {exc.strerror or node.subject.reason(exc)}",
            "Look at the network and its routes between this machine and the broker.",
        )
    return ok(f"{node.address} accepts connections ({milliseconds_since(started):.1f} ms)")


@CONNECTION_CHECKS.add("tls", needs="port")
def negotiate_tls(node: Node) -> Verdict | None:
    """Does the port speak TLS, if the URL asks for it, and does the app verify the broker?"""
    if not node.link.ssl:
        return None
    given = node.tls_options
    for option in ("ca_certs", "certfile", "keyfile"):
        if given.get(option) and not os.path.isfile(given[option]):
            return fail(
                f"{option} in broker_use_ssl names no file: {given[option]}",
                "Correct the path; a relative one starts in the folder that the process runs in.",
            )
    try:
        with node.dial() as sock, node.wrap(sock) as wrapped:
            cipher = wrapped.cipher()
            found = f"{wrapped.version()}, {cipher[0] if cipher else 'no cipher'}"
    except (OSError, ssl.SSLError) as exc:
        return fail(
            f"no TLS on {node.address}: {node.subject.reason(exc)}",
            "Use amqp:// if the port is for plain AMQP (5672), or the port for TLS (5671); "
            "if the broker asks for a client certificate, set broker_use_ssl.",
        )
    if given.get("cert_reqs") == ssl.CERT_NONE:
        return warn(
            f"{found}, but the broker's certificate is not verified",
            "Set cert_reqs to ssl.CERT_REQUIRED and ca_certs in broker_use_ssl: otherwise "
            "anybody on the way can read the password.",
        )
    if not given.get("server_hostname"):
        return note(
            f"{found}, the login verifies the broker's certificate, but not the host name in it",
            "Set server_hostname in broker_use_ssl to that name, unless the authority signs for "
            "your brokers only.",
        )
    return ok(f"{found}, the login verifies the broker's certificate and the host name in it")


@CONNECTION_CHECKS.add("protocol", needs="tls")
def check_protocol(node: Node) -> Verdict:
    """Does the port speak AMQP 0-9-1?"""
    try:
        answer = first_bytes(node, b"AMQP\x00\x00\x09\x01")
        if answer.startswith(b"\x01"):  # the METHOD frame of connection.start
            return ok("AMQP 0-9-1")
        return explain_answer(node, answer)
    except ssl.SSLError as exc:  # TLS 1.3 refuses a client only after the handshake
        return explain_tls(node, exc)


def explain_answer(node: Node, answer: bytes) -> Verdict:
    """What speaks on the port, if it is not AMQP 0-9-1."""
    where = node.address
    if answer.startswith(b"AMQP"):
        spoken = "-".join(str(byte) for byte in answer[5:8])
        return fail(
            f"{where} speaks AMQP {spoken}, not 0-9-1",
            "Use a broker that speaks AMQP 0-9-1, such as RabbitMQ.",
        )
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
    """What the port answers to ``greeting``; nothing if it closes the connection or is silent.

    Raises:
        ssl.SSLError: it ends TLS.
    """
    try:
        with node.dial() as plain:
            sock = node.wrap(plain) if node.link.ssl else plain
            sock.settimeout(node.timeout)
            sock.sendall(greeting)
            return sock.recv(8)
    except ssl.SSLError:
        raise
    except OSError:
        return b""


def speaks_tls(node: Node) -> bool:
    """Whether a TLS handshake succeeds on the port."""
    try:
        with node.dial() as sock, node.wrap(sock):
            return True
    except OSError:
        return False


@CONNECTION_CHECKS.add("login", needs="protocol")
def log_in(node: Node) -> Verdict:
    """Does the broker accept user, password and virtual host?"""
    subject = node.subject
    try:
        connection = subject.connect(
            node.url,
            confirm_publish=True,
            client_properties={"connection_name": "fastrpc doctor"},
        )
    except Exception as exc:
        return explain_login(node, root_of(exc))
    if subject.connection is None:
        subject.connection, subject.reached = connection, node.url
    else:
        connection.release()
    return ok(f"user {node.user}, vhost {node.vhost}")


def explain_login(node: Node, exc: BaseException) -> Verdict:
    """Why the broker does not let the user in."""
    if isinstance(exc, AccessRefused):
        return explain_refused_user(node)
    if isinstance(exc, NotAllowed):
        return explain_refused_vhost(node, reason(exc))
    if isinstance(exc, ssl.SSLCertVerificationError):
        return fail(
            f"the broker's certificate is not trusted: {exc.verify_message}",
            "Set ca_certs in broker_use_ssl to the certificate of the authority that signed it, "
            "and server_hostname, if it is set, to the host name that the certificate is for.",
        )
    if isinstance(exc, ssl.SSLError):
        return explain_tls(node, exc)
    return fail(
        f"no login: {node.subject.reason(exc)}",
        "Look at the broker's log; a broker that hangs up here may be out of memory or file "
        "descriptors (rabbitmqctl status).",
    )


def explain_tls(node: Node, exc: ssl.SSLError) -> Verdict:
    """The handshake succeeded, but one side ends TLS afterwards."""
    return fail(
        f"TLS fails after the handshake: {node.subject.reason(exc)}",
        "The broker may ask for a client certificate that it trusts: set certfile and keyfile in "
        "broker_use_ssl.",
    )


def explain_refused_user(node: Node) -> Verdict:
    """The broker does not accept user and password."""
    advice = (
        "Correct user and password in the URL (special characters as in %40 for @), or set it: "
        f"rabbitmqctl change_password {node.user}."
    )
    if node.user == "guest" and not node.is_local:
        advice = (
            "guest may log in from the broker's own machine only: make a user (rabbitmqctl "
            "add_user, set_permissions)."
        )
    return fail(f"the broker refuses user {node.user}: wrong password, or no such user", advice)


def explain_refused_vhost(node: Node, said: str) -> Verdict:
    """The broker does not let the user into the virtual host; ``said`` is its reason."""
    if "not found" in said:
        return fail(
            f"there is no vhost {node.vhost}",
            f"Make it (rabbitmqctl add_vhost {node.vhost}), or correct the end of the URL: "
            "amqp://host// is the vhost /, amqp://host/name the vhost name.",
        )
    if re.search(r"limit \(\d+\) is reached", said):
        return fail(
            node.subject.hide(said),
            "Close connections that are not needed, or raise the limit: rabbitmqctl "
            "set_vhost_limits, or set_user_limits.",
        )
    if "refused for user" in said:
        return fail(
            f"user {node.user} may not use vhost {node.vhost}",
            f"Allow it: {node.permit_command}.",
        )
    return fail(
        node.subject.hide(said),
        "Look at the broker's log, and at the limits of the vhost and of the user.",
    )
