# Mirrors src_c/alloc.h, which says what each name means and who owns what.


cdef extern from "alloc.h" nogil:
    ctypedef struct allocator:
        void *(*resize)(void *ctx, void *ptr, size_t size) noexcept
        void (*free)(void *ctx, void *ptr) noexcept
        void *ctx
