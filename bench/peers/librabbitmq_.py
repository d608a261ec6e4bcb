"""librabbitmq (the package librabbitmq-fork), through kombu's own transport for it.

python -m bench.peers.librabbitmq_ CONFIG         # the client process

Raw messages only: on kombu 5.7 no worker of Celery starts with it.
"""

from __future__ import annotations

import json
import sys

from bench.messages import Messages
from bench.serving import serve


class LibrabbitmqClient(Messages):
    packages = ("kombu", "librabbitmq-fork")
    transport = "librabbitmq"


if __name__ == "__main__":
    serve(LibrabbitmqClient(json.loads(sys.argv[1])))
