/* Where memory comes from: the one struct that frame, publish and pending take. Header only, libc
 * only.
 *
 * resize(ctx, NULL, n) allocates n bytes. resize(ctx, p, n) keeps the contents; where it cannot, it
 * frees p and returns NULL (as reallocf, not as realloc: the caller forgets p either way). n is
 * never 0. free(ctx, p) takes what resize returned, never NULL.
 *
 * Whoever is given an allocator copies the struct. What `ctx` points to belongs to the caller and
 * must outlive every block.
 */
#ifndef FASTRPC_ALLOC_H
#define FASTRPC_ALLOC_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef struct allocator {
    void *(*resize)(void *ctx, void *ptr, size_t size);
    void (*free)(void *ctx, void *ptr);
    void *ctx;
} allocator;

static inline void *alloc_libc_resize(void *ctx, void *ptr, size_t size)
{
    (void)ctx;
    if (ptr == NULL) /* nearly always, and cheaper */
        return malloc(size);
    void *moved = realloc(ptr, size);
    if (moved == NULL)
        free(ptr);
    return moved;
}

static inline void alloc_libc_free(void *ctx, void *ptr)
{
    (void)ctx;
    free(ptr);
}

/* `given`, or that of libc where it is NULL. */
static inline allocator alloc_or_libc(const allocator *given)
{
    return given != NULL ? *given : (allocator){alloc_libc_resize, alloc_libc_free, NULL};
}

/* A new block. NULL: out of memory. */
static inline void *alloc_new(const allocator *a, size_t size)
{
    return a->resize(a->ctx, NULL, size);
}

/* NULL: out of memory, and ptr is freed. */
static inline void *alloc_resize(const allocator *a, void *ptr, size_t size)
{
    return a->resize(a->ctx, ptr, size);
}

/* The first `size` bytes of a larger block in a block of that size; without memory for one the
 * block stays as it is. Never NULL. A copy gives back more than a block cut short in place, whose
 * start can hold on to a whole page. */
static inline void *alloc_shrink(const allocator *a, void *ptr, size_t size)
{
    void *smaller = alloc_new(a, size);
    if (smaller == NULL)
        return ptr;
    memcpy(smaller, ptr, size);
    a->free(a->ctx, ptr);
    return smaller;
}

/* NULL is fine. */
static inline void alloc_free(const allocator *a, void *ptr)
{
    if (ptr != NULL)
        a->free(a->ctx, ptr);
}

#endif
