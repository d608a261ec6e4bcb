/* See pending.h.
 *
 * The hash table is extendible: the top bits of the hash choose a segment through a directory, the
 * low bits a home group within the segment. A full segment splits in two, and neighbours that have
 * emptied merge. So no single call rehashes the whole table, and there are never two copies of it.
 *
 * A group is one cache line: five slots, their full hashes, and the number of entries that found
 * this group full and moved on to the next one. A lookup of an absent id therefore costs one cache
 * miss, of a present id two, and splitting reads no entries at all. Removal leaves no tombstones.
 */
#include "pending.h"

#include <stdbool.h>
#include <string.h>

enum {
    GROUP_SLOTS = 5,
    GROUPS = 256, /* a power of two */
    SLOTS = GROUPS * GROUP_SLOTS,
    SPLIT_AT = SLOTS * 3 / 4,
    /* Half of SPLIT_AT, so that a table of steady size does not split and merge in turns. */
    MERGE_AT = SLOTS * 3 / 8,
    /* A hash has 32 bits; the low 8 are the home group. 2^24 segments hold 16 billion entries. */
    MAX_DEPTH = 24,
    LINE = 64 /* bytes of a cache line */
};

typedef struct group {
    uint32_t hash[GROUP_SLOTS];
    uint32_t passed; /* entries in later groups that found this one full */
    pending_entry *entry[GROUP_SLOTS];
} group;

_Static_assert(sizeof(void *) != 8 || sizeof(group) == LINE, "a group is a cache line");
_Static_assert(sizeof(void *) != 8 || sizeof(pending_entry) == 32, "the header of an entry");

typedef struct segment {
    group *groups;
    void *block; /* the allocation; groups begins at its first cache line */
    uint32_t used;
    uint32_t depth; /* how many top bits all its hashes share */
} segment;

typedef struct order {
    pending_entry *oldest, *newest; /* WAITING: only entries with a body */
    uint64_t count;
    uint64_t bytes; /* formats and bodies */
} order;

struct pending {
    /* 1 << depth pointers; a segment of depth d appears 1 << (depth - d) times. */
    segment **directory;
    uint32_t depth;
    uint32_t clock;   /* the latest arrival */
    uint64_t deepest; /* segments as deep as the directory; if zero, the directory can be halved */
    uint64_t segments;
    uint64_t key[2];
    order orders[PENDING_STATES];
    uint64_t evicted;
    size_t entry_memory;
    pending_limits limits;
    allocator alloc;
};

/* The memory that malloc uses for a block, estimated as glibc's. */
static size_t chunk(size_t size)
{
    return size + 8 < 32 ? 32 : (size + 8 + 15) & ~(size_t)15;
}

/* ------------------------------------------------------------------ the hash */

/* SipHash-1-3 (Aumasson and Bernstein): keyed, so a peer cannot choose colliding ids. */

#define ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))
#define SIP_ROUND                                                                                  \
    do {                                                                                           \
        v0 += v1;                                                                                  \
        v1 = ROTATE(v1, 13) ^ v0;                                                                  \
        v0 = ROTATE(v0, 32);                                                                       \
        v2 += v3;                                                                                  \
        v3 = ROTATE(v3, 16) ^ v2;                                                                  \
        v0 += v3;                                                                                  \
        v3 = ROTATE(v3, 21) ^ v0;                                                                  \
        v2 += v1;                                                                                  \
        v1 = ROTATE(v1, 17) ^ v2;                                                                  \
        v2 = ROTATE(v2, 32);                                                                       \
    } while (0)

static uint32_t hash_of(const pending *p, wire_view id)
{
    uint64_t v0 = p->key[0] ^ UINT64_C(0x736f6d6570736575);
    uint64_t v1 = p->key[1] ^ UINT64_C(0x646f72616e646f6d);
    uint64_t v2 = p->key[0] ^ UINT64_C(0x6c7967656e657261);
    uint64_t v3 = p->key[1] ^ UINT64_C(0x7465646279746573);
    uint64_t last = (uint64_t)id.len << 56, word;
    const uint8_t *ptr = id.ptr;
    size_t left = id.len;
    for (; left >= 8; ptr += 8, left -= 8) {
        memcpy(&word, ptr, 8); /* the machine's byte order: the hash never leaves the process */
        v3 ^= word;
        SIP_ROUND;
        v0 ^= word;
    }
    word = 0;
    memcpy(&word, ptr, left);
    last ^= word;
    v3 ^= last;
    SIP_ROUND;
    v0 ^= last;
    v2 ^= 0xff;
    SIP_ROUND;
    SIP_ROUND;
    SIP_ROUND;
    word = v0 ^ v1 ^ v2 ^ v3;
    return (uint32_t)(word ^ (word >> 32));
}

/* ------------------------------------------------------------------ segments */

static segment *segment_new(pending *p, uint32_t depth)
{
    segment *s = alloc_new(&p->alloc, sizeof *s);
    if (s == NULL)
        return NULL;
    s->block = alloc_new(&p->alloc, GROUPS * sizeof(group) + LINE - 1);
    if (s->block == NULL) {
        alloc_free(&p->alloc, s);
        return NULL;
    }
    uintptr_t odd = (uintptr_t)s->block % LINE;
    s->groups = (group *)((char *)s->block + (odd ? LINE - odd : 0));
    memset(s->groups, 0, GROUPS * sizeof(group));
    s->used = 0;
    s->depth = depth;
    p->segments++;
    return s;
}

static void segment_free(pending *p, segment *s)
{
    alloc_free(&p->alloc, s->block);
    alloc_free(&p->alloc, s);
    p->segments--;
}

/* The caller has checked that there is room. */
static void segment_put(segment *s, uint32_t hash, pending_entry *e)
{
    for (uint32_t i = hash % GROUPS;; i = (i + 1) % GROUPS) {
        group *g = &s->groups[i];
        for (int k = 0; k < GROUP_SLOTS; k++) {
            if (g->entry[k] == NULL) {
                g->entry[k] = e;
                g->hash[k] = hash;
                s->used++;
                return;
            }
        }
        g->passed++;
    }
}

static void segment_take(segment *s, uint32_t at, int k)
{
    group *g = &s->groups[at];
    for (uint32_t i = g->hash[k] % GROUPS; i != at; i = (i + 1) % GROUPS)
        s->groups[i].passed--;
    g->entry[k] = NULL;
    g->hash[k] = 0;
    s->used--;
}

static size_t directory_index(const pending *p, uint32_t hash)
{
    return (size_t)((uint64_t)hash >> (32 - p->depth));
}

static segment *segment_of(const pending *p, uint32_t hash)
{
    return p->directory[directory_index(p, hash)];
}

/* The index of the directory's first pointer to the segment of `hash`, and how many there are. */
static size_t directory_range(const pending *p, uint32_t hash, uint32_t depth, size_t *many)
{
    *many = (size_t)1 << (p->depth - depth);
    return directory_index(p, hash) & ~(*many - 1);
}

static int directory_double(pending *p)
{
    size_t size = (size_t)1 << p->depth;
    segment **bigger = alloc_new(&p->alloc, 2 * size * sizeof *bigger);
    if (bigger == NULL)
        return PENDING_ENOMEM;
    for (size_t i = 0; i < 2 * size; i++)
        bigger[i] = p->directory[i / 2];
    alloc_free(&p->alloc, p->directory);
    p->directory = bigger;
    p->depth++;
    p->deepest = 0;
    return 0;
}

static void directory_halve(pending *p)
{
    while (p->depth > 0 && p->deepest == 0) {
        size_t size = (size_t)1 << --p->depth;
        for (size_t i = 0; i < size; i++) {
            p->directory[i] = p->directory[2 * i];
            /* A segment of this depth has exactly one pointer here, so it is counted once. */
            if (p->directory[i]->depth == p->depth)
                p->deepest++;
        }
        p->directory = alloc_shrink(&p->alloc, p->directory, size * sizeof *p->directory);
    }
}

static int split(pending *p, uint32_t hash)
{
    segment *s = segment_of(p, hash);
    if (s->depth == MAX_DEPTH || (s->depth == p->depth && directory_double(p) != 0))
        return PENDING_ENOMEM;
    segment *upper = segment_new(p, s->depth + 1);
    if (upper == NULL) {
        directory_halve(p); /* no segment is as deep as a directory that was just doubled */
        return PENDING_ENOMEM;
    }
    size_t many, first = directory_range(p, hash, s->depth, &many);
    s->depth++;
    for (size_t i = first + many / 2; i < first + many; i++)
        p->directory[i] = upper;
    if (s->depth == p->depth)
        p->deepest += 2;
    uint32_t bit = UINT32_C(1) << (32 - s->depth);
    for (uint32_t i = 0; i < GROUPS; i++) {
        for (int k = 0; k < GROUP_SLOTS; k++) {
            pending_entry *e = s->groups[i].entry[k];
            uint32_t h = s->groups[i].hash[k];
            if (e == NULL)
                continue;
            if (h & bit) {
                segment_take(s, i, k);
                segment_put(upper, h, e);
            } else if (h % GROUPS != i) { /* its home group may have room now */
                segment_take(s, i, k);
                segment_put(s, h, e);
            }
        }
    }
    return 0;
}

/* The segment of `hash` has lost many entries: merge it with its neighbour as long as both fit into
 * one. */
static void merge(pending *p, uint32_t hash)
{
    for (;;) {
        segment *s = segment_of(p, hash);
        if (s->depth == 0)
            return;
        uint32_t bit = UINT32_C(1) << (32 - s->depth);
        segment *other = segment_of(p, hash ^ bit);
        if (other->depth != s->depth || s->used + other->used > MERGE_AT)
            return;
        for (uint32_t i = 0; i < GROUPS; i++)
            for (int k = 0; k < GROUP_SLOTS; k++)
                if (other->groups[i].entry[k] != NULL)
                    segment_put(s, other->groups[i].hash[k], other->groups[i].entry[k]);
        size_t many, first = directory_range(p, hash ^ bit, other->depth, &many);
        for (size_t i = first; i < first + many; i++)
            p->directory[i] = s;
        if (s->depth == p->depth)
            p->deepest -= 2;
        s->depth--;
        segment_free(p, other);
        directory_halve(p);
    }
}

/* ------------------------------------------------------------------ entries in the hash table */

static pending_entry *find(const pending *p, uint32_t hash, wire_view id)
{
    const segment *s = segment_of(p, hash);
    uint32_t i = hash % GROUPS;
    for (uint32_t n = 0; n < GROUPS; n++, i = (i + 1) % GROUPS) {
        const group *g = &s->groups[i];
        for (int k = 0; k < GROUP_SLOTS; k++) {
            pending_entry *e = g->entry[k];
            if (g->hash[k] == hash && e != NULL && e->id_len == id.len &&
                memcmp(e->bytes, id.ptr, id.len) == 0)
                return e;
        }
        if (g->passed == 0)
            return NULL;
    }
    return NULL;
}

/* Finds the slot of e, which must be in the segment. */
static void locate(const segment *s, const pending_entry *e, uint32_t *at, int *slot)
{
    for (uint32_t i = e->hash % GROUPS;; i = (i + 1) % GROUPS) {
        for (int k = 0; k < GROUP_SLOTS; k++) {
            if (s->groups[i].entry[k] == e) {
                *at = i;
                *slot = k;
                return;
            }
        }
    }
}

static void replace(pending *p, const pending_entry *old, pending_entry *e)
{
    segment *s = segment_of(p, old->hash);
    uint32_t at;
    int k;
    locate(s, old, &at, &k);
    s->groups[at].entry[k] = e;
}

static int insert(pending *p, pending_entry *e)
{
    segment *s = segment_of(p, e->hash);
    while (s->used >= SPLIT_AT) {
        if (split(p, e->hash) != 0) {
            if (s->used == SLOTS)
                return PENDING_ENOMEM;
            break; /* crowded, but there is room */
        }
        s = segment_of(p, e->hash);
    }
    segment_put(s, e->hash, e);
    return 0;
}

static void take_out(pending *p, const pending_entry *e)
{
    uint32_t hash = e->hash;
    segment *s = segment_of(p, hash);
    uint32_t at;
    int k;
    locate(s, e, &at, &k);
    segment_take(s, at, k);
    /* Looking at the neighbour costs a cache miss, so not at every removal. */
    if (s->used <= MERGE_AT / 2 && s->used % 32 == 0)
        merge(p, hash);
}

/* ------------------------------------------------------------------ entries: memory and order */

static size_t stored_len(const pending_entry *e)
{
    return (size_t)e->format_len + e->body_len;
}

static size_t entry_size(const pending_entry *e)
{
    return sizeof *e + e->id_len + stored_len(e);
}

/* A new entry without a body, but with `room` for one. NULL: out of memory. */
static pending_entry *entry_new(pending *p, uint32_t hash, wire_view id, size_t room)
{
    size_t size = sizeof(pending_entry) + id.len + room;
    pending_entry *e = alloc_new(&p->alloc, size);
    if (e == NULL)
        return NULL;
    *e = (pending_entry){.hash = hash, .id_len = (uint8_t)id.len};
    memcpy(e->bytes, id.ptr, id.len);
    p->entry_memory += chunk(size);
    return e;
}

static void entry_free(pending *p, pending_entry *e)
{
    p->entry_memory -= chunk(entry_size(e));
    alloc_free(&p->alloc, e);
}

/* Puts e into a state, as the newest in its order, and counts it. Only enter() and leave() change
 * the state of an entry. */
static void enter(pending *p, pending_entry *e, int state)
{
    order *o = &p->orders[state];
    e->state = (uint8_t)state;
    o->count++;
    if (e->stored)
        o->bytes += stored_len(e);
    else if (e->state == PENDING_WAITING)
        return;
    e->newer = NULL;
    e->older = o->newest;
    if (o->newest != NULL)
        o->newest->newer = e;
    else
        o->oldest = e;
    o->newest = e;
}

static void leave(pending *p, pending_entry *e)
{
    order *o = &p->orders[e->state];
    o->count--;
    if (e->stored)
        o->bytes -= stored_len(e);
    else if (e->state == PENDING_WAITING)
        return;
    pending_entry *older = e->older, *newer = e->newer;
    if (older != NULL)
        older->newer = newer;
    else
        o->oldest = newer;
    if (newer != NULL)
        newer->older = older;
    else
        o->newest = older;
}

/* Frees the memory of the body: e moves. The caller has taken e out of its order. */
static pending_entry *without_body(pending *p, pending_entry *e)
{
    if (!e->stored)
        return e;
    e->stored = false;
    if (stored_len(e) == 0)
        return e;
    segment *s = segment_of(p, e->hash);
    uint32_t at;
    int k;
    locate(s, e, &at, &k);
    p->entry_memory -= chunk(entry_size(e));
    e->format_len = 0;
    e->body_len = 0;
    p->entry_memory += chunk(entry_size(e));
    e = alloc_shrink(&p->alloc, e, entry_size(e));
    s->groups[at].entry[k] = e;
    return e;
}

static void discard(pending *p, pending_entry *e)
{
    leave(p, e);
    take_out(p, e);
    entry_free(p, e);
}

static void bound(pending *p, int state, uint64_t most)
{
    while (p->orders[state].count > most)
        discard(p, p->orders[state].oldest);
}

static void lose(pending *p, pending_entry *e)
{
    leave(p, e);
    enter(p, without_body(p, e), PENDING_LOST);
    bound(p, PENDING_LOST, p->limits.max_lost);
    p->evicted++;
}

/* Drops the body of e, a progress state. e stays WAITING. */
static void drop_progress(pending *p, pending_entry *e)
{
    leave(p, e);
    enter(p, without_body(p, e), PENDING_WAITING);
}

static uint64_t apply_caps(pending *p, pending_entry *newest)
{
    order *progress = &p->orders[PENDING_WAITING], *results = &p->orders[PENDING_UNCLAIMED];
    uint64_t most = p->limits.max_unclaimed_bytes, evicted = p->evicted;
    if (newest->state == PENDING_WAITING) {
        /* If the results alone leave no room for it, dropping other progress states cannot help. */
        if (stored_len(newest) > most - results->bytes)
            drop_progress(p, newest);
    } else if (stored_len(newest) > most) {
        lose(p, newest);
    }
    while (results->count > p->limits.max_unclaimed)
        lose(p, results->oldest);
    while (progress->bytes + results->bytes > most) {
        if (progress->oldest != NULL)
            drop_progress(p, progress->oldest);
        else
            lose(p, results->oldest);
    }
    return p->evicted - evicted;
}

static bool is_valid_id(wire_view id)
{
    return id.len >= 1 && id.len <= PENDING_MAX_ID;
}

/* ------------------------------------------------------------------ the table */

pending *pending_new(const allocator *alloc, const uint8_t seed[16], const pending_limits *limits)
{
    const allocator own = alloc_or_libc(alloc);
    pending *p = alloc_new(&own, sizeof *p);
    if (p == NULL)
        return NULL;
    *p = (pending){.alloc = own, .limits = *limits};
    memcpy(p->key, seed, sizeof p->key);
    p->directory = alloc_new(&p->alloc, sizeof *p->directory);
    segment *s = p->directory == NULL ? NULL : segment_new(p, 0);
    if (s == NULL) {
        alloc_free(&own, p->directory);
        alloc_free(&own, p);
        return NULL;
    }
    p->directory[0] = s;
    p->deepest = 1;
    return p;
}

void pending_clear(pending *p)
{
    segment *first = p->directory[0];
    for (size_t i = 0, size = (size_t)1 << p->depth; i < size;) {
        segment *s = p->directory[i];
        i += (size_t)1 << (p->depth - s->depth);
        for (uint32_t n = 0; n < GROUPS; n++)
            for (int k = 0; k < GROUP_SLOTS; k++)
                if (s->groups[n].entry[k] != NULL)
                    alloc_free(&p->alloc, s->groups[n].entry[k]);
        if (s != first)
            segment_free(p, s);
    }
    memset(first->groups, 0, GROUPS * sizeof(group));
    first->used = 0;
    first->depth = 0;
    if (p->depth > 0)
        p->directory = alloc_shrink(&p->alloc, p->directory, sizeof *p->directory);
    p->directory[0] = first;
    p->depth = 0;
    p->deepest = 1;
    memset(p->orders, 0, sizeof p->orders);
    p->entry_memory = 0;
    p->clock = 0;
}

void pending_free(pending *p)
{
    if (p == NULL)
        return;
    pending_clear(p);
    segment_free(p, p->directory[0]);
    const allocator own = p->alloc;
    alloc_free(&own, p->directory);
    alloc_free(&own, p);
}

pending_entry *pending_find(const pending *p, wire_view id)
{
    return is_valid_id(id) ? find(p, hash_of(p, id), id) : NULL;
}

/* A new entry without a body, in the table and in the order of its state. NULL: out of memory. */
static pending_entry *create(pending *p, uint32_t hash, wire_view id, int state)
{
    pending_entry *e = entry_new(p, hash, id, 0);
    if (e == NULL)
        return NULL;
    if (insert(p, e) != 0) {
        entry_free(p, e);
        return NULL;
    }
    enter(p, e, state);
    return e;
}

int pending_wait(pending *p, wire_view id, uint32_t waiter, pending_entry **found)
{
    *found = NULL;
    if (!is_valid_id(id))
        return PENDING_EINVALID;
    uint32_t hash = hash_of(p, id);
    pending_entry *e = find(p, hash, id);
    if (e != NULL) {
        if (e->state == PENDING_WAITING)
            *found = e;
        return e->state;
    }
    e = create(p, hash, id, PENDING_WAITING);
    if (e == NULL)
        return PENDING_ENOMEM;
    e->waiter = waiter;
    return PENDING_UNKNOWN;
}

void pending_unwait(pending *p, pending_entry *e)
{
    if (!e->stored || p->orders[PENDING_UNCLAIMED].count >= p->limits.max_unclaimed) {
        discard(p, e);
        return;
    }
    leave(p, e);
    /* Times must follow the order of arrival: pending_expire() stops at the first entry that is
     * young enough. */
    e->arrived = p->clock;
    enter(p, e, PENDING_UNCLAIMED);
}

int pending_finish(pending *p, wire_view id, uint32_t *waiter)
{
    *waiter = 0;
    if (!is_valid_id(id))
        return PENDING_EINVALID;
    uint32_t hash = hash_of(p, id);
    pending_entry *e = find(p, hash, id);
    int before = PENDING_UNKNOWN;
    if (e == NULL) {
        /* If no DONE ids are kept, an unknown id stays unknown. */
        if (p->limits.max_done > 0 && create(p, hash, id, PENDING_DONE) == NULL)
            return PENDING_ENOMEM;
    } else {
        before = e->state;
        if (before == PENDING_DONE)
            return before;
        if (before == PENDING_WAITING)
            *waiter = e->waiter;
        leave(p, e);
        enter(p, without_body(p, e), PENDING_DONE);
    }
    bound(p, PENDING_DONE, p->limits.max_done);
    return before;
}

int64_t pending_store(pending *p, wire_view id, wire_view format, wire_view body, uint32_t now)
{
    if (!is_valid_id(id) || format.len > PENDING_MAX_FORMAT || body.len >= UINT32_MAX)
        return PENDING_EINVALID;
    uint32_t hash = hash_of(p, id);
    pending_entry *old = find(p, hash, id);
    if (old != NULL && old->state == PENDING_DONE)
        return PENDING_EDUPLICATE;
    pending_entry *e = entry_new(p, hash, id, format.len + body.len);
    if (e == NULL)
        return PENDING_ENOMEM;
    if (format.len > 0) /* memcpy from NULL is undefined even for no bytes at all */
        memcpy(e->bytes + id.len, format.ptr, format.len);
    if (body.len > 0)
        memcpy(e->bytes + id.len + format.len, body.ptr, body.len);
    e->format_len = (uint8_t)format.len;
    e->body_len = (uint32_t)body.len;
    e->stored = true;
    int state = PENDING_UNCLAIMED;
    if (old == NULL) {
        if (insert(p, e) != 0) {
            entry_free(p, e);
            return PENDING_ENOMEM;
        }
    } else {
        replace(p, old, e);
        leave(p, old);
        if (old->state == PENDING_WAITING) {
            state = PENDING_WAITING;
            e->waiter = old->waiter;
        }
        entry_free(p, old);
    }
    if (now > p->clock)
        p->clock = now;
    if (state == PENDING_UNCLAIMED)
        e->arrived = p->clock;
    enter(p, e, state);
    return (int64_t)apply_caps(p, e);
}

void pending_drop_body(pending *p, pending_entry *e)
{
    if (e->state == PENDING_UNCLAIMED) {
        discard(p, e);
    } else if (e->state == PENDING_WAITING) {
        drop_progress(p, e);
    }
}

uint64_t pending_expire(pending *p, uint32_t before)
{
    uint64_t expired = 0;
    pending_entry *e;
    while ((e = p->orders[PENDING_UNCLAIMED].oldest) != NULL && e->arrived < before) {
        lose(p, e);
        expired++;
    }
    return expired;
}

void pending_forget(pending *p, wire_view id)
{
    pending_entry *e = pending_find(p, id);
    if (e == NULL)
        return;
    if (e->state == PENDING_WAITING)
        pending_drop_body(p, e);
    else
        discard(p, e);
}

void pending_reset(pending *p, wire_view id)
{
    pending_entry *e = pending_find(p, id);
    if (e != NULL && (e->state == PENDING_DONE || e->state == PENDING_LOST))
        discard(p, e);
}

pending_entry *pending_next(const pending *p, pending_cursor *cursor)
{
    size_t size = (size_t)1 << p->depth;
    while (cursor->segment < size) {
        const segment *s = p->directory[cursor->segment];
        while (cursor->slot < SLOTS) {
            size_t at = cursor->slot++;
            pending_entry *e = s->groups[at / GROUP_SLOTS].entry[at % GROUP_SLOTS];
            if (e != NULL)
                return e;
        }
        cursor->segment += (size_t)1 << (p->depth - s->depth);
        cursor->slot = 0;
    }
    return NULL;
}

uint64_t pending_count(const pending *p, int state)
{
    return p->orders[state].count;
}

uint64_t pending_bytes(const pending *p)
{
    return p->orders[PENDING_WAITING].bytes + p->orders[PENDING_UNCLAIMED].bytes;
}

uint64_t pending_evicted(const pending *p)
{
    return p->evicted;
}

size_t pending_table_memory(const pending *p)
{
    size_t directory = sizeof(segment *) << p->depth;
    return chunk(sizeof *p) + chunk(directory) +
           (size_t)p->segments *
               (chunk(sizeof(segment)) + chunk(GROUPS * sizeof(group) + LINE - 1));
}

size_t pending_memory(const pending *p)
{
    return pending_table_memory(p) + p->entry_memory;
}

/* ------------------------------------------------------------------ for tests */

#define HOLDS(rule)                                                                                \
    do {                                                                                           \
        if (!(rule))                                                                               \
            return __LINE__;                                                                       \
    } while (0)

static int check_segment(const pending *p, const segment *s, size_t first)
{
    uint32_t used = 0, passed[GROUPS] = {0};
    for (uint32_t i = 0; i < GROUPS; i++) {
        for (int k = 0; k < GROUP_SLOTS; k++) {
            const pending_entry *e = s->groups[i].entry[k];
            if (e == NULL)
                continue;
            used++;
            HOLDS(e->hash == s->groups[i].hash[k]);
            HOLDS(e->hash == hash_of(p, pending_id(e)));
            HOLDS(p->directory[directory_index(p, e->hash)] == s);
            HOLDS(directory_index(p, e->hash) >= first);
            HOLDS(find(p, e->hash, pending_id(e)) == e);
            for (uint32_t n = e->hash % GROUPS; n != i; n = (n + 1) % GROUPS)
                passed[n]++;
        }
    }
    HOLDS(used == s->used);
    for (uint32_t i = 0; i < GROUPS; i++)
        HOLDS(passed[i] == s->groups[i].passed);
    return 0;
}

/* The order of that state should hold `ordered` entries. */
static int check_order(const pending *p, int state, uint64_t ordered)
{
    uint32_t arrived = 0;
    const pending_entry *before = NULL;
    for (const pending_entry *e = p->orders[state].oldest; e != NULL; e = e->newer) {
        HOLDS(e->state == state);
        HOLDS(e->older == before);
        HOLDS(e->stored == (state == PENDING_UNCLAIMED || state == PENDING_WAITING));
        if (state == PENDING_UNCLAIMED) {
            HOLDS(e->arrived >= arrived);
            arrived = e->arrived;
        }
        before = e;
        ordered--;
    }
    HOLDS(p->orders[state].newest == before);
    HOLDS(ordered == 0);
    return 0;
}

int pending_check(const pending *p)
{
    uint64_t segments = 0, deepest = 0;
    uint64_t counts[PENDING_STATES] = {0}, ordered[PENDING_STATES] = {0},
             bytes[PENDING_STATES] = {0};
    size_t memory = 0, size = (size_t)1 << p->depth;
    int wrong;
    for (size_t i = 0; i < size;) {
        const segment *s = p->directory[i];
        size_t many = (size_t)1 << (p->depth - s->depth);
        HOLDS(s->depth <= p->depth && i % many == 0);
        for (size_t n = i; n < i + many; n++)
            HOLDS(p->directory[n] == s);
        if ((wrong = check_segment(p, s, i)) != 0)
            return wrong;
        segments++;
        deepest += s->depth == p->depth;
        i += many;
    }
    HOLDS(segments == p->segments);
    HOLDS(deepest == p->deepest);
    pending_cursor cursor = {0, 0};
    for (const pending_entry *e; (e = pending_next(p, &cursor)) != NULL;) {
        HOLDS(e->state > PENDING_UNKNOWN && e->state < PENDING_STATES);
        HOLDS(e->stored || stored_len(e) == 0);
        counts[e->state]++;
        ordered[e->state] += e->stored || e->state != PENDING_WAITING;
        bytes[e->state] += stored_len(e);
        memory += chunk(entry_size(e));
    }
    HOLDS(memory == p->entry_memory);
    for (int state = PENDING_WAITING; state < PENDING_STATES; state++) {
        HOLDS(counts[state] == p->orders[state].count);
        HOLDS(bytes[state] == p->orders[state].bytes);
        if ((wrong = check_order(p, state, ordered[state])) != 0)
            return wrong;
    }
    HOLDS(p->orders[PENDING_UNCLAIMED].count <= p->limits.max_unclaimed);
    HOLDS(pending_bytes(p) <= p->limits.max_unclaimed_bytes);
    HOLDS(p->orders[PENDING_DONE].count <= p->limits.max_done);
    HOLDS(p->orders[PENDING_LOST].count <= p->limits.max_lost);
    return 0;
}
