/* libFuzzer target for publish.c: any options and messages. What is written must be frames of the
 * channel, none larger than agreed on, with the whole body in them, and of the size that was said.
 *
 *     clang -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc_c \
 *         -Itests/c tests/fuzz/fuzz_publish.c src_c/publish.c -o fuzz_publish
 *     ./fuzz_publish -max_total_time=60 -rss_limit_mb=512 work/ tests/fuzz/corpus/publish
 *
 * Input: what is there (a bit each), the channel, delivery mode, priority, frame_max in 16 bits,
 * then a length of 16 bits before each of six texts, then the body.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "publish.h"

enum { METHOD = 1, HEADER = 2, BODY = 3, OVERHEAD = 8 };

static wire_view take(const uint8_t **data, size_t *left, size_t len)
{
    wire_view view = {*data, len < *left ? len : *left};
    *data += view.len;
    *left -= view.len;
    return view;
}

static uint8_t take_octet(const uint8_t **data, size_t *left)
{
    wire_view view = take(data, left, 1);
    return view.len == 1 ? *view.ptr : 0;
}

static uint16_t take16(const uint8_t **data, size_t *left)
{
    uint16_t high = take_octet(data, left);
    return (uint16_t)(high << 8 | take_octet(data, left));
}

static void check_frames(const publish_options *o, const publish_message *m, const uint8_t *out,
                         size_t size)
{
    uint32_t frame_max = o->frame_max == 0 ? 131072 : o->frame_max < 4096 ? 4096 : o->frame_max;
    size_t body = 0;
    int before = 0;
    for (size_t at = 0; at < size;) {
        CHECK(size - at >= OVERHEAD, "half a frame");
        int type = out[at];
        uint32_t len = wire_load32(out + at + 3);
        CHECK((out[at + 1] << 8 | out[at + 2]) == o->channel, "another channel");
        CHECK(len <= size - at - OVERHEAD, "a frame behind the end");
        CHECK(out[at + 7 + len] == 0xCE, "no end of a frame");
        bool in_order = before >= HEADER && type == BODY;
        if (type == METHOD || type == HEADER)
            in_order = before == type - 1;
        CHECK(in_order, "frames in disorder");
        if (type != METHOD) /* a routing key and an exchange always fit */
            CHECK(len + OVERHEAD <= frame_max, "a frame that is too large");
        if (type == BODY) {
            CHECK(len <= m->body.len - body, "more body than there is");
            CHECK(memcmp(out + at + 7, m->body.ptr + body, len) == 0, "another body");
            body += len;
        }
        before = type;
        at += len + OVERHEAD;
    }
    CHECK(body == m->body.len && before >= HEADER, "something is missing");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t left)
{
    static const int modes[] = {PUBLISH_NO_OCTET, 0, 1, 2};
    uint8_t there = take_octet(&data, &left);
    publish_options options = {.channel = take16(&data, &left), .mandatory = there & 1};
    options.delivery_mode = modes[take_octet(&data, &left) & 3];
    options.priority = there & 2 ? take_octet(&data, &left) : PUBLISH_NO_OCTET;
    options.frame_max = take16(&data, &left);
    wire_view texts[6];
    for (int i = 0; i < 6; i++)
        texts[i] = take(&data, &left, take16(&data, &left));
    options.exchange = texts[0];
    if (there & 4)
        options.content_type = texts[1];
    if (there & 8)
        options.content_encoding = texts[2];
    if (there & 16)
        options.headers = texts[3];
    publish_message message = {.routing_key = texts[4], .body = {data, left}};
    if (there & 32)
        message.correlation_id = texts[5];

    publish_template t;
    if (publish_template_init(&t, &options, NULL) != 0)
        return 0;
    size_t size;
    if (publish_size(&t, &message, &size) == 0) {
        uint8_t *out = malloc(size);
        CHECK(out != NULL, "memory");
        CHECK(publish_write(&t, &message, out, size) == 0, "a message that has a size");
        check_frames(&options, &message, out, size);
        CHECK(publish_write(&t, &message, out, size - 1) == PUBLISH_ESIZE, "too little room");
        free(out);
    }
    publish_template_free(&t);
    publish_template_free(&t);
    return 0;
}
