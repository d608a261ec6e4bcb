# Header tables and properties for other Cython modules, which read them where they lie in a frame
# and write them into a buffer of their own:
#
#     headers = read_table(reader.event.headers.ptr, reader.event.headers.len)
#
#     cdef write_buffer out
#     out.start = out.to.pos = out.to.end = NULL
#     write_properties(&out, message.properties)
#     send(out.start, out.to.pos - out.start)
#     write_buffer_free(&out)
#
# All of them need the GIL and may run Python code: garbage collection and, when writing, methods of
# subclasses of the plain types. Until they return, what is read must stay where it is, and nobody
# else may write into the buffer.
from libc.stdint cimport uint8_t

from fastrpc.wire.cwire cimport wire_cursor, wire_writer


# Memory that grows, and so moves, while it is written into. The owner frees it. Frames are written
# into it by the functions of wire.h on `to`, after write_buffer_reserve.
cdef struct write_buffer:
    wire_writer to  # where the next byte goes
    uint8_t *start


# Room for `size` more bytes.
cdef int write_buffer_reserve(write_buffer *out, size_t size) except -1
cdef void write_buffer_free(write_buffer *out) noexcept

# What follows the last byte that was read is left alone.
cdef dict take_table(wire_cursor *c)  # which then stands behind the table
cdef dict read_table(const uint8_t *ptr, size_t len)  # with the 4 bytes of its length
cdef dict read_properties(const uint8_t *ptr, size_t len)  # from the flags on

cdef int write_shortstr(write_buffer *out, object text) except -1
# After an error the buffer ends where it ended before.
cdef int write_table(write_buffer *out, object table) except -1
cdef int write_properties(write_buffer *out, object properties) except -1
