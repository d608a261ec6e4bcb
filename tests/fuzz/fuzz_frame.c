/* libFuzzer target for frame.c: hostile bytes, whole and in pieces, must give the same events.
 *
 *     clang -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc_c \
 *         tests/fuzz/fuzz_frame.c src_c/frame.c -o fuzz_frame
 *     ./fuzz_frame -max_total_time=60 -rss_limit_mb=512 work/ tests/fuzz/corpus/frame
 *
 * Input: one octet of how (bit 0: frame_max 4096 or 128 KiB; bits 1-7: the seed of the cuts), then
 * what comes over the wire.
 */
#include <stdlib.h>

#include "frame.h"

#include <sanitizer/asan_interface.h>

typedef struct digest {
    uint64_t hash;
    size_t events;
    int rc;
} digest;

static void add(digest *d, const void *ptr, size_t len)
{
    const uint8_t *p = ptr;
    d->hash = (d->hash ^ len ^ (ptr == NULL ? 0x5555 : 0)) * 1099511628211u;
    for (size_t i = 0; i < len; i++)
        d->hash = (d->hash ^ p[i]) * 1099511628211u;
}

static void add_view(digest *d, wire_view v)
{
    add(d, v.ptr, v.len);
}

static void add_event(digest *d, int rc, const frame_event *ev)
{
    d->events++;
    add(d, &rc, sizeof rc);
    add(d, &ev->type, sizeof ev->type);
    add(d, &ev->channel, sizeof ev->channel);
    if (rc == FRAME_RAW) {
        add_view(d, ev->payload);
        return;
    }
    add(d, &ev->delivery_tag, sizeof ev->delivery_tag);
    add(d, &ev->property_flags, sizeof ev->property_flags);
    add(d, &ev->redelivered, sizeof ev->redelivered);
    add(d, &ev->delivery_mode, 1);
    add(d, &ev->priority, 1);
    add_view(d, ev->consumer_tag);
    add_view(d, ev->exchange);
    add_view(d, ev->routing_key);
    add_view(d, ev->method_args);
    add_view(d, ev->header);
    add_view(d, ev->content_type);
    add_view(d, ev->content_encoding);
    add_view(d, ev->headers);
    add_view(d, ev->correlation_id);
    add_view(d, ev->body);
}

static digest read_all(const uint8_t *in, size_t len, bool small, uint32_t seed)
{
    digest d = {.hash = 14695981039346656037u};
    frame_reader *r = frame_reader_new(NULL, NULL);
    uint32_t state = seed;
    frame_reader_set_frame_max(r, small ? 4096 : 0);
    frame_reader_set_body_max(r, 1 << 20);
    while (len != 0 && d.rc >= 0) {
        uint8_t *to;
        size_t room, n = len;
        if (seed != 0) {
            state = state * 1664525u + 1013904223u;
            n = 1 + (state >> 16) % (state & 0x100 ? 16 : 600);
            n = n < len ? n : len;
        }
        if (frame_reader_reserve(r, n, &to, &room) != 0 || room < n)
            abort();
        memcpy(to, in, n);
        if (frame_reader_commit(r, n) != 0)
            abort();
        in += n;
        len -= n;
        ASAN_POISON_MEMORY_REGION(to + n, room - n);
        frame_event ev;
        while ((d.rc = frame_reader_next(r, &ev)) > 0) {
            uint8_t *body = (d.events & 3) == 3 ? frame_reader_take_body(r) : NULL;
            add_event(&d, d.rc, &ev);
            free(body);
        }
        ASAN_UNPOISON_MEMORY_REGION(to + n, room - n);
    }
    if ((d.rc < 0) != (frame_reader_message(r)[0] != 0))
        abort();
    add(&d, frame_reader_message(r), strlen(frame_reader_message(r)));
    frame_reader_free(r);
    return d;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    digest whole = read_all(data + 1, size - 1, data[0] & 1, 0);
    digest pieces = read_all(data + 1, size - 1, data[0] & 1, 1 + (data[0] >> 1));
    if (whole.hash != pieces.hash || whole.events != pieces.events || whole.rc != pieces.rc)
        abort();
    return 0;
}
