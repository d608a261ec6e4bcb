"""The hot loop of the way in; ``matching.py`` has the whole meaning, this the short way to it."""

from collections.abc import Callable
from typing import Any

from ._amqp import FrameReader
from ._pending import PendingTable

class Fulfiller:
    """Makes AsyncResults ready and tells those who watch them."""

    watched: dict[int, Any]
    """``id(result)`` -> the wait that wants to hear of it, or a tuple of them."""

    woken: list[Any]
    """Waits that have news since the list was last emptied."""

    fulfilled: int
    """AsyncResults made ready."""

    def __init__(
        self,
        *,
        is_plain: Callable[[type], bool],
        as_python: Callable[[dict[str, Any]], dict[str, Any]],
        on_error: Callable[[Any, Exception], None],
    ) -> None:
        """``is_plain``: whether results of a class become ready as Celery's own AsyncResult does.
        ``as_python``: rebuilds the exception in a meta. ``on_error``: gets what a callback of a
        result raised when nobody watches that result."""

    def fulfil(self, result: Any, meta: dict[str, Any]) -> None:
        """Make ``result`` ready with the meta of a final state. Raises nothing that is an
        ``Exception``: what a callback raised goes to those who wait for the result."""

class DeliveryLoop:
    """Takes deliveries out of a reader, and results to whoever waits for them."""

    shown: bool
    """Whether the delivery that the reader shows is still to be delivered."""

    last_tag: int
    """Delivery tag of the last one delivered."""

    acked_tag: int
    """The last one acknowledged; ``acknowledge`` sets it."""

    taken: int
    """Deliveries taken."""

    duplicates: int
    """Deliveries dropped because their task's result was handed out before."""

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
        deliver_slowly: Callable[[], None],
        dispatch: Callable[[int], Any],
        acknowledge: Callable[[], None],
    ) -> None:
        """``load_text`` decodes very large bodies, with less memory than orjson needs, or is MISS.
        ``deliver_slowly`` is called with a delivery shown by the reader, for which there is no
        short way; ``dispatch`` with every other event; ``acknowledge`` after each ``ack_every``
        deliveries."""

    def run(self, short_way: bool, now: float) -> None:
        """Deliver everything that the reader has. ``now`` is the time of arrival of what is kept.

        What ``dispatch`` raises passes through, and so does ``ProtocolError``. An exception
        thrown in between loses nothing: the next call goes on with the same delivery.

        A callback of a result may call it again, to wait for another one.
        """
