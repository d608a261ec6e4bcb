"""Fast Celery over RabbitMQ: the result backend ``fastrpc://`` and the transport of ``amqp://``.

``install()`` switches both on for a process, whatever the URLs of its apps. The backend alone
needs no import: ``Celery(backend="fastrpc://")``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._install import install
from .errors import (
    BacklogLimitExceeded,
    BadMessage,
    BadOption,
    FastRPCError,
    NotAllSent,
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
    "NotAllSent",
    "ProtocolError",
    "ReplyQueueMismatch",
    "ReplyQueueRefused",
    "ResultDropped",
    "ResultTooLarge",
    "TableError",
    "apply_many",
    "batch",
    "install",
]

if TYPE_CHECKING:
    from .tasks.batch import batch
    from .tasks.many import apply_many


def __getattr__(name: str) -> Any:
    # Later: who patches for gevent may not have done so yet, and they import all of Celery.
    if name == "apply_many":
        from .tasks.many import apply_many

        return apply_many
    if name == "batch":
        from .tasks.batch import batch

        return batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
