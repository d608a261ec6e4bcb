"""What every client process has: its values, its meter, and the loop that answers `bench.arena`.

It reads `[measurement, arguments]` from stdin, one JSON text per line, and writes a sample: `wall`
and `cpu` in seconds per operation, and further values of the measurement.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from importlib.metadata import version
from typing import Any

from .cost import Meter
from .wire import Wire

__all__ = ["FIRST_VALUE", "TIMEOUT", "WARM", "ClientProcess", "serve", "values_of"]

TIMEOUT = 600
#: Warm-up calls, for measurements of a process that has its connections open.
WARM = 20
#: Seven digits each, so that all messages of the raw loop are of one size.
FIRST_VALUE = 1_000_000


def values_of(count: int, size: int | None) -> list[Any]:
    """Different small numbers, or texts of `size` characters."""
    if size is None:
        return list(range(FIRST_VALUE, FIRST_VALUE + count))
    return [f"{n:08d}" + "x" * (size - 8) for n in range(count)]


class ClientProcess:
    """One implementation; each method of a subclass is a measurement that the arena can ask for."""

    #: The distributions whose versions belong into the report.
    packages: tuple[str, ...] = ()

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.meter = Meter(config["servers"])
        self.wire = Wire(config["broker"])

    def hello(self) -> dict[str, Any]:
        """Return the versions."""
        broker = self.wire.connection.connection.server_properties
        versions = {name: version(name) for name in self.packages}
        return {"versions": {**versions, broker["product"]: broker["version"]}}


def serve(client: ClientProcess) -> None:
    """Answer until stdin ends, then end this process."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nobody else writes to where the answers go
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = getattr(client, name)(**arguments)
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
    # Not the exit handlers of a hundred apps: their connections end with the process.
    os._exit(0)
