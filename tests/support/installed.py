"""fastrpc.install() for some tests of a process, undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import kombu.pools
import kombu.transport
from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from kombu.serialization import registry

import fastrpc

__all__ = ["installed"]


@contextmanager
def installed() -> Iterator[None]:
    changed = (
        BACKEND_ALIASES,
        kombu.transport.TRANSPORT_ALIASES,
        kombu.transport._transport_cache,
        registry._encoders,
        registry._decoders,
    )
    before = [dict(mapping) for mapping in changed]
    attributes = [(Celery, "amqp_cls"), (registry, "_default_encode")]
    values = [getattr(owner, name) for owner, name in attributes]
    kombu.pools.reset()  # open connections of earlier tests keep their transport
    fastrpc.install()
    try:
        yield
    finally:
        for mapping, contents in zip(changed, before, strict=True):
            mapping.clear()
            mapping.update(contents)
        for (owner, name), value in zip(attributes, values, strict=True):
            setattr(owner, name, value)
        kombu.pools.reset()
