"""Fast path for uncompressed UTF-8 JSON deliveries.

Everything else falls back to the reference implementation in ``matcher.py``.
"""

from collections.abc import Callable
from typing import Any, Protocol, type_check_only

from ..wire._reader import FrameReader
from ._pending import PendingTable
from ._wait import ReadingRole, Wait, Watchers

class Claimed:
    """The bodies of the results that were handed out last, so that they can be fetched again."""

    def __init__(self, most: int, most_bytes: int) -> None:
        """Keeps at most ``most`` bodies of ``most_bytes``, and always the newest half of ``most``.

        A body that is larger than half of ``most_bytes``, or than 4 MiB, is not kept.
        """

    def get(self, task_id: str) -> tuple[bytes, bytes] | None:
        """``(format, body)`` of the result of ``task_id``, if it is kept."""

    def forget(self, task_id: str) -> None:
        """Drop the body of ``task_id``."""

    def clear(self) -> None:
        """Forget everything, as in a forked child."""

class Fulfiller:
    """Makes AsyncResults ready and tells the waits that watch them."""

    fulfilled: int
    """How many AsyncResults were made ready."""

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
            claimed: Keeps the bodies that are handed out.
            is_plain: Whether results of a class become ready as Celery's own AsyncResult does.
            as_python: Rebuilds the exception in a meta.
            on_error: Gets the exception of a callback of a result that no wait watches.
            thrown_in: Exceptions that are thrown into the thread from outside, for example a soft
                time limit. Classes other than ``Exception`` (KeyboardInterrupt) always count as
                thrown in.
        """

    def hand_out(
        self,
        task_id: str,
        waiters: tuple[Any, ...],
        meta: dict[str, Any],
        kept: tuple[bytes, bytes],
    ) -> None:
        """Make ``waiters`` ready with the meta of a final state. The task is then DONE.

        ``kept`` is the format and the body that the meta was decoded from.

        Waiters that are added meanwhile become ready too. The exception of a result's callback goes
        to the waits that watch the result. An exception that was thrown in from outside is raised
        when all of this is done; if this thread reads, ``raise_thrown`` raises it later.
        """

    def raise_thrown(self) -> None:
        """Raise the exception that was thrown in while the last counted delivery was handed out."""

    def give_up(self, results: list[Any], wait: Wait) -> None:
        """End ``wait``: it is not told of ``results`` any more.

        A result that is not ready, and that nothing else waits for, stops waiting: its message is
        then kept as unclaimed.
        """

class Delivery:
    """A message from the broker, copied out of the reader's buffer."""

    tag: int
    consumer_tag: str
    correlation_id: bytes | None
    body: bytes
    dropped: int
    """The size of a body that was skipped as larger than ``max_body`` (``body`` is empty), or 0."""
    format_key: tuple[bytes | None, bytes | None, bytes | None]
    """Content type, content encoding and encoded headers, which say how to decode the body."""

@type_check_only
class Sink(Protocol):
    """The owner of the loop, which handles everything that has no fast path."""

    def deliver(self, delivery: Delivery) -> None:
        """Match a message."""

    def dispatch(self, kind: int) -> None:
        """Handle the reader's current event, which is not a delivery to our consumers."""

    def write_acknowledgement(self) -> None:
        """Acknowledge everything that was delivered, and set ``acked_tag``."""

class DeliveryLoop:
    """Takes deliveries from a reader and hands each to the results that wait for it."""

    last_tag: int
    """The highest delivery tag that was delivered."""

    acked_tag: int
    """The highest delivery tag that was acknowledged; the sink sets it."""

    taken: int
    """How many deliveries were delivered."""

    duplicates: int
    """Deliveries dropped because their task's result was handed out before."""

    spoiled: bool
    """Whether an exception interrupted an operation on the connection, which is now unusable."""

    ended: bool
    """Whether the connection belongs to another process."""

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
            load_text: Decodes a very large body with less memory than orjson needs, or returns
                MISS.
            sink: Handles everything that has no fast path, and writes an acknowledgement after
                every ``ack_every`` deliveries.
        """

    @property
    def holds_some(self) -> bool:
        """Whether bytes or deliveries were read and not delivered yet."""

    def run(self, fast_path: bool, now: float) -> None:
        """Deliver everything that the reader has; ``now`` is the time of arrival.

        With ``fast_path``, deliveries may take it. Exceptions of the sink and ``ProtocolError`` are
        passed on. An exception thrown into the thread loses nothing: the next call continues with
        the same delivery. A callback of a result may call ``run`` again, to wait for another one.
        """

    def guarded(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)``, which uses the connection.

        An exception other than TimeoutError sets ``spoiled``: half of a frame may have been
        written, or a frame read and not handled.
        """

    def keep(self) -> None:
        """Keep the reader's current delivery until the next ``run``.

        Raises:
            ProtocolError: it arrived on a channel that has no consumer of ours.
        """

    def end(self) -> None:
        """Deliver nothing more, as in a forked child, where the connection is the parent's."""
