"""Fast Celery over RabbitMQ: the result backend ``fastrpc://`` and the transport of ``amqp://``.

:func:`install` switches both on for a process, whatever the URLs of its apps. The backend alone
needs no import: ``Celery(backend="fastrpc://")``.
"""

from __future__ import annotations

from ._install import install
from .errors import (
    BacklogLimitExceeded,
    BadMessage,
    BadOption,
    FastRPCError,
    ProtocolError,
    ReplyQueueMismatch,
    ReplyQueueRefused,
    ResultDropped,
    ResultTooLarge,
    TableError,
)

#: The one place of the version: pyproject.toml reads it from here, without an import.
__version__ = "0.1.0"

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
    "install",
]
