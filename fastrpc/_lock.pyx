# The documentation of all public names is in _lock.pyi.
#
# Compiled, because an asynchronous exception (a signal handler's, PyThreadState_SetAsyncExc's) is
# raised between two bytecodes: here there are none between taking the lock and entering the block
# that gives it back. Nothing that may run Python code stands between the two either.
import threading


cdef class Lock:
    """A lock that an asynchronous exception cannot leave behind locked."""

    cdef object take
    cdef object give
    cdef object is_locked
    cdef object owner  # of the thread, or greenlet, that holds it

    def __cinit__(self):
        # Made at run time: gevent and eventlet may have put theirs in its place by now.
        lock = threading.Lock()
        self.take, self.give, self.is_locked = lock.acquire, lock.release, lock.locked

    def __enter__(self):
        me = threading.get_ident()
        self.take()
        self.owner = me
        return self

    def __exit__(self, *exc_info):
        self.owner = None
        self.give()

    def within(self, timeout):
        """``with lock.within(5) as taken:`` waits at most so many seconds for it."""
        cdef _Turn turn = _Turn.__new__(_Turn)
        turn.lock, turn.timeout = self, timeout
        return turn

    def locked(self):
        """Whether anybody holds it."""
        return self.is_locked()

    @property
    def mine(self):
        return self.owner is not None and self.owner == threading.get_ident()


cdef class _Turn:
    """A bounded wait for a Lock, for `with`."""

    cdef Lock lock
    cdef object timeout
    cdef bint taken

    def __enter__(self):
        me = threading.get_ident()
        timeout = max(self.timeout, 0)
        if self.lock.take(True, timeout):
            self.lock.owner = me
            self.taken = True
        return self.taken

    def __exit__(self, *exc_info):
        if self.taken:
            self.taken = False
            self.lock.owner = None
            self.lock.give()
