"""Opens a kombu connection within a deadline, and says what its errors mean."""

from __future__ import annotations

import time
from ssl import SSLCertVerificationError
from typing import Any

from amqp.exceptions import AccessRefused, NotAllowed
from kombu.exceptions import OperationalError

__all__ = ["ANSWER_TIMEOUT", "connect", "errors_of", "failure", "is_refusal"]

#: How long, in seconds, the broker may take for each answer.
ANSWER_TIMEOUT = 10.0

#: The least time, in seconds, that the remaining URLs share, even after the deadline.
LEAST_SHARE = 0.05


def connect(connection: Any, timeout: float | None = None) -> None:
    """Open a kombu connection: one attempt for each broker URL, without pauses.

    ``timeout`` bounds the whole, in seconds. Each URL gets an equal share of the time that is left,
    so that a silent node does not use up the time of the others.
    """
    usual = connection.connect_timeout
    end = time.monotonic() + (timeout or 0)
    for left in range(max(len(connection.alt), 1), 0, -1):
        if timeout is not None:
            share = max(end - time.monotonic(), LEAST_SHARE) / left
            connection.connect_timeout = min(usual or share, share)
        try:
            connection.ensure_connection(max_retries=0)
            return
        except OperationalError:
            if left == 1:
                raise
            connection.maybe_switch_next()  # resets connect_timeout


def errors_of(connection: Any) -> tuple[type[Exception], ...]:
    """The exceptions that a lost, refused or impossible connection raises."""
    return (OperationalError, *connection.connection_errors, *connection.channel_errors)


def failure(connection: Any, exc: BaseException) -> str:
    """The reason why ``connection`` could not be opened, and its URL without the password."""
    return f"{str(exc) or repr(exc)} ({connection.as_uri()})"


def is_refusal(exc: BaseException | None) -> bool:
    """Whether the broker, or TLS, refuses our configuration, so that a retry would fail too."""
    while exc is not None:
        if isinstance(exc, NotAllowed):
            return "is down" not in str(exc)  # such a virtual host is only starting
        if isinstance(exc, (AccessRefused, SSLCertVerificationError)):
            return True
        exc = exc.__cause__
    return False
