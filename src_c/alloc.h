/* The allocator that frame, publish and pending take. Header only, libc only.
 *
 * resize(ctx, NULL, n) allocates n bytes. resize(ctx, p, n) keeps the contents; if it fails, it
 * frees p and returns NULL (like reallocf, not like realloc: p is invalid either way). n is never
 * 0. free(ctx, p) takes a pointer that resize returned, never NULL.
 *
 * A function that takes an allocator copies the struct. The object behind `ctx` belongs to the
 * caller and must outlive every block.
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
    if (ptr == NULL) /* the usual case; malloc is cheaper than realloc */
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

/* `given`, or libc's allocator if it is NULL. */
static inline allocator alloc_or_libc(const allocator *given)
{
    return given != NULL ? *given : (allocator){alloc_libc_resize, alloc_libc_free, NULL};
}

/* A new block. NULL: out of memory. */
static inline void *alloc_new(const allocator *a, size_t size)
{
    return a->resize(a->ctx, NULL, size);
}

/* NULL: out of memory; ptr is then freed. */
static inline void *alloc_resize(const allocator *a, void *ptr, size_t size)
{
    return a->resize(a->ctx, ptr, size);
}

/* Copies the first `size` bytes of a larger block into a new block of that size and frees the old
 * one; out of memory, it returns the old block. Never NULL. Shrinking in place would give back
 * less: the small rest can keep a whole page in use. */
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
