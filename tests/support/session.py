"""The servers of a session of tests or benchmarks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import pytest

from tests.support.broker import MissingServer, RabbitMQ, Redis

__all__ = ["ForeignBroker", "session_broker", "started"]

Server = TypeVar("Server", RabbitMQ, Redis)


class ForeignBroker:
    """The broker that FASTRPC_TEST_BROKER_URL names. The tests use it, but never stop it."""

    def __init__(self, url: str) -> None:
        self.url = url


@contextmanager
def started(server: type[Server]) -> Iterator[Server]:
    """A private server; if it is not installed, the session ends."""
    with ExitStack() as stack:
        try:
            running = stack.enter_context(server())
        except MissingServer as exc:
            # Never a skip: a run without its broker has tested nothing.
            pytest.exit(str(exc), returncode=3)
        yield running


@contextmanager
def session_broker() -> Iterator[RabbitMQ | ForeignBroker]:
    """A private RabbitMQ node, or the broker that FASTRPC_TEST_BROKER_URL names."""
    if url := os.environ.get("FASTRPC_TEST_BROKER_URL"):
        yield ForeignBroker(url)
        return
    with started(RabbitMQ) as node:
        yield node
