"""What the workers of the peers are told, and what is the same for all of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

__all__ = ["PREFETCH", "Settings", "say_ready", "with_slash"]

#: As for the workers of Celery, see `Arena.worker`.
PREFETCH = 64
_VARIABLE = "FASTRPC_BENCH_PEER"


@dataclass(frozen=True)
class Settings:
    """The servers and the queue of one worker; they reach it through its environment."""

    broker: str
    redis: str
    queue: str

    def env(self) -> dict[str, str]:
        # dramatiq has no other way to be told its prefetch.
        return {_VARIABLE: json.dumps(asdict(self)), "dramatiq_queue_prefetch": str(PREFETCH)}

    @classmethod
    def of_this_worker(cls) -> Settings:
        return cls(**json.loads(os.environ[_VARIABLE]))


def with_slash(url: str) -> str:
    """The URL of the virtual host / as others than kombu read it."""
    return url.removesuffix("//") + "/%2F" if url.endswith("//") else url


def say_ready() -> None:
    """Tell the arena that this process consumes; libraries replace sys.stdout."""
    os.write(1, b"ready\n")
