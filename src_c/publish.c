#include "publish.h"

#include "frame.h"

enum { CLASS_BASIC = 60, BASIC_PUBLISH = 40, BASIC_ACK = 80 };

enum {
    HAS_CONTENT_TYPE = 0x8000,
    HAS_CONTENT_ENCODING = 0x4000,
    HAS_HEADERS = 0x2000,
    HAS_CORRELATION_ID = 0x0400,
    SHORTSTR_MAX = 255
};

/* Offsets in a frame of the fields that are filled in per message. */
enum { HEAD_SIZE_AT = 3, BODY_SIZE_AT = FRAME_HEAD_SIZE + 4, FLAGS_AT = FRAME_HEAD_SIZE + 12 };

static bool too_long(wire_view v)
{
    return v.len > SHORTSTR_MAX;
}

static bool write_head(wire_writer *w, uint8_t type, uint16_t channel, uint32_t size)
{
    return wire_write_u8(w, type) && wire_write_u16(w, channel) && wire_write_u32(w, size);
}

/* basic.publish = class-id method-id reserved exchange routing-key bits
 *     reserved               short, 0
 *     exchange, routing-key  shortstr
 *     bits                   octet: bit 0 mandatory, bit 1 immediate (which RabbitMQ refuses)
 * The content header's grammar is in frame.c.
 */
int publish_template_init(publish_template *t, const publish_options *o, const allocator *alloc)
{
    if (too_long(o->exchange))
        return PUBLISH_EEXCHANGE;
    if (too_long(o->content_type))
        return PUBLISH_ECONTENT_TYPE;
    if (too_long(o->content_encoding))
        return PUBLISH_ECONTENT_ENCODING;
    if (o->headers.ptr != NULL &&
        (o->headers.len < 4 || o->headers.len - 4 != wire_load32(o->headers.ptr)))
        return PUBLISH_EHEADERS;

    uint32_t frame_max = o->frame_max == 0 ? (uint32_t)FRAME_MAX_DEFAULT : o->frame_max;
    if (frame_max < FRAME_MAX_MIN)
        frame_max = FRAME_MAX_MIN;
    /* Keeps the sum below from overflowing; publish_size makes the exact check. */
    if (o->headers.len > frame_max)
        return PUBLISH_EFRAME_MAX;

    size_t room =
        128 + o->exchange.len + o->content_type.len + o->content_encoding.len + o->headers.len;
    *t = (publish_template){.alloc = alloc_or_libc(alloc),
                            .channel = o->channel,
                            .mandatory = o->mandatory,
                            .body_chunk = frame_max - FRAME_OVERHEAD};
    t->block = alloc_new(&t->alloc, room);
    if (t->block == NULL)
        return PUBLISH_ENOMEM;

    uint16_t flags = 0;
    wire_writer w = wire_writer_over(t->block, room);
    bool ok = write_head(&w, FRAME_METHOD, o->channel, 0) && wire_write_u16(&w, CLASS_BASIC) &&
              wire_write_u16(&w, BASIC_PUBLISH) && wire_write_u16(&w, 0) &&
              wire_write_shortstr(&w, o->exchange.ptr, o->exchange.len);
    t->method_len = (size_t)(w.pos - t->block);

    uint8_t *header = w.pos;
    ok = ok && write_head(&w, FRAME_HEADER, o->channel, 0) && wire_write_u16(&w, CLASS_BASIC) &&
         wire_write_u16(&w, 0) && wire_write_u64(&w, 0) && wire_write_u16(&w, 0);
    if (o->content_type.ptr != NULL) {
        flags |= HAS_CONTENT_TYPE;
        ok = ok && wire_write_shortstr(&w, o->content_type.ptr, o->content_type.len);
    }
    if (o->content_encoding.ptr != NULL) {
        flags |= HAS_CONTENT_ENCODING;
        ok = ok && wire_write_shortstr(&w, o->content_encoding.ptr, o->content_encoding.len);
    }
    if (o->headers.ptr != NULL) {
        flags |= HAS_HEADERS;
        ok = ok && wire_write_bytes(&w, o->headers.ptr, o->headers.len);
    }
    if (o->delivery_mode >= 0) {
        flags |= FRAME_HAS_DELIVERY_MODE;
        ok = ok && wire_write_u8(&w, (uint8_t)o->delivery_mode);
    }
    if (o->priority >= 0) {
        flags |= FRAME_HAS_PRIORITY;
        ok = ok && wire_write_u8(&w, (uint8_t)o->priority);
    }
    t->header_len = (size_t)(w.pos - header);
    if (!ok) { /* cannot happen: `room` is larger than what is written */
        publish_template_free(t);
        return PUBLISH_ESIZE;
    }
    wire_store16(header + FLAGS_AT, flags);
    return 0;
}

void publish_template_free(publish_template *t)
{
    alloc_free(&t->alloc, t->block);
    t->block = NULL;
}

/* Payload sizes of the method and of the header frame. */
static size_t method_size(const publish_template *t, const publish_message *m)
{
    return t->method_len - FRAME_HEAD_SIZE + 1 + m->routing_key.len + 1;
}

static size_t header_size(const publish_template *t, const publish_message *m)
{
    return t->header_len - FRAME_HEAD_SIZE +
           (m->correlation_id.ptr != NULL ? 1 + m->correlation_id.len : 0);
}

int publish_size(const publish_template *t, const publish_message *m, size_t *size)
{
    if (too_long(m->routing_key))
        return PUBLISH_EROUTING_KEY;
    if (m->correlation_id.ptr != NULL && too_long(m->correlation_id))
        return PUBLISH_ECORRELATION_ID;
    size_t header = header_size(t, m);
    if (header > t->body_chunk)
        return PUBLISH_EFRAME_MAX;
    size_t body = m->body.len;
    if (body > SIZE_MAX / 2)
        return PUBLISH_ESIZE;
    size_t frames = body / t->body_chunk + (body % t->body_chunk != 0);
    /* frames <= body / 4088 + 1, so the sum stays below SIZE_MAX. */
    *size = 2 * FRAME_OVERHEAD + method_size(t, m) + header + body + frames * FRAME_OVERHEAD;
    return 0;
}

int publish_write(const publish_template *t, const publish_message *m, uint8_t *out, size_t room)
{
    size_t size;
    int rc = publish_size(t, m, &size);
    if (rc < 0)
        return rc;
    if (room < size)
        return PUBLISH_ESIZE;
    wire_writer w = wire_writer_over(out, size);

    uint8_t *frame = w.pos;
    bool ok = wire_write_bytes(&w, t->block, t->method_len) &&
              wire_write_shortstr(&w, m->routing_key.ptr, m->routing_key.len) &&
              wire_write_u8(&w, t->mandatory) && wire_write_u8(&w, FRAME_END);
    wire_store32(frame + HEAD_SIZE_AT, (uint32_t)method_size(t, m));

    frame = w.pos;
    ok = ok && wire_write_bytes(&w, t->block + t->method_len, t->header_len);
    if (m->correlation_id.ptr != NULL) {
        ok = ok && wire_write_shortstr(&w, m->correlation_id.ptr, m->correlation_id.len);
        wire_store16(frame + FLAGS_AT, wire_load16(frame + FLAGS_AT) | HAS_CORRELATION_ID);
    }
    ok = ok && wire_write_u8(&w, FRAME_END);
    wire_store32(frame + HEAD_SIZE_AT, (uint32_t)header_size(t, m));
    wire_store64(frame + BODY_SIZE_AT, m->body.len);

    for (size_t at = 0; ok && at < m->body.len;) {
        size_t n = m->body.len - at < t->body_chunk ? m->body.len - at : t->body_chunk;
        ok = write_head(&w, FRAME_BODY, t->channel, (uint32_t)n) &&
             wire_write_bytes(&w, m->body.ptr + at, n) && wire_write_u8(&w, FRAME_END);
        at += n;
    }
    return ok && wire_room(&w) == 0 ? 0 : PUBLISH_ESIZE;
}

/* basic.ack = class-id method-id delivery-tag multiple */
void publish_ack(uint8_t *out, uint16_t channel, uint64_t delivery_tag, bool multiple)
{
    wire_writer w = wire_writer_over(out, PUBLISH_ACK_SIZE);
    (void)(write_head(&w, FRAME_METHOD, channel, 13) && wire_write_u16(&w, CLASS_BASIC) &&
           wire_write_u16(&w, BASIC_ACK) && wire_write_u64(&w, delivery_tag) &&
           wire_write_u8(&w, multiple) && wire_write_u8(&w, FRAME_END));
}
