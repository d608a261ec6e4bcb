# Header tables and properties for other Cython modules, which read them in place in a frame and
# write them into a buffer of their own:
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
# subclasses of the plain types. Until they return, the bytes they read must not move, and no other
# code may write into the buffer.
from libc.stdint cimport uint8_t

from fastrpc.wire.cwire cimport wire_cursor, wire_writer


# A buffer that grows, and so moves, as it is written. Its owner frees it. To write frames, call
# write_buffer_reserve and then the functions of wire.h on `to`.
cdef struct write_buffer:
    wire_writer to  # where the next byte goes
    uint8_t *start


# Makes room for `size` more bytes.
cdef int write_buffer_reserve(write_buffer *out, size_t size) except -1
cdef void write_buffer_free(write_buffer *out) noexcept

# Bytes after the last one that was read are ignored.
cdef dict take_table(wire_cursor *c)  # moves the cursor behind the table
cdef dict read_table(const uint8_t *ptr, size_t len)  # starts with the 4 bytes of the length
cdef dict read_properties(const uint8_t *ptr, size_t len)  # starts with the flags

cdef int write_shortstr(write_buffer *out, object text) except -1
# After an error the buffer has not changed.
cdef int write_table(write_buffer *out, object table) except -1
cdef int write_properties(write_buffer *out, object properties) except -1
