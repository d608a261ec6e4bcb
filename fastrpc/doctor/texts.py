"""Turns exceptions, times and version numbers into what a finding says."""

from __future__ import annotations

import re
import time

from kombu.exceptions import OperationalError

__all__ = ["counted", "mask_urls", "milliseconds_since", "reason", "root_of", "version_in"]


def root_of(exc: BaseException) -> BaseException:
    """The first exception of a chain of causes."""
    while exc.__cause__ is not None:
        exc = exc.__cause__
    return exc


def reason(exc: BaseException) -> str:
    """The text of an exception alone; the name of its class if it has none."""
    if isinstance(exc, OperationalError):
        exc = root_of(exc)
    text = str(getattr(exc, "reply_text", "") or exc or "").strip()
    return text or type(exc).__name__


def mask_urls(text: str) -> str:
    """``text`` with the passwords of URLs replaced."""
    return re.sub(r"(://[^:/@\s]*:)\S*@", r"\1**@", text)


def counted(number: int, noun: str) -> str:
    """ "1 worker", "2 workers"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def milliseconds_since(started: float) -> float:
    """Milliseconds that have passed since ``started``, a value of ``time.perf_counter()``."""
    return (time.perf_counter() - started) * 1000


def version_in(text: str) -> tuple[int, int]:
    """Major and minor number at the beginning of a version; (0, 0) if there are none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
