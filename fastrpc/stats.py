"""What the backend counts; read through ``backend.stats()``."""

from __future__ import annotations

from collections import Counter

__all__ = ["Stats"]


class Stats:
    """Plain counters since the process (or its fork) began.

    Increments are not locked. Nearly all are made by the thread that reads the socket
    (``received`` … ``reconnects``) or that holds the publisher's lock (the rest). A result that is
    decoded in the thread that asks for it, or sent over another transport than AMQP, is counted
    there: two threads that count at the same moment may count one.
    """

    __slots__ = (
        "bad_messages",
        "confirmed",
        "duplicates",
        "published",
        "received",
        "reconnects",
        "resent",
        "returned",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew, as in a forked child."""
        self.received = 0
        self.duplicates = 0
        self.bad_messages: Counter[str] = Counter()
        self.reconnects = 0
        self.published = 0
        self.confirmed = 0
        self.returned = 0
        self.resent = 0

    def as_dict(self) -> dict[str, object]:
        """The counters by name; ``bad_messages`` is a dict by reason."""
        counters: dict[str, object] = {name: getattr(self, name) for name in self.__slots__}
        counters["bad_messages"] = dict(self.bad_messages)
        return counters
