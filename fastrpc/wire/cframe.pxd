# Mirrors src_c/frame.h, which says what each name means and who owns what.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastrpc.wire.calloc cimport allocator
from fastrpc.wire.cwire cimport wire_view


cdef extern from "frame.h" nogil:
    enum:
        FRAME_METHOD
        FRAME_HEADER
        FRAME_BODY
        FRAME_END
        FRAME_OVERHEAD
        FRAME_MAX_DEFAULT
        FRAME_MAX_MIN
        FRAME_NEED_MORE
        FRAME_RAW
        FRAME_DELIVERY
        FRAME_ENOMEM
        FRAME_HAS_DELIVERY_MODE
        FRAME_HAS_PRIORITY

    ctypedef struct frame_event:
        uint8_t type
        uint16_t channel
        wire_view payload
        bint redelivered
        bint body_assembled
        uint8_t delivery_mode
        uint8_t priority
        uint16_t property_flags
        uint64_t delivery_tag
        wire_view consumer_tag
        wire_view exchange
        wire_view routing_key
        wire_view method_args
        wire_view header
        wire_view content_type
        wire_view content_encoding
        wire_view headers
        wire_view correlation_id
        wire_view body
        uint64_t body_dropped

    ctypedef struct frame_reader:
        pass

    frame_reader *frame_reader_new(const allocator *alloc, const allocator *body_alloc) noexcept
    void frame_reader_free(frame_reader *r) noexcept
    void frame_reader_set_frame_max(frame_reader *r, uint32_t frame_max) noexcept
    uint32_t frame_reader_frame_max(const frame_reader *r) noexcept
    void frame_reader_set_body_max(frame_reader *r, uint64_t body_max) noexcept
    int frame_reader_reserve(frame_reader *r, size_t want, uint8_t **ptr, size_t *room) noexcept
    int frame_reader_commit(frame_reader *r, size_t n) noexcept
    int frame_reader_next(frame_reader *r, frame_event *event) noexcept
    uint8_t *frame_reader_take_body(frame_reader *r) noexcept
    size_t frame_reader_buffered(const frame_reader *r) noexcept
    uint8_t *frame_reader_surrender(frame_reader *r) noexcept
    const char *frame_reader_message(const frame_reader *r) noexcept
