"""Waiting threads, what they are told, and which of them reads. Documented in _wait.pyi.

Two rules hold in this module. First, no Python code runs between two changes that belong together,
so an exception thrown into the thread cannot separate them. Second, a value that was looked up in a
dict is looked up again after an allocation, because before Python 3.12 an allocation may collect
garbage and run destructors, which may call this module.
"""

import threading
from collections import deque
from time import monotonic

from libc.math cimport INFINITY

cdef object _monotonic = monotonic


cdef class Wait:
    """One thread's wait for one result or for a set of them."""

    def __init__(self, timeout, on_message=None, str queue="", on_interval=None):
        self.deadline = INFINITY if timeout is None else <double>_monotonic() + timeout
        self.on_message = on_message
        self.queue = queue
        self.on_interval = on_interval
        self.arrived = deque()
        self.metas = deque()
        self._errors = deque()

    cdef bint has_news(self) except -1:
        return bool(self.arrived) or bool(self.metas)

    @property
    def news(self):
        return self.has_news()

    def remaining(self, double at_most=INFINITY):
        """Seconds until the deadline, at most ``at_most``; 0 when it has passed."""
        cdef double left = self.deadline
        if left != INFINITY:
            left -= <double>_monotonic()
        return max(min(left, at_most), 0.0)

    cpdef object hear(self, object result, object error=None):
        """``result`` is ready, and its callback has raised ``error``."""
        if error is not None:
            self._errors.append(error)
        self.arrived.append(result)

    cdef int hear_meta(self, dict meta) except -1:
        self.metas.append(meta)
        return 0

    cdef int sleep(self, double timeout) except -1:
        """Sleep until woken, at most `timeout` seconds. The caller has made the bell."""
        if not self.has_news():
            self._bell.acquire(True, timeout)
        return 0

    cdef int wake(self) except -1:
        # A lock, not an Event: the methods of an Event are Python code, which an exception could
        # interrupt while it holds the Event's own lock.
        if self._bell is not None and self._bell.locked():
            self._bell.release()
        return 0

    def raise_errors(self):
        """Raise in this thread, which waits, the exception of a callback of its result."""
        if self._errors:
            error = self._errors[0]
            del self._errors[0]
            raise error

    def run_on_message(self):
        """Call ``on_message``, in the thread that passed it, for the metas that have arrived."""
        while self.metas:
            self.on_message(self.metas.popleft())


cdef class LoopWait(Wait):
    """One ``await``: a wait that is woken in its event loop."""

    def __init__(self, loop, list told not None, ring, on_message=None):
        self.deadline = INFINITY
        self.on_message = on_message
        self.queue = ""
        # Lists, made when there is something for them: there may be ten thousand of these.
        self.arrived = self.metas = self._errors = ()
        self._loop = loop
        self._told = told
        self._ring = ring

    cdef int wake(self) except -1:
        # The list first, which the loop reads in any case: _ring() runs Python code and may fail.
        cdef bint first = not self._told
        self._told.append(self)
        if first:
            self._ring()
        return 0

    cpdef object hear(self, object result, object error=None):
        """``result`` is ready, and its callback has raised ``error``."""
        cdef list made
        if error is not None:
            made = []
            if not self._errors:
                self._errors = made
            self._errors.append(error)
        if not self.arrived:
            made = []
            if not self.arrived:  # looked up again: see the second rule
                self.arrived = made
        self.arrived.append(result)

    cdef int hear_meta(self, dict meta) except -1:
        cdef list made
        if not self.metas:
            made = []
            if not self.metas:
                self.metas = made
        self.metas.append(meta)
        return 0

    def __await__(self):
        if self.expired or self.failure is not None or self.has_news():
            return iter(())
        self._future = self._loop.create_future()
        return self._future.__await__()

    def resume(self):
        """Resume the coroutine that awaits it. Call it in its loop."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_result(None)

    def drop(self):
        """Forget the coroutine that awaits it, because its loop is closed."""
        self._future = None

    def expire(self):
        """End it because its time is up. Call it in its loop."""
        self.expired = True
        self.resume()

    def fail(self, failure):
        """Make the ``await`` raise ``failure``. May be called from any thread."""
        self.failure = failure
        self.wake()

    def take(self):
        """The results that became ready since the last call."""
        arrived, self.arrived = self.arrived, ()
        return arrived

    def take_metas(self):
        """The metas that arrived since the last call."""
        metas, self.metas = self.metas, ()
        return metas


cdef class Watchers:
    """Which waits are told of which AsyncResults, and of which messages."""

    def __cinit__(self):
        self._waits = {}
        self._listeners = {}
        self._notified = []

    def __len__(self):
        return len(self._waits)

    def watch(self, list results, Wait wait not None):
        """Tell ``wait`` when one of ``results`` becomes ready, and of each meta on its queue."""
        for result in results:
            self.watch_one(<Py_ssize_t><void *>result, wait)
        if wait.on_message is not None:
            self._listeners[wait] = None

    def unwatch(self, list results, Wait wait not None):
        """Undo ``watch``, also one that was interrupted."""
        self._listeners.pop(wait, None)
        for result in results:
            self.unwatch_one(<Py_ssize_t><void *>result, wait)

    cdef int watch_one(self, Py_ssize_t key, Wait wait) except -1:
        # Nearly always a single wait, stored without a tuple: tuples cost garbage collection.
        cdef object several
        while True:
            held = self._waits.setdefault(key, wait)
            if held is wait:
                return 0
            if type(held) is not tuple:
                several = (held, wait)
            elif wait in <tuple>held:
                return 0
            else:
                several = (*<tuple>held, wait)
            if self._waits.get(key) is held:
                self._waits[key] = several
                return 0

    cdef int unwatch_one(self, Py_ssize_t key, Wait wait) except -1:
        cdef object left
        while True:
            held = self._waits.get(key)
            if held is wait:
                del self._waits[key]
                return 0
            if type(held) is not tuple or wait not in <tuple>held:
                return 0
            left = tuple([other for other in <tuple>held if other is not wait])
            if self._waits.get(key) is held:
                self._waits[key] = (<tuple>left)[0] if len(<tuple>left) == 1 else left
                return 0

    def is_watched(self, result):
        """Whether a wait would be told that ``result`` is ready."""
        return <Py_ssize_t><void *>result in self._waits

    cdef bint notify(self, object result, object error) except -1:
        """Tell the waits that watch `result`, also of `error`; False if there are none."""
        cdef Wait wait
        held = self._waits.pop(<Py_ssize_t><void *>result, None)
        if held is None:
            return False
        for wait in <tuple>held if type(held) is tuple else (held,):
            wait.hear(result, error)
            if not self._notified or self._notified[-1] is not wait:
                self._notified.append(wait)
        return True

    @property
    def listening(self):
        return bool(self._listeners)

    def tell(self, str queue, dict meta not None):
        """Give the meta of a message on ``queue`` to every wait that listens to it."""
        cdef Wait wait
        for wait in list(self._listeners):
            if wait.queue == queue or not wait.queue:
                wait.hear_meta(meta)
                self._notified.append(wait)

    cpdef object wake(self):
        """Wake the waits that were told something since the last call."""
        while self._notified:
            (<Wait>self._notified.pop()).wake()

    def clear(self):
        """Forget everything, as in a forked child."""
        self._waits.clear()
        self._listeners.clear()
        self._notified.clear()


cdef class ReadingRole:
    """The right to read the socket. One thread, or greenlet, has it at a time."""

    # The GIL is the lock: no other thread can run between a check and the change that follows it.

    def __init__(self, Watchers watchers not None):
        self._watchers = watchers
        self._sleepers = {}

    @property
    def reading(self):
        return self._reader is not None

    @property
    def interrupted(self):
        return self._calling_out < self._depth and self._reader == threading.get_ident()

    @property
    def sleeping(self):
        return len(self._sleepers)

    def run(self, function, *args):
        """Call ``function(*args)`` as the reader; if another thread reads, return None at once."""
        if not self.take():
            return None
        try:
            return function(*args)
        finally:
            self.leave()

    def run_or_sleep(self, Wait wait not None, double timeout, function, *args):
        """Call ``function(*args)`` as the reader; if another thread reads, sleep first."""
        cdef bint reads = self.take()
        if not reads:
            if wait._bell is None:
                wait._bell = threading.Lock()
            wait._bell.acquire(False)  # from here on, a wake() before the sleep is not lost
            self._sleepers[wait] = None
            try:
                # Try again: a reader that left just before saw no sleeper to wake.
                reads = self.take()
                if not reads:
                    wait.sleep(timeout)
                    reads = not wait.has_news() and self.take()
            finally:
                self._sleepers.pop(wait, None)
                if not reads:  # if this thread was woken to become the reader, wake another one
                    self.hand_over()
        if reads:
            try:
                function(*args)
            finally:
                self.leave()
        return reads

    cdef bint take(self) except -1:
        # Looked up at run time: gevent may have patched it.
        this = threading.get_ident()
        if self._reader is None:
            if self._claimed_by is not None and self._claimed_by != this:
                return False
            self._reader = this
            self._depth = 1
            return True
        if self._reader != this:
            return False
        if self._calling_out < self._depth:
            raise RuntimeError(
                "the reader is in use: a signal handler or a destructor has interrupted this "
                "thread while it reads results, and cannot wait for one; set a flag there instead"
            )
        self._depth += 1
        return True

    cdef int leave(self) except -1:
        self._depth -= 1
        if self._depth == 0:
            self._reader = None
        try:
            self._watchers.wake()
        finally:  # waking an event loop runs Python code, into which an exception may be thrown
            self.hand_over()
        return 0

    cdef int hand_over(self) except -1:
        """Wake one sleeper to become the reader, unless some thread reads."""
        if self._reader is None:
            if self._claim is not None:
                self._claim.wake()
                return 0
            for sleeper in self._sleepers:
                (<Wait>sleeper).wake()
                return 0
            if self.on_free is not None:
                self.on_free()
        return 0

    def claim(self, Wait wait not None):
        """Reserve the role for this thread once it is free; ``wait`` is then woken."""
        self._claimed_by = threading.get_ident()
        self._claim = wait

    def claim_for(self, thread):
        """Reserve the role for ``thread``, which does not wait for it; an earlier claim stays."""
        if self._claimed_by is None:
            self._claimed_by, self._claim = thread, Wait(0.0)

    def end_claim(self):
        """Let other threads take the role again, and wake a sleeper."""
        self._claimed_by = self._claim = None
        self.hand_over()

    @property
    def claimed(self):
        return self._claimed_by is not None and self._claimed_by != threading.get_ident()

    def call_out(self, function):
        """Call ``function()``, a callback of the application that may wait for other results."""
        cdef bint called_out = self.begin_call_out()
        try:
            return function()
        finally:
            if called_out:
                self.end_call_out()

    cdef bint begin_call_out(self) except -1:
        """Allow reading from here on; False if this thread does not have the role."""
        if self._reader is None or self._reader != threading.get_ident():
            return False
        self._calling_out += 1
        return True

    cdef int end_call_out(self) except -1:
        self._calling_out -= 1
        return 0

    def after_fork(self):
        """Forget the parent's other threads; a reader that forked in a callback keeps the role."""
        self._sleepers.clear()
        self._claimed_by = self._claim = None
        if self._reader != threading.get_ident():
            self._reader = None
            self._depth = self._calling_out = 0
