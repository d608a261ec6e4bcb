"""What the counters of ``backend.stats()`` are called outside, for every monitoring system."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["BAD_REASONS", "METRICS", "Metric", "describe_backend", "read_stats"]


class Metric(NamedTuple):
    """One counter or gauge. ``name`` has dots; ``unit`` is OpenTelemetry's."""

    key: str
    name: str
    grows: bool
    unit: str
    help: str


METRICS = (
    Metric(
        "received",
        "fastrpc.results.received",
        True,
        "{message}",
        "Messages taken from the reply queues.",
    ),
    Metric(
        "fulfilled",
        "fastrpc.results.fulfilled",
        True,
        "{result}",
        "Times that an AsyncResult became ready.",
    ),
    Metric(
        "duplicates",
        "fastrpc.results.duplicate",
        True,
        "{message}",
        "Dropped copies of results that were handed out already.",
    ),
    Metric(
        "bad_messages",
        "fastrpc.messages.bad",
        True,
        "{message}",
        "Unusable messages on the reply queues, by reason.",
    ),
    Metric(
        "reconnects",
        "fastrpc.reconnects",
        True,
        "{connection}",
        "Lost connections for results.",
    ),
    Metric(
        "evicted",
        "fastrpc.results.evicted",
        True,
        "{result}",
        "Unclaimed results that were dropped.",
    ),
    Metric(
        "published",
        "fastrpc.results.published",
        True,
        "{message}",
        "Sent results and states.",
    ),
    Metric(
        "confirmed",
        "fastrpc.results.confirmed",
        True,
        "{message}",
        "Sent results that the broker has confirmed.",
    ),
    Metric(
        "resent",
        "fastrpc.results.resent",
        True,
        "{message}",
        "Results sent again after a lost connection or a refusal.",
    ),
    Metric(
        "returned",
        "fastrpc.results.returned",
        True,
        "{message}",
        "Results whose caller was gone.",
    ),
    Metric(
        "chord_parts",
        "fastrpc.chords.parts",
        True,
        "{message}",
        "Results of header tasks sent to the queue of their chord.",
    ),
    Metric(
        "chords_joined",
        "fastrpc.chords.joined",
        True,
        "{chord}",
        "Chords whose body, or failure, this process sent.",
    ),
    Metric(
        "chord_doubles",
        "fastrpc.chords.doubles",
        True,
        "{message}",
        "Parts dropped because their task was run twice.",
    ),
    Metric(
        "chord_put_back",
        "fastrpc.chords.put_back",
        True,
        "{event}",
        "Times that parts were read and given back.",
    ),
    Metric(
        "chord_late",
        "fastrpc.chords.late",
        True,
        "{message}",
        "Parts that came after the body was sent, or the chord had expired.",
    ),
    Metric(
        "waiting",
        "fastrpc.results.waiting",
        False,
        "{result}",
        "Task ids that an AsyncResult waits for.",
    ),
    Metric(
        "unclaimed",
        "fastrpc.results.unclaimed",
        False,
        "{result}",
        "Kept results that nobody has asked for.",
    ),
    Metric(
        "unclaimed_bytes",
        "fastrpc.results.unclaimed.size",
        False,
        "By",
        "Bytes of the kept results that nobody has asked for.",
    ),
    Metric(
        "unconfirmed",
        "fastrpc.results.unconfirmed",
        False,
        "{message}",
        "Sent results whose confirm has not arrived.",
    ),
)
#: The reasons by which ``bad_messages`` counts, see docs/stats.md.
BAD_REASONS = (
    "undecodable",
    "content type not accepted",
    "not a result",
    "empty body",
    "too large",
)


def read_stats(app: Any) -> dict[str, Any]:
    """The counters of the app's backend; none if the backend is not fastrpc's."""
    stats = getattr(app.backend, "stats", None)
    return dict(stats()) if callable(stats) else {}


def describe_backend(app: Any) -> str:
    """The class of the app's backend, as ``module:class``."""
    cls = type(app.backend)
    return f"{cls.__module__}:{cls.__name__}"
