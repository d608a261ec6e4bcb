#include "table.h"

/* The range that py-amqp writes as 32-bit integers. -2147483648 would fit, but is not in it. */
enum { LONG_MAX_WRITTEN = 2147483647, LONG_MIN_WRITTEN = -2147483647 };

/* ------------------------------------------------------------------ reading */

int table_begin(table_reader *r, wire_cursor *c)
{
    wire_view table;
    if (!wire_read_table(c, &table))
        return TABLE_ELENGTH;
    r->at = wire_cursor_over(table.ptr + TABLE_LENGTH_SIZE, table.len - TABLE_LENGTH_SIZE);
    r->array = false;
    r->depth = 0;
    return 0;
}

/* An unsigned integer of `size` octets, at most 8. */
static bool read_unsigned(wire_cursor *c, size_t size, uint64_t *out)
{
    if (wire_left(c) < size)
        return false;
    uint64_t v = 0;
    for (size_t i = 0; i < size; i++)
        v = v << 8 | c->pos[i];
    c->pos += size;
    *out = v;
    return true;
}

/* The value of `size` octets as a two's complement number. A cast would be implementation-defined
 * for values that do not fit. */
static int64_t to_signed(uint64_t v, size_t size)
{
    uint64_t most = UINT64_MAX >> (65 - 8 * size);
    return v <= most ? (int64_t)v : -(int64_t)(2 * most + 1 - v) - 1;
}

static int read_integer(wire_cursor *c, size_t size, bool is_signed, table_item *item)
{
    uint64_t v;
    if (!read_unsigned(c, size, &v))
        return TABLE_ELENGTH;
    item->integer = is_signed ? to_signed(v, size) : (int64_t)v;
    return TABLE_INTEGER;
}

static int read_bytes(wire_cursor *c, int kind, table_item *item)
{
    wire_view v;
    if (!wire_read_table(c, &v)) /* the layout is the same: a length and as many octets */
        return TABLE_ELENGTH;
    item->bytes = (wire_view){v.ptr + TABLE_LENGTH_SIZE, v.len - TABLE_LENGTH_SIZE};
    return kind;
}

static int read_bool(wire_cursor *c, table_item *item)
{
    uint8_t v;
    if (!wire_read_u8(c, &v))
        return TABLE_ELENGTH;
    item->integer = v != 0;
    return TABLE_BOOL;
}

static int read_float(wire_cursor *c, table_item *item)
{
    uint32_t bits;
    float real;
    if (!wire_read_u32(c, &bits))
        return TABLE_ELENGTH;
    memcpy(&real, &bits, sizeof real);
    item->real = real;
    return TABLE_REAL;
}

static int read_double(wire_cursor *c, table_item *item)
{
    uint64_t bits;
    if (!wire_read_u64(c, &bits))
        return TABLE_ELENGTH;
    memcpy(&item->real, &bits, sizeof item->real);
    return TABLE_REAL;
}

static int read_decimal(wire_cursor *c, table_item *item)
{
    if (!wire_read_u8(c, &item->scale) || read_integer(c, 4, true, item) < 0)
        return TABLE_ELENGTH;
    return TABLE_DECIMAL;
}

static int open_container(table_reader *r, bool array)
{
    uint32_t len;
    if (!wire_read_u32(&r->at, &len) || wire_left(&r->at) < len)
        return TABLE_ELENGTH;
    if (r->depth == TABLE_DEPTH_MAX)
        return TABLE_EDEPTH;
    r->outer[r->depth++] = (table_level){r->at.end, r->array};
    r->at.end = r->at.pos + len;
    r->array = array;
    return array ? TABLE_OPEN_ARRAY : TABLE_OPEN_TABLE;
}

static int close_container(table_reader *r)
{
    if (r->depth == 0)
        return TABLE_DONE;
    const table_level *level = &r->outer[--r->depth];
    r->at.end = level->end;
    r->array = level->array;
    return TABLE_CLOSE;
}

int table_next(table_reader *r, table_item *item)
{
    wire_cursor *c = &r->at;
    if (wire_left(c) == 0)
        return close_container(r);
    item->key = (wire_view){NULL, 0};
    if (!r->array && !wire_read_shortstr(c, &item->key))
        return TABLE_ELENGTH;
    if (!wire_read_u8(c, &item->type))
        return TABLE_ELENGTH;
    switch (item->type) {
    case 'S':
        return read_bytes(c, TABLE_TEXT, item);
    case 'x':
        return read_bytes(c, TABLE_BYTES, item);
    case 'I':
        return read_integer(c, 4, true, item);
    case 'i':
        return read_integer(c, 4, false, item);
    case 'l':
    case 'L':
        return read_integer(c, 8, true, item);
    case 's':
    case 'U':
        return read_integer(c, 2, true, item);
    case 'u':
        return read_integer(c, 2, false, item);
    case 'b':
        return read_integer(c, 1, true, item);
    case 'B':
        return read_integer(c, 1, false, item);
    case 't':
        return read_bool(c, item);
    case 'f':
        return read_float(c, item);
    case 'd':
        return read_double(c, item);
    case 'D':
        return read_decimal(c, item);
    case 'T':
        return wire_read_u64(c, &item->timestamp) ? TABLE_TIMESTAMP : TABLE_ELENGTH;
    case 'V':
        return TABLE_VOID;
    case 'F':
        return open_container(r, false);
    case 'A':
        return open_container(r, true);
    default:
        return TABLE_ETYPE;
    }
}

/* ------------------------------------------------------------------ writing */

bool table_write_text(wire_writer *w, const void *ptr, size_t len)
{
    return wire_room(w) >= TABLE_TEXT_OVERHEAD && wire_room(w) - TABLE_TEXT_OVERHEAD >= len &&
           len <= UINT32_MAX && wire_write_u8(w, 'S') && wire_write_u32(w, (uint32_t)len) &&
           wire_write_bytes(w, ptr, len);
}

static bool write_u32_value(wire_writer *w, uint8_t type, uint32_t v)
{
    return wire_room(w) >= 5 && wire_write_u8(w, type) && wire_write_u32(w, v);
}

static bool write_u64_value(wire_writer *w, uint8_t type, uint64_t v)
{
    return wire_room(w) >= 9 && wire_write_u8(w, type) && wire_write_u64(w, v);
}

bool table_write_integer(wire_writer *w, int64_t v)
{
    if (v > LONG_MAX_WRITTEN || v < LONG_MIN_WRITTEN)
        return write_u64_value(w, 'L', (uint64_t)v);
    return write_u32_value(w, 'I', (uint32_t)v);
}

bool table_write_bool(wire_writer *w, bool v)
{
    return wire_room(w) >= 2 && wire_write_u8(w, 't') && wire_write_u8(w, v);
}

bool table_write_real(wire_writer *w, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return write_u64_value(w, 'd', bits);
}

bool table_write_timestamp(wire_writer *w, uint64_t v)
{
    return write_u64_value(w, 'T', v);
}

bool table_write_decimal(wire_writer *w, uint8_t scale, int32_t unscaled)
{
    return wire_room(w) >= 6 && wire_write_u8(w, 'D') && wire_write_u8(w, scale) &&
           wire_write_u32(w, (uint32_t)unscaled);
}

bool table_write_void(wire_writer *w)
{
    return wire_write_u8(w, 'V');
}

bool table_open(wire_writer *w, uint8_t type)
{
    return type == 0 ? wire_write_u32(w, 0) : write_u32_value(w, type, 0);
}

bool table_close(uint8_t *first, const uint8_t *end)
{
    size_t len = (size_t)(end - first);
    if (len > UINT32_MAX)
        return false;
    wire_store32(first - TABLE_LENGTH_SIZE, (uint32_t)len);
    return true;
}

/* ------------------------------------------------------------------ properties */

enum { CONTINUATION = 0x0001, FIRST_FLAG = 0x8000 };

int property_kind(int index)
{
    switch (index) {
    case PROPERTY_HEADERS:
        return PROPERTY_TABLE;
    case PROPERTY_DELIVERY_MODE:
    case PROPERTY_PRIORITY:
        return PROPERTY_OCTET;
    case PROPERTY_TIMESTAMP:
        return PROPERTY_LONGLONG;
    default:
        return PROPERTY_SHORTSTR;
    }
}

uint16_t property_flag(int index)
{
    return (uint16_t)(FIRST_FLAG >> index);
}

int properties_begin(property_reader *r, const uint8_t *ptr, size_t len)
{
    r->at = wire_cursor_over(ptr, len);
    r->next = 0;
    if (!wire_read_u16(&r->at, &r->flags))
        return TABLE_ELENGTH;
    /* All properties of basic content have their flags in the first word. */
    return (r->flags & CONTINUATION) != 0 ? TABLE_EFLAGS : 0;
}

int properties_next(property_reader *r, property_item *item)
{
    while (r->next < PROPERTY_COUNT && (r->flags & property_flag(r->next)) == 0)
        r->next++;
    if (r->next == PROPERTY_COUNT)
        return PROPERTIES_DONE;
    item->index = r->next++;
    int kind = property_kind(item->index);
    uint8_t octet;
    bool ok = false;
    switch (kind) {
    case PROPERTY_SHORTSTR:
        ok = wire_read_shortstr(&r->at, &item->bytes);
        break;
    case PROPERTY_TABLE:
        ok = wire_read_table(&r->at, &item->bytes);
        break;
    case PROPERTY_OCTET:
        ok = wire_read_u8(&r->at, &octet);
        if (ok)
            item->number = octet;
        break;
    case PROPERTY_LONGLONG:
        ok = wire_read_u64(&r->at, &item->number);
        break;
    }
    return ok ? kind : TABLE_ELENGTH;
}
