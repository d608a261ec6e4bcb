"""The messages that were sent in confirm mode and are not confirmed yet."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ..stats import SentStats
from ..wire._reader import FrameReader

class ConfirmWindow:
    """All unconfirmed messages. Each is in one of three places.

    A message is in flight, under the delivery tag with which it was sent; or in ``again``, because
    its link was lost; or in ``refused``, because the broker refused it. A message is anything with
    a ``body``. Messages that were refused are counted apart, so that they take no room from others.

    To an exception that is thrown into the thread, for example by a signal handler, each method is
    a single step.
    """

    again: deque[Any]
    """Messages to be sent before any new one. The first one leaves when it is sent (``add``)."""

    refused: deque[tuple[float, int, Any]]
    """(time of the refusal, how often it was refused, message), in the order of the refusals. The
    time is by time.monotonic(), or 0.0 if the link was lost after a resend. The first one leaves
    when it is sent (``add``)."""

    bytes: int
    """The size of all bodies that were never refused."""

    refused_bytes: int
    """The size of all bodies that were refused, including those in flight again."""

    ahead: int
    """Without confirms: the bytes between the last answered question and the last question."""

    confirmed: int
    """How many messages were confirmed since the last ``count_into``."""

    def __len__(self) -> int:
        """How many messages are unconfirmed, in all three places."""

    def __iter__(self) -> Iterator[Any]:
        """The messages in flight that were never refused, in the order of their tags."""

    @property
    def in_flight(self) -> int:
        """Messages and questions that the broker has not answered."""
    @property
    def refused_count(self) -> int:
        """How many messages were refused, including those in flight again."""

    def has_room(self, count: int, size: int, ahead: int) -> bool:
        """Whether a new message may be sent.

        It may if ``again`` is empty, the messages in flight that were never refused are fewer than
        ``count`` and have fewer than ``size`` bytes, and the sender is less than ``ahead`` bytes
        ahead.
        """

    def holds(self, correlation_id: str) -> bool:
        """Whether a message with this correlation id is kept. Searches all messages."""

    def add(self, tag: int, message: Any) -> None:
        """Note that ``message`` was sent; tags only grow.

        It is a new message, or the first one of ``again`` or ``refused``.
        """

    def forget(self, message: Any, size: int) -> bool:
        """Note that ``message`` was sent, in ``size`` bytes, and will not be confirmed.

        It is a new message, or the first one of ``again``.

        Returns:
            Whether to ask the broker how far it is. That question counts as sent, and ``read``
            waits for its answer.
        """

    def append(self, message: Any) -> None:
        """Put ``message`` at the end of ``again``."""

    def lose(self) -> None:
        """The link is lost: move the messages in flight to the left ends of ``again`` and
        ``refused``, in the order of their tags. Tags start again from 1. Nothing is asked."""

    def replace(self, message: Any, substitute: Any | None) -> None:
        """Replace a message in ``again`` with ``substitute``, or drop it if that is None."""

    def give_up(self) -> tuple[int, Any]:
        """Drop the first message of ``refused``; return how often it was refused, and it."""

    def drop_only(self) -> Any:
        """Drop the only message in flight; return it."""

    def count_into(self, stats: SentStats) -> None:
        """Move ``confirmed`` to the counter of that name."""

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """Handle ``basic.ack`` (``taken``) or ``basic.nack`` for the message under ``tag``.

        With ``multiple`` it is for all messages up to that tag. An unknown tag changes nothing.
        """

    def read(self, reader: FrameReader) -> int:
        """Take confirms and answers out of ``reader`` up to another event; return that one's kind.

        Raises ``fastrpc.errors.ProtocolError``, as ``reader.next()`` does.
        """
