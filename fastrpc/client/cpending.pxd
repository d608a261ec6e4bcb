# Mirrors src_c/pending.h, which says what each name means and who owns what.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from fastrpc.wire.calloc cimport allocator
from fastrpc.wire.cwire cimport wire_view


cdef extern from "pending.h" nogil:
    enum:
        PENDING_UNKNOWN
        PENDING_WAITING
        PENDING_UNCLAIMED
        PENDING_DONE
        PENDING_LOST
        PENDING_ENOMEM
        PENDING_EINVALID
        PENDING_EDUPLICATE

    ctypedef struct pending:
        pass

    ctypedef struct pending_limits:
        uint64_t max_unclaimed
        uint64_t max_unclaimed_bytes
        uint64_t max_done
        uint64_t max_lost

    ctypedef struct pending_entry:
        uint32_t body_len
        uint32_t arrived
        uint32_t waiter
        uint8_t id_len
        uint8_t format_len
        uint8_t state
        bint stored

    ctypedef struct pending_cursor:
        size_t segment
        size_t slot

    wire_view pending_id(const pending_entry *e) noexcept
    wire_view pending_format(const pending_entry *e) noexcept
    wire_view pending_body(const pending_entry *e) noexcept

    pending *pending_new(const allocator *alloc, const uint8_t *seed,
                         const pending_limits *limits) noexcept
    void pending_free(pending *p) noexcept
    void pending_clear(pending *p) noexcept
    pending_entry *pending_find(const pending *p, wire_view id) noexcept
    int pending_wait(pending *p, wire_view id, uint32_t waiter, pending_entry **found) noexcept
    void pending_unwait(pending *p, pending_entry *e) noexcept
    int pending_finish(pending *p, wire_view id, uint32_t *waiter) noexcept
    int64_t pending_store(pending *p, wire_view id, wire_view format, wire_view body,
                          uint32_t now) noexcept
    void pending_drop_body(pending *p, pending_entry *e) noexcept
    uint64_t pending_expire(pending *p, uint32_t before) noexcept
    void pending_forget(pending *p, wire_view id) noexcept
    void pending_reset(pending *p, wire_view id) noexcept
    pending_entry *pending_next(const pending *p, pending_cursor *cursor) noexcept
    uint64_t pending_count(const pending *p, int state) noexcept
    uint64_t pending_bytes(const pending *p) noexcept
    uint64_t pending_evicted(const pending *p) noexcept
    size_t pending_memory(const pending *p) noexcept
    size_t pending_table_memory(const pending *p) noexcept
    int pending_check(const pending *p) noexcept
