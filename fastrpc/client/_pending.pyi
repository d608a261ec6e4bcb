"""The waiters of each task id, and the results that arrived before they were asked for.

An id is in one of these states:

- ``UNKNOWN``: nothing is known about it.
- ``WAITING``: it has at least one waiter; the newest progress body may be kept with it.
- ``UNCLAIMED``: it has no waiter; the newest body is kept, undecoded.
- ``DONE``: a final state was handed out. The id is remembered to recognise duplicates. Over
  ``max_done`` the oldest are forgotten.
- ``LOST``: its body was evicted over a cap, or expired. The id is remembered so that a later
  ``get()`` can fail at once. Over ``max_lost`` the oldest are forgotten.

Ids are ``str`` (as UTF-8) or ``bytes``, of 1 to 255 bytes. ``add``, ``finish`` and ``store`` raise
``ValueError`` for an id of another length; for all other methods it is UNKNOWN. Any other type
raises ``TypeError``.

Not thread-safe beyond the GIL: each call is atomic. Waiters are compared by identity. The table
holds strong references to them until they are handed out or discarded, and the garbage collector
sees these. Destructors may call back into the table: each change is complete before an object is
dropped.
"""

from typing import Final

UNKNOWN: Final[int]
WAITING: Final[int]
UNCLAIMED: Final[int]
DONE: Final[int]
LOST: Final[int]

class PendingTable:
    """The table of one client process.

    ``max_unclaimed`` and ``max_unclaimed_bytes`` cap the kept bodies; ``max_done`` and ``max_lost``
    (by default ``max_unclaimed``) cap the remembered ids. A limit may be 0.
    """

    def __new__(
        cls,
        max_unclaimed: int = 1_000_000,
        max_unclaimed_bytes: int = 268_435_456,
        max_done: int = 10_000,
        max_lost: int | None = None,
    ) -> PendingTable: ...
    def add(self, task_id: str | bytes, waiter: object) -> int:
        """Register a waiter (not None); return the previous state.

        Registers for ``UNKNOWN`` and ``WAITING``; registering the same object twice changes
        nothing. For ``UNCLAIMED``, ``DONE`` and ``LOST`` it registers nothing: the caller decides.
        """

    def discard(self, task_id: str | bytes, waiter: object) -> bool:
        """Remove this waiter; return False if it was not waiting.

        When the last waiter is removed, the id becomes UNCLAIMED if a body is kept, else UNKNOWN.
        That body then counts as the newest arrival. If ``max_unclaimed`` leaves no room for it, it
        is dropped: it is not a final state, so it evicts none.
        """

    def state(self, task_id: str | bytes) -> int:
        """One of the five constants."""

    def waiters(self, task_id: str | bytes) -> tuple[object, ...]:
        """The waiters of the id, in the order of ``add``."""

    def finish(self, task_id: str | bytes) -> tuple[object, ...]:
        """Mark the id as DONE, because its final state was handed out; return its waiters.

        The kept body is dropped. An id that was DONE before keeps its age among the DONE ids.
        """

    def store(
        self, task_id: str | bytes, body: bytes, format: bytes = b"", now: float | None = None
    ) -> int:
        """Keep this as the newest state of the id; return how many ids were evicted, or -1 if the
        id is DONE.

        ``format`` (up to 255 bytes) is the caller's description of the body. ``now`` is in
        seconds, by default ``time.monotonic()``; it is truncated to whole seconds, and a time
        before the latest one counts as the latest one.

        The id becomes the newest in the order of arrival, also if the body replaces an older one.
        UNKNOWN and LOST become UNCLAIMED. While a cap is exceeded, the oldest UNCLAIMED id becomes
        LOST. Bodies of WAITING ids count in the bytes, but they are only progress states, so the
        oldest of them are dropped first; their ids stay WAITING. A body of a WAITING id never
        evicts an UNCLAIMED one. If the new body could not fit even then, it alone is dropped; an
        UNCLAIMED id becomes LOST.
        """

    def peek(self, task_id: str | bytes) -> tuple[bytes, bytes] | None:
        """``(format, body)`` of the kept body."""

    def drop(self, task_id: str | bytes, kept: tuple[bytes, bytes]) -> bool:
        """Drop ``kept``, a value of ``peek``: UNCLAIMED becomes UNKNOWN, WAITING stays WAITING.

        Return False, and change nothing, if another body is kept by now, or none.
        """

    def expire(self, before: float) -> int:
        """Make UNCLAIMED ids that arrived before that time LOST; return how many.

        In whole seconds: an id is never early, and less than a second late. The cost depends only
        on the number of expired ids.
        """

    def forget(self, task_id: str | bytes) -> None:
        """Drop everything that is known about the id except its waiters."""

    def reset(self, task_id: str | bytes) -> None:
        """A task with this id is sent again: DONE and LOST become UNKNOWN; nothing else changes."""

    def clear(self) -> None:
        """Forget everything, as after a fork. ``evicted`` stays."""

    def waiting_ids(self) -> list[str]:
        """The WAITING ids, in no order; bytes that are not UTF-8 become surrogate escapes."""

    @property
    def waiting(self) -> int:
        """How many ids are WAITING."""

    @property
    def unclaimed(self) -> int:
        """How many ids are UNCLAIMED."""

    @property
    def unclaimed_bytes(self) -> int:
        """Bytes of all kept formats and bodies, including those of WAITING ids."""

    @property
    def done(self) -> int:
        """How many ids are DONE."""

    @property
    def lost(self) -> int:
        """How many ids are LOST."""

    @property
    def evicted(self) -> int:
        """How many ids have become LOST since the table was made."""

    @property
    def max_unclaimed(self) -> int: ...
    @property
    def max_unclaimed_bytes(self) -> int: ...
    def __sizeof__(self) -> int:
        """Includes the C table, its entries (with malloc's estimated overhead) and the list of
        waiters."""

    def _check(self) -> int: ...
    def _table_memory(self) -> int: ...
