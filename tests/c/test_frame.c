/* frame.c: each fixture is fed whole, byte by byte, and cut at each point, with working and failing
 * allocators. test_c.py runs this under ASan and UBSan.
 *
 * A fixture is a byte string and the expected log of reading it. */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "amqp_bytes.h"
#include "check.h"
#include "frame.h"
#include "memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(ptr, size) ((void)(ptr), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(ptr, size) ((void)(ptr), (void)(size))
#endif

/* ------------------------------------------------------------------ the log of a run */

typedef struct text {
    char *ptr;
    size_t len;
    size_t cap;
} text;

static void add_text(text *t, const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    if (t->cap - t->len < (size_t)n + 1) {
        t->cap = (t->len + (size_t)n + 1) * 2;
        t->ptr = realloc(t->ptr, t->cap);
        if (t->ptr == NULL)
            abort();
    }
    memcpy(t->ptr + t->len, line, (size_t)n + 1);
    t->len += (size_t)n;
}

/* Short byte strings are logged unchanged, long ones by length and sum. Every byte is read, so that
 * ASan checks each. */
static void add_view(text *t, const char *name, wire_view v)
{
    uint32_t sum = 0;
    for (size_t i = 0; i < v.len; i++)
        sum = sum * 31 + v.ptr[i];
    if (v.ptr == NULL)
        return;
    bool plain = v.len <= 60;
    for (size_t i = 0; plain && i < v.len; i++)
        plain = v.ptr[i] >= ' ' && v.ptr[i] < 127;
    if (plain)
        add_text(t, " %s=%.*s", name, (int)v.len, (const char *)v.ptr);
    else
        add_text(t, " %s=%zu:%08" PRIx32, name, v.len, sum);
}

static void add_event(text *t, int rc, const frame_event *ev)
{
    if (rc == FRAME_RAW) {
        add_text(t, "frame %u/%u", ev->type, ev->channel);
        add_view(t, "payload", ev->payload);
    } else {
        add_text(t, "delivery %u/%u tag=%" PRIu64 "%s", ev->type, ev->channel, ev->delivery_tag,
                 ev->redelivered ? " redelivered" : "");
        add_view(t, "consumer", ev->consumer_tag);
        add_view(t, "exchange", ev->exchange);
        add_view(t, "key", ev->routing_key);
        add_view(t, "args", ev->method_args);
        add_view(t, "header", ev->header);
        add_view(t, "type", ev->content_type);
        add_view(t, "encoding", ev->content_encoding);
        add_view(t, "headers", ev->headers);
        if (ev->property_flags & FRAME_HAS_DELIVERY_MODE)
            add_text(t, " mode=%u", ev->delivery_mode);
        if (ev->property_flags & FRAME_HAS_PRIORITY)
            add_text(t, " priority=%u", ev->priority);
        add_view(t, "id", ev->correlation_id);
        add_view(t, "body", ev->body);
        if (ev->body_dropped != 0)
            add_text(t, " dropped=%" PRIu64, ev->body_dropped);
    }
    add_text(t, "\n");
}

static int drain(frame_reader *r, text *log, memory *m, bool take)
{
    frame_event ev;
    int rc;
    while ((rc = frame_reader_next(r, &ev)) > 0) {
        uint8_t *body = take ? frame_reader_take_body(r) : NULL;
        add_event(log, rc, &ev);
        if (body != NULL) {
            CHECK(body == ev.body.ptr && ev.body_assembled, "another body was taken");
            CHECK(frame_reader_take_body(r) == NULL, "taken twice");
            memory_free(m, body);
        }
    }
    return rc;
}

typedef struct options {
    uint32_t frame_max;
    uint64_t body_max;
    long fail_at;
    bool take;
} options;

/* Feeds `parts` pieces, each ending at cuts[i]; returns the last result. */
static int run(text *log, const bytes *in, const size_t *cuts, size_t parts, options o, memory *m)
{
    *m = (memory){.fail_at = o.fail_at};
    const allocator a = memory_allocator(m);
    frame_reader *r = frame_reader_new(&a, &a);
    int rc = 0;
    if (r == NULL) {
        CHECK(o.fail_at != 0, "no reader");
        return FRAME_ENOMEM;
    }
    frame_reader_set_frame_max(r, o.frame_max);
    if (o.body_max != 0)
        frame_reader_set_body_max(r, o.body_max);
    size_t at = 0;
    for (size_t i = 0; i < parts && rc >= 0; i++) {
        uint8_t *ptr;
        size_t room;
        size_t n = cuts[i] - at;
        rc = frame_reader_reserve(r, n > FRAME_READ_SIZE / 4 ? n : 0, &ptr, &room);
        if (rc < 0)
            break;
        CHECK(room >= n, "room %zu", room);
        if (n != 0)
            memcpy(ptr, in->ptr + at, n);
        rc = frame_reader_commit(r, n);
        at = cuts[i];
        /* The reader must not read past what has arrived. */
        ASAN_POISON_MEMORY_REGION(ptr + n, room - n);
        if (rc >= 0)
            rc = drain(r, log, m, o.take);
        ASAN_UNPOISON_MEMORY_REGION(ptr + n, room - n);
    }
    if (rc < 0) {
        frame_event ev;
        uint8_t *ptr;
        size_t room;
        CHECK(frame_reader_message(r)[0] != 0, "error %d without a message", rc);
        CHECK(frame_reader_next(r, &ev) == rc && frame_reader_reserve(r, 1, &ptr, &room) == rc &&
                  frame_reader_commit(r, 0) == rc,
              "the error is not final");
        if (rc != FRAME_ENOMEM)
            add_text(log, "error %d: %s\n", rc, frame_reader_message(r));
    } else {
        CHECK(frame_reader_message(r)[0] == 0, "%s", frame_reader_message(r));
    }
    frame_reader_free(r);
    CHECK(m->blocks == 0 && m->live == 0, "%ld blocks leaked", m->blocks);
    return rc;
}

static void check_log(const char *name, const char *how, size_t where, const text *got,
                      const char *want)
{
    const char *have = got->ptr == NULL ? "" : got->ptr;
    CHECK(strcmp(have, want) == 0, "%s, %s at %zu\n--- got\n%s--- want\n%s", name, how, where, have,
          want);
}

/* Feeds the fixture in every way. If `want` is NULL, the log of feeding it whole is expected. */
static void fixture(const char *name, bytes *in, const char *want, options o)
{
    text whole = {0};
    memory m;
    run(&whole, in, &in->len, 1, o, &m);
    long calls = m.calls;
    if (want != NULL)
        check_log(name, "whole", 0, &whole, want);
    const char *same = whole.ptr == NULL ? "" : whole.ptr;

    size_t *cuts = malloc((in->len + 2) * sizeof *cuts);
    if (cuts == NULL)
        abort();
    for (size_t i = 0; i < in->len; i++)
        cuts[i] = i + 1;
    for (int take = 0; take < 2; take++) {
        text log = {0};
        o.take = take;
        run(&log, in, cuts, in->len, o, &m);
        check_log(name, "byte by byte", (size_t)take, &log, same);
        free(log.ptr);
        if (m.calls > calls)
            calls = m.calls;
    }

    size_t step = 1 + in->len / 1500; /* large ones are cut at 1,500 points */
    for (size_t cut = 0; cut <= in->len; cut += step) {
        size_t two[2] = {cut, in->len};
        text log = {0};
        o.take = cut & 1;
        run(&log, in, two, 2, o, &m);
        check_log(name, "cut", cut, &log, same);
        free(log.ptr);
    }

    /* Each allocation fails once: the log ends early, nothing leaks, nothing crashes. */
    for (long k = 1; k <= calls; k++) {
        for (int way = 0; way < 2; way++) {
            text log = {0};
            o.fail_at = k;
            int rc = way ? run(&log, in, cuts, in->len, o, &m) : run(&log, in, &in->len, 1, o, &m);
            CHECK(m.calls < k || rc == FRAME_ENOMEM, "%s: allocation %ld failed, result %d", name,
                  k, rc);
            CHECK(log.len <= whole.len && (log.len == 0 || memcmp(log.ptr, same, log.len) == 0),
                  "%s: other events when allocation %ld fails", name, k);
            free(log.ptr);
        }
    }
    free(cuts);
    free(whole.ptr);
    free(in->ptr);
    *in = (bytes){0};
}

static const options plain = {0};

/* ------------------------------------------------------------------ expected logs */

static wire_view view(const void *ptr, size_t len)
{
    return (wire_view){ptr, len};
}

static wire_view str(const char *s)
{
    return view(s, strlen(s));
}

static void want_frame(text *want, uint8_t type, uint16_t channel, const void *ptr, size_t len)
{
    frame_event ev = {.type = type, .channel = channel, .payload = view(ptr, len)};
    add_event(want, FRAME_RAW, &ev);
}

/* The log of add_deliver(channel, "ctag", tag, "ex", "key") and add_header(channel, len, id). */
static void want_content(text *want, uint16_t channel, uint64_t tag, const char *id,
                         const void *body, size_t len, uint64_t dropped)
{
    bytes args = {0}, header = {0};
    add_deliver(&args, channel, "ctag", tag, "ex", "key");
    add_header(&header, channel, len + dropped, id);
    frame_event ev = {.type = FRAME_METHOD, .channel = channel, .delivery_tag = tag};
    ev.consumer_tag = str("ctag");
    ev.exchange = str("ex");
    ev.routing_key = str("key");
    ev.method_args = view(args.ptr + 7, args.len - 8);
    ev.header = view(header.ptr + 7, header.len - 8);
    if (id != NULL) {
        ev.property_flags = 0xFC00;
        ev.content_type = str("application/json");
        ev.content_encoding = str("utf-8");
        ev.headers = view("\0\0\0\0", 4);
        ev.delivery_mode = 2;
        ev.correlation_id = str(id);
    }
    ev.body = view(body, len);
    ev.body_dropped = dropped;
    add_event(want, FRAME_DELIVERY, &ev);
    free(args.ptr);
    free(header.ptr);
}

static void want_delivery(text *want, uint16_t channel, uint64_t tag, const char *id,
                          const void *body, size_t len)
{
    want_content(want, channel, tag, id, body, len, 0);
}

static void want_dropped(text *want, uint16_t channel, uint64_t tag, const char *id, uint64_t size)
{
    want_content(want, channel, tag, id, "", 0, size);
}

static void deliver(bytes *b, uint16_t channel, uint64_t tag)
{
    add_deliver(b, channel, "ctag", tag, "ex", "key");
}

static void check(const char *name, bytes *in, text *want, options o)
{
    fixture(name, in, want->ptr == NULL ? "" : want->ptr, o);
    free(want->ptr);
    *want = (text){0};
}

/* ------------------------------------------------------------------ valid bytes */

static void test_raw_frames(void)
{
    bytes b = {0};
    text w = {0};
    bytes header = {0};
    add_frame(&b, 8, 0, "", 0);
    want_frame(&w, 8, 0, "", 0);
    add_frame(&b, 1, 0, "\0\12\0\12start", 9);
    want_frame(&w, 1, 0, "\0\12\0\12start", 9);
    /* basic.return (60,50) and basic.get-ok (60,71): their content goes on raw, frame by frame */
    add_frame(&b, 1, 7, "\0\74\0\62return", 10);
    want_frame(&w, 1, 7, "\0\74\0\62return", 10);
    add_header(&header, 7, 3, "x");
    add_bytes(&b, header.ptr, header.len);
    want_frame(&w, 2, 7, header.ptr + 7, header.len - 8);
    add_frame(&b, 3, 7, "ab", 2);
    want_frame(&w, 3, 7, "ab", 2);
    add_frame(&b, 3, 7, "c", 1);
    want_frame(&w, 3, 7, "c", 1);
    add_frame(&b, 1, 7, "\0\74\0\107", 4);
    want_frame(&w, 1, 7, "\0\74\0\107", 4);
    add_frame(&b, 1, 65535, "\0\74\0\120", 4);
    want_frame(&w, 1, 65535, "\0\74\0\120", 4);
    free(header.ptr);
    check("raw frames", &b, &w, plain);
}

static void test_deliveries(void)
{
    bytes b = {0};
    text w = {0};
    deliver(&b, 1, 1);
    add_header(&b, 1, 5, "some-id");
    add_frame(&b, 3, 1, "hello", 5);
    want_delivery(&w, 1, 1, "some-id", "hello", 5);
    deliver(&b, 65535, UINT64_MAX); /* no body */
    add_header(&b, 65535, 0, "");
    want_delivery(&w, 65535, UINT64_MAX, "", "", 0);
    deliver(&b, 1, 3); /* no properties */
    add_header(&b, 1, 1, NULL);
    add_frame(&b, 3, 1, "x", 1);
    want_delivery(&w, 1, 3, NULL, "x", 1);
    check("deliveries", &b, &w, plain);
}

static void test_body_in_pieces(void)
{
    bytes b = {0};
    text w = {0};
    deliver(&b, 1, 1);
    add_header(&b, 1, 6, "id");
    add_frame(&b, 3, 1, "ab", 2);
    add_frame(&b, 3, 1, "", 0); /* empty and harmless */
    add_frame(&b, 3, 1, "cde", 3);
    add_frame(&b, 3, 1, "f", 1);
    want_delivery(&w, 1, 1, "id", "abcdef", 6);
    deliver(&b, 1, 2);
    add_header(&b, 1, 1, "id");
    add_frame(&b, 3, 1, "", 0);
    add_frame(&b, 3, 1, "g", 1);
    want_delivery(&w, 1, 2, "id", "g", 1);
    check("body in pieces", &b, &w, plain);
}

static void test_interleaved(void)
{
    bytes b = {0};
    text w = {0};
    deliver(&b, 1, 1);
    add_frame(&b, 8, 0, "", 0);
    want_frame(&w, 8, 0, "", 0);
    deliver(&b, 2, 2);
    deliver(&b, 0x0201, 3); /* same place in another page */
    add_header(&b, 2, 4, "two");
    add_header(&b, 1, 3, "one");
    add_frame(&b, 8, 0, "", 0);
    want_frame(&w, 8, 0, "", 0);
    add_frame(&b, 3, 2, "zw", 2);
    add_frame(&b, 3, 1, "ein", 3);
    want_delivery(&w, 1, 1, "one", "ein", 3);
    add_frame(&b, 1, 1, "\0\74\0\120", 4); /* a method after the end of the delivery */
    want_frame(&w, 1, 1, "\0\74\0\120", 4);
    deliver(&b, 1, 4); /* in one piece while others are open */
    add_header(&b, 1, 1, "four");
    add_frame(&b, 3, 1, "4", 1);
    want_delivery(&w, 1, 4, "four", "4", 1);
    add_frame(&b, 8, 2, "", 0); /* a heartbeat on an open channel */
    want_frame(&w, 8, 2, "", 0);
    add_frame(&b, 3, 2, "ei", 2);
    want_delivery(&w, 2, 2, "two", "zwei", 4);
    add_header(&b, 0x0201, 0, "three");
    want_delivery(&w, 0x0201, 3, "three", "", 0);
    add_frame(&b, 3, 0x0201, "not mine", 8); /* no delivery is open there any more */
    want_frame(&w, 3, 0x0201, "not mine", 8);
    deliver(&b, 9, 5); /* stays open: freed with the reader */
    add_header(&b, 9, 100, "five");
    add_frame(&b, 3, 9, "0123456789", 10);
    check("interleaved", &b, &w, plain);
}

static void test_all_properties(void)
{
    bytes b = {0}, p = {0}, args = {0};
    text w = {0};
    add_u16(&args, 60);
    add_u16(&args, 60);
    add_shortstr(&args, "");
    add_u64(&args, 0x0102030405060708);
    add_u8(&args, 0xFF); /* redelivered, and unused bits */
    add_shortstr(&args, "");
    add_shortstr(&args, "");
    size_t args_len = args.len;
    add_u8(&args, 9); /* ignored */
    add_frame(&b, 1, 1, args.ptr, args.len);

    add_u16(&p, 60);
    add_u16(&p, 0xFFFF); /* weight: ignored */
    add_u64(&p, 2);
    add_u16(&p, 0xFFFC);
    add_shortstr(&p, "");
    add_shortstr(&p, "b");
    add_u32(&p, 8);
    add_bytes(&p, "\1ks\0\1abc", 8);
    add_u8(&p, 255);
    add_u8(&p, 9);
    add_shortstr(&p, "id");
    add_shortstr(&p, "reply-to");
    add_shortstr(&p, "expiration");
    add_shortstr(&p, "message-id");
    add_u64(&p, 1700000000);
    add_shortstr(&p, "type");
    add_shortstr(&p, "user-id");
    add_shortstr(&p, "app-id");
    add_shortstr(&p, "cluster-id");
    size_t header_len = p.len;
    add_u8(&p, 9); /* ignored */
    add_frame(&b, 2, 1, p.ptr, p.len);
    add_frame(&b, 3, 1, "ok", 2);

    frame_event ev = {.type = FRAME_METHOD,
                      .channel = 1,
                      .redelivered = true,
                      .delivery_mode = 255,
                      .priority = 9,
                      .property_flags = 0xFFFC,
                      .delivery_tag = 0x0102030405060708,
                      .consumer_tag = str(""),
                      .exchange = str(""),
                      .routing_key = str(""),
                      .method_args = view(args.ptr, args_len),
                      .header = view(p.ptr, header_len),
                      .content_type = str(""),
                      .content_encoding = str("b"),
                      .headers = view("\0\0\0\10\1ks\0\1abc", 12),
                      .correlation_id = str("id"),
                      .body = str("ok")};
    add_event(&w, FRAME_DELIVERY, &ev);

    /* Every proper prefix of that property list runs past its frame. */
    for (size_t len = 12; len < header_len; len++) {
        bytes bad = {0};
        text want = {0};
        deliver(&bad, 1, 1);
        add_frame(&bad, 2, 1, p.ptr, len);
        add_frame(&bad, 3, 1, "ok", 2);
        add_text(&want,
                 "error %d: content header on channel 1: "
                 "properties run past their frame of %zu bytes\n",
                 FRAME_EPROPERTIES, len);
        check("properties cut", &bad, &want, plain);
    }
    for (size_t len = 4; len < args_len; len++) {
        bytes bad = {0};
        text want = {0};
        add_frame(&bad, 1, 1, args.ptr, len);
        add_text(&want,
                 "error %d: basic.deliver on channel 1: "
                 "arguments run past their frame of %zu bytes\n",
                 FRAME_EARGUMENTS, len);
        check("arguments cut", &bad, &want, plain);
    }
    check("all properties", &b, &w, plain);
    free(args.ptr);
    free(p.ptr);
}

/* Bodies around frame_max - 8 and over many frames; a reader at AMQP's smallest frame_max. */
static void test_frame_max(void)
{
    static const size_t sizes[] = {4087, 4088, 4089, 8176, 8177, 30000};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bytes b = {0};
        text w = {0};
        char *body = malloc(sizes[i]);
        if (body == NULL)
            abort();
        for (size_t j = 0; j < sizes[i]; j++)
            body[j] = (char)(j * 7 + j / 251);
        deliver(&b, 3, 5);
        add_header(&b, 3, sizes[i], "id");
        for (size_t at = 0; at < sizes[i]; at += 4088)
            add_frame(&b, 3, 3, body + at, sizes[i] - at < 4088 ? sizes[i] - at : 4088);
        want_delivery(&w, 3, 5, "id", body, sizes[i]);
        add_frame(&b, 1, 3, "\0\74\0\120", 4);
        want_frame(&w, 1, 3, "\0\74\0\120", 4);
        check("around frame_max", &b, &w, (options){.frame_max = 4096});
        free(body);
    }
}

/* ------------------------------------------------------------------ invalid bytes */

static void wrong(const char *name, bytes *b, int error, const char *message, options o)
{
    text w = {0};
    add_text(&w, "error %d: %s\n", error, message);
    check(name, b, &w, o);
}

static void test_errors(void)
{
    bytes b = {0};
    add_frame(&b, 4, 0, "", 0);
    wrong("type", &b, FRAME_ETYPE, "unknown frame type 4", plain);
    add_bytes(&b, "AMQP\0\0\11\1", 8); /* how a broker refuses the protocol version */
    wrong("protocol header", &b, FRAME_ETYPE, "unknown frame type 65", plain);

    add_body(&b, 2, 'x', 4089);
    wrong("size", &b, FRAME_ESIZE, "frame of 4089 bytes on channel 2, frame_max 4096 allows 4088",
          (options){.frame_max = 4096});
    add_bytes(&b, "\1\0\1\377\377\377\377", 7); /* refused without waiting for the payload */
    wrong("largest size", &b, FRAME_ESIZE,
          "frame of 4294967295 bytes on channel 1, frame_max 131072 allows 131064", plain);

    add_frame(&b, 8, 6, "", 0);
    b.ptr[b.len - 1] = 0xCF;
    wrong("end", &b, FRAME_EEND, "frame on channel 6 ends with 0xcf instead of 0xce", plain);
    deliver(&b, 1, 1);
    add_header(&b, 1, 5, "id");
    add_frame(&b, 3, 1, "hello", 5);
    b.ptr[b.len - 1] = 0;
    wrong("end of a body", &b, FRAME_EEND, "frame on channel 1 ends with 0x00 instead of 0xce",
          plain);
    deliver(&b, 1, 1);
    size_t header = b.len;
    add_header(&b, 1, 5, "id");
    b.ptr[b.len - 1] = 1;
    CHECK(b.len > header, "no header");
    wrong("end of a header", &b, FRAME_EEND, "frame on channel 1 ends with 0x01 instead of 0xce",
          plain);

    for (size_t len = 0; len < 4; len++) {
        char message[64];
        add_frame(&b, 1, 1, "\0\74\0", len);
        snprintf(message, sizeof message, "method frame of %zu bytes on channel 1", len);
        wrong("method short", &b, FRAME_EMETHOD_SHORT, message, plain);
    }
    for (size_t len = 0; len < 12; len++) {
        char message[64];
        snprintf(message, sizeof message, "content header of %zu bytes on channel 1", len);
        add_frame(&b, 2, 1, "\0\74\0\0\0\0\0\0\0\0\0", len);
        wrong("header short", &b, FRAME_EHEADER_SHORT, message, plain);
        deliver(&b, 1, 1);
        add_frame(&b, 2, 1, "\0\74\0\0\0\0\0\0\0\0\0", len);
        wrong("header short in a delivery", &b, FRAME_EHEADER_SHORT, message, plain);
    }

    deliver(&b, 1, 1);
    add_frame(&b, 2, 1, "\0\62\0\0\0\0\0\0\0\0\0\0\0\0", 14);
    wrong("class", &b, FRAME_ECLASS, "content header of class 50 on channel 1, expected 60 (basic)",
          plain);
    deliver(&b, 1, 1);
    add_frame(&b, 2, 1, "\0\74\0\0\0\0\0\0\0\0\0\0\0\1\0\0", 16);
    wrong("flags", &b, FRAME_EFLAGS,
          "continuation bit in the property flags of the content header on channel 1", plain);

    deliver(&b, 1, 1);
    add_header(&b, 1, 2, "id");
    add_frame(&b, 3, 1, "abc", 3);
    wrong("body long", &b, FRAME_EBODY_LONG,
          "body frame of 3 bytes on channel 1, only 2 of the announced 2 are left", plain);
    deliver(&b, 1, 1);
    add_header(&b, 1, 3, "id");
    add_frame(&b, 3, 1, "ab", 2);
    add_frame(&b, 3, 1, "cd", 2);
    wrong("second body frame long", &b, FRAME_EBODY_LONG,
          "body frame of 2 bytes on channel 1, only 1 of the announced 3 are left", plain);

    deliver(&b, 1, 1);
    deliver(&b, 1, 2);
    wrong("deliver in a delivery", &b, FRAME_EMETHOD_UNEXPECTED,
          "method 60.60 on channel 1 inside an incomplete delivery", plain);
    deliver(&b, 1, 1);
    add_header(&b, 1, 2, "id");
    add_frame(&b, 1, 1, "\0\24\0\50", 4);
    wrong("close in a delivery", &b, FRAME_EMETHOD_UNEXPECTED,
          "method 20.40 on channel 1 inside an incomplete delivery", plain);

    deliver(&b, 1, 1);
    add_header(&b, 1, 3, "id");
    add_frame(&b, 3, 1, "a", 1);
    add_header(&b, 1, 3, "id");
    wrong("second header", &b, FRAME_EHEADER_UNEXPECTED,
          "second content header on channel 1, after 1 of 3 bytes of the body", plain);
    deliver(&b, 1, 1);
    add_frame(&b, 3, 1, "a", 1);
    wrong("body for header", &b, FRAME_EBODY_UNEXPECTED,
          "body frame on channel 1 where a content header was expected", plain);
}

static void test_body_max_is_enough(void)
{
    bytes b = {0};
    text w = {0};
    deliver(&b, 1, 1);
    add_header(&b, 1, 10, "id");
    add_frame(&b, 3, 1, "0123456789", 10);
    want_delivery(&w, 1, 1, "id", "0123456789", 10);
    check("body_max is enough", &b, &w, (options){.body_max = 10});
}

/* A body over the limit is skipped, and the next delivery is read as usual. */
static void test_a_larger_body_is_dropped(void)
{
    options small = {.body_max = 10};
    bytes b = {0};
    text w = {0};
    deliver(&b, 1, 1);
    add_header(&b, 1, 11, "id");
    add_frame(&b, 3, 1, "01234", 5);
    add_frame(&b, 8, 0, "", 0);
    add_frame(&b, 3, 1, "567890", 6);
    deliver(&b, 1, 2);
    add_header(&b, 1, 10, "id");
    add_frame(&b, 3, 1, "0123456789", 10);
    want_frame(&w, 8, 0, "", 0);
    want_dropped(&w, 1, 1, "id", 11);
    want_delivery(&w, 1, 2, "id", "0123456789", 10);
    check("a larger body is dropped", &b, &w, small);

    deliver(&b, 1, 1);
    add_header(&b, 1, UINT64_MAX, "id");
    add_body(&b, 1, 'x', 100000);
    check("the largest body that can be announced", &b, &w, (options){0});

    deliver(&b, 1, 1);
    add_header(&b, 1, 11, "id");
    add_frame(&b, 3, 1, "012345678901", 12);
    wrong("body long, dropped", &b, FRAME_EBODY_LONG,
          "body frame of 12 bytes on channel 1, only 11 of the announced 11 are left", small);
}

/* ------------------------------------------------------------------ memory and time */

static frame_reader *reader(memory *m)
{
    const allocator a = memory_allocator(m);
    *m = (memory){0};
    frame_reader *r = frame_reader_new(&a, &a);
    if (r == NULL)
        abort();
    return r;
}

/* Feeds in pieces of `piece` bytes as recv would; counts events. */
static size_t feed(frame_reader *r, const uint8_t *ptr, size_t len, size_t piece, frame_event *last)
{
    size_t events = 0;
    while (len != 0) {
        uint8_t *to;
        size_t room;
        frame_event ev;
        int rc = frame_reader_reserve(r, 0, &to, &room);
        CHECK(rc == 0 && room >= FRAME_READ_SIZE / 4, "reserve: %d, room %zu", rc, room);
        if (rc < 0)
            return events;
        size_t n = len < piece ? len : piece;
        n = n < room ? n : room;
        memcpy(to, ptr, n);
        frame_reader_commit(r, n);
        ptr += n;
        len -= n;
        while ((rc = frame_reader_next(r, &ev)) > 0) {
            events++;
            *last = ev;
        }
        CHECK(rc == 0, "%s", frame_reader_message(r));
    }
    return events;
}

/* The wire announces 512 MiB and sends little. */
static void test_claims_cost_nothing(void)
{
    memory m;
    frame_event ev;
    bytes b = {0};
    frame_reader *r = reader(&m);
    deliver(&b, 1, 1);
    add_header(&b, 1, 512u * 1024 * 1024, "id");
    add_frame(&b, 3, 1, "x", 1);
    CHECK(feed(r, b.ptr, b.len, b.len, &ev) == 0, "an event");
    CHECK(m.live < FRAME_READ_SIZE + 16 * 1024, "%zu bytes for a claim", m.live);

    /* Only the head arrives of a frame of 256 MiB, which frame_max allows. */
    frame_reader_set_frame_max(r, 1u << 30);
    b.len = 0;
    add_u8(&b, 1);
    add_u16(&b, 2);
    add_u32(&b, 1u << 28);
    add_bytes(&b, "\0\74\0\50", 4);
    CHECK(feed(r, b.ptr, b.len, 1, &ev) == 0, "an event");
    CHECK(m.live < FRAME_READ_SIZE + 16 * 1024, "%zu bytes for a claim", m.live);
    frame_reader_free(r);
    free(b.ptr);
    CHECK(m.blocks == 0, "leak");
}

/* Every channel has an open delivery that announces a huge body. */
static void test_hostile_channels(void)
{
    memory m;
    frame_event ev;
    bytes b = {0};
    frame_reader *r = reader(&m);
    for (uint32_t channel = 0; channel <= 65535; channel++) {
        b.len = 0;
        deliver(&b, (uint16_t)channel, 1);
        add_header(&b, (uint16_t)channel, 512u * 1024 * 1024, NULL);
        add_frame(&b, 3, (uint16_t)channel, "x", 1);
        feed(r, b.ptr, b.len, b.len, &ev);
    }
    CHECK(m.live < 65536u * 512, "%zu bytes a channel", m.live / 65536);
    frame_reader_free(r);
    free(b.ptr);
    CHECK(m.blocks == 0, "leak");
}

/* A large body: while its block moves (here at each resize) there are two blocks, never more; none
 * is kept. */
static void test_large_body(void)
{
    const size_t size = 24 * 1024 * 1024;
    memory m;
    frame_event ev = {0};
    bytes b = {0};
    frame_reader *r = reader(&m);
    deliver(&b, 1, 1);
    add_header(&b, 1, size, "id");
    for (size_t left = size; left != 0;) {
        size_t n = left < 131064 ? left : 131064;
        add_body(&b, 1, 'x', n);
        left -= n;
    }
    CHECK(feed(r, b.ptr, b.len, 1 << 20, &ev) == 1, "no delivery");
    CHECK(m.peak < 2 * size + 2 * FRAME_READ_SIZE, "peak %zu", m.peak);
    CHECK(m.moved < 2 * size, "%zu bytes moved", m.moved);
    CHECK(m.live < 2 * FRAME_READ_SIZE, "%zu bytes kept", m.live);
    frame_reader_free(r);
    free(b.ptr);
    CHECK(m.blocks == 0, "leak");
}

static void test_taken_body_outlives_the_reader(void)
{
    memory m;
    frame_event ev;
    bytes b = {0};
    uint8_t *to;
    size_t room;
    frame_reader *r = reader(&m);
    deliver(&b, 1, 1);
    add_header(&b, 1, 4, "id");
    add_frame(&b, 3, 1, "ab", 2);
    add_frame(&b, 3, 1, "cd", 2);
    frame_reader_reserve(r, b.len, &to, &room);
    memcpy(to, b.ptr, b.len);
    frame_reader_commit(r, b.len);
    CHECK(frame_reader_next(r, &ev) == FRAME_DELIVERY, "no delivery");
    uint8_t *body = frame_reader_take_body(r);
    frame_reader_free(r);
    CHECK(body != NULL && memcmp(body, "abcd", 4) == 0, "wrong body");
    CHECK(m.blocks == 1 && m.live == 4, "%ld blocks, %zu bytes", m.blocks, m.live);
    memory_free(&m, body);

    /* A body in the read buffer cannot be taken. */
    r = reader(&m);
    b.len = 0;
    deliver(&b, 1, 1);
    add_header(&b, 1, 2, "id");
    add_frame(&b, 3, 1, "ab", 2);
    frame_reader_reserve(r, b.len, &to, &room);
    memcpy(to, b.ptr, b.len);
    frame_reader_commit(r, b.len);
    CHECK(frame_reader_next(r, &ev) == FRAME_DELIVERY && !ev.body_assembled, "not in one piece");
    CHECK(frame_reader_take_body(r) == NULL, "taken");
    frame_reader_free(r);
    free(b.ptr);
}

/* A frame of 8 MiB in pieces of 16 bytes, and 64 Ki small frames cut everywhere. If the time were
 * not linear, this would take hours. */
static void test_linear(void)
{
    memory m;
    frame_event ev;
    bytes b = {0}, p = {0};
    frame_reader *r = reader(&m);
    frame_reader_set_frame_max(r, 16 * 1024 * 1024);
    add_u32(&p, (60u << 16) | 50);
    while (p.len < 8 * 1024 * 1024)
        add_u64(&p, p.len);
    for (int i = 0; i < 3; i++) /* not at the start of the buffer */
        add_frame(&b, 8, 0, "", 0);
    add_frame(&b, 1, 1, p.ptr, p.len);
    CHECK(feed(r, b.ptr, b.len, 16, &ev) == 4, "events");
    CHECK(m.moved < 3 * b.len, "%zu bytes moved for %zu", m.moved, b.len);
    CHECK(m.peak < 4 * b.len, "peak %zu", m.peak);

    b.len = 0;
    for (int i = 0; i < 65536; i++)
        add_frame(&b, 8, 0, "1234567", 7);
    CHECK(feed(r, b.ptr, b.len, 13, &ev) == 65536, "events");
    CHECK(m.live < 2 * FRAME_READ_SIZE, "the large buffer is kept: %zu", m.live);

    /* A caller that takes one frame and then reserves room, on a buffer full of frames. */
    uint8_t *to;
    size_t room, n = 0;
    frame_reader_reserve(r, b.len, &to, &room);
    memcpy(to, b.ptr, b.len);
    frame_reader_commit(r, b.len);
    while (frame_reader_next(r, &ev) > 0) {
        /* One frame out, one in: moving the rest to the front each time would be quadratic. */
        if (++n <= 200000) {
            CHECK(frame_reader_reserve(r, 15, &to, &room) == 0 && room >= 15, "no room");
            memcpy(to, b.ptr, 15);
            frame_reader_commit(r, 15);
        }
    }
    CHECK(n == 65536 + 200000, "%zu frames", n);
    CHECK(m.live < 4 * b.len, "%zu bytes for %zu", m.live, b.len);
    frame_reader_free(r);
    free(b.ptr);
    free(p.ptr);
    CHECK(m.blocks == 0, "leak");
}

static void test_misuse(void)
{
    memory m;
    uint8_t *to;
    size_t room;
    frame_event ev;
    frame_reader *r = reader(&m);
    CHECK(frame_reader_commit(r, 1) == FRAME_EMISUSE, "committed what was not reserved");
    frame_reader_free(r);

    r = reader(&m);
    frame_reader_reserve(r, 0, &to, &room);
    CHECK(frame_reader_commit(r, room + 1) == FRAME_EMISUSE, "more than reserved");
    frame_reader_free(r);

    r = reader(&m);
    frame_reader_reserve(r, 0, &to, &room);
    CHECK(frame_reader_surrender(r) == to, "another buffer");
    CHECK(frame_reader_next(r, &ev) == FRAME_EMISUSE, "alive without its buffer");
    CHECK(frame_reader_buffered(r) == 0, "buffered");
    frame_reader_free(r);
    to[room - 1] = 1; /* still there */
    memory_free(&m, to);
    CHECK(m.blocks == 0, "leak");

    CHECK(frame_reader_reserve(r = reader(&m), SIZE_MAX, &to, &room) == FRAME_ENOMEM, "all memory");
    frame_reader_free(r);
    frame_reader_free(NULL);

    r = frame_reader_new(NULL, NULL);
    CHECK(frame_reader_frame_max(r) == 131072, "default");
    frame_reader_set_frame_max(r, 5);
    CHECK(frame_reader_frame_max(r) == 4096, "minimum");
    frame_reader_set_frame_max(r, 0);
    CHECK(frame_reader_frame_max(r) == 131072, "not negotiated");
    frame_reader_free(r);
}

int main(void)
{
    test_raw_frames();
    test_deliveries();
    test_body_in_pieces();
    test_interleaved();
    test_all_properties();
    test_frame_max();
    test_errors();
    test_body_max_is_enough();
    test_a_larger_body_is_dropped();
    test_claims_cost_nothing();
    test_hostile_channels();
    test_large_body();
    test_taken_body_outlives_the_reader();
    test_linear();
    test_misuse();
    return 0;
}
