"""What was sent on a connection in confirm mode and is not confirmed yet."""

from collections import deque
from collections.abc import Iterator
from typing import Any

from ..wire._reader import FrameReader

class ConfirmWindow:
    """Messages by the delivery tag under which they were sent; iterates over them in that order.

    A message is anything with a ``body``.
    """

    bytes: int
    """Of the bodies of its messages."""

    confirmed: int
    """How many were confirmed; whoever counts them may set it back."""

    refused: list[Any]
    """Messages that the broker did not take; to be emptied by whoever sends them again."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def add(self, tag: int, message: Any) -> None:
        """``message`` was sent; tags only grow."""

    def drain_into(self, again: deque[Any]) -> None:
        """Move all messages, in the order of their tags, to the left end of ``again``.

        In one step: an exception thrown into this thread, by a signal, finds them here or there.
        """

    def confirm(self, tag: int, multiple: bool, taken: bool) -> None:
        """``basic.ack`` (``taken``) or ``basic.nack`` of the message under ``tag``, with
        ``multiple`` of all up to it. One of a tag that is not there changes nothing."""

    def read(self, reader: FrameReader) -> int:
        """Take confirms out of ``reader`` up to the next other event; returns that event's kind.

        Raises ``fastrpc.errors.ProtocolError``, as ``reader.next()`` does.
        """
