"""A lock and a signal that no asynchronous exception leaves locked. Documented in _lock.pyi.

Compiled, because an asynchronous exception (from a signal handler or PyThreadState_SetAsyncExc) is
raised between two bytecodes. Here no bytecode, and no call that may run Python code, comes between
taking the lock and entering the block that releases it. Python 3.14 needs the help of _enter.py.

The state needs no lock of its own: only `gate.acquire`, in which a thread waits, releases the GIL
or switches greenlets.
"""

import _thread
import sys
import threading
from collections import deque
from time import monotonic

from ._enter import enter_lock, enter_turn

# After how many seconds of waiting the lock is handed over to the waiter. Before that any running
# thread may take it, which saves a thread switch each time.
cdef double PATIENCE = 0.001


cdef class _Waiter:
    """A thread in the queue."""

    cdef object ident
    cdef object gate  # locked while the thread should sleep
    cdef double since
    cdef bint woken
    cdef bint granted


cdef int wake(_Waiter waiter) except -1:
    if not waiter.woken:
        waiter.woken = True
        waiter.gate.release()
    return 0


cdef class Lock:
    """A fair lock that an asynchronous exception cannot leave locked."""

    cdef bint held
    cdef object owner  # of the thread, or greenlet, that holds it
    cdef object waiters  # in the order of their arrival

    def __cinit__(self):
        self.waiters = deque()

    def __enter__(self):
        self.take(None)
        return self

    def __exit__(self, kind, value, traceback, /):  # not *exc_info, which packs a tuple
        self.give()

    def within(self, timeout):
        """``with lock.within(5) as taken:`` waits for the lock, at most 5 seconds."""
        cdef _Turn turn = new_turn()
        turn.lock, turn.timeout = self, timeout
        return turn

    def locked(self):
        """Whether any thread holds it."""
        return self.held

    @property
    def mine(self):
        return self.owner is not None and self.owner == threading.get_ident()

    cdef bint take(self, timeout) except -1:
        me = threading.get_ident()
        if self.held:
            return self.wait(me, timeout)
        self.held, self.owner = True, me
        return True

    cdef bint wait(self, me, timeout) except -1:
        cdef _Waiter waiter = _Waiter.__new__(_Waiter)
        cdef double left = -1
        # Looked up at run time: gevent and eventlet may have patched threading.Lock.
        waiter.ident, waiter.gate, waiter.since = me, threading.Lock(), monotonic()
        waiter.gate.acquire()
        self.waiters.append(waiter)
        try:
            while self.held:
                if timeout is not None:
                    left = timeout - (monotonic() - waiter.since)
                    if left <= 0:
                        self.waiters.remove(waiter)
                        return False
                waiter.gate.acquire(True, left)
                if waiter.granted:
                    return True
                waiter.woken = False
        except BaseException:
            if waiter.granted:
                self.give()
            else:
                self.waiters.remove(waiter)
                if self.waiters and not self.held:
                    wake(self.next())  # this thread may have been woken to take it
            raise
        self.waiters.remove(waiter)
        self.held, self.owner = True, me
        return True

    cdef int give(self) except -1:
        cdef _Waiter waiter
        if not self.waiters:
            self.held, self.owner = False, None
            return 0
        waiter = self.next()
        if monotonic() - waiter.since >= PATIENCE:
            self.waiters.remove(waiter)
            waiter.granted, self.owner = True, waiter.ident
        else:
            self.held, self.owner = False, None
        return wake(waiter)

    cdef _Waiter next(self):
        """The first waiter. If its thread waits twice, because a signal handler interrupted its
        wait, the handler's waiter: the interrupted wait cannot continue before that one."""
        cdef _Waiter first = self.waiters[0]
        cdef _Waiter waiter, last = first
        for waiter in self.waiters:
            if waiter.ident == first.ident:
                last = waiter
        return last


cdef class _Turn:
    """A wait for a Lock, for `with`; bounded unless the timeout is None."""

    cdef Lock lock
    cdef object timeout
    cdef bint taken

    def __enter__(self):
        self.taken = self.lock.take(None if self.timeout is None else max(self.timeout, 0))
        return self.taken

    _enter = __enter__

    def __exit__(self, kind, value, traceback, /):
        if self.taken:
            self.taken = False
            self.lock.give()


cdef object new_turn = _Turn

if sys.version_info[:2] == (3, 14):
    new_turn = type("_Turn", (_Turn,), {"__slots__": (), "__enter__": enter_turn})
    globals()["Lock"] = type(
        "Lock",
        (Lock,),
        {"__slots__": (), "__enter__": enter_lock, "__doc__": Lock.__doc__, "__module__": __name__},
    )


cdef class Signal:
    """Wakes a waiting thread. An asynchronous exception cannot leave it locked."""

    cdef object gate  # locked while a thread should sleep

    def __cinit__(self):
        # Looked up at run time, as above.
        self.gate = threading.Lock()
        self.gate.acquire()

    def set(self):
        """Wake the thread that waits, or the next one that will."""
        if self.gate.locked():
            try:
                self.gate.release()
            except RuntimeError:
                pass  # another thread was faster

    def wait(self, double timeout):
        """Wait ``timeout`` seconds at most; return whether there was a signal."""
        return self.gate.acquire(True, max(timeout, 0))


# Exceptions are thrown in at bytecode, of which a compiled function has none.
_bytecode = eval("lambda: None")

# CPython up to 3.12 gives a starting thread the ident of its creator: exceptions thrown into the
# creator are raised here once or twice, until the thread runs.
cdef int STRIKES = 3


def start_thread(target, *args):
    """Run ``target(*args)`` in a new thread."""
    _thread.start_new_thread(_run, (target, args))


def _run(target, args):
    cdef int _
    for _ in range(STRIKES):
        try:
            _bytecode()
        except BaseException:
            continue  # it was meant for the creator
    target(*args)
