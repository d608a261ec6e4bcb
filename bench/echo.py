"""The worker of the raw-bytes loop: only answers each task with its first argument.

python -m bench.echo BROKER_URL QUEUE
"""

from __future__ import annotations

import json
import signal
import sys

from amqp.serialization import loads

from fastrpc.wire._reader import DELIVERY, FrameReader

from .wire import Wire, result_body


def reply_queue(header: bytes) -> str:
    """`reply_to` in a content header that has the properties of a Celery task."""
    return loads("ssFooss", header, 14)[0][-1]


def main(url: str, queue: str) -> None:
    setup = Wire(url)
    setup.declare(queue)
    wire = Wire(url)
    encode, reader = wire.encoder(), FrameReader(131072)
    wire.consume(queue)
    wire.sock.settimeout(None)
    print("ready", flush=True)
    replies_to = ""
    while True:
        reader.recv(wire.sock.recv_into)
        answers = []
        while kind := reader.next():
            if kind != DELIVERY:
                continue
            task_id = reader.correlation_id.decode()
            # One client, one reply queue: read once.
            replies_to = replies_to or reply_queue(reader.header)
            value = json.loads(reader.body)[0][0]
            answers.append(encode(replies_to, task_id, result_body(task_id, value)))
        wire.sock.sendall(b"".join(answers))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    main(*sys.argv[1:])
