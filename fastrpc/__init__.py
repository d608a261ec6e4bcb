"""A fast, lossless drop-in replacement for Celery's ``rpc://`` result backend.

Use it by URL, ``Celery(backend="fastrpc://")``: nothing needs to be imported. Deployments that
cannot change their URL call :func:`install` before the app makes its backend.
"""

from __future__ import annotations

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


def install() -> None:
    """Let ``rpc://`` mean this backend, in every app of the process that has none yet."""
    from celery.app.backends import BACKEND_ALIASES

    BACKEND_ALIASES["rpc"] = "fastrpc.backend:RPCBackend"
