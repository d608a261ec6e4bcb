# Mirrors src_c/wire.h, which says what each name means.
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "wire.h" nogil:
    ctypedef struct wire_view:
        const uint8_t *ptr
        size_t len

    uint64_t wire_load64(const uint8_t *p) noexcept
