"""Ours, in the place of py-amqp's, for py-amqp's own tests: they mock what is around it.

Some of them replace the socket by a mock that returns whole frames, and the frame writer by another
one. Here these frames still pass through our reader and our writer, as bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

from amqp import serialization, spec
from amqp.basic_message import Message

from fastrpc.transport.channel import Channel
from fastrpc.transport.connection import Connection
from fastrpc.transport.writer import FrameWriter, encoded_body
from fastrpc.wire._table import dumps_properties, dumps_table, loads_properties, loads_table
from tests.support.amqp_bytes import frame

__all__ = [
    "MockedChannel",
    "MockedConnection",
    "TableMessage",
    "dumps",
    "loads",
    "mocked_writer",
    "read_item",
]

METHOD, HEADER, BODY = 1, 2, 3


class SentMessage(Message):
    """A message that was written; equal to a message with the same properties and body."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Message)
            and self.properties == other.properties
            and self.body == encoded_body(other)
        )

    __hash__ = None  # type: ignore[assignment]


def frames_of(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, channel and payload of each frame."""
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        payload = data[7 : 7 + size]
        assert data.startswith(frame(kind, channel, payload))
        yield kind, channel, payload
        data = data[8 + size :]


def writer_calls(data: bytes) -> Iterator[tuple[Any, ...]]:
    """The calls of py-amqp's frame writer that write ``data``."""
    call: tuple[Any, ...] = ()
    for kind, channel, payload in frames_of(data):
        if kind == HEADER:
            message = SentMessage()
            message.inbound_header(payload)
            call = (*call[:4], message)
        elif kind == BODY:
            call[4].inbound_body(payload)
        else:
            if call:
                yield call
            if kind == METHOD:
                call = (kind, channel, struct.unpack_from(">HH", payload), payload[4:] or "", None)
            else:
                call = (kind, channel, None, None, None)
    yield call


class MockedSocket:
    """Gives what our writer writes to the mock of a transport, and to the mock of a frame writer
    if there is one."""

    def __init__(self, transport: Any, frame_writer: Any = None) -> None:
        self.transport = transport
        self.frame_writer = frame_writer

    def write(self, view: memoryview) -> None:
        data = bytes(view)  # a mock keeps what it was called with
        self.transport.write(memoryview(data))
        if self.frame_writer is not None:
            for call in writer_calls(data):
                self.frame_writer(*call)


def mocked_writer(connection: Any, transport: Any) -> FrameWriter:
    """Our frame writer over the mock of a transport."""
    return FrameWriter(connection, MockedSocket(transport))


class MockedChannel(Channel):
    """Our channel; with the mock of a connection, what it writes is given to ``send_method``."""

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(connection, *args, **kwargs)
        if isinstance(connection, Mock):
            connection.frame_writer.publish = self.published_by
            connection.frame_writer.acknowledge = self.acknowledged_by
            connection.look_in = lambda: Connection.look_in(connection)
            connection.consumed_elsewhere = connection.reader.receiving = False
            connection.reading_lock.locked.return_value = False

    def published_by(
        self, channel: int, exchange: Any, key: Any, mandatory: bool, immediate: bool, message: Any
    ) -> None:
        arguments = (0, exchange, key, mandatory, immediate)
        self.send_method(spec.Basic.Publish, "Bssbb", arguments, message)

    def acknowledged_by(self, channel: int, delivery_tag: int, multiple: bool) -> None:
        self.send_method(spec.Basic.Ack, "Lb", (delivery_tag, multiple))


class MockedConnection(Connection):
    """Our connection, for tests that replace its ``Transport`` with a mock."""

    Channel = MockedChannel

    def __init__(self, *args: Any, frame_writer: Any = None, **kwargs: Any) -> None:
        def writer(connection: Any, transport: Any) -> FrameWriter:
            theirs = frame_writer(connection, transport) if frame_writer else None
            return FrameWriter(connection, MockedSocket(transport, theirs))

        super().__init__(*args, frame_writer=writer, **kwargs)

    def fill(self, timeout: float | None = None, stay: bool = True) -> int:
        """Take the next frame of the mock."""
        received = frame(*self.transport.read_frame())
        self.reader.feed(received)
        return len(received)

    def readable(self, busy_wait: float = 0) -> bool:
        return True


# -- Tables and properties, in the place of the functions of amqp.serialization. They encode and
# decode the arguments of methods, too; that is left to py-amqp.


class TableMessage(Message):
    """A message whose properties our code encodes and decodes."""

    def _serialize_properties(self) -> bytes:
        return dumps_properties(self.properties)

    def _load_properties(self, class_id: int, data: bytes, offset: int) -> None:
        self.properties = loads_properties(data[offset:])


def read_item(data: bytes, offset: int) -> tuple[Any, int]:
    """Decode one typed value of a table, which is all of ``data``."""
    field = b"\x01v" + data[offset:]
    return loads_table(struct.pack(">I", len(field)) + field)["v"], len(data)


def loads(format: Any, data: bytes, offset: int) -> tuple[list[Any], int]:
    """Decode a table or an array with our code; all else with py-amqp's."""
    if format in ("F", b"F"):
        return [loads_table(data[offset:])], len(data)
    if format == "A":
        return [read_item(b"A" + data[offset:], 0)[0]], len(data)
    return serialization.loads(format, data, offset)


def dumps(format: Any, values: list[Any]) -> bytes:
    """Encode a table or an array with our code; all else with py-amqp's."""
    if format in ("F", b"F"):
        return dumps_table(values[0])
    if format == "A":
        return dumps_table({"v": values[0]})[len(b"size\x01vA") :]
    return serialization.dumps(format, values)
