"""The message of a result: its encoded meta, with the content type that the caller needs."""

from __future__ import annotations

from typing import Any

from celery import states

from ..errors import ResultTooLarge
from ..sending.message import Message
from ..serialization import decode, encode

__all__ = ["pack", "too_large_failure"]


def pack(routing_key: str, correlation_id: str, meta: dict[str, Any], serializer: str) -> Message:
    """The message for ``meta``.

    Raises:
        kombu.exceptions.EncodeError: the result cannot be serialized.
    """
    content_type, content_encoding, body = encode(meta, serializer)
    if isinstance(body, str):  # yaml, or a serializer of the application
        body = body.encode(content_encoding)
    return Message(routing_key, correlation_id, body, content_type, content_encoding)


def too_large_failure(message: Message, backend: Any) -> Message | None:
    """The failure that replaces a result that is too large for the broker.

    None for a state that is not final: it is dropped, and the result is still to come.
    """
    accept = frozenset({message.content_type})
    meta = decode(message.body, message.content_type, message.content_encoding, accept)
    if meta["status"] not in states.READY_STATES:
        return None
    exc = ResultTooLarge(
        f"the result of task {meta['task_id']} is larger than the broker takes "
        f"(max_message_size): {len(message.body)} bytes"
    )
    failure = backend.encode_result(exc, states.FAILURE)
    meta.update(status=states.FAILURE, result=failure, traceback=None, children=[])
    return pack(message.routing_key, message.correlation_id, meta, backend.serializer)
