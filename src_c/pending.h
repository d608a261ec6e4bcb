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
 * - The table owns every entry, its id and its stored bytes. Pointers into an entry are valid until the
 *   next call that takes a non-const table.
 * - `waiter` is a number of the caller's, never looked at, but never 0. A call that ends WAITING hands
 *   it back.
 * - Bytes passed in are copied.
 */
#ifndef FASTRPC_PENDING_H
#define FASTRPC_PENDING_H

#include <stddef.h>
#include <stdint.h>

#define PENDING_MAX_ID 255
#define PENDING_MAX_FORMAT 255

enum {
    PENDING_UNKNOWN = 0,
    PENDING_WAITING = 1,
    PENDING_UNCLAIMED = 2,
    PENDING_DONE = 3,
    PENDING_LOST = 4,
    PENDING_STATES = 5
};

/* Outcomes; 0 and above are the results of the call. After an error the table is as it was. */
enum {
    PENDING_DUPLICATE = -1, /* the id is DONE: nothing was stored */
    PENDING_NOMEM = -2,
    PENDING_INVALID = -3 /* id not 1..255 bytes, format over 255, body of 4 GiB or more */
};

typedef struct pending pending;

/* Every allocation of the table goes through this. realloc is only asked to make blocks smaller; when it
 * cannot, the block stays as it is. */
typedef struct {
    void *(*malloc)(void *context, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block);
    void *context;
} pending_allocator;

typedef struct {
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
    uint8_t stored; /* there is a body, if only an empty one */
    unsigned char bytes[];
} pending_entry;

static inline const unsigned char *pending_id(const pending_entry *e) { return e->bytes; }

static inline const unsigned char *pending_format(const pending_entry *e) {
    return e->bytes + e->id_len;
}

static inline const unsigned char *pending_body(const pending_entry *e) {
    return e->bytes + e->id_len + e->format_len;
}

/* `allocator` NULL: libc. `seed` must be random and secret: ids come from the wire. NULL: out of memory. */
pending *pending_new(const pending_allocator *allocator, const uint8_t seed[16],
                     const pending_limits *limits);
void pending_free(pending *p);
/* Forgets every entry; counters of entries and bytes go to zero, `evicted` stays. Never fails. */
void pending_clear(pending *p);

/* NULL: unknown (also for an id of an impossible length). */
pending_entry *pending_find(const pending *p, const unsigned char *id, size_t len);

/* UNKNOWN: now WAITING with this waiter. WAITING: nothing changes, *found is the entry, whose waiter the
 * caller may exchange. Any other state: nothing changes. Returns the state before, or an error. */
int pending_wait(pending *p, const unsigned char *id, size_t len, uint32_t waiter,
                 pending_entry **found);

/* e is WAITING: with a body, and where max_unclaimed leaves room for it, e becomes the newest UNCLAIMED;
 * else it is freed. Never fails. */
void pending_unwait(pending *p, pending_entry *e);

/* The final state is there: DONE, its body dropped. *waiter is the waiter, or 0 where there was none.
 * Returns the state before, or an error. DONE again: nothing changes. Fails only for UNKNOWN ids. */
int pending_finish(pending *p, const unsigned char *id, size_t len, uint32_t *waiter);

/* Keeps the newest body of the id; it takes the last place in the order of arrival. The clock never goes
 * back: a `now` before the latest one counts as the latest one. UNKNOWN and LOST become UNCLAIMED.
 *
 * Until both caps hold, something goes. The body of a WAITING id is advice (a progress state; a final one
 * ends the waiting), so advice goes before results: over max_unclaimed_bytes the oldest WAITING bodies are
 * dropped first, and only with none left do the oldest UNCLAIMED become LOST. The waiting goes on. A body
 * that would not fit even with all gone that may go for it goes itself and costs nobody else.
 * Returns how many became LOST, or an error. */
int64_t pending_store(pending *p, const unsigned char *id, size_t len, const unsigned char *format,
                      size_t format_len, const unsigned char *body, size_t body_len, uint32_t now);

/* Drops the stored bytes of e (WAITING or UNCLAIMED); UNCLAIMED becomes unknown. e is gone after this. */
void pending_drop_body(pending *p, pending_entry *e);

/* UNCLAIMED with arrived < before become LOST. Returns how many. */
uint64_t pending_expire(pending *p, uint32_t before);

/* Drops everything but the waiter. */
void pending_forget(pending *p, const unsigned char *id, size_t len);

/* DONE and LOST become unknown. */
void pending_reset(pending *p, const unsigned char *id, size_t len);

/* Walks the table in no order: start with *cursor = 0; NULL at the end. No changes while walking. */
typedef struct {
    size_t segment;
    size_t slot;
} pending_cursor;
pending_entry *pending_next(const pending *p, pending_cursor *cursor);

uint64_t pending_count(const pending *p, int state);
uint64_t pending_bytes(const pending *p);   /* formats and bodies stored, WAITING and UNCLAIMED */
uint64_t pending_evicted(const pending *p); /* by cap or by age, since the table was made */
/* Memory held, with what malloc adds to each block estimated as glibc's: 8 bytes, rounded up to 16. */
size_t pending_memory(const pending *p);
/* Memory of that which is not entries: directory and segments. */
size_t pending_table_memory(const pending *p);
/* For tests: 0 when every internal rule holds, else the source line of the rule that does not. */
int pending_check(const pending *p);

#endif
