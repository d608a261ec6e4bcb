/* Incremental AMQP 0-9-1 reader: bytes in, frames and whole deliveries out. No I/O, no globals.
 *
 *     for (;;) {
 *         frame_reader_reserve(r, 0, &ptr, &room);
 *         n = recv(fd, ptr, room, 0);
 *         frame_reader_commit(r, n);
 *         while ((rc = frame_reader_next(r, &event)) > 0)
 *             ...
 *         if (rc < 0)
 *             die(frame_reader_message(r));
 *     }
 *
 * Ownership: the reader owns its read buffer and every body that it assembles. All pointers in a
 * frame_event are views of these. They are valid until the next call of frame_reader_next,
 * frame_reader_reserve or frame_reader_free. frame_reader_take_body passes the ownership of one
 * body to the caller.
 *
 * Memory: a read buffer of FRAME_READ_SIZE. It grows only while it holds a single larger frame, and
 * never past frame_max + FRAME_READ_SIZE, unless `want` asked for more. If the frames of a delivery
 * are not contiguous in the buffer, the delivery is assembled in blocks of its own. Its body grows
 * as bytes arrive, never because the wire announces a size. An open delivery without a body costs
 * about 100 bytes plus its method and header frames.
 *
 * After an error the reader is dead: every call returns the same error, and frame_reader_message
 * says what was wrong. Not thread-safe: one caller at a time.
 */
#ifndef FASTRPC_FRAME_H
#define FASTRPC_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "alloc.h"
#include "wire.h"

enum {
    FRAME_READ_SIZE = 256 * 1024,   /* room for one recv: hundreds of small deliveries */
    FRAME_MAX_DEFAULT = 128 * 1024, /* until another value is negotiated */
    FRAME_MAX_MIN = 4096,           /* AMQP's frame-min-size: no peer may negotiate less */
    FRAME_HEAD_SIZE = 7,
    FRAME_OVERHEAD = 8, /* head and end octet */
    FRAME_END = 0xCE
};

enum { FRAME_METHOD = 1, FRAME_HEADER = 2, FRAME_BODY = 3, FRAME_HEARTBEAT = 8 };

/* What frame_reader_next returns on success. */
enum { FRAME_NEED_MORE = 0, FRAME_RAW = 1, FRAME_DELIVERY = 2 };

/* The errors that every function returns. */
enum {
    FRAME_ENOMEM = -1,
    FRAME_EMISUSE = -2,             /* more committed than reserved; buffer surrendered */
    FRAME_ETYPE = -3,               /* unknown frame type */
    FRAME_ESIZE = -4,               /* larger than frame_max allows */
    FRAME_EEND = -5,                /* wrong frame-end octet */
    FRAME_EMETHOD_SHORT = -6,       /* method frame without class and method id */
    FRAME_EHEADER_SHORT = -7,       /* header frame without class, weight and body size */
    FRAME_EARGUMENTS = -8,          /* basic.deliver's arguments run past their frame */
    FRAME_ECLASS = -9,              /* content header of another class */
    FRAME_EFLAGS = -10,             /* continuation bit in the property flags */
    FRAME_EPROPERTIES = -11,        /* properties run past their frame */
    FRAME_EBODY_LONG = -12,         /* more body than was announced */
    FRAME_EMETHOD_UNEXPECTED = -13, /* method while a delivery on that channel is incomplete */
    FRAME_EHEADER_UNEXPECTED = -14, /* a second content header */
    FRAME_EBODY_UNEXPECTED = -15    /* body where the content header should have been */
};

typedef struct frame_event {
    uint8_t type; /* FRAME_METHOD ... FRAME_HEARTBEAT; of a delivery: FRAME_METHOD */
    uint16_t channel;
    wire_view payload; /* FRAME_RAW: without head and end octet */

    /* The rest is set for FRAME_DELIVERY only, otherwise zero. */
    bool redelivered;
    bool body_assembled;   /* body is a block of its own: frame_reader_take_body can take it */
    uint8_t delivery_mode; /* 0 if absent: see property_flags */
    uint8_t priority;
    uint16_t property_flags; /* as on the wire */
    uint64_t delivery_tag;
    wire_view consumer_tag;
    wire_view exchange;
    wire_view routing_key;
    wire_view method_args; /* payload of the method frame, class and method id included */
    wire_view header;      /* payload of the content header frame */
    wire_view content_type;
    wire_view content_encoding;
    wire_view headers; /* table, with the 4 bytes of its length */
    wire_view correlation_id;
    wire_view body;
    uint64_t body_dropped; /* size of a body that was dropped as larger than body_max; else 0 */
} frame_event;

enum { FRAME_HAS_DELIVERY_MODE = 0x1000, FRAME_HAS_PRIORITY = 0x0800 };

typedef struct frame_reader frame_reader;

/* The caller owns the reader (frame_reader_free). Bodies may have an allocator of their own; a NULL
 * allocator means libc. NULL: out of memory. */
frame_reader *frame_reader_new(const allocator *alloc, const allocator *body_alloc);
void frame_reader_free(frame_reader *r); /* NULL is fine */

/* Applies from the next frame on. 0 means FRAME_MAX_DEFAULT; less than FRAME_MAX_MIN counts as
 * FRAME_MAX_MIN. */
void frame_reader_set_frame_max(frame_reader *r, uint32_t frame_max);
uint32_t frame_reader_frame_max(const frame_reader *r);
/* A larger body is skipped. The delivery is still returned, without its body, so that it can be
 * acknowledged; otherwise the broker would deliver it again and again. */
void frame_reader_set_body_max(frame_reader *r, uint64_t body_max);

/* Returns room for bytes in *ptr and *room, valid until the next call of any function but commit.
 * There is room for at least `want` bytes, or FRAME_READ_SIZE / 4 if it is 0. 0 or error. */
int frame_reader_reserve(frame_reader *r, size_t want, uint8_t **ptr, size_t *room);

/* Says that `n` bytes were written to the reserved room. 0 or error. */
int frame_reader_commit(frame_reader *r, size_t n);

/* The next event, FRAME_NEED_MORE, or an error. To keep the buffer small, call it until
 * FRAME_NEED_MORE before you reserve again. */
int frame_reader_next(frame_reader *r, frame_event *event);

/* The assembled body of the delivery returned last, from the body allocator; the caller frees it.
 * NULL if that body is a part of the read buffer, or was taken before. */
uint8_t *frame_reader_take_body(frame_reader *r);

/* Bytes committed and not yet consumed, without those of a delivery under assembly. */
size_t frame_reader_buffered(const frame_reader *r);

/* For a caller that finds a view of the buffer still in use. The buffer, from the first allocator,
 * passes to the caller, and the reader is dead (FRAME_EMISUSE). NULL if there was no buffer. */
uint8_t *frame_reader_surrender(frame_reader *r);

const char *frame_reader_message(const frame_reader *r); /* "" before an error */

#endif
