/* A table of correlation ids: their states, stored bodies, order of arrival, and bytes used.
 *
 * C11, libc only, no I/O, no globals. Not thread-safe: the caller holds a lock (the GIL).
 *
 *            wait               finish
 *   unknown ------> WAITING ------------------> DONE ---- oldest over max_done ---> unknown
 *      |  store      | unwait, body kept         ^
 *      v             v                           | finish
 *   UNCLAIMED <------+---------------------------+
 *      |  ^  store                 oldest over max_lost
 *      v  |                                |
 *     LOST (over a cap, or expired) -------+--> unknown
 *
 * Ownership:
 * - The table owns every entry, its id and its stored bytes. A pointer to an entry, or a view into
 *   one, is valid until the next call that takes a non-const table.
 * - `waiter` is a number that the caller chooses, not 0; the table does not interpret it.
 *   pending_finish returns it.
 * - Bytes passed in are copied: views need to live only until the call returns.
 */
#ifndef FASTRPC_PENDING_H
#define FASTRPC_PENDING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "alloc.h"
#include "wire.h"

enum { PENDING_MAX_ID = 255, PENDING_MAX_FORMAT = 255 };

enum {
    PENDING_UNKNOWN = 0,
    PENDING_WAITING = 1,
    PENDING_UNCLAIMED = 2,
    PENDING_DONE = 3,
    PENDING_LOST = 4,
    PENDING_STATES = 5
};

/* The errors that every function returns; the table has then not changed. */
enum {
    PENDING_ENOMEM = -1,
    PENDING_EINVALID = -2,  /* id not 1..255 bytes, format over 255, body of 4 GiB or more */
    PENDING_EDUPLICATE = -3 /* the id is DONE: nothing was stored */
};

typedef struct pending pending;

typedef struct pending_limits {
    uint64_t max_unclaimed;
    uint64_t max_unclaimed_bytes;
    uint64_t max_done;
    uint64_t max_lost;
} pending_limits;

/* One block: this header, the id, the format, the body. Read-only outside pending.c. */
typedef struct pending_entry {
    struct pending_entry *older, *newer; /* in its state's order; WAITING: only with a body */
    uint32_t hash;
    uint32_t body_len;
    union {
        uint32_t arrived; /* UNCLAIMED: when the stored bytes arrived, in seconds */
        uint32_t waiter;  /* WAITING */
    };
    uint8_t id_len;
    uint8_t format_len;
    uint8_t state;
    bool stored; /* there is a body, perhaps an empty one */
    uint8_t bytes[];
} pending_entry;

/* Views into the entry. */
static inline wire_view pending_id(const pending_entry *e)
{
    return (wire_view){e->bytes, e->id_len};
}

static inline wire_view pending_format(const pending_entry *e)
{
    return (wire_view){e->bytes + e->id_len, e->format_len};
}

static inline wire_view pending_body(const pending_entry *e)
{
    return (wire_view){e->bytes + e->id_len + e->format_len, e->body_len};
}

/* The caller owns the table (pending_free). `seed` must be random and secret: ids come from the
 * wire. NULL allocator: libc. NULL: out of memory. */
pending *pending_new(const allocator *alloc, const uint8_t seed[16], const pending_limits *limits);
void pending_free(pending *p); /* NULL is fine */
/* Forgets every entry. Counts of entries and bytes become zero, `evicted` stays. Cannot fail. */
void pending_clear(pending *p);

/* NULL: the id is unknown, or its length is invalid. */
pending_entry *pending_find(const pending *p, wire_view id);

/* An UNKNOWN id becomes WAITING with this waiter. In any other state nothing changes. *found is the
 * entry if it was WAITING before, else NULL. Returns the previous state, or an error. */
int pending_wait(pending *p, wire_view id, uint32_t waiter, pending_entry **found);

/* e must be WAITING. If it has a body and max_unclaimed leaves room, it becomes the newest
 * UNCLAIMED; otherwise it is freed. Never fails. */
void pending_unwait(pending *p, pending_entry *e);

/* The final state was handed out: the id becomes DONE and its body is dropped. *waiter is its
 * waiter, or 0 if it had none. Returns the previous state, or an error; only an UNKNOWN id can run
 * out of memory. If the id is DONE already, nothing changes. */
int pending_finish(pending *p, wire_view id, uint32_t *waiter);

/* Stores the newest body of the id in place of an older one; the id becomes the newest in the order
 * of arrival. The clock never goes back: a `now` before the latest one counts as the latest one.
 * UNKNOWN and LOST become UNCLAIMED.
 *
 * Bodies are then dropped until both caps hold. The body of a WAITING id is a progress state, which
 * matters less than a result. So over max_unclaimed_bytes the oldest WAITING bodies are dropped
 * first; their ids stay WAITING. When none is left, the oldest UNCLAIMED become LOST. If the new
 * body could not fit even then, it is dropped and nothing else is. Returns how many became LOST, or
 * an error. */
int64_t pending_store(pending *p, wire_view id, wire_view format, wire_view body, uint32_t now);

/* Drops the stored bytes of e (WAITING or UNCLAIMED). UNCLAIMED becomes unknown. The pointer e is
 * invalid afterwards. */
void pending_drop_body(pending *p, pending_entry *e);

/* UNCLAIMED with arrived < before become LOST. Returns how many. */
uint64_t pending_expire(pending *p, uint32_t before);

/* Drops everything but the waiter. */
void pending_forget(pending *p, wire_view id);

/* DONE and LOST become unknown. */
void pending_reset(pending *p, wire_view id);

/* Iterates over the table in no order. Start with a cursor of zeros and call until NULL, without
 * changes in between. */
typedef struct pending_cursor {
    size_t segment;
    size_t slot;
} pending_cursor;
pending_entry *pending_next(const pending *p, pending_cursor *cursor);

uint64_t pending_count(const pending *p, int state);
uint64_t pending_bytes(const pending *p);   /* formats and bodies stored, WAITING and UNCLAIMED */
uint64_t pending_evicted(const pending *p); /* by cap or by age, since the table was made */
/* Memory held, with malloc's overhead estimated as glibc's: 8 bytes per block, rounded up to 16. */
size_t pending_memory(const pending *p);
/* The part of it that is not entries: directory and segments. */
size_t pending_table_memory(const pending *p);
/* For tests: 0 if every invariant holds, else the source line of the one that does not. */
int pending_check(const pending *p);

#endif
