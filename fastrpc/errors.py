"""Every exception of the package, one tree."""

from __future__ import annotations

__all__ = ["BadMessage", "FastRPCError", "ProtocolError", "ResultDropped"]


class FastRPCError(Exception):
    """Base of all errors that fastrpc itself raises."""


class ResultDropped(FastRPCError):
    """The result was received, but is no longer kept.

    Raised at once by ``get()``, where waiting would never end: the result went when more
    unclaimed results than ``max_unclaimed`` / ``max_unclaimed_bytes`` were held, when it
    stayed unclaimed for longer than ``result_expires``, or it was handed out already.
    """


class BadMessage(FastRPCError):
    """A message on a reply queue is not a result; it is counted, logged and acknowledged."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ProtocolError(FastRPCError):
    """The peer sent bytes that are not AMQP 0-9-1, or more than was agreed on.

    Final for the connection: whoever keeps reading gets the same error again.
    """
