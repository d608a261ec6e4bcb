"""kombu's AMQP transports over our connection, and where they are used."""

from __future__ import annotations

from contextlib import suppress
from types import MethodType
from typing import Any

from kombu.transport import pyamqp

from .connection import Connection

__all__ = ["OURS", "SSLTransport", "Transport", "is_amqp", "use_our_transport"]


class Transport(pyamqp.Transport):
    """kombu's AMQP transport over our connection."""

    Connection = Connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        super().register_with_event_loop(connection, loop)

        def due() -> None:
            connection.on_rest = None  # one at a time
            loop.call_soon(serve)

        def serve() -> None:
            connection.on_rest = due
            with suppress(TimeoutError):
                # All of it: before the loop comes back here it may wait for a socket.
                while connection.connected and connection.reader.buffered:
                    connection.drain_events(timeout=0)

        connection.on_rest = due
        connection.tell_of_rest()


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The same over TLS."""


OURS: dict[Any, type[pyamqp.Transport]] = {
    "amqp": Transport,
    "pyamqp": Transport,
    "librabbitmq": Transport,
    "amqps": SSLTransport,
    pyamqp.Transport: Transport,
    pyamqp.SSLTransport: SSLTransport,
    Transport: Transport,
    SSLTransport: SSLTransport,
}


def is_amqp(connection: Any) -> bool:
    """Whether a kombu connection's broker speaks AMQP."""
    return connection.transport_cls in OURS


def use_our_transport(connection: Any, **options: Any) -> Any:
    """Make a kombu connection, not yet opened, use our transport for any AMQP broker URL.

    ``options`` are arguments of our :class:`Connection`, or of py-amqp's.
    """
    connection.transport_options = {**connection.transport_options, **options}

    def get_transport_cls(self: Any) -> type:
        cls = OURS.get(self.transport_cls)
        return cls if cls is not None else type(self).get_transport_cls(self)

    connection.get_transport_cls = MethodType(get_transport_cls, connection)
    return connection
