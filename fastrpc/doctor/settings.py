"""What Celery's settings, and the classes of an app, mean for results and tasks."""

from __future__ import annotations

from typing import Any

from kombu.serialization import registry

__all__ = ["REPLYING", "accepts", "family", "is_fastrpc", "scheme_of"]

#: Schemes of the backends that send results to the caller's reply queue.
REPLYING = ("rpc", "fastrpc")


def is_fastrpc(cls: type) -> bool:
    """Whether a class is ours, or derives from one of ours."""
    return any(base.__module__.partition(".")[0] == "fastrpc" for base in cls.__mro__)


def scheme_of(backend: Any) -> str:
    """The scheme of a result_backend; "disabled" if there is none."""
    text = str(backend or "disabled")
    return text.partition("://")[0].partition("+")[0] if text != "None" else "disabled"


def family(scheme: str) -> str:
    """One name for all schemes whose backends read each other's results."""
    return "rpc" if scheme in REPLYING else scheme


def accepts(accepted: Any, serializer: str) -> bool:
    """Whether a list of names and content types covers a serializer."""
    names = registry.name_to_type
    types = {names.get(str(entry), str(entry)) for entry in accepted or ()}
    return names.get(serializer, serializer) in types
