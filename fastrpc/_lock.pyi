"""A lock that an asynchronous exception cannot leave behind locked, and threads to go with it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

class Lock:
    """A lock for ``with`` only, taken in turn.

    Those who wait get it in the order in which they came. In their first millisecond others may
    still take it before them: to switch threads at each release would cost more than the wait.

    An exception that is thrown into the thread, as a soft time limit is, finds it taken and
    given back by the block, or not taken at all. Not re-entrant.
    """

    def __enter__(self) -> Lock: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
    def within(self, timeout: float | None) -> AbstractContextManager[bool]:
        """``with lock.within(5) as taken:`` waits at most so many seconds for it; None for ever.

        The block is entered all the same where it was not to be had: ``taken`` is False then.
        """

    def locked(self) -> bool:
        """Whether anybody holds it."""

    @property
    def mine(self) -> bool:
        """Whether the current thread, or greenlet, holds it: it would wait for itself.

        A signal handler, or a destructor, may find it so.
        """

def start_thread(target: Callable[..., object], *args: object) -> None:
    """Run ``target(*args)`` in a new thread, which does not keep the process alive.

    An exception that is thrown into the thread that calls this finds the other one started or not
    started at all. One that strikes the new thread instead, as CPython up to 3.12 lets it, has
    ``target`` called again.

    Raises:
        RuntimeError: there can be no more threads.
    """
