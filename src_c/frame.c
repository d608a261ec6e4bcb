#include "frame.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

/* Internal: a frame was consumed without an event, look at the next one. */
enum { AGAIN = 3 };

enum {
    CLASS_BASIC = 60,
    BASIC_DELIVER = (CLASS_BASIC << 16) | 60,
    ROOM_MIN = FRAME_READ_SIZE / 4,
    BUFFER_KEEP = 4 * FRAME_READ_SIZE, /* a larger buffer is freed once it is empty */
    BODY_START = 256, /* small: a hostile peer can open 65,535 bodies with one byte each */
    PAGE_SIZE = 256   /* channels per page; 256 pages make the 65,536 channels of AMQP */
};

/* One delivery whose frames were not contiguous in the buffer. */
typedef struct assembly {
    uint16_t channel;
    bool has_header;
    uint8_t *meta; /* method arguments, then content header; parsed again once the body is whole */
    size_t args_len;
    size_t header_len;
    uint8_t *body;
    size_t body_len;
    size_t body_cap;
    size_t body_size; /* announced; >= body_cap >= body_len */
    uint64_t dropped; /* announced size of a body larger than body_max, which is skipped */
    uint64_t drop_left;
} assembly;

struct frame_reader {
    allocator alloc;
    allocator body_alloc;

    uint8_t *buf; /* consumed: [0, rpos)  to parse: [rpos, wpos)  free: [wpos, cap) */
    size_t cap;
    size_t rpos;
    size_t wpos;
    size_t reserved;
    bool drained; /* the last next() found less than one frame in the buffer */

    uint32_t frame_max;
    uint64_t body_max;

    assembly *stream; /* the delivery whose body frame is being read; its head is consumed */
    uint32_t stream_left;
    assembly *done; /* the delivery returned last, if it was assembled */
    size_t open;
    assembly **pages[PAGE_SIZE];

    int error;
    char message[160];
};

/* ------------------------------------------------------------------ errors */

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4), cold))
#endif
static int fail(frame_reader *r, int error, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(r->message, sizeof r->message, format, args);
    va_end(args);
    r->error = error;
    return error;
}

static int out_of_memory(frame_reader *r)
{
    return fail(r, FRAME_ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ open deliveries */

static assembly *find_open(const frame_reader *r, uint16_t channel)
{
    assembly **page = r->pages[channel / PAGE_SIZE];
    return page == NULL ? NULL : page[channel % PAGE_SIZE];
}

static void free_assembly(frame_reader *r, assembly *a)
{
    alloc_free(&r->alloc, a->meta);
    alloc_free(&r->body_alloc, a->body);
    alloc_free(&r->alloc, a);
}

/* Ends the views of the delivery returned last. */
static void release_done(frame_reader *r)
{
    if (r->done != NULL) {
        free_assembly(r, r->done);
        r->done = NULL;
    }
}

static int open_delivery(frame_reader *r, uint16_t channel, wire_view args)
{
    assembly **page = r->pages[channel / PAGE_SIZE];
    if (page == NULL) {
        page = alloc_new(&r->alloc, PAGE_SIZE * sizeof *page);
        if (page == NULL)
            return out_of_memory(r);
        for (size_t i = 0; i < PAGE_SIZE; i++)
            page[i] = NULL;
        r->pages[channel / PAGE_SIZE] = page;
    }
    assembly *a = alloc_new(&r->alloc, sizeof *a);
    if (a == NULL)
        return out_of_memory(r);
    *a = (assembly){.channel = channel, .args_len = args.len};
    a->meta = alloc_new(&r->alloc, args.len);
    if (a->meta == NULL) {
        alloc_free(&r->alloc, a);
        return out_of_memory(r);
    }
    memcpy(a->meta, args.ptr, args.len);
    page[channel % PAGE_SIZE] = a;
    r->open++;
    return AGAIN;
}

static int append_header(frame_reader *r, assembly *a, wire_view header)
{
    a->meta = alloc_resize(&r->alloc, a->meta, a->args_len + header.len);
    if (a->meta == NULL)
        return out_of_memory(r);
    memcpy(a->meta + a->args_len, header.ptr, header.len);
    a->header_len = header.len;
    a->has_header = true;
    return AGAIN;
}

/* The caller has checked that n <= body_size - body_len. */
static int append_body(frame_reader *r, assembly *a, const uint8_t *ptr, size_t n)
{
    if (a->body_cap - a->body_len < n) {
        /* Grow with what has arrived, at least doubling, but never past the announced size: in the
         * end the block is exactly as large as the body. */
        size_t cap = a->body_len + n;
        if (cap < BODY_START)
            cap = BODY_START;
        if (cap < a->body_size && cap / 2 < a->body_cap)
            cap = a->body_cap * 2;
        if (cap > a->body_size)
            cap = a->body_size;
        a->body = alloc_resize(&r->body_alloc, a->body, cap);
        if (a->body == NULL)
            return out_of_memory(r);
        a->body_cap = cap;
    }
    memcpy(a->body + a->body_len, ptr, n);
    a->body_len += n;
    return AGAIN;
}

/* ------------------------------------------------------------------ grammar */

/* basic.deliver = class-id method-id consumer-tag delivery-tag redelivered exchange routing-key
 *     class-id, method-id    short, 60 and 60 (checked by the caller)
 *     consumer-tag           shortstr
 *     delivery-tag           longlong
 *     redelivered            octet, bit 0
 *     exchange, routing-key  shortstr
 * Bytes after these are ignored and not passed on.
 */
static bool parse_deliver(frame_event *ev, const uint8_t *ptr, size_t len)
{
    wire_cursor c = wire_cursor_over(ptr, len);
    uint8_t bits;
    if (!wire_skip(&c, 4) || !wire_read_shortstr(&c, &ev->consumer_tag) ||
        !wire_read_u64(&c, &ev->delivery_tag) || !wire_read_u8(&c, &bits) ||
        !wire_read_shortstr(&c, &ev->exchange) || !wire_read_shortstr(&c, &ev->routing_key))
        return false;
    ev->redelivered = bits & 1;
    ev->method_args = (wire_view){ptr, (size_t)(c.pos - ptr)};
    return true;
}

/* content-header = class-id weight body-size property-flags property-list
 *     class-id, weight  short
 *     body-size         longlong
 *     property-flags    short; bit 15 is the first property, bit 0 says that more flags follow
 *     property-list     the properties whose bit is set, in this order:
 *                       content-type s, content-encoding s, headers F, delivery-mode o, priority o,
 *                       correlation-id s, reply-to s, expiration s, message-id s, timestamp L,
 *                       type s, user-id s, app-id s, cluster-id s
 * The class is checked first: the flags of another class would mean something else. Bytes after
 * the properties are ignored and not passed on. 0 or error, without a message.
 */
static int parse_header(frame_event *ev, uint64_t *body_size, const uint8_t *ptr, size_t len)
{
    wire_cursor c = wire_cursor_over(ptr, len);
    uint16_t class_id, weight, flags;
    if (!wire_read_u16(&c, &class_id) || !wire_read_u16(&c, &weight) ||
        !wire_read_u64(&c, body_size))
        return FRAME_EHEADER_SHORT;
    if (class_id != CLASS_BASIC)
        return FRAME_ECLASS;
    if (!wire_read_u16(&c, &flags))
        return FRAME_EPROPERTIES;
    if (flags & 0x0001)
        return FRAME_EFLAGS;
    ev->property_flags = flags;
    if ((flags & 0x8000 && !wire_read_shortstr(&c, &ev->content_type)) ||
        (flags & 0x4000 && !wire_read_shortstr(&c, &ev->content_encoding)) ||
        (flags & 0x2000 && !wire_read_table(&c, &ev->headers)) ||
        (flags & FRAME_HAS_DELIVERY_MODE && !wire_read_u8(&c, &ev->delivery_mode)) ||
        (flags & FRAME_HAS_PRIORITY && !wire_read_u8(&c, &ev->priority)) ||
        (flags & 0x0400 && !wire_read_shortstr(&c, &ev->correlation_id)))
        return FRAME_EPROPERTIES;
    /* The other properties are not used here, but py-amqp gets them and does not check them. */
    if (flags & 0x03FC) {
        wire_view ignored;
        for (uint16_t bit = 0x0200; bit >= 0x0004; bit >>= 1)
            if (flags & bit &&
                !(bit == 0x0040 ? wire_skip(&c, 8) : wire_read_shortstr(&c, &ignored)))
                return FRAME_EPROPERTIES;
    }
    ev->header = (wire_view){ptr, (size_t)(c.pos - ptr)};
    return 0;
}

/* frame = type channel size payload frame-end
 *     type       octet: 1 method, 2 content header, 3 content body, 8 heartbeat
 *     channel    short
 *     size       long, of the payload
 *     frame-end  octet, 0xCE
 */
typedef struct head {
    uint8_t type;
    uint16_t channel;
    uint32_t size;
} head;

static head load_head(const uint8_t *p)
{
    return (head){p[0], wire_load16(p + 1), wire_load32(p + 3)};
}

/* Whether the `left` bytes at p begin with a whole frame of that type and channel. It is false for
 * a malformed frame too: next_frame() then reads that frame and reports the error. */
static bool whole_frame(const frame_reader *r, const uint8_t *p, size_t left, uint8_t type,
                        uint16_t channel, uint32_t *size)
{
    if (left < FRAME_OVERHEAD)
        return false;
    head h = load_head(p);
    if (h.type != type || h.channel != channel || h.size > r->frame_max - FRAME_OVERHEAD ||
        left - FRAME_OVERHEAD < h.size || p[FRAME_HEAD_SIZE + h.size] != FRAME_END)
        return false;
    *size = h.size;
    return true;
}

/* The fast path: the content header, and a single body frame if there is a body, follow directly.
 * Returns the number of their bytes, or 0 if it does not apply. */
static size_t contiguous_content(const frame_reader *r, frame_event *ev, const uint8_t *p,
                                 size_t left)
{
    uint32_t header_size, frame_size;
    uint64_t body_size;
    if (!whole_frame(r, p, left, FRAME_HEADER, ev->channel, &header_size))
        return 0;
    if (parse_header(ev, &body_size, p + FRAME_HEAD_SIZE, header_size) != 0 ||
        body_size > r->body_max)
        return 0;
    const uint8_t *body = p + FRAME_OVERHEAD + header_size;
    if (body_size == 0) {
        ev->body = (wire_view){body, 0};
        return (size_t)(body - p);
    }
    left -= FRAME_OVERHEAD + (size_t)header_size;
    if (!whole_frame(r, body, left, FRAME_BODY, ev->channel, &frame_size) ||
        frame_size != body_size)
        return 0;
    ev->body = (wire_view){body + FRAME_HEAD_SIZE, frame_size};
    return (size_t)(body - p) + FRAME_OVERHEAD + frame_size;
}

/* ------------------------------------------------------------------ assembled deliveries */

static int finish(frame_reader *r, assembly *a, frame_event *ev)
{
    uint64_t body_size;
    r->pages[a->channel / PAGE_SIZE][a->channel % PAGE_SIZE] = NULL;
    r->open--;
    r->done = a;
    *ev = (frame_event){.type = FRAME_METHOD, .channel = a->channel};
    /* Both were parsed when they arrived. */
    (void)parse_deliver(ev, a->meta, a->args_len);
    (void)parse_header(ev, &body_size, a->meta + a->args_len, a->header_len);
    ev->body_assembled = a->body != NULL;
    ev->body = (wire_view){a->body != NULL ? a->body : a->meta, a->body_len};
    ev->body_dropped = a->dropped;
    return FRAME_DELIVERY;
}

static int deliver_method(frame_reader *r, frame_event *ev, head h, const uint8_t *payload)
{
    *ev = (frame_event){.type = FRAME_METHOD, .channel = h.channel};
    if (!parse_deliver(ev, payload, h.size))
        return fail(r, FRAME_EARGUMENTS,
                    "basic.deliver on channel %u: arguments run past their frame of %" PRIu32
                    " bytes",
                    h.channel, h.size);
    r->rpos += FRAME_OVERHEAD + (size_t)h.size;
    size_t content = contiguous_content(r, ev, payload + h.size + 1, r->wpos - r->rpos);
    if (content != 0) {
        r->rpos += content;
        return FRAME_DELIVERY;
    }
    return open_delivery(r, h.channel, ev->method_args);
}

static int delivery_header(frame_reader *r, frame_event *ev, head h, const uint8_t *payload,
                           assembly *a)
{
    uint64_t body_size = 0;
    if (a->has_header)
        return fail(r, FRAME_EHEADER_UNEXPECTED,
                    "second content header on channel %u, after %zu of %zu bytes of the body",
                    h.channel, a->body_len, a->body_size);
    *ev = (frame_event){0};
    switch (parse_header(ev, &body_size, payload, h.size)) {
    case 0:
        break;
    case FRAME_ECLASS:
        return fail(r, FRAME_ECLASS,
                    "content header of class %u on channel %u, expected 60 (basic)",
                    wire_load16(payload), h.channel);
    case FRAME_EFLAGS:
        return fail(r, FRAME_EFLAGS,
                    "continuation bit in the property flags of the content header on channel %u",
                    h.channel);
    default:
        return fail(r, FRAME_EPROPERTIES,
                    "content header on channel %u: properties run past their frame of %" PRIu32
                    " bytes",
                    h.channel, h.size);
    }
    if (body_size > r->body_max)
        a->dropped = a->drop_left = body_size;
    else
        a->body_size = (size_t)body_size; /* body_max fits a size_t */
    int rc = append_header(r, a, ev->header);
    if (rc < 0)
        return rc;
    r->rpos += FRAME_OVERHEAD + (size_t)h.size;
    return body_size == 0 ? finish(r, a, ev) : AGAIN;
}

/* How much of the announced body has not arrived. */
static uint64_t body_left(const assembly *a)
{
    return a->dropped != 0 ? a->drop_left : a->body_size - a->body_len;
}

/* A body frame of an open delivery is read as its bytes arrive; it need not fit into the buffer. */
static int start_body_frame(frame_reader *r, head h, assembly *a)
{
    if (!a->has_header)
        return fail(r, FRAME_EBODY_UNEXPECTED,
                    "body frame on channel %u where a content header was expected", h.channel);
    if (h.size > body_left(a))
        return fail(r, FRAME_EBODY_LONG,
                    "body frame of %" PRIu32 " bytes on channel %u, only %" PRIu64
                    " of the announced %" PRIu64 " are left",
                    h.size, h.channel, body_left(a), a->dropped != 0 ? a->dropped : a->body_size);
    r->rpos += FRAME_HEAD_SIZE;
    r->stream = a;
    r->stream_left = h.size;
    return AGAIN;
}

static int bad_end(frame_reader *r, uint8_t octet, uint16_t channel)
{
    return fail(r, FRAME_EEND, "frame on channel %u ends with 0x%02x instead of 0xce", channel,
                octet);
}

static int stream_body(frame_reader *r, frame_event *ev)
{
    assembly *a = r->stream;
    size_t n = r->wpos - r->rpos;
    if (n > r->stream_left)
        n = r->stream_left;
    if (n != 0) {
        if (a->dropped != 0) {
            a->drop_left -= n;
        } else {
            int rc = append_body(r, a, r->buf + r->rpos, n);
            if (rc < 0)
                return rc;
        }
        r->rpos += n;
        r->stream_left -= (uint32_t)n;
    }
    if (r->stream_left != 0 || r->rpos == r->wpos)
        return FRAME_NEED_MORE;
    if (r->buf[r->rpos] != FRAME_END)
        return bad_end(r, r->buf[r->rpos], a->channel);
    r->rpos++;
    r->stream = NULL;
    return body_left(a) == 0 ? finish(r, a, ev) : AGAIN;
}

/* ------------------------------------------------------------------ frames */

static int raw_frame(frame_reader *r, frame_event *ev, head h, const uint8_t *payload)
{
    *ev = (frame_event){.type = h.type, .channel = h.channel, .payload = {payload, h.size}};
    r->rpos += FRAME_OVERHEAD + (size_t)h.size;
    return FRAME_RAW;
}

static int next_frame(frame_reader *r, frame_event *ev)
{
    size_t left = r->wpos - r->rpos;
    if (left < FRAME_HEAD_SIZE)
        return FRAME_NEED_MORE;
    const uint8_t *p = r->buf + r->rpos;
    head h = load_head(p);
    if (h.type != FRAME_METHOD && h.type != FRAME_HEADER && h.type != FRAME_BODY &&
        h.type != FRAME_HEARTBEAT)
        return fail(r, FRAME_ETYPE, "unknown frame type %u", h.type);
    if (h.size > r->frame_max - FRAME_OVERHEAD)
        return fail(r, FRAME_ESIZE,
                    "frame of %" PRIu32 " bytes on channel %u, frame_max %" PRIu32
                    " allows %" PRIu32,
                    h.size, h.channel, r->frame_max, r->frame_max - FRAME_OVERHEAD);

    assembly *a = r->open == 0 ? NULL : find_open(r, h.channel);
    if (a != NULL && h.type == FRAME_BODY)
        return start_body_frame(r, h, a);

    if (left - FRAME_HEAD_SIZE <= h.size) /* <=: the end octet must be there too */
        return FRAME_NEED_MORE;
    const uint8_t *payload = p + FRAME_HEAD_SIZE;
    if (payload[h.size] != FRAME_END)
        return bad_end(r, payload[h.size], h.channel);

    if (h.type == FRAME_METHOD) {
        if (h.size < 4)
            return fail(r, FRAME_EMETHOD_SHORT, "method frame of %" PRIu32 " bytes on channel %u",
                        h.size, h.channel);
        if (a != NULL)
            return fail(r, FRAME_EMETHOD_UNEXPECTED,
                        "method %u.%u on channel %u inside an incomplete delivery",
                        wire_load16(payload), wire_load16(payload + 2), h.channel);
        if (wire_load32(payload) == BASIC_DELIVER)
            return deliver_method(r, ev, h, payload);
    } else if (h.type == FRAME_HEADER) {
        if (h.size < 12)
            return fail(r, FRAME_EHEADER_SHORT, "content header of %" PRIu32 " bytes on channel %u",
                        h.size, h.channel);
        if (a != NULL)
            return delivery_header(r, ev, h, payload, a);
    }
    return raw_frame(r, ev, h, payload);
}

int frame_reader_next(frame_reader *r, frame_event *event)
{
    if (r->error != 0)
        return r->error;
    if (r->done != NULL)
        release_done(r);
    int rc;
    do {
        rc = r->stream != NULL ? stream_body(r, event) : next_frame(r, event);
    } while (rc == AGAIN);
    r->drained = rc == FRAME_NEED_MORE;
    return rc;
}

/* ------------------------------------------------------------------ the read buffer */

static int grow_buffer(frame_reader *r, size_t need, bool one_frame)
{
    if (need > SIZE_MAX / 4 || r->cap > SIZE_MAX / 4)
        return out_of_memory(r);
    size_t cap = r->cap * 2;
    /* Doubling follows what has arrived, not what the frame's head claims. */
    if (one_frame && cap > (size_t)r->frame_max + FRAME_READ_SIZE)
        cap = (size_t)r->frame_max + FRAME_READ_SIZE;
    if (cap < FRAME_READ_SIZE)
        cap = FRAME_READ_SIZE;
    if (cap - r->wpos < need || cap < r->wpos)
        cap = r->wpos + need;
    r->buf = alloc_resize(&r->alloc, r->buf, cap);
    if (r->buf == NULL) {
        r->cap = r->rpos = r->wpos = 0;
        return out_of_memory(r);
    }
    r->cap = cap;
    return 0;
}

int frame_reader_reserve(frame_reader *r, size_t want, uint8_t **ptr, size_t *room)
{
    if (r->error != 0)
        return r->error;
    release_done(r);
    size_t left = r->wpos - r->rpos;
    size_t need = want != 0 ? want : ROOM_MIN;
    if (left == 0) {
        r->rpos = r->wpos = 0;
        if (r->cap > BUFFER_KEEP && need <= FRAME_READ_SIZE) {
            alloc_free(&r->alloc, r->buf);
            r->buf = NULL;
            r->cap = 0;
        }
    }
    if (r->cap - r->wpos < need) {
        /* Moves to the front must cost linear time in total. If the buffer is drained, the rest is
         * the start of one frame, and no byte is moved twice. Otherwise a move is allowed only
         * after as many bytes as it moves, or a quarter of the buffer, were consumed. */
        if (r->rpos != 0 && (r->drained || r->rpos >= left || r->rpos >= r->cap / 4)) {
            memmove(r->buf, r->buf + r->rpos, left);
            r->rpos = 0;
            r->wpos = left;
        }
        if (r->cap - r->wpos < need) {
            int rc = grow_buffer(r, need, r->drained && want == 0);
            if (rc < 0)
                return rc;
        }
    }
    r->reserved = r->cap - r->wpos;
    *ptr = r->buf + r->wpos;
    *room = r->reserved;
    return 0;
}

int frame_reader_commit(frame_reader *r, size_t n)
{
    if (r->error != 0)
        return r->error;
    if (n > r->reserved)
        return fail(r, FRAME_EMISUSE, "%zu bytes committed, %zu were reserved", n, r->reserved);
    r->reserved -= n;
    r->wpos += n;
    if (n != 0)
        r->drained = false;
    return 0;
}

/* ------------------------------------------------------------------ the rest */

frame_reader *frame_reader_new(const allocator *alloc, const allocator *body_alloc)
{
    const allocator own = alloc_or_libc(alloc);
    frame_reader *r = alloc_new(&own, sizeof *r);
    if (r == NULL)
        return NULL;
    *r = (frame_reader){.alloc = own, .body_alloc = alloc_or_libc(body_alloc)};
    frame_reader_set_frame_max(r, 0);
    frame_reader_set_body_max(r, (uint64_t)512 * 1024 * 1024);
    return r;
}

void frame_reader_free(frame_reader *r)
{
    if (r == NULL)
        return;
    release_done(r);
    for (size_t i = 0; i < PAGE_SIZE; i++) {
        if (r->pages[i] == NULL)
            continue;
        for (size_t j = 0; j < PAGE_SIZE; j++)
            if (r->pages[i][j] != NULL)
                free_assembly(r, r->pages[i][j]);
        alloc_free(&r->alloc, r->pages[i]);
    }
    alloc_free(&r->alloc, r->buf);
    const allocator own = r->alloc;
    alloc_free(&own, r);
}

void frame_reader_set_frame_max(frame_reader *r, uint32_t frame_max)
{
    if (frame_max == 0)
        frame_max = FRAME_MAX_DEFAULT;
    r->frame_max = frame_max < FRAME_MAX_MIN ? FRAME_MAX_MIN : frame_max;
}

uint32_t frame_reader_frame_max(const frame_reader *r)
{
    return r->frame_max;
}

void frame_reader_set_body_max(frame_reader *r, uint64_t body_max)
{
    /* A quarter of the address space: doubling a length cannot overflow. */
    r->body_max = body_max > SIZE_MAX / 4 ? SIZE_MAX / 4 : body_max;
}

uint8_t *frame_reader_take_body(frame_reader *r)
{
    if (r->done == NULL)
        return NULL;
    uint8_t *body = r->done->body;
    r->done->body = NULL;
    return body;
}

size_t frame_reader_buffered(const frame_reader *r)
{
    return r->wpos - r->rpos;
}

uint8_t *frame_reader_surrender(frame_reader *r)
{
    uint8_t *buf = r->buf;
    release_done(r);
    r->buf = NULL;
    r->cap = r->rpos = r->wpos = r->reserved = 0;
    if (r->error == 0)
        fail(r, FRAME_EMISUSE, "the read buffer was taken away");
    return buf;
}

const char *frame_reader_message(const frame_reader *r)
{
    return r->message;
}
