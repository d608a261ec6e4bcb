/* Test helper: builds valid and invalid AMQP byte strings. Aborts if out of memory. */
#ifndef AMQP_BYTES_H
#define AMQP_BYTES_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "wire.h"

typedef struct bytes {
    uint8_t *ptr;
    size_t len;
    size_t cap;
} bytes;

static inline void add_bytes(bytes *b, const void *ptr, size_t len)
{
    if (b->cap - b->len < len) {
        b->cap = (b->len + len) * 2;
        b->ptr = realloc(b->ptr, b->cap);
        if (b->ptr == NULL)
            abort();
    }
    if (len != 0)
        memcpy(b->ptr + b->len, ptr, len);
    b->len += len;
}

static inline void add_u8(bytes *b, uint8_t v)
{
    add_bytes(b, &v, 1);
}

static inline void add_u16(bytes *b, uint16_t v)
{
    uint8_t out[2];
    wire_store16(out, v);
    add_bytes(b, out, sizeof out);
}

static inline void add_u32(bytes *b, uint32_t v)
{
    uint8_t out[4];
    wire_store32(out, v);
    add_bytes(b, out, sizeof out);
}

static inline void add_u64(bytes *b, uint64_t v)
{
    uint8_t out[8];
    wire_store64(out, v);
    add_bytes(b, out, sizeof out);
}

static inline void add_shortstr(bytes *b, const char *text)
{
    add_u8(b, (uint8_t)strlen(text));
    add_bytes(b, text, strlen(text));
}

static inline void add_frame(bytes *b, uint8_t type, uint16_t channel, const void *ptr, size_t len)
{
    add_u8(b, type);
    add_u16(b, channel);
    add_u32(b, (uint32_t)len);
    add_bytes(b, ptr, len);
    add_u8(b, 0xCE);
}

static inline void add_deliver(bytes *b, uint16_t channel, const char *consumer_tag, uint64_t tag,
                               const char *exchange, const char *routing_key)
{
    bytes p = {0};
    add_u16(&p, 60);
    add_u16(&p, 60);
    add_shortstr(&p, consumer_tag);
    add_u64(&p, tag);
    add_u8(&p, 0);
    add_shortstr(&p, exchange);
    add_shortstr(&p, routing_key);
    add_frame(b, 1, channel, p.ptr, p.len);
    free(p.ptr);
}

/* The properties that rpc:// sends. A NULL correlation id leaves all of them out. */
static inline void add_header(bytes *b, uint16_t channel, uint64_t body_size,
                              const char *correlation_id)
{
    bytes p = {0};
    add_u16(&p, 60);
    add_u16(&p, 0);
    add_u64(&p, body_size);
    add_u16(&p, correlation_id != NULL ? 0xFC00 : 0);
    if (correlation_id != NULL) {
        add_shortstr(&p, "application/json");
        add_shortstr(&p, "utf-8");
        add_u32(&p, 0);
        add_u8(&p, 2);
        add_u8(&p, 0);
        add_shortstr(&p, correlation_id);
    }
    add_frame(b, 2, channel, p.ptr, p.len);
    free(p.ptr);
}

static inline void add_body(bytes *b, uint16_t channel, char fill, size_t len)
{
    uint8_t *p = malloc(len + 1);
    if (p == NULL)
        abort();
    memset(p, fill, len);
    add_frame(b, 3, channel, p, len);
    free(p);
}

#endif
