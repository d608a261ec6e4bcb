"""What was sent on a connection in confirm mode and is not confirmed yet."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ..stats import Stats
from ..wire._reader import FrameReader

class ConfirmWindow:
    """Every message that is not confirmed, in one of three places; the owner of all three.

    In flight, by the delivery tag under which it was sent; in ``again`` while its link is lost;
    in ``refused`` while the broker does not take it. A message is anything with a ``body``. Those
    that were refused once have an account of their own: they take up nobody else's room.

    Each method is one step to an exception that is thrown into the thread, as by a signal.
    """

    again: deque[Any]
    """To be sent before anything new; the first one moves by being sent (``add``)."""

    refused: deque[tuple[float, int, Any]]
    """(when, by time.monotonic(), how often, message), in the order of the refusals; where its
    link was lost meanwhile 0.0. The first one moves by being sent (``add``)."""

    bytes: int
    """Of the bodies of all that were never refused."""

    refused_bytes: int
    """Of the bodies of all that were, in flight again or not."""

    confirmed: int
    """How many were confirmed since ``count_into`` was called."""

    def __len__(self) -> int:
        """All of them."""

    def __iter__(self) -> Iterator[Any]:
        """Those in flight that were never refused, in the order of their tags."""

    @property
    def in_flight(self) -> int: ...
    @property
    def refused_count(self) -> int:
        """How many were refused, in flight again or not."""

    def has_room(self, count: int, size: int) -> bool:
        """Whether fewer than ``count`` and than ``size`` bytes were never refused."""

    def holds(self, correlation_id: str) -> bool:
        """Whether a message with this correlation id is kept; looks at all of them."""

    def add(self, tag: int, message: Any) -> None:
        """``message`` was sent; tags only grow. It may be the first of ``again`` or ``refused``."""

    def forget(self, message: Any) -> None:
        """``message`` was sent and will not be confirmed. It may be the first of ``again``."""

    def append(self, message: Any) -> None:
        """``message`` is to be sent after those of ``again``."""

    def lose(self) -> None:
        """The link is lost: what is in flight goes to the left ends of ``again`` and ``refused``,
        in the order of the tags, which begin anew."""

    def replace(self, message: Any, substitute: Any | None) -> None:
        """Put ``substitute``, or nothing, in the place of one of ``again``."""

    def give_up(self) -> tuple[int, Any]:
        """Drop the first of ``refused``; how often it was refused, and the message."""

    def count_into(self, stats: Stats) -> None:
        """Move ``confirmed`` to the counter of that name."""

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """``basic.ack`` (``taken``) or ``basic.nack`` of the message under ``tag``, with
        ``multiple`` of all up to it. One of a tag that is not there changes nothing."""

    def read(self, reader: FrameReader) -> int:
        """Take confirms out of ``reader`` up to the next other event; returns that event's kind.

        Raises ``fastrpc.errors.ProtocolError``, as ``reader.next()`` does.
        """
