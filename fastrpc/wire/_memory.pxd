from libc.stdint cimport uint8_t

from fastrpc.wire.calloc cimport allocator

cdef allocator raw_allocator() noexcept
# Allocates the data of bytes objects; take_bytes returns the object without a copy.
cdef allocator bytes_allocator() noexcept
cdef bytes take_bytes(void *data)


cdef class Area:
    cdef uint8_t *ptr
    cdef Py_ssize_t len
    cdef Py_ssize_t cap
    cdef Py_ssize_t exports
    cdef bint readonly
    cdef bint owned


cdef Area new_area(Py_ssize_t size)
