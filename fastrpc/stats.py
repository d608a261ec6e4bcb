"""The counters of the backend; read them through ``backend.stats()``."""

from __future__ import annotations

from collections import Counter

__all__ = ["CHORDS", "RECEIVED", "SENT", "ReceivedStats", "SentStats", "zeros"]

#: What ``stats()`` tells of received results, of sent ones and of chords.
RECEIVED = (
    *("received", "duplicates", "bad_messages", "reconnects"),
    *("fulfilled", "waiting", "unclaimed", "unclaimed_bytes", "evicted"),
)
SENT = ("published", "confirmed", "returned", "resent", "unconfirmed")
CHORDS = (
    "chord_parts",
    "chords_joined",
    "chord_doubles",
    "chord_put_back",
    "chord_late",
)


def zeros(names: tuple[str, ...]) -> dict[str, object]:
    """The counters of a part of the backend that this process has not used."""
    return dict.fromkeys(names, 0)


class ReceivedStats:
    """What the client's side counts, from zero in each process and after each fork.

    Increments are not locked. The thread that reads the socket makes nearly all of them. A result
    that is decoded in the thread that asks for it is counted there: if two threads count at the
    same moment, one increment may be lost.
    """

    __slots__ = ("bad_messages", "duplicates", "received", "reconnects")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero, as in a forked child."""
        self.received = 0
        self.duplicates = 0
        self.bad_messages: Counter[str] = Counter()
        self.reconnects = 0

    def as_dict(self) -> dict[str, object]:
        """The counters by name; ``bad_messages`` is a dict by reason."""
        return {
            "received": self.received,
            "duplicates": self.duplicates,
            "bad_messages": dict(self.bad_messages),
            "reconnects": self.reconnects,
        }


class SentStats:
    """What publishers count, from zero in each process and after each fork.

    Increments are not locked. The thread that holds a publisher's lock makes nearly all of them.
    Over another transport than AMQP the thread that sends does: if two threads count at the same
    moment, one increment may be lost.
    """

    __slots__ = ("confirmed", "published", "resent", "returned")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counters to zero, as in a forked child."""
        self.published = 0
        self.confirmed = 0
        self.returned = 0
        self.resent = 0

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}
