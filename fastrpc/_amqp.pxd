# For modules that read deliveries without making Python objects:
#
#     kind = reader.next_event()
#     if kind == FRAME_DELIVERY:
#         lookup(reader.event.correlation_id.ptr, reader.event.correlation_id.len)
#         body = reader.body_bytes()
#
# The views in `event` are valid until the next next_event(), next(), recv() or feed().
from libc.stdint cimport uint8_t

from fastrpc.cframe cimport frame_event, frame_reader
from fastrpc.cpublish cimport publish_template


cdef class Area:
    cdef uint8_t *ptr
    cdef Py_ssize_t len
    cdef Py_ssize_t cap
    cdef Py_ssize_t exports
    cdef bint readonly
    cdef bint owned


cdef class FrameReader:
    cdef frame_reader *reader
    cdef frame_event event
    cdef int kind
    cdef bint receiving
    cdef Area area
    cdef bytes cached_body
    cdef str cached_text

    # All need the GIL: bodies are assembled in bytes objects.
    cdef int next_event(self) except -1
    cdef bytes body_bytes(self)
    # The body decoded from UTF-8, in place of its bytes: `event.body` is empty afterwards.
    cdef str body_text(self)

    cdef int begin(self) except -1
    cdef int check(self, int rc) except -1
    cdef int want_delivery(self) except -1


cdef class PublishEncoder:
    cdef publish_template template
    cdef Area area
