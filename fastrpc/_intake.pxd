from libc.stdint cimport uint64_t

from fastrpc._amqp cimport FrameReader
from fastrpc._pending cimport PendingTable
from fastrpc._wait cimport ReadingRole, Watchers
from fastrpc.cframe cimport frame_event


cdef class Fulfiller:
    cdef PendingTable _table
    cdef Watchers _watchers
    cdef ReadingRole _role
    cdef public uint64_t fulfilled
    cdef dict _plain
    cdef object _is_plain
    cdef object _as_python
    cdef object _on_error
    cdef tuple _thrown_in

    cdef object fulfil_all(self, tuple waiters, tuple known, dict meta)
    cdef object fulfil(self, object result, dict meta)
    cdef int set_ready(self, object result, dict meta) except -1
    cdef bint is_plain(self, object cls) except -1


cdef class Delivery:
    cdef readonly uint64_t tag
    cdef readonly str consumer_tag
    cdef readonly bytes correlation_id
    cdef readonly bytes body
    cdef readonly uint64_t dropped
    cdef readonly tuple format_key


cdef class DeliveryLoop:
    cdef FrameReader _reader
    cdef PendingTable _table
    cdef int _channel
    cdef uint64_t _ack_every
    cdef Fulfiller _fulfiller
    cdef frozenset _ready_states
    cdef object _load_text
    cdef object _deliver_slowly
    cdef object _dispatch
    cdef object _acknowledge
    cdef object _undelivered
    cdef bint _shown
    cdef object _thrown
    cdef readonly bint spoiled
    cdef readonly bint ended
    cdef public uint64_t last_tag
    cdef public uint64_t acked_tag
    cdef public uint64_t taken
    cdef public uint64_t duplicates

    cdef Delivery take_out(self)
    cdef int deliver_undelivered(self) except -1
    cdef int count(self, uint64_t tag) except -1
    cdef object load_large(self)
    cdef bint deliver(self, frame_event *e, double now) except -1
    cdef bint is_final(self, dict meta, const unsigned char *id, size_t size) except -1
