from libc.stdint cimport uint64_t

from fastrpc._amqp cimport FrameReader
from fastrpc._frame_c cimport frame_event
from fastrpc._pending cimport PendingTable


cdef class Fulfiller:
    cdef readonly dict watched
    cdef readonly list woken
    cdef public uint64_t fulfilled
    cdef dict _plain
    cdef object _is_plain
    cdef object _as_python
    cdef object _on_error

    cpdef object fulfil(self, object result, dict meta)
    cdef int notify(self, object wait, object result, object error) except -1
    cdef bint is_plain(self, object result) except -1


cdef class DeliveryLoop:
    cdef FrameReader reader
    cdef PendingTable table
    cdef int channel
    cdef uint64_t ack_every
    cdef Fulfiller fulfiller
    cdef frozenset ready_states
    cdef object load_text
    cdef object deliver_slowly
    cdef object dispatch
    cdef object acknowledge
    cdef readonly bint shown
    cdef bint delivering
    cdef uint64_t runs
    cdef public uint64_t last_tag
    cdef public uint64_t acked_tag
    cdef public uint64_t taken
    cdef public uint64_t duplicates

    cdef int fulfil(self, tuple waiters, tuple known, dict meta) except -1
    cdef object load_large(self)
    cdef bint deliver(self, frame_event *e, double now) except -1
    cdef bint is_final(self, dict meta, const unsigned char *id, size_t size) except -1
