# For modules that read deliveries without making Python objects:
#
#     kind = reader.next_event()
#     if kind == FRAME_DELIVERY:
#         lookup(reader.event.correlation_id.ptr, reader.event.correlation_id.len)
#         body = reader.body_bytes()
#
# The views in `event` are valid until the next next_event(), next(), recv() or feed().
from libc.stdint cimport uint32_t

from fastrpc.wire._memory cimport Area
from fastrpc.wire.cframe cimport frame_event, frame_reader

cdef uint32_t checked_frame_max(frame_max) except? 0


cdef class FrameReader:
    cdef frame_reader *reader
    cdef frame_event event
    cdef int kind
    cdef readonly bint receiving
    cdef Area area
    cdef bytes cached_body
    cdef str cached_text

    # All of these need the GIL: bodies are assembled in bytes objects.
    cdef int next_event(self) except -1
    cdef bytes body_bytes(self)
    # The body decoded from UTF-8. It replaces the bytes: `event.body` is empty afterwards.
    cdef str body_text(self)

    cdef int begin(self) except -1
    cdef int check(self, int rc) except -1
    cdef int want_delivery(self) except -1
