/* publish.c: the frames octet by octet, sizes around frame_max, limits, and back through frame.c.
 * (tests/unit/test_encoder.py checks equality with py-amqp's writer.) Run by test_c.py. */
#include <stdio.h>
#include <stdlib.h>

#include "amqp_bytes.h"
#include "check.h"
#include "frame.h"
#include "memory.h"
#include "publish.h"

static wire_view view(const void *ptr, size_t len)
{
    return (wire_view){ptr, len};
}

static wire_view str(const char *s)
{
    return view(s, strlen(s));
}

static publish_options nothing(void)
{
    return (publish_options){.channel = 1,
                             .exchange = str(""),
                             .delivery_mode = PUBLISH_NO_OCTET,
                             .priority = PUBLISH_NO_OCTET};
}

/* Writes into a block of exactly the announced size, so that ASan finds one octet too many. */
static bytes encode(const publish_options *o, const publish_message *m)
{
    publish_template t;
    bytes out = {0};
    CHECK(publish_template_init(&t, o, NULL) == 0, "template");
    CHECK(publish_size(&t, m, &out.len) == 0, "size");
    out.ptr = malloc(out.len);
    if (out.ptr == NULL)
        abort();
    CHECK(publish_write(&t, m, out.ptr, out.len) == 0, "write");
    CHECK(publish_write(&t, m, out.ptr, out.len - 1) == PUBLISH_ESIZE, "written into too little");
    publish_template_free(&t);
    publish_template_free(&t);
    return out;
}

static void expect(const char *name, bytes got, const void *want, size_t len)
{
    CHECK(got.len == len && memcmp(got.ptr, want, len) == 0, "%s: %zu bytes, expected %zu", name,
          got.len, len);
    free(got.ptr);
}

#define EXPECT(name, got, literal) expect(name, got, literal, sizeof literal - 1)
#define EXPECT_ACK(got, literal) CHECK(memcmp(got, literal, sizeof got) == 0, "ack")

static void test_octets(void)
{
    publish_options o = nothing();
    publish_message m = {.routing_key = str(""), .body = str("")};
    EXPECT("nothing at all", encode(&o, &m),
           "\1\0\1\0\0\0\11"
           "\0\74\0\50\0\0\0\0\0\316"
           "\2\0\1\0\0\0\16"
           "\0\74\0\0\0\0\0\0\0\0\0\0\0\0\316");

    o = (publish_options){.channel = 0x0102,
                          .mandatory = true,
                          .exchange = str("ex"),
                          .content_type = str("t"),
                          .content_encoding = str(""),
                          .headers = view("\0\0\0\3\1kV", 7),
                          .delivery_mode = 2,
                          .priority = 0};
    m = (publish_message){
        .routing_key = str("key"), .correlation_id = str("id"), .body = str("body")};
    EXPECT("everything", encode(&o, &m),
           "\1\1\2\0\0\0\16"
           "\0\74\0\50\0\0\2ex\3key\1\316"
           "\2\1\2\0\0\0\35"
           "\0\74\0\0\0\0\0\0\0\0\0\4\374\0\1t\0\0\0\0\3\1kV\2\0\2id\316"
           "\3\1\2\0\0\0\4"
           "body\316");

    m.correlation_id = str("");
    m.body = str("");
    EXPECT("empty correlation id", encode(&o, &m),
           "\1\1\2\0\0\0\16"
           "\0\74\0\50\0\0\2ex\3key\1\316"
           "\2\1\2\0\0\0\33"
           "\0\74\0\0\0\0\0\0\0\0\0\0\374\0\1t\0\0\0\0\3\1kV\2\0\0\316");

    uint8_t ack[PUBLISH_ACK_SIZE];
    publish_ack(ack, 0x0102, 0x1122334455667788, true);
    EXPECT_ACK(ack, "\1\1\2\0\0\0\15\0\74\0\120\21\42\63\104\125\146\167\210\1\316");
    publish_ack(ack, 1, 1, false);
    EXPECT_ACK(ack, "\1\0\1\0\0\0\15\0\74\0\120\0\0\0\0\0\0\0\1\0\316");
}

/* Reads the written bytes back as frames: none exceeds frame_max, and the body is unchanged. */
static void test_splitting(void)
{
    static const size_t sizes[] = {0, 1, 4087, 4088, 4089, 8175, 8176, 8177, 100000};
    publish_options o = nothing();
    o.frame_max = 4096;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        bytes body = {0}, joined = {0};
        while (body.len < sizes[i])
            add_u8(&body, (uint8_t)(body.len * 13 + body.len / 256));
        publish_message m = {.routing_key = str("q"), .body = view(body.ptr, body.len)};
        bytes out = encode(&o, &m);

        frame_reader *r = frame_reader_new(NULL, NULL);
        frame_event ev;
        uint8_t *to;
        size_t room, frames = 0;
        frame_reader_set_frame_max(r, 4096);
        frame_reader_reserve(r, out.len, &to, &room);
        memcpy(to, out.ptr, out.len);
        frame_reader_commit(r, out.len);
        int rc;
        while ((rc = frame_reader_next(r, &ev)) == FRAME_RAW) {
            static const uint8_t types[] = {1, 2, 3};
            CHECK(ev.type == types[frames < 2 ? frames : 2], "frame %zu of type %u", frames,
                  ev.type);
            if (ev.type == 2)
                CHECK(wire_load64(ev.payload.ptr + 4) == sizes[i], "announced another size");
            if (ev.type == 3)
                add_bytes(&joined, ev.payload.ptr, ev.payload.len);
            frames++;
        }
        CHECK(rc == FRAME_NEED_MORE, "%s", frame_reader_message(r));
        CHECK(frame_reader_buffered(r) == 0, "a rest");
        CHECK(frames == 2 + (sizes[i] + 4087) / 4088, "%zu frames for %zu", frames, sizes[i]);
        CHECK(joined.len == body.len &&
                  (body.len == 0 || memcmp(joined.ptr, body.ptr, body.len) == 0),
              "another body");
        frame_reader_free(r);
        free(out.ptr);
        free(body.ptr);
        free(joined.ptr);
    }
}

static void test_limits(void)
{
    static uint8_t zeros[8192];
    publish_options o = nothing();
    publish_template t;
    size_t size;

    o.exchange = view(zeros, 256);
    CHECK(publish_template_init(&t, &o, NULL) == PUBLISH_EEXCHANGE, "exchange");
    o = nothing();
    o.content_type = view(zeros, 256);
    CHECK(publish_template_init(&t, &o, NULL) == PUBLISH_ECONTENT_TYPE, "content type");
    o = nothing();
    o.content_encoding = view(zeros, 256);
    CHECK(publish_template_init(&t, &o, NULL) == PUBLISH_ECONTENT_ENCODING, "content encoding");
    o = nothing();
    for (size_t len = 0; len < 6; len++) {
        o.headers = view(zeros, len); /* says that it is empty */
        int rc = publish_template_init(&t, &o, NULL);
        CHECK(rc == (len == 4 ? 0 : PUBLISH_EHEADERS), "headers of %zu: %d", len, rc);
        if (rc == 0)
            publish_template_free(&t);
    }

    o = nothing();
    o.exchange = o.content_type = o.content_encoding = view(zeros, 255);
    CHECK(publish_template_init(&t, &o, NULL) == 0, "255 is allowed");
    publish_message m = {.routing_key = view(zeros, 255), .correlation_id = view(zeros, 255)};
    CHECK(publish_size(&t, &m, &size) == 0, "255 is allowed");
    m.routing_key.len = 256;
    CHECK(publish_size(&t, &m, &size) == PUBLISH_EROUTING_KEY, "routing key");
    m.routing_key.len = 0;
    m.correlation_id.len = 256;
    CHECK(publish_size(&t, &m, &size) == PUBLISH_ECORRELATION_ID, "correlation id");
    CHECK(publish_write(&t, &m, zeros, sizeof zeros) == PUBLISH_ECORRELATION_ID, "written");
    m.correlation_id.len = 0;
    m.body = view(zeros, SIZE_MAX);
    CHECK(publish_size(&t, &m, &size) == PUBLISH_ESIZE, "all memory");
    publish_template_free(&t);

    /* Headers that leave the correlation id just enough room in a frame, or an octet too little. */
    o = nothing();
    o.frame_max = 4096;
    uint8_t *table = calloc(1, 4088 - 14 - 3);
    if (table == NULL)
        abort();
    wire_store32(table, 4088 - 14 - 3 - 4);
    o.headers = view(table, 4088 - 14 - 3);
    CHECK(publish_template_init(&t, &o, NULL) == 0, "template");
    m = (publish_message){.routing_key = str(""), .correlation_id = str("id")};
    CHECK(publish_size(&t, &m, &size) == 0, "fits");
    m.correlation_id = str("ids");
    CHECK(publish_size(&t, &m, &size) == PUBLISH_EFRAME_MAX, "does not fit");
    publish_template_free(&t);
    free(table);
    table = calloc(1, 5000);
    if (table == NULL)
        abort();
    wire_store32(table, 4996);
    o.headers = view(table, 5000);
    CHECK(publish_template_init(&t, &o, NULL) == PUBLISH_EFRAME_MAX, "larger than any frame");
    free(table);
}

/* Each allocation fails once: then there is nothing to free, and it works with memory again. */
static void test_no_memory(void)
{
    static uint8_t headers[1000];
    publish_options o = nothing();
    o.content_type = str("application/json");
    wire_store32(headers, sizeof headers - 4);
    o.headers = view(headers, sizeof headers);
    memory whole = {0};
    allocator a = memory_allocator(&whole);
    publish_template t;
    CHECK(publish_template_init(&t, &o, &a) == 0, "template");
    CHECK(whole.calls > 0 && whole.blocks == whole.calls, "not from this allocator");
    publish_template_free(&t);
    CHECK(whole.blocks == 0, "%ld blocks leaked", whole.blocks);
    for (long at = 1; at <= whole.calls; at++) {
        memory m = {.fail_at = at};
        a = memory_allocator(&m);
        CHECK(publish_template_init(&t, &o, &a) == PUBLISH_ENOMEM, "allocation %ld failed", at);
        CHECK(m.blocks == 0, "%ld blocks leaked", m.blocks);
        publish_template_free(&t);
        CHECK(publish_template_init(&t, &o, &a) == 0, "memory again");
        CHECK(m.blocks > 0, "not from this allocator");
        publish_template_free(&t);
        publish_template_free(&t);
        CHECK(m.blocks == 0, "%ld blocks leaked", m.blocks);
    }
    /* A message allocates nothing. */
    memory m = {0};
    a = memory_allocator(&m);
    CHECK(publish_template_init(&t, &o, &a) == 0, "template");
    long calls = m.calls;
    publish_message message = {.routing_key = str("q"), .body = str("body")};
    uint8_t out[2000];
    size_t size;
    CHECK(publish_size(&t, &message, &size) == 0 && size <= sizeof out, "size");
    CHECK(publish_write(&t, &message, out, size) == 0 && m.calls == calls, "write");
    publish_template_free(&t);
}

int main(void)
{
    test_octets();
    test_splitting();
    test_limits();
    test_no_memory();
    return 0;
}
