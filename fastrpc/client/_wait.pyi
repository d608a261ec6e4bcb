"""Who waits, who is told of what, and who reads.

A signal handler, or `PyThreadState_SetAsyncExc`, may raise an exception between any two steps of
Python code. Whatever must not be parted by one is compiled here: taking the reading role and
leaving it, going to sleep and waking up, being told and being woken.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

class Wait:
    """One thread's wait for one result or for a set of them."""

    deadline: float
    """When it ends, by ``time.monotonic()``; infinity where it does not."""

    on_message: Callable[[dict[str, Any]], None] | None
    """Called by ``run_on_message`` with each meta that came on ``queue``."""

    queue: str
    """The reply queue whose messages ``on_message`` sees."""

    on_interval: Callable[[], Any] | None
    """Called after each read that brought something, and about once a second otherwise."""

    arrived: deque[Any]
    """Results that became ready and were not looked at yet."""

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
        """Whether something arrived that was not looked at yet."""

    def remaining(self, at_most: float = ...) -> float:
        """Seconds until the deadline, or ``at_most``; 0 when it has passed."""

    def raise_errors(self) -> None:
        """Raise, in the thread that waits, what a callback of its result raised."""

    def run_on_message(self) -> None:
        """Call ``on_message``, in the thread that gave it, for what came meanwhile."""

class Watchers:
    """Which waits hear of which AsyncResult, and of which messages."""

    def watch(self, results: list[Any], wait: Wait) -> None:
        """Have ``wait`` hear of each of ``results`` becoming ready, and of metas on its queue."""

    def unwatch(self, results: list[Any], wait: Wait) -> None:
        """End what ``watch`` began, also where it was interrupted half way."""

    def is_watched(self, result: Any) -> bool:
        """Whether a wait would hear of ``result``."""

    @property
    def listening(self) -> bool:
        """Whether a wait has an ``on_message``."""

    def tell(self, queue: str, meta: dict[str, Any]) -> None:
        """Give the meta of a message on ``queue`` to every wait that listens to it."""

    def wake(self) -> None:
        """Wake those who were told something since the last call."""

    def clear(self) -> None:
        """Forget everything, as in a forked child."""

    def __len__(self) -> int:
        """How many results are watched."""

class ReadingRole:
    """The right to read the socket. One thread, or greenlet, has it at a time.

    The reader may take it again inside ``call_out``, and wherever a callback of a result runs. At
    any other moment it is in the midst of a read: a signal handler or a destructor that gets in
    there cannot read.
    """

    def __init__(self, watchers: Watchers) -> None:
        """``watchers``: woken whenever the reader leaves."""

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` as the reader; None, without a call, where another thread reads.

        Raises:
            RuntimeError: this very thread is in the midst of a read.
        """

    def run_or_sleep(
        self, wait: Wait, timeout: float, function: Callable[..., Any], *args: Any
    ) -> bool:
        """``function(*args)`` as the reader; where another thread reads, sleep first.

        The sleep ends after ``timeout`` seconds, with news for ``wait``, or when the reader hands
        over to this thread.

        Returns:
            Whether the function was called.

        Raises:
            RuntimeError: this very thread is in the midst of a read.
        """

    def call_out(self, function: Callable[[], Any]) -> Any:
        """``function()``, a callback of the application that may wait for other results."""

    @property
    def reading(self) -> bool:
        """Whether some thread has the role."""

    @property
    def interrupted(self) -> bool:
        """Whether this thread has the role and did not call out.

        True in a signal handler, or a destructor, that runs in the midst of a read.
        """

    @property
    def sleeping(self) -> int:
        """How many threads sleep until the reader hands over to them."""

    def claim(self, wait: Wait) -> None:
        """Have no other thread take the role once it is free; ``wait`` is woken when it is."""

    def end_claim(self) -> None:
        """Let others take it again; one of the sleepers is woken."""

    @property
    def claimed(self) -> bool:
        """Whether another thread has claimed the role: the reader should leave soon."""

    def after_fork(self) -> None:
        """Forget the parent's other threads; a reader that forked in a callback goes on."""
