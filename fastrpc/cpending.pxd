"""src_c/pending.h, nothing else; what each call means is said there."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "pending.h" nogil:
    enum:
        PENDING_UNKNOWN
        PENDING_WAITING
        PENDING_UNCLAIMED
        PENDING_DONE
        PENDING_LOST
        PENDING_DUPLICATE
        PENDING_NOMEM
        PENDING_INVALID

    ctypedef struct pending:
        pass

    ctypedef struct pending_allocator:
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
        uint8_t stored

    ctypedef struct pending_cursor:
        size_t segment
        size_t slot

    const unsigned char *pending_id(const pending_entry *e) noexcept
    const unsigned char *pending_format(const pending_entry *e) noexcept
    const unsigned char *pending_body(const pending_entry *e) noexcept

    pending *pending_new(const pending_allocator *allocator, const uint8_t *seed,
                         const pending_limits *limits) noexcept
    void pending_free(pending *p) noexcept
    void pending_clear(pending *p) noexcept
    pending_entry *pending_find(const pending *p, const unsigned char *id, size_t len) noexcept
    int pending_wait(pending *p, const unsigned char *id, size_t len, uint32_t waiter,
                     pending_entry **found) noexcept
    void pending_unwait(pending *p, pending_entry *e) noexcept
    int pending_finish(pending *p, const unsigned char *id, size_t len, uint32_t *waiter) noexcept
    int64_t pending_store(pending *p, const unsigned char *id, size_t len,
                          const unsigned char *format, size_t format_len,
                          const unsigned char *body, size_t body_len, uint32_t now) noexcept
    void pending_drop_body(pending *p, pending_entry *e) noexcept
    uint64_t pending_expire(pending *p, uint32_t before) noexcept
    void pending_forget(pending *p, const unsigned char *id, size_t len) noexcept
    void pending_reset(pending *p, const unsigned char *id, size_t len) noexcept
    pending_entry *pending_next(const pending *p, pending_cursor *cursor) noexcept
    uint64_t pending_count(const pending *p, int state) noexcept
    uint64_t pending_bytes(const pending *p) noexcept
    uint64_t pending_evicted(const pending *p) noexcept
    size_t pending_memory(const pending *p) noexcept
    size_t pending_table_memory(const pending *p) noexcept
    int pending_check(const pending *p) noexcept
