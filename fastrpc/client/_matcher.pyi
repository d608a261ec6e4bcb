"""Fast path for uncompressed UTF-8 JSON deliveries.

Everything else falls back to the reference implementation in ``matcher.py``.
"""

from collections.abc import Callable
from typing import Any, Protocol, type_check_only

from ..wire._reader import FrameReader
from ._pending import PendingTable
from ._wait import ReadingRole, Wait, Watchers

class Claimed:
    """The bodies of the results that were handed out last, to be had again for a while."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """At most ``most`` of them, with ``most_bytes``; at least the last half as many are kept.

        None that is larger than half of the bytes, or that is larger than 4 MiB.
        """

    def get(self, task_id: str) -> tuple[bytes, bytes] | None:
        """``(format, body)`` of the result of ``task_id``, if it is kept."""

    def forget(self, task_id: str) -> None:
        """Keep that of ``task_id`` no longer."""

    def clear(self) -> None:
        """Forget everything, as in a forked child."""

class Fulfiller:
    """Makes AsyncResults ready and tells those who watch them."""

    fulfilled: int
    """AsyncResults made ready."""

    def __init__(
        self,
        table: PendingTable,
        claimed: Claimed,
        watchers: Watchers,
        role: ReadingRole,
        *,
        is_plain: Callable[[type], bool],
        as_python: Callable[[dict[str, Any]], dict[str, Any]],
        on_error: Callable[[Any, Exception], None],
        thrown_in: tuple[type[Exception], ...],
    ) -> None:
        """
        Args:
            claimed: Keeps what is handed out.
            is_plain: Whether results of a class become ready as Celery's own AsyncResult does.
            as_python: Rebuilds the exception in a meta.
            on_error: Gets what a callback of a result raised when nobody watches that result.
            thrown_in: Exceptions that come from outside, as a soft time limit does. All that is no
                ``Exception`` (KeyboardInterrupt) counts as such, too.
        """

    def hand_out(
        self,
        task_id: str,
        waiters: tuple[Any, ...],
        meta: dict[str, Any],
        kept: tuple[bytes, bytes],
    ) -> None:
        """Make ``waiters`` ready with the meta of a final state; the task is DONE from here on.

        ``kept`` is the format and the body that the meta was decoded from.

        Whoever begins to wait meanwhile gets it, too. What a callback of a result raises goes to
        those who wait for the result. An exception that was thrown in from outside is raised, once
        all of this is done; in the reader ``raise_thrown`` does it.
        """

    def raise_thrown(self) -> None:
        """Raise what was thrown into the reader while it handed out the delivery just counted."""

    def give_up(self, results: list[Any], wait: Wait) -> None:
        """``wait`` ends: it hears of none of ``results`` any more.

        Those that are not ready, and that nobody else waits for, wait no longer; what arrives for
        them is kept.
        """

class Delivery:
    """A message from the broker, out of the reader's buffer."""

    tag: int
    consumer_tag: str
    correlation_id: bytes | None
    body: bytes
    dropped: int
    """Bytes of a body that was larger than ``max_body``; then ``body`` is empty."""
    format_key: tuple[bytes | None, bytes | None, bytes | None]
    """Content type, content encoding and encoded headers, which say how to decode the body."""

@type_check_only
class Sink(Protocol):
    """Where all goes for which the loop has no fast path: the way in that owns the loop."""

    def deliver(self, delivery: Delivery) -> None:
        """Take in a message."""

    def dispatch(self, kind: int) -> None:
        """Serve an event that the reader shows and that is no message of ours."""

    def write_acknowledgement(self) -> None:
        """Acknowledge all that was delivered, and set ``acked_tag``."""

class DeliveryLoop:
    """Takes deliveries out of a reader, and results to whoever waits for them."""

    last_tag: int
    """Delivery tag of the last one delivered."""

    acked_tag: int
    """The last one acknowledged; the sink sets it."""

    taken: int
    """Deliveries taken."""

    duplicates: int
    """Deliveries dropped because their task's result was handed out before."""

    spoiled: bool
    """Whether an exception parted something on the connection, which is of no use since."""

    ended: bool
    """Whether the connection is another process's."""

    def __init__(
        self,
        reader: FrameReader,
        table: PendingTable,
        channel: int,
        ack_every: int,
        *,
        fulfiller: Fulfiller,
        ready_states: frozenset[str],
        load_text: Callable[[str], Any],
        sink: Sink,
    ) -> None:
        """
        Args:
            load_text: Decodes very large bodies, with less memory than orjson needs, or is MISS.
            sink: Gets whatever has no fast path; writes an acknowledgement after each ``ack_every``
                deliveries.
        """

    @property
    def holds_some(self) -> bool:
        """Whether something was read that was not delivered."""

    def run(self, short_way: bool, now: float) -> None:
        """Deliver everything that the reader has. ``now`` is the time of arrival of what is kept.

        What the sink raises passes through, and so does ``ProtocolError``. An exception thrown
        in between loses nothing: the next call goes on with the same delivery.

        A callback of a result may call it again, to wait for another one.
        """

    def guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)``, which uses the connection. What it raises, other than TimeoutError,
        sets ``spoiled``: half of a frame may be on its way, or what was read not served."""

    def keep(self) -> None:
        """Keep the delivery that the reader shows until the next ``run``.

        Raises:
            ProtocolError: it came on another channel than that of our consumers.
        """

    def end(self) -> None:
        """Deliver nothing more, as in a forked child, where the connection is the parent's."""
