/* Encodes basic.publish, content header and body frames into one buffer. No I/O, no globals.
 *
 * The parts that all messages share are encoded once, into a publish_template. A message adds its
 * routing key, correlation id and body:
 *
 *     publish_template_init(&t, &options);
 *     publish_size(&t, &message, &size);       make room for `size` bytes
 *     publish_write(&t, &message, out, size);
 *
 * Ownership: the template copies everything into one block of its own (publish_template_free); the
 * views in publish_options need to live only until publish_template_init returns. publish_size and
 * publish_write allocate nothing and keep no pointer: the views in a publish_message must live
 * until publish_write returns.
 *
 * The bytes equal those of py-amqp's frame_writer: one body frame if the body fits frame_max - 8,
 * otherwise full frames and a rest; none for an empty body.
 */
#ifndef FASTRPC_PUBLISH_H
#define FASTRPC_PUBLISH_H

#include <stddef.h>
#include <stdint.h>

#include "alloc.h"
#include "wire.h"

enum { PUBLISH_ACK_SIZE = 21, PUBLISH_NO_OCTET = -1 };

enum {
    PUBLISH_ENOMEM = -1,
    PUBLISH_EEXCHANGE = -2, /* a short string holds 255 bytes */
    PUBLISH_ECONTENT_TYPE = -3,
    PUBLISH_ECONTENT_ENCODING = -4,
    PUBLISH_EROUTING_KEY = -5,
    PUBLISH_ECORRELATION_ID = -6,
    PUBLISH_EHEADERS = -7,   /* not a table: its length does not match the number of bytes */
    PUBLISH_EFRAME_MAX = -8, /* the content header does not fit one frame */
    PUBLISH_ESIZE = -9       /* does not fit a size_t, or the caller's buffer */
};

typedef struct publish_options {
    uint16_t channel;
    bool mandatory;
    uint32_t frame_max; /* 0: 128 KiB; at least 4096 */
    wire_view exchange;
    wire_view content_type; /* a NULL ptr leaves a property out */
    wire_view content_encoding;
    wire_view headers; /* encoded table with the 4 bytes of its length */
    int delivery_mode; /* 0 to 255, or PUBLISH_NO_OCTET */
    int priority;
} publish_options;

typedef struct publish_message {
    wire_view routing_key;
    wire_view correlation_id; /* a NULL ptr leaves it out */
    wire_view body;
} publish_message;

typedef struct publish_template {
    allocator alloc;
    uint8_t *block; /* method frame up to the routing key, header frame up to the correlation id */
    size_t method_len;
    size_t header_len;
    size_t body_chunk; /* frame_max - 8 */
    uint16_t channel;
    bool mandatory;
} publish_template;

/* The caller owns *t, which may be uninitialized. NULL allocator: libc. 0 or error; after an error
 * there is nothing to free. */
int publish_template_init(publish_template *t, const publish_options *options,
                          const allocator *alloc);
void publish_template_free(publish_template *t); /* may be called twice */

/* The exact size of a message. 0 or error. */
int publish_size(const publish_template *t, const publish_message *m, size_t *size);

/* Writes exactly as many bytes as publish_size says; `room` is the size of `out`. 0 or error. */
int publish_write(const publish_template *t, const publish_message *m, uint8_t *out, size_t room);

/* Writes a basic.ack frame: PUBLISH_ACK_SIZE bytes. */
void publish_ack(uint8_t *out, uint16_t channel, uint64_t delivery_tag, bool multiple);

#endif
