/* Reads and writes AMQP 0-9-1 field tables and the properties of basic content. No I/O, no globals,
 * no allocation.
 *
 *     table = long length, *(shortstr key, value)      length in octets, without itself
 *     array = long length, *value
 *     value = octet type, data
 *
 *     t  octet, 0 is false          S  long length, text        V  nothing
 *     b  int8      B  uint8         x  long length, octets      T  uint64, seconds since 1970
 *     s U int16    u  uint16        F  table                    D  octet scale, int32 unscaled
 *     I  int32     i  uint32        A  array                    f  float
 *     l L int64                                                 d  double
 *
 * The letters are those of py-amqp and RabbitMQ; the AMQP 0-9-1 specification has others.
 *
 * Reading is iterative: each call of table_next returns one value, or the start or end of a
 * container. Nothing recurses, nothing is copied.
 *
 *     wire_cursor c = wire_cursor_over(ptr, len);
 *     rc = table_begin(&r, &c);
 *     while (rc >= 0 && (rc = table_next(&r, &item)) != TABLE_DONE)
 *         ...
 *
 * Each length is checked against the bytes left in its container: a value that would run past its
 * table is an error, not a shorter value.
 *
 * Ownership: every view points into the bytes that the caller passed in, and is valid as long as
 * they are.
 */
#ifndef FASTRPC_TABLE_H
#define FASTRPC_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire.h"

/* The deepest nesting of containers inside the outermost table. py-amqp recurses: at Python's
 * default recursion limit it writes 498 levels and reads 997. */
enum { TABLE_DEPTH_MAX = 512 };

/* What table_next returns on success. */
enum {
    TABLE_DONE = 0, /* the outermost table has ended */
    TABLE_TEXT,
    TABLE_BYTES,
    TABLE_INTEGER,
    TABLE_BOOL, /* in integer: 0 or 1 */
    TABLE_REAL,
    TABLE_DECIMAL, /* integer / 10 ** scale */
    TABLE_TIMESTAMP,
    TABLE_VOID,
    TABLE_OPEN_TABLE, /* the values up to the matching TABLE_CLOSE belong to it */
    TABLE_OPEN_ARRAY,
    TABLE_CLOSE
};

/* The errors that every function returning int returns. */
enum {
    TABLE_ELENGTH = -1, /* a length is larger than the bytes left */
    TABLE_ETYPE = -2,   /* unknown type: item->type */
    TABLE_EDEPTH = -3,  /* more than TABLE_DEPTH_MAX nested containers */
    TABLE_EFLAGS = -4   /* continuation bit in the property flags */
};

/* ------------------------------------------------------------------ reading */

typedef struct table_item {
    wire_view key;   /* NULL ptr: an element of an array; not set by TABLE_DONE and TABLE_CLOSE */
    wire_view bytes; /* of TABLE_TEXT and TABLE_BYTES */
    union {
        int64_t integer;
        double real;
        uint64_t timestamp;
    };
    uint8_t scale;
    uint8_t type; /* as on the wire */
} table_item;

typedef struct table_level {
    const uint8_t *end;
    bool array;
} table_level;

typedef struct table_reader {
    wire_cursor at; /* the rest of the innermost open container */
    bool array;     /* whether that container is an array */
    size_t depth;
    table_level outer[TABLE_DEPTH_MAX]; /* the containers around it, outermost first */
} table_reader;

/* Starts reading the table at the cursor and moves the cursor behind it. 0 or error. */
int table_begin(table_reader *r, wire_cursor *c);

/* The next value, the start or end of a container, or an error. Do not call it after an error. */
int table_next(table_reader *r, table_item *item);

/* ------------------------------------------------------------------ writing
 *
 * Writes values as py-amqp does. In a table, write a key (wire_write_shortstr) before each value. A
 * container is its type, TABLE_LENGTH_SIZE octets that table_close fills in, and its values.
 *
 * Like all writers of wire.h these return false, and write nothing, if too little room is left.
 */

enum {
    TABLE_LENGTH_SIZE = 4,
    TABLE_TEXT_OVERHEAD = 5, /* of table_write_text */
    TABLE_VALUE_MAX = 9      /* of any other value, and of table_open */
};

bool table_write_text(wire_writer *w, const void *ptr, size_t len);
bool table_write_integer(wire_writer *w, int64_t v);
bool table_write_bool(wire_writer *w, bool v);
bool table_write_real(wire_writer *w, double v);
bool table_write_timestamp(wire_writer *w, uint64_t v);
bool table_write_decimal(wire_writer *w, uint8_t scale, int32_t unscaled);
bool table_write_void(wire_writer *w);

/* `type` is 'F' or 'A', or 0 for the outermost table, which has no type octet. */
bool table_open(wire_writer *w, uint8_t type);

/* Fills in the length of a container. `first` is where its first value begins, `end` where its last
 * one ends. False if the length does not fit 32 bits. */
bool table_close(uint8_t *first, const uint8_t *end);

/* ------------------------------------------------------------------ properties
 *
 *     properties = short flags, *property      in the order of the flags, highest bit first
 */

enum {
    PROPERTY_CONTENT_TYPE,
    PROPERTY_CONTENT_ENCODING,
    PROPERTY_HEADERS,
    PROPERTY_DELIVERY_MODE,
    PROPERTY_PRIORITY,
    PROPERTY_CORRELATION_ID,
    PROPERTY_REPLY_TO,
    PROPERTY_EXPIRATION,
    PROPERTY_MESSAGE_ID,
    PROPERTY_TIMESTAMP,
    PROPERTY_TYPE,
    PROPERTY_USER_ID,
    PROPERTY_APP_ID,
    PROPERTY_CLUSTER_ID,
    PROPERTY_COUNT
};

enum { PROPERTIES_DONE = 0, PROPERTY_SHORTSTR, PROPERTY_TABLE, PROPERTY_OCTET, PROPERTY_LONGLONG };

typedef struct property_item {
    int index;       /* PROPERTY_CONTENT_TYPE ... PROPERTY_CLUSTER_ID */
    wire_view bytes; /* PROPERTY_SHORTSTR; PROPERTY_TABLE: with the 4 bytes of its length */
    uint64_t number; /* PROPERTY_OCTET, PROPERTY_LONGLONG */
} property_item;

typedef struct property_reader {
    wire_cursor at;
    uint16_t flags;
    int next;
} property_reader;

/* PROPERTY_SHORTSTR ... PROPERTY_LONGLONG */
int property_kind(int index);
uint16_t property_flag(int index);

/* Reads the flags. 0 or error. */
int properties_begin(property_reader *r, const uint8_t *ptr, size_t len);

/* The kind of the next property that is set, PROPERTIES_DONE, or an error. Unused flags, and bytes
 * after the last property, are ignored. */
int properties_next(property_reader *r, property_item *item);

#endif
