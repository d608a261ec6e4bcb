"""Who waits for which task id, and the results that arrived before anybody asked.

An id is in one of these states:

- ``UNKNOWN``: nothing is known about it.
- ``WAITING``: at least one waiter; the newest progress body may be kept with it.
- ``UNCLAIMED``: nobody waits; the newest body is kept, undecoded.
- ``DONE``: a final state was handed out; remembered so that a duplicate is recognised. The oldest
  are forgotten over ``max_done``.
- ``LOST``: was evicted over a cap, or expired; remembered so that a later ``get()`` can fail at
  once. The oldest are forgotten over ``max_lost``.

Ids are ``str`` (as UTF-8) or ``bytes``; 1 to 255 bytes. An id of another length is UNKNOWN wherever
something is asked, and ``ValueError`` in ``add``, ``finish`` and ``store``. Any other type is
``TypeError``.

Not thread-safe beyond the GIL: each call is atomic. Waiters are compared by identity, are
referenced strongly until they are handed out or discarded, and are visible to the garbage
collector. Destructors may call back into the table: it is changed completely before an object is
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

    ``max_unclaimed`` and ``max_unclaimed_bytes`` cap what nobody has claimed; ``max_done`` and
    ``max_lost`` (by default ``max_unclaimed``) cap the ids remembered. A limit may be 0.
    """

    def __new__(
        cls,
        max_unclaimed: int = 1_000_000,
        max_unclaimed_bytes: int = 268_435_456,
        max_done: int = 10_000,
        max_lost: int | None = None,
    ) -> PendingTable: ...
    def add(self, task_id: str | bytes, waiter: object) -> int:
        """Register a waiter (not None); returns the state before.

        Registers for ``UNKNOWN`` and ``WAITING`` (nothing happens where this very object waits
        already). For ``UNCLAIMED``, ``DONE`` and ``LOST`` it registers nothing: the caller
        decides.
        """

    def discard(self, task_id: str | bytes, waiter: object) -> bool:
        """Remove this waiter; False where it is not waiting.

        Without any waiter left the id is UNKNOWN, or UNCLAIMED where a body is kept; that body then
        counts as having arrived with the latest one. Where ``max_unclaimed`` leaves it no room it
        is dropped: it is no final state, and pushes none out.
        """

    def state(self, task_id: str | bytes) -> int:
        """One of the five constants."""

    def waiters(self, task_id: str | bytes) -> tuple[object, ...]:
        """Who waits for it, in the order of ``add``."""

    def finish(self, task_id: str | bytes) -> tuple[object, ...]:
        """A final state is handed out: the id is DONE, its body dropped. Returns who waited.

        An id that was DONE before stays where it is in the order of the done ones.
        """

    def store(
        self, task_id: str | bytes, body: bytes, format: bytes = b"", now: float | None = None
    ) -> int:
        """Keep this as the newest state of the id; returns how many ids were evicted, -1 where it
        is DONE.

        ``format`` (up to 255 bytes) is the caller's description of the body. ``now`` is in
        seconds, by default ``time.monotonic()``; a clock that goes back counts as standing still,
        and whole seconds are kept.

        The id takes the last place in the order of arrival, also when an older body is replaced.
        UNKNOWN and LOST become UNCLAIMED. While a cap is exceeded the oldest UNCLAIMED id becomes
        LOST. Bodies of WAITING ids count in the bytes and are only advice (a progress state), so
        they go first: the oldest are dropped, and their ids go on waiting. A body of a WAITING id
        never costs an UNCLAIMED one. A body that would not fit even if everything went that may go
        for it goes itself (an unclaimed one is LOST), and the others stay.
        """

    def peek(self, task_id: str | bytes) -> tuple[bytes, bytes] | None:
        """``(format, body)`` of what is kept for it."""

    def drop(self, task_id: str | bytes, kept: tuple[bytes, bytes]) -> bool:
        """Drop ``kept``, which ``peek`` gave: UNCLAIMED becomes UNKNOWN, WAITING goes on waiting.

        False, and nothing changes, where something else is kept by now, or nothing.
        """

    def expire(self, before: float) -> int:
        """UNCLAIMED ids that arrived before that time become LOST; returns how many.

        In whole seconds: never early, late by less than one. Costs as much as there are expired
        ones.
        """

    def forget(self, task_id: str | bytes) -> None:
        """Drop all that is known about it but its waiters."""

    def reset(self, task_id: str | bytes) -> None:
        """A task with this id is sent again: DONE and LOST become UNKNOWN; nothing else changes."""

    def clear(self) -> None:
        """Forget everything, as after a fork. ``evicted`` stays."""

    def waiting_ids(self) -> list[str]:
        """The ids somebody waits for, in no order; what was not UTF-8 has surrogate escapes."""

    @property
    def waiting(self) -> int:
        """How many ids are WAITING."""

    @property
    def unclaimed(self) -> int:
        """How many ids are UNCLAIMED."""

    @property
    def unclaimed_bytes(self) -> int:
        """Bytes of all formats and bodies kept, those of WAITING ids among them."""

    @property
    def done(self) -> int:
        """How many ids are DONE."""

    @property
    def lost(self) -> int:
        """How many ids are LOST."""

    @property
    def evicted(self) -> int:
        """How many ids became LOST, ever."""

    @property
    def max_unclaimed(self) -> int: ...
    @property
    def max_unclaimed_bytes(self) -> int: ...
    def __sizeof__(self) -> int:
        """With the C table, its entries (with malloc's overhead, estimated) and the places of
        waiters."""

    def _check(self) -> int: ...
    def _table_memory(self) -> int: ...
