/* Correlation id -> what is known about it; the order of arrival; byte accounting.
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
 * Who owns what:
 * - The table owns every entry, its id and its stored bytes. A pointer to an entry and a view into
 *   one are valid until the next call that takes a non-const table.
 * - `waiter` is a number of the caller's, never looked at, but never 0. A call that ends WAITING
 *   hands it back.
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

/* What every function returns when something is wrong; the table is then as it was. */
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

/* One block: this, the id, the format, the body. Read-only outside pending.c. */
typedef struct pending_entry {
    struct pending_entry *older, *newer; /* in the order of its state; WAITING only with a body */
    uint32_t hash;
    uint32_t body_len;
    union {
        uint32_t arrived; /* UNCLAIMED: seconds; when the stored bytes came */
        uint32_t waiter;  /* WAITING */
    };
    uint8_t id_len;
    uint8_t format_len;
    uint8_t state;
    bool stored; /* there is a body, if only an empty one */
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
/* Forgets every entry; counters of entries and bytes go to zero, `evicted` stays. Never fails. */
void pending_clear(pending *p);

/* NULL: unknown (also for an id of an impossible length). */
pending_entry *pending_find(const pending *p, wire_view id);

/* UNKNOWN: now WAITING with this waiter. WAITING: nothing changes, *found is the entry (else NULL).
 * Any other state: nothing changes. Returns the state before, or an error. */
int pending_wait(pending *p, wire_view id, uint32_t waiter, pending_entry **found);

/* e is WAITING: with a body, and where max_unclaimed leaves room for it, e becomes the newest
 * UNCLAIMED; else it is freed. Never fails. */
void pending_unwait(pending *p, pending_entry *e);

/* The final state is there: DONE, its body dropped. *waiter is the waiter, or 0 where there was
 * none. Returns the state before, or an error; out of memory only for UNKNOWN ids. DONE again:
 * nothing changes. */
int pending_finish(pending *p, wire_view id, uint32_t *waiter);

/* Keeps the newest body of the id; it takes the last place in the order of arrival. The clock never
 * goes back: a `now` before the latest one counts as the latest one. UNKNOWN and LOST become
 * UNCLAIMED.
 *
 * Until both caps hold, something goes. The body of a WAITING id is advice (a progress state; a
 * final one ends the waiting), so advice goes before results: over max_unclaimed_bytes the oldest
 * WAITING bodies are dropped first, and only with none left do the oldest UNCLAIMED become LOST.
 * The waiting goes on. A body that would not fit even with all gone that may go for it goes itself
 * and costs nobody else. Returns how many became LOST, or an error. */
int64_t pending_store(pending *p, wire_view id, wire_view format, wire_view body, uint32_t now);

/* Drops the stored bytes of e (WAITING or UNCLAIMED); UNCLAIMED becomes unknown. e is gone then. */
void pending_drop_body(pending *p, pending_entry *e);

/* UNCLAIMED with arrived < before become LOST. Returns how many. */
uint64_t pending_expire(pending *p, uint32_t before);

/* Drops everything but the waiter. */
void pending_forget(pending *p, wire_view id);

/* DONE and LOST become unknown. */
void pending_reset(pending *p, wire_view id);

/* Walks the table in no order: from a cursor of zeros until NULL, without changes in between. */
typedef struct pending_cursor {
    size_t segment;
    size_t slot;
} pending_cursor;
pending_entry *pending_next(const pending *p, pending_cursor *cursor);

uint64_t pending_count(const pending *p, int state);
uint64_t pending_bytes(const pending *p);   /* formats and bodies stored, WAITING and UNCLAIMED */
uint64_t pending_evicted(const pending *p); /* by cap or by age, since the table was made */
/* Memory held, with what malloc adds to each block estimated as glibc's: 8 bytes, then up to 16. */
size_t pending_memory(const pending *p);
/* Memory of that which is not entries: directory and segments. */
size_t pending_table_memory(const pending *p);
/* For tests: 0 when every internal rule holds, else the source line of the rule that does not. */
int pending_check(const pending *p);

#endif
