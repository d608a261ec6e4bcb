"""The options of the backend: names, defaults and allowed values.

They come from ``result_backend_transport_options`` and from the query of the URL
(``fastrpc://?prefetch=1000``; the URL wins).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from .errors import BadOption
from .retry import RetryPolicy

__all__ = ["Options"]

MIB = 1024 * 1024

#: The largest count or size that the tables in C, and Python itself, can hold.
MOST = 2**63 - 1


class Options(NamedTuple):
    """Checked options; sizes in bytes, times in seconds."""

    #: When a failed send is retried; keys and meaning are Celery's.
    retry_policy: RetryPolicy = RetryPolicy()
    #: Deliveries the broker may send ahead of our acknowledgements.
    prefetch: int = 4000
    #: How many unclaimed results are kept, undecoded.
    max_unclaimed: int = 1_000_000
    #: The same limit in bytes.
    max_unclaimed_bytes: int = 256 * MIB
    #: How many results are kept after ``get()``, so that another AsyncResult can fetch them.
    max_claimed: int = 1000
    #: The same limit in bytes.
    max_claimed_bytes: int = 4 * MIB
    #: How many bytes a reply queue holds before the broker refuses more; None sets no limit.
    max_queue_bytes: int | None = 1024 * MIB
    #: How many unread results of tasks that were sent inside a task the broker keeps for a thread.
    max_unread: int = 1000
    #: The same limit in bytes.
    max_unread_bytes: int = 16 * MIB
    #: The largest message body that is accepted.
    max_body: int = 512 * MIB
    #: How long a read polls the socket before it sleeps.
    busy_wait: float = 0.0
    #: ``classic`` or ``quorum``.
    queue_type: str = "classic"
    #: Join chords in a queue of the broker.
    chords: bool = False
    #: Heartbeat of the result connections; None takes ``broker_heartbeat``.
    heartbeat: float | None = None
    #: Keep results until the broker has confirmed them.
    publisher_confirms: bool = True
    #: How many results may be unconfirmed. None means 1,000; with persistent results the number
    #: then follows the rate at which the broker confirms.
    confirm_window: int | None = None
    #: The same limit in bytes.
    confirm_window_bytes: int = 64 * MIB
    #: How long a process waits for outstanding confirms when it ends.
    shutdown_timeout: float = 10.0

    @classmethod
    def parse(cls, transport_options: Mapping[str, Any], url: str | None = None) -> Options:
        """Check and combine both sources.

        Raises:
            BadOption: an option is unknown or has a wrong value; the message names it.
        """
        given = {**transport_options, **_from_url(url)}
        unknown = sorted(given.keys() - _CHECKS.keys())
        if unknown:
            raise BadOption(
                f"unknown option {unknown[0]!r} for fastrpc://; allowed are: "
                + ", ".join(sorted(_CHECKS))
            )
        return cls(**{name: _CHECKS[name](name, value) for name, value in given.items()})


def _from_url(url: str | None) -> dict[str, str]:
    if not url:
        return {}
    parts = urlsplit(url)
    if parts.netloc or parts.path.strip("/"):
        raise BadOption(
            "fastrpc:// takes no host, user or path: results travel over the broker of the app "
            "(broker_url); only options are allowed, as in fastrpc://?prefetch=1000"
        )
    return dict(parse_qsl(parts.query, keep_blank_values=True))


def _number(kind: type, least: float, most: float = inf) -> Callable[[str, Any], Any]:
    def check(name: str, value: Any) -> Any:
        try:
            if isinstance(value, bool):
                raise ValueError
            number = kind(value)
            # Compared with the original value, because floats hold integers only up to 2**53.
            if kind is int and not isinstance(value, str) and number != value:
                raise ValueError
            if not least <= number < inf:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            what = "a whole number" if kind is int else "a number"
            raise BadOption(
                f"option {name!r} must be {what} of at least {least:g}, not {value!r}"
            ) from None
        if number > most:
            raise BadOption(f"option {name!r} must be at most {most}, not {value!r}")
        return number

    return check


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _flag(name: str, value: Any) -> bool:
    spelled = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, (bool, int, str)) and str(value).lower() in spelled:
        return spelled[str(value).lower()]
    raise BadOption(f"option {name!r} must be true or false, not {value!r}")


def _queue_type(name: str, value: Any) -> str:
    if value in ("classic", "quorum"):
        return str(value)
    raise BadOption(f"option {name!r} must be 'classic' or 'quorum', not {value!r}")


def _retry_policy(name: str, value: Any) -> RetryPolicy:
    if isinstance(value, RetryPolicy):
        return value
    if not isinstance(value, Mapping):
        raise BadOption(f"option {name!r} must be a dict, not {value!r}")
    return RetryPolicy.parse(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "retry_policy": _retry_policy,
    "prefetch": _number(int, 1, 65535),  # basic.qos carries it as a short
    "max_unclaimed": _number(int, 1, MOST),
    "max_unclaimed_bytes": _number(int, 1, MOST),
    "max_claimed": _number(int, 0, MOST),
    "max_claimed_bytes": _number(int, 0, MOST),
    "max_queue_bytes": _optional(_number(int, 1, MOST)),
    "max_unread": _number(int, 1, MOST),
    "max_unread_bytes": _number(int, 1, MOST),
    "max_body": _number(int, 1, MOST),
    "busy_wait": _number(float, 0, 0.01),
    "queue_type": _queue_type,
    "chords": _flag,
    "heartbeat": _optional(_number(float, 0, 65535)),  # connection.tune-ok: a short
    "publisher_confirms": _flag,
    "confirm_window": _optional(_number(int, 1, MOST)),
    "confirm_window_bytes": _number(int, 1, MOST),
    "shutdown_timeout": _number(float, 0, 2_000_000),  # poll() takes milliseconds in an int
}


assert _CHECKS.keys() == set(Options._fields)
