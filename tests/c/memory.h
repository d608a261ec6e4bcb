/* Test helper: an allocator that counts, fails on request, and moves every block that it resizes,
 * so that a stale pointer is found. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "alloc.h"

typedef struct memory {
    long calls;
    long fail_at;  /* the first call that fails, from 1; 0: none */
    bool for_good; /* and so do all after it */
    /* Calls with a size strictly between these are not counted and never fail. */
    size_t spared_above;
    size_t spared_below;
    long blocks;
    size_t live;
    size_t peak;
    size_t moved;
} memory;

typedef union memory_block {
    size_t size;
    max_align_t align;
} memory_block;

static inline bool memory_fails(memory *m, size_t size)
{
    if (size > m->spared_above && size < m->spared_below)
        return false;
    m->calls++;
    return m->calls == m->fail_at || (m->for_good && m->fail_at > 0 && m->calls > m->fail_at);
}

static inline void *memory_resize(void *ctx, void *ptr, size_t size)
{
    memory *m = ctx;
    memory_block *old = ptr == NULL ? NULL : (memory_block *)ptr - 1;
    size_t old_size = old == NULL ? 0 : old->size;
    memory_block *b = NULL;
    if (size == 0)
        abort();
    if (!memory_fails(m, size))
        b = malloc(sizeof *b + size);
    if (b != NULL) {
        b->size = size;
        m->blocks++;
        m->live += size;
        if (m->live > m->peak)
            m->peak = m->live;
        if (old != NULL) {
            memcpy(b + 1, old + 1, old_size < size ? old_size : size);
            m->moved += old_size;
        }
    }
    if (old != NULL) {
        m->blocks--;
        m->live -= old_size;
        free(old);
    }
    return b == NULL ? NULL : b + 1;
}

static inline void memory_free(void *ctx, void *ptr)
{
    memory *m = ctx;
    memory_block *b = (memory_block *)ptr - 1;
    m->blocks--;
    m->live -= b->size;
    free(b);
}

static inline allocator memory_allocator(memory *m)
{
    return (allocator){memory_resize, memory_free, m};
}

#endif
