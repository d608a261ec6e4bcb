"""Waiting threads, what they are told, and which of them reads.

A signal handler, or `PyThreadState_SetAsyncExc`, may raise an exception between any two bytecodes
of Python code. Steps that must not be separated by one are compiled here: taking the reading role
and leaving it, going to sleep and waking up, being told and being woken.
"""

from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

class Wait:
    """One thread's wait for one result or for a set of them."""

    deadline: float
    """When the wait ends, by ``time.monotonic()``; infinity without a timeout."""

    on_message: Callable[[dict[str, Any]], None] | None
    """Called by ``run_on_message`` with each meta that arrived on ``queue``."""

    queue: str
    """The reply queue whose messages ``on_message`` sees."""

    on_interval: Callable[[], Any] | None
    """Called after each read that brought something, and about once a second otherwise."""

    arrived: deque[Any]
    """Results that became ready and were not processed yet."""

    metas: deque[dict[str, Any]]
    """Metas for ``on_message``."""

    def __init__(
        self,
        timeout: float | None,
        on_message: Callable[[dict[str, Any]], None] | None = None,
        queue: str = "",
        on_interval: Callable[[], Any] | None = None,
    ) -> None:
        """``timeout`` in seconds; None waits for ever."""

    @property
    def news(self) -> bool:
        """Whether something arrived that was not processed yet."""

    def remaining(self, at_most: float = ...) -> float:
        """Seconds until the deadline, at most ``at_most``; 0 when it has passed."""

    def hear(self, result: Any, error: BaseException | None = None) -> None:
        """``result`` is ready, and its callback has raised ``error``."""

    def raise_errors(self) -> None:
        """Raise in this thread, which waits, the exception of a callback of its result."""

    def run_on_message(self) -> None:
        """Call ``on_message``, in the thread that passed it, for the metas that have arrived."""

class LoopWait(Wait):
    """One ``await``: a wait that is woken in its event loop.

    ``await wait`` returns when there is news, when its time is up or it has failed, and sometimes
    for no reason. The wait is told of the messages on every reply queue of the process.
    """

    expired: bool
    """Whether ``expire`` was called."""

    failure: BaseException | None
    """The exception passed to ``fail``."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        told: list[LoopWait],
        ring: Callable[[], None],
        on_message: Any = None,
    ) -> None:
        """
        Args:
            told: The list to which it adds itself when there is news; the loop calls ``resume`` of
                each member.
            ring: Called, in any thread, when it is the first in the list.
            on_message: If not None, it is told of messages.
        """

    def __await__(self) -> Generator[Any, Any, Any]: ...
    def resume(self) -> None:
        """Resume the coroutine that awaits it. Call it in its loop."""

    def drop(self) -> None:
        """Forget the coroutine that awaits it, because its loop is closed."""

    def expire(self) -> None:
        """End it because its time is up. Call it in its loop."""

    def fail(self, failure: BaseException) -> None:
        """Make the ``await`` raise ``failure``. May be called from any thread."""

    def take(self) -> Sequence[Any]:
        """The results that became ready since the last call."""

    def take_metas(self) -> Sequence[dict[str, Any]]:
        """The metas that arrived since the last call."""

class Watchers:
    """Which waits are told of which AsyncResults, and of which messages."""

    def watch(self, results: list[Any], wait: Wait) -> None:
        """Tell ``wait`` when one of ``results`` becomes ready, and of each meta on its queue."""

    def unwatch(self, results: list[Any], wait: Wait) -> None:
        """Undo ``watch``, also one that was interrupted."""

    def is_watched(self, result: Any) -> bool:
        """Whether a wait would be told that ``result`` is ready."""

    @property
    def listening(self) -> bool:
        """Whether a wait has an ``on_message``."""

    def tell(self, queue: str, meta: dict[str, Any]) -> None:
        """Give the meta of a message on ``queue`` to every wait that listens to it."""

    def wake(self) -> None:
        """Wake the waits that were told something since the last call."""

    def clear(self) -> None:
        """Forget everything, as in a forked child."""

    def __len__(self) -> int:
        """How many results are watched."""

class ReadingRole:
    """The right to read the socket. One thread, or greenlet, has it at a time.

    The reader may take it again inside ``call_out``, and in callbacks of results. At any other
    moment its thread is inside a read: a signal handler or a destructor that interrupts it there
    cannot read.
    """

    on_free: Callable[[], None] | None
    """Called when the reader has left and no thread sleeps, by the thread that left."""

    def __init__(self, watchers: Watchers) -> None:
        """``watchers`` are woken whenever the reader leaves."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call ``function(*args)`` as the reader; if another thread reads, return None at once.

        Raises:
            RuntimeError: this thread is already inside a read.
        """

    def run_or_sleep(
        self, wait: Wait, timeout: float, function: Callable[..., Any], *args: Any
    ) -> bool:
        """Call ``function(*args)`` as the reader; if another thread reads, sleep first.

        The sleep ends after ``timeout`` seconds, with news for ``wait``, or when the reader hands
        over to this thread.

        Returns:
            Whether the function was called.

        Raises:
            RuntimeError: this thread is already inside a read.
        """

    def call_out(self, function: Callable[[], Any]) -> Any:
        """Call ``function()``, a callback of the application that may wait for other results."""

    @property
    def reading(self) -> bool:
        """Whether some thread has the role."""

    @property
    def interrupted(self) -> bool:
        """Whether this thread has the role and is not in a callback.

        True in a signal handler, or a destructor, that interrupts a read.
        """

    @property
    def sleeping(self) -> int:
        """How many threads sleep until the reader hands over to them."""

    def claim(self, wait: Wait) -> None:
        """Reserve the role for this thread once it is free; ``wait`` is then woken."""

    def claim_for(self, thread: int | None) -> None:
        """Reserve the role for ``thread``, which does not wait for it; an earlier claim stays."""

    def end_claim(self) -> None:
        """Let other threads take the role again, and wake a sleeper."""

    @property
    def claimed(self) -> bool:
        """Whether another thread has claimed the role: the reader should leave soon."""

    def after_fork(self) -> None:
        """Forget the parent's other threads; a reader that forked in a callback keeps the role."""
