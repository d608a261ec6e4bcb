"""AMQP without Celery: fills and empties queues for the benchmarks, and serves as the limit.

py-amqp does the handshake and declarations; everything that is measured goes directly to and from
the socket.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from struct import pack
from typing import Any

import kombu
from amqp.serialization import dumps

from fastrpc.wire._encoder import PublishEncoder
from fastrpc.wire._reader import DELIVERY, FrameReader

__all__ = ["Wire", "result_body"]

TIMEOUT = 60.0
DATE = "2026-01-01T00:00:00.000000+00:00"


def result_body(task_id: str, value: Any) -> bytes:
    """A result as a worker with `rpc://` or `redis://` writes it."""
    meta = {"status": "SUCCESS", "result": value, "traceback": None, "children": []}
    return json.dumps({**meta, "date_done": DATE, "task_id": task_id}).encode()


class Wire:
    """One connection."""

    def __init__(self, url: str) -> None:
        # The name of the transport: with librabbitmq installed, kombu takes that for amqp:// URLs.
        self.connection = kombu.Connection(url, transport="pyamqp")
        self.channel = self.connection.default_channel
        self._amqp = self.connection.connection
        # py-amqp's timeout is one second; a write that the broker holds up longer would fail.
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TIMEOUT * 1000))

    def close(self) -> None:
        # collect(): once the bytes were read here, py-amqp would wait for an answer in vain.
        self.connection.collect(0.1)

    @property
    def sock(self) -> socket.socket:
        return self._amqp.transport.sock

    # -- queues

    def declare(self, queue: str) -> None:
        self.channel.queue_declare(queue, durable=True, auto_delete=False)

    def delete(self, queue: str) -> None:
        self.channel.queue_delete(queue)

    def count(self, queue: str) -> int:
        return self.channel.queue_declare(queue, passive=True).message_count

    def wait_count(self, queue: str, count: int) -> float:
        """Wait until that many messages are in the queue; return the CPU seconds of the polling."""
        before, deadline = time.thread_time(), time.monotonic() + TIMEOUT
        while self.count(queue) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.count(queue)} of {count} messages in {queue}")
            time.sleep(0.002)
        return time.thread_time() - before

    # -- out

    def encoder(self, delivery_mode: int = 1) -> Callable[[str, str, bytes], bytes]:
        packer = PublishEncoder(
            self.channel.channel_id,
            "",
            "application/json",
            "utf-8",
            dumps("F", [{}]),
            delivery_mode,
            0,
            False,
            self._amqp.frame_max,
        )
        return lambda queue, task_id, body: bytes(packer.encode(queue, task_id, body))

    def fill(self, queue: str, results: Iterable[tuple[str, bytes]], count: int) -> None:
        """Put results into the queue, `count` in all, and wait until they are there."""
        encode, frames, size = self.encoder(), [], 0
        for task_id, body in results:
            frames.append(encode(queue, task_id, body))
            size += len(frames[-1])
            if size > 1 << 18:
                self.sock.sendall(b"".join(frames))
                frames, size = [], 0
        self.sock.sendall(b"".join(frames))
        self.wait_count(queue, count)

    def frames(self, queue: str, header: bytes, body: bytes) -> bytes:
        """basic.publish of a message whose content header (payload of its frame) is known."""
        key = queue.encode()
        method = pack(f">HHHBB{len(key)}sB", 60, 40, 0, 0, len(key), key, 0)
        return b"".join(
            pack(">BHI", kind, self.channel.channel_id, len(payload)) + payload + b"\xce"
            for kind, payload in ((1, method), (2, header), (3, body))
        )

    # -- in

    def consume(self, queue: str) -> None:
        self.channel.basic_consume(queue, no_ack=True, nowait=True, consumer_tag="raw")
        self.sock.settimeout(TIMEOUT)

    def delivered_size(self, queue: str, published: bytes) -> int:
        """The size of the delivery of a message that was sent as `published`."""
        method_out = 8 + 4 + 2 + 1 + 1 + len(queue) + 1
        method_in = 8 + 4 + (1 + len("raw")) + 8 + 1 + 1 + 1 + len(queue)
        return len(published) - method_out + method_in

    def receive(self, size: int, into: bytearray | None = None) -> bytearray:
        """Receive exactly `size` bytes: the limit's only work to receive."""
        buffer = into if into is not None else bytearray(size)
        view, got, recv_into = memoryview(buffer), 0, self.sock.recv_into
        while got < size:
            got += recv_into(view[got:size])
        return buffer

    def deliveries(self, data: bytes) -> dict[str, bytes]:
        """Correlation id -> body of the received messages."""
        reader, found = FrameReader(self._amqp.frame_max), {}
        reader.feed(bytes(data))
        while kind := reader.next():
            if kind == DELIVERY:
                found[reader.correlation_id.decode()] = reader.body
        return found

    def messages(self, queue: str, count: int) -> Iterator[tuple[str, bytes, bytes]]:
        """Take `count` messages out of the queue: (correlation id, content header, body)."""
        self.consume(queue)
        reader = FrameReader(self._amqp.frame_max)
        while count:
            reader.recv(self.sock.recv_into)
            while kind := reader.next():
                if kind == DELIVERY:
                    count -= 1
                    yield reader.correlation_id.decode(), reader.header, reader.body
