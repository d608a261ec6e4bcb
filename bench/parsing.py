"""Small deliveries in memory, and the two readers that parse them for Python."""

from __future__ import annotations

import io
import json
import uuid
from struct import pack
from types import SimpleNamespace

from amqp import spec
from amqp.method_framing import frame_handler
from amqp.serialization import loads
from amqp.transport import TCPTransport

from fastrpc.wire._reader import DELIVERY, FrameReader

__all__ = ["deliveries", "parse_fastrpc", "parse_pyamqp"]

Found = list[tuple[int, str, bytes]]

QUEUE = str(uuid.UUID(int=0))


def _frame(kind: int, payload: bytes) -> bytes:
    return pack(">BHI", kind, 1, len(payload)) + payload + b"\xce"


def _short(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def deliveries(count: int) -> tuple[bytes, list[str]]:
    """The bytes that a broker sends for `count` results, and their correlation ids."""
    ids = [str(uuid.uuid4()) for _ in range(count)]
    frames = []
    for tag, task_id in enumerate(ids, 1):
        meta = {"task_id": task_id, "status": "SUCCESS", "result": 42, "traceback": None}
        body = json.dumps({**meta, "children": []}).encode()
        method = pack(">HH", 60, 60) + _short("None4") + pack(">QB", tag, 0) + _short("")
        properties = _short("application/json") + _short("utf-8") + pack(">IBB", 0, 2, 0)
        header = pack(">HHQH", 60, 0, len(body), 0xFC00) + properties + _short(task_id)
        frames += (_frame(1, method + _short(QUEUE)), _frame(2, header), _frame(3, body))
    return b"".join(frames), ids


def parse_pyamqp(data: bytes, count: int) -> Found:
    """Parse as py-amqp does, up to the call of the consumer."""
    found: Found = []

    def on_method(channel, method, arguments, message) -> None:
        assert method == spec.Basic.Deliver
        # As Channel._on_basic_deliver: consumer tag, delivery tag, redelivered, exchange, key.
        (_, tag, _, _, _), _ = loads("sLbss", arguments, 4)
        found.append((tag, message.properties["correlation_id"], message.body))

    transport = TCPTransport("localhost")
    transport._read_buffer = b""
    transport._quick_recv = io.BytesIO(data).read
    on_frame = frame_handler(SimpleNamespace(bytes_recv=0), on_method)
    while len(found) < count:
        on_frame(transport.read_frame())
    return found


def parse_fastrpc(data: bytes, count: int) -> Found:
    """Parse as our intake does, but decode the correlation id to str, as py-amqp does."""
    found: Found = []
    reader, recv_into = FrameReader(), io.BytesIO(data).readinto
    while len(found) < count:
        reader.recv(recv_into)
        while kind := reader.next():
            assert kind == DELIVERY
            found.append((reader.delivery_tag, reader.correlation_id.decode(), reader.body))
    return found
