/* Bounds-checked big-endian cursor (reading) and writer. Header only, libc only.
 *
 * Every check compares a length with the bytes left (`n <= left`). An offset is never added to a
 * length from the wire, so nothing can wrap around. Integers are fixed-width and unsigned and are
 * loaded by memcpy, because the bytes may be unaligned.
 *
 * Neither type owns memory. Each function returns true, or false if too little is left: the cursor
 * or writer has then not moved.
 */
#ifndef FASTRPC_WIRE_H
#define FASTRPC_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Borrowed bytes. A NULL ptr means absent, which is not the same as empty. */
typedef struct wire_view {
    const uint8_t *ptr;
    size_t len;
} wire_view;

static inline uint16_t wire_load16(const uint8_t *p)
{
    uint8_t b[2];
    memcpy(b, p, sizeof b);
    return (uint16_t)(((uint32_t)b[0] << 8) | b[1]);
}

static inline uint32_t wire_load32(const uint8_t *p)
{
    uint8_t b[4];
    memcpy(b, p, sizeof b);
    /* A uint8_t is promoted to int, and 0xff << 24 does not fit one: hence the casts. */
    return ((uint32_t)b[0] << 24) | ((uint32_t)b[1] << 16) | ((uint32_t)b[2] << 8) | b[3];
}

static inline uint64_t wire_load64(const uint8_t *p)
{
    return ((uint64_t)wire_load32(p) << 32) | wire_load32(p + 4);
}

static inline void wire_store16(uint8_t *p, uint16_t v)
{
    const uint8_t b[2] = {(uint8_t)(v >> 8), (uint8_t)v};
    memcpy(p, b, sizeof b);
}

static inline void wire_store32(uint8_t *p, uint32_t v)
{
    const uint8_t b[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8), (uint8_t)v};
    memcpy(p, b, sizeof b);
}

static inline void wire_store64(uint8_t *p, uint64_t v)
{
    wire_store32(p, (uint32_t)(v >> 32));
    wire_store32(p + 4, (uint32_t)v);
}

/* ------------------------------------------------------------------ reading */

typedef struct wire_cursor {
    const uint8_t *pos;
    const uint8_t *end;
} wire_cursor;

static inline wire_cursor wire_cursor_over(const uint8_t *ptr, size_t len)
{
    wire_cursor c = {ptr, ptr + len};
    return c;
}

static inline size_t wire_left(const wire_cursor *c)
{
    return (size_t)(c->end - c->pos);
}

static inline bool wire_read_u8(wire_cursor *c, uint8_t *out)
{
    if (wire_left(c) < 1)
        return false;
    *out = *c->pos++;
    return true;
}

static inline bool wire_read_u16(wire_cursor *c, uint16_t *out)
{
    if (wire_left(c) < 2)
        return false;
    *out = wire_load16(c->pos);
    c->pos += 2;
    return true;
}

static inline bool wire_read_u32(wire_cursor *c, uint32_t *out)
{
    if (wire_left(c) < 4)
        return false;
    *out = wire_load32(c->pos);
    c->pos += 4;
    return true;
}

static inline bool wire_read_u64(wire_cursor *c, uint64_t *out)
{
    if (wire_left(c) < 8)
        return false;
    *out = wire_load64(c->pos);
    c->pos += 8;
    return true;
}

static inline bool wire_skip(wire_cursor *c, size_t n)
{
    if (wire_left(c) < n)
        return false;
    c->pos += n;
    return true;
}

/* shortstr = octet length, that many octets. The view is without the length. */
static inline bool wire_read_shortstr(wire_cursor *c, wire_view *out)
{
    if (wire_left(c) < 1)
        return false;
    size_t len = c->pos[0];
    if (wire_left(c) - 1 < len)
        return false;
    out->ptr = c->pos + 1;
    out->len = len;
    c->pos += 1 + len;
    return true;
}

/* table = long length, that many octets. The view includes the length, so it can be sent again. */
static inline bool wire_read_table(wire_cursor *c, wire_view *out)
{
    if (wire_left(c) < 4)
        return false;
    size_t len = wire_load32(c->pos);
    if (wire_left(c) - 4 < len)
        return false;
    out->ptr = c->pos;
    out->len = 4 + len;
    c->pos += 4 + len;
    return true;
}

/* ------------------------------------------------------------------ writing */

typedef struct wire_writer {
    uint8_t *pos;
    uint8_t *end;
} wire_writer;

static inline wire_writer wire_writer_over(uint8_t *ptr, size_t len)
{
    wire_writer w = {ptr, ptr + len};
    return w;
}

static inline size_t wire_room(const wire_writer *w)
{
    return (size_t)(w->end - w->pos);
}

static inline bool wire_write_u8(wire_writer *w, uint8_t v)
{
    if (wire_room(w) < 1)
        return false;
    *w->pos++ = v;
    return true;
}

static inline bool wire_write_u16(wire_writer *w, uint16_t v)
{
    if (wire_room(w) < 2)
        return false;
    wire_store16(w->pos, v);
    w->pos += 2;
    return true;
}

static inline bool wire_write_u32(wire_writer *w, uint32_t v)
{
    if (wire_room(w) < 4)
        return false;
    wire_store32(w->pos, v);
    w->pos += 4;
    return true;
}

static inline bool wire_write_u64(wire_writer *w, uint64_t v)
{
    if (wire_room(w) < 8)
        return false;
    wire_store64(w->pos, v);
    w->pos += 8;
    return true;
}

static inline bool wire_write_bytes(wire_writer *w, const void *ptr, size_t len)
{
    if (wire_room(w) < len)
        return false;
    /* memcpy from NULL is undefined even for no bytes at all. */
    if (len != 0)
        memcpy(w->pos, ptr, len);
    w->pos += len;
    return true;
}

/* False also if len > 255; callers check this before. */
static inline bool wire_write_shortstr(wire_writer *w, const void *ptr, size_t len)
{
    return len <= 255 && wire_room(w) > len && wire_write_u8(w, (uint8_t)len) &&
           wire_write_bytes(w, ptr, len);
}

#endif
