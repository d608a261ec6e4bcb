"""Every exception that users meet, in one tree."""

from __future__ import annotations

from amqp.exceptions import FrameSyntaxError, UnexpectedFrame

__all__ = [
    "BacklogLimitExceeded",
    "BadMessage",
    "BadOption",
    "FastRPCError",
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

    Raised at once by ``get()``, where waiting would never end: the result went when more
    unclaimed results than ``max_unclaimed`` / ``max_unclaimed_bytes`` were held, when it
    stayed unclaimed for longer than ``result_expires``, or it was handed out already or forgotten
    (and is not among the last ``max_claimed``).
    """


class BadMessage(FastRPCError):
    """A message on a reply queue is not a result; it is counted, logged and acknowledged.

    ``get()`` raises it for the task in the correlation id of the message. (For a content type that
    is not accepted and for a body that cannot be decoded it raises kombu's ``ContentDisallowed``
    and ``DecodeError``, for one that is too large ResultTooLarge.)

    ``reason`` is one of a few fixed texts (they are counted by it), ``detail`` says more;
    neither holds anything of the body.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason
        self.detail = detail


class BadOption(FastRPCError, ValueError):
    """An option in the URL or in ``result_backend_transport_options`` is wrong.

    Celery users see it as ``ImproperlyConfigured``.
    """


class ReplyQueueRefused(FastRPCError):
    """The broker does not make the reply queue as we want it, and will not if asked again.

    For a limit of the virtual host, or a ``result_expires`` that it does not take.
    """


class ReplyQueueMismatch(ReplyQueueRefused):
    """The reply queue exists on the broker with other arguments than ours."""


class ResultTooLarge(FastRPCError):
    """A result is larger than the broker takes (RabbitMQ's ``max_message_size``), or than this
    process does (``max_body``).

    The caller gets it in place of the result.
    """


class BacklogLimitExceeded(FastRPCError):
    """More messages waited in the reply queue than polling may read."""


class ProtocolError(FastRPCError, UnexpectedFrame):
    """The peer sent bytes that are not AMQP 0-9-1, or more than was agreed on.

    Final for the connection: whoever keeps reading gets the same error again. It is py-amqp's
    ``UnexpectedFrame`` to whoever catches what a lost connection raises.
    """


class TableError(FastRPCError, FrameSyntaxError):
    """A header that has no type in AMQP, or headers or properties of the peer that are malformed.

    It is py-amqp's ``FrameSyntaxError``, which is what a lost connection raises, among others.
    """
