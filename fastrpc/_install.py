"""Switches fastrpc on for a whole process."""

from __future__ import annotations

import logging

__all__ = ["install"]

logger = logging.getLogger("fastrpc")

#: kombu's scheme -> our transport. kombu turns ``amqp://`` into ``librabbitmq://`` where a package
#: of that name is installed.
TRANSPORTS = {
    "amqp": "fastrpc.transport.transports:Transport",
    "amqps": "fastrpc.transport.transports:SSLTransport",
    "pyamqp": "fastrpc.transport.transports:Transport",
    "librabbitmq": "fastrpc.transport.transports:Transport",
}


def install(backend: bool = True, transport: bool = True) -> None:
    """Use fastrpc in this process: for AMQP broker URLs and for the backend ``rpc://``.

    Call it before the app is made: one that is there already keeps its way of sending tasks and
    the backend it has made, and an open connection keeps its transport until it connects again. A
    second call changes nothing.

    Args:
        backend: Whether ``rpc://`` means ``fastrpc.backend:RPCBackend``, and
            ``Task.replace()`` keeps the caller's reply queue.
        transport: Whether ``amqp://``, ``amqps://``, ``pyamqp://`` and ``librabbitmq://`` use
            fastrpc's transport, the serializer ``json`` uses orjson where the result is the same,
            and an app sends tasks with ``fastrpc.tasks.amqp:AMQP`` unless it has an
            ``amqp_cls`` of its own.
    """
    if backend:
        from celery.app.backends import BACKEND_ALIASES

        from .replace import keep_reply_queue

        keep_reply_queue()
        BACKEND_ALIASES["rpc"] = "fastrpc.backend:RPCBackend"
        logger.debug("installed: rpc:// is fastrpc's result backend")
    if transport:
        from ._borrowed import forget_schemes
        from .serialization import register_json

        if register_json():
            logger.debug("installed: the serializer json uses orjson")
        from kombu import transport as kombu_transport

        kombu_transport.TRANSPORT_ALIASES.update(TRANSPORTS)
        forget_schemes(TRANSPORTS)
        from celery import Celery

        Celery.amqp_cls = "fastrpc.tasks.amqp:AMQP"
        logger.debug("installed: %s use fastrpc's transport", ", ".join(TRANSPORTS))
