# Mirrors src_c/wire.h, which says what each name means.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "wire.h" nogil:
    ctypedef struct wire_view:
        const uint8_t *ptr
        size_t len

    uint64_t wire_load64(const uint8_t *p) noexcept
    uint32_t wire_load32(const uint8_t *p) noexcept
    void wire_store16(uint8_t *p, uint16_t v) noexcept
    void wire_store32(uint8_t *p, uint32_t v) noexcept

    ctypedef struct wire_cursor:
        const uint8_t *pos
        const uint8_t *end

    wire_cursor wire_cursor_over(const uint8_t *ptr, size_t len) noexcept

    ctypedef struct wire_writer:
        uint8_t *pos
        uint8_t *end

    wire_writer wire_writer_over(uint8_t *ptr, size_t len) noexcept
    size_t wire_room(const wire_writer *w) noexcept
    bint wire_write_u8(wire_writer *w, uint8_t v) noexcept
    bint wire_write_u16(wire_writer *w, uint16_t v) noexcept
    bint wire_write_u32(wire_writer *w, uint32_t v) noexcept
    bint wire_write_u64(wire_writer *w, uint64_t v) noexcept
    bint wire_write_bytes(wire_writer *w, const void *ptr, size_t len) noexcept
    bint wire_write_shortstr(wire_writer *w, const void *ptr, size_t len) noexcept
