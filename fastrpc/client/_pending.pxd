from libc.stdint cimport int64_t, uint32_t

from fastrpc.client.cpending cimport pending, pending_entry
from fastrpc.wire.cwire cimport wire_view


cdef class PendingTable:
    cdef readonly object max_unclaimed
    cdef readonly object max_unclaimed_bytes
    cdef pending *_table
    # The C table stores a waiter's place in this list, plus one; a free place holds None. So the
    # garbage collector sees every reference. Raw pointers in the C table would be 10 % faster to
    # fulfil (20 % with 1,000,000 outstanding: 0.15 us), but then an app could never be freed.
    cdef list _waiters
    cdef Py_ssize_t _places  # the length of _waiters
    cdef uint32_t *_free  # free places; its capacity is at least _places
    cdef Py_ssize_t _free_count
    cdef Py_ssize_t _free_capacity

    # For other Cython modules: ids as bytes in memory that the call does not keep.
    cdef int state_bytes(self, const unsigned char *id, size_t len) noexcept
    cdef tuple waiters_bytes(self, const unsigned char *id, size_t len)
    cdef tuple finish_bytes(self, const unsigned char *id, size_t len)
    # Returns how many ids were evicted; -1: the id is DONE, nothing was stored.
    cdef int64_t store_bytes(self, const unsigned char *id, size_t len,
                             const unsigned char *format, size_t format_len,
                             const unsigned char *body, size_t body_len, double now) except -2

    cdef bint _alive(self) noexcept
    cdef object _held(self, pending_entry *e)
    cdef int _reserve(self) except -1
    cdef object _release(self, uint32_t handle)
    cdef int64_t _store(self, wire_view id, wire_view format, wire_view body, double now) except -2
    cdef int _exchange(self, wire_view id, object old, object new) except -1
