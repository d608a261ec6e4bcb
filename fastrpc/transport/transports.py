"""kombu's AMQP transports over our connection, and the URL schemes that they replace."""

from __future__ import annotations

from types import MethodType
from typing import Any

from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from .connection import Connection
from .loop import LoopReader

__all__ = ["OURS", "SSLTransport", "Transport", "is_amqp", "use_our_transport"]


class Transport(pyamqp.Transport):
    """kombu's AMQP transport over our connection."""

    Connection = Connection
    implements = pyamqp.Transport.implements.extend(batch_publish=True)

    def establish_connection(self) -> Any:
        """Connect, as kombu, and close the lost connection that this one replaces.

        kombu does not close it. Its channels would look open, and kombu would declare an exchange
        on one of them again and again, connecting each time.
        """
        opened = super().establish_connection()
        # Kept by kombu's connection: with several URLs, each failure makes a new transport.
        lost = getattr(self.client, "_fastrpc_opened", None)
        self.client._fastrpc_opened = opened
        if lost is not None:
            opened.lost_consumers = lost.consumed or lost.lost_consumers
            lost.collect()
        return opened

    def close_connection(self, connection: Any) -> None:
        """Close a connection, as kombu, which also calls this for a lost one to change the URL."""
        if connection.connected:
            self._forget_opened()
        super().close_connection(connection)

    def _collect(self, connection: Any) -> None:
        self._forget_opened()
        super()._collect(connection)

    def _forget_opened(self) -> None:
        self.client._fastrpc_opened = None

    def drain_events(self, connection: Any, **kwargs: Any) -> Any:
        """Handle what arrives, see :meth:`Connection.drain_events`.

        If another thread has met the loss of a connection, when it acknowledged a task, kombu
        connects again before it calls this method. A worker would wait for ever: nothing consumes.

        Raises:
            RecoverableConnectionError: the lost connection had consumers, and this one has none.
        """
        if connection.lost_consumers:
            raise RecoverableConnectionError("the connection was lost, and its consumers with it")
        return super().drain_events(connection, **kwargs)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        connection.transport.raise_on_initial_eintr = True
        reader = LoopReader(connection, loop)
        loop.add_reader(connection.sock, reader.on_readable)
        loop.add_reader(reader.alarm.fileno(), reader.on_alarm)
        connection.on_collect = reader.close
        connection.on_rest = reader.alarm.set
        connection.tell_of_rest()


class SSLTransport(Transport, pyamqp.SSLTransport):
    """kombu's AMQP transport over our connection and TLS."""


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
