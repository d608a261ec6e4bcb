"""A lock and a signal that no asynchronous exception leaves locked; a safe start of threads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

class Lock:
    """A fair lock, for ``with`` only.

    Waiting threads get it in the order of their arrival. During a thread's first millisecond of
    waiting, others may still take it first: switching threads at each release would cost more.

    If an exception is thrown into the thread (a soft time limit, for example), the lock was either
    not taken, or is released at the end of the block. Not re-entrant.
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
        """``with lock.within(5) as taken:`` waits for the lock, at most 5 seconds; None: for ever.

        The block is entered in any case: ``taken`` says whether the lock was taken.
        """

    def locked(self) -> bool:
        """Whether any thread holds it."""

    @property
    def mine(self) -> bool:
        """Whether the current thread, or greenlet, holds it, and taking it would wait for ever.

        It can be true in a signal handler or a destructor.
        """

class Signal:
    """Wakes a thread, as ``threading.Event`` does, but one thread, once for each ``set``.

    An asynchronous exception that strikes in a method of ``Event`` can leave it locked.
    """

    def __init__(self) -> None: ...
    def set(self) -> None:
        """Wake the thread that waits, or the next one that will. Many calls before it are one."""

    def wait(self, timeout: float) -> bool:
        """Wait ``timeout`` seconds at most; return whether there was a signal."""

def start_thread(target: Callable[..., object], *args: object) -> None:
    """Run ``target(*args)`` in a new thread, which does not keep the process alive.

    If an exception is thrown into the calling thread, the new thread has either started or will not
    start. CPython up to 3.12 may raise it in the new thread instead, where it is dropped.

    Raises:
        RuntimeError: no more threads can be started.
    """
