"""The exceptions that fastrpc raises to its users."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from amqp.exceptions import FrameSyntaxError, UnexpectedFrame

__all__ = [
    "BacklogLimitExceeded",
    "BadMessage",
    "BadOption",
    "FastRPCError",
    "NotAllSent",
    "ProtocolError",
    "ReplyQueueMismatch",
    "ReplyQueueRefused",
    "ResultDropped",
    "ResultTooLarge",
    "TableError",
]


class FastRPCError(Exception):
    """Base of all errors that fastrpc itself raises."""


class ResultDropped(FastRPCError):
    """The result was received, but is no longer kept.

    ``get()`` raises it at once, because it would wait for ever. The result may have been dropped:
    over ``max_unclaimed`` or ``max_unclaimed_bytes``, or because it stayed unclaimed for longer
    than ``result_expires``. Or it was forgotten. Or another AsyncResult got it before, and it is
    not among the last ``max_claimed`` results.
    """


class BadMessage(FastRPCError):
    """A message on a reply queue is not a result; it is counted, logged and acknowledged.

    ``get()`` raises it for the task that the correlation id of the message names. Three reasons
    have exceptions of their own: kombu's ``ContentDisallowed`` for a content type that is not
    accepted, kombu's ``DecodeError`` for a body that cannot be decoded, and ``ResultTooLarge``.

    ``reason`` is one of a few fixed texts, by which bad messages are counted; ``detail`` says more.
    Neither contains any part of the body.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class NotAllSent(FastRPCError):
    """Some tasks of ``apply_many()`` or ``batch()`` were not sent. The cause says why.

    ``sent`` holds the results of the tasks that ``apply_many()`` has sent. ``in_doubt`` holds the
    ids of tasks that the broker may or may not have: their write failed, or their confirm is
    missing.
    """

    def __init__(self, text: str, sent: Any = None, in_doubt: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.sent = sent
        self.in_doubt = list(in_doubt)


class BadOption(FastRPCError, ValueError):
    """An option in the URL or in ``result_backend_transport_options`` is wrong.

    Celery users see it as ``ImproperlyConfigured``.
    """


class ReplyQueueRefused(FastRPCError):
    """The broker refuses to declare the reply queue, so a retry would fail too.

    The reason is a limit of the virtual host, or a ``result_expires`` that it does not accept.
    """


class ReplyQueueMismatch(ReplyQueueRefused):
    """The reply queue exists on the broker with other arguments."""


class ResultTooLarge(FastRPCError):
    """A result is larger than the broker accepts (RabbitMQ's ``max_message_size``), or than this
    process accepts (``max_body``).

    The caller gets this exception in place of the result.
    """


class BacklogLimitExceeded(FastRPCError):
    """More messages wait in the reply queue than ``ready()`` or ``state`` may read at once."""


class ProtocolError(FastRPCError, UnexpectedFrame):
    """The peer sent bytes that are not AMQP 0-9-1, or a frame or a message that is too large.

    The connection is unusable afterwards: each further read raises the same error. The class
    derives from py-amqp's ``UnexpectedFrame``, so code that handles a lost connection handles it
    too.
    """


class TableError(FastRPCError, FrameSyntaxError):
    """A header value has no AMQP type, or the peer's headers or properties are malformed.

    The class derives from py-amqp's ``FrameSyntaxError``, so code that handles a lost connection
    handles it too.
    """
