"""Asking for the state of a socket without reading from it. Documented in _poll.pyi."""

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport EBADF, EINTR, errno
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from * nogil:
    """
    #include <poll.h>
    #ifndef POLLRDHUP  // only Linux has it; macOS and the BSDs report the peer's end as POLLHUP
    #define POLLRDHUP POLLHUP
    #endif
    """
    enum:
        POLLIN
        POLLNVAL
        POLLRDHUP

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd *, unsigned long, int) noexcept


cdef int look(pollfd *entry) noexcept nogil:
    cdef int n = poll(entry, 1, 0)
    while n < 0 and errno == EINTR:
        n = poll(entry, 1, 0)
    return n


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef bint look_for(short events, int fd, double busy_wait) except -1:
    """Whether poll() reports one of ``events``, an error or the end."""
    cdef pollfd entry
    cdef int n
    cdef double end
    if fd < 0:  # poll() ignores negative descriptors
        raise OSError(EBADF, "Bad file descriptor")
    entry.fd, entry.events, entry.revents = fd, events, 0
    n = look(&entry)
    if n == 0 and busy_wait > 0:
        with nogil:
            end = monotonic() + busy_wait
            while n == 0 and monotonic() < end:
                n = look(&entry)
    if n < 0:
        PyErr_SetFromErrno(OSError)
    if entry.revents & POLLNVAL:
        raise OSError(EBADF, "Bad file descriptor")
    return n > 0


def readable(int fd, double busy_wait=0):
    """Whether reading from fd would return at once: with bytes, the end or an error."""
    return look_for(POLLIN, fd, busy_wait)


def hung_up(int fd):
    """Whether the peer has closed the connection."""
    return look_for(POLLRDHUP, fd, 0)
