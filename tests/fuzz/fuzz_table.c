/* libFuzzer target for table.c: hostile tables and properties. The values read from a table are
 * written again, and must then read the same.
 *
 *     clang -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Isrc_c \
 *         -Itests/c tests/fuzz/fuzz_table.c src_c/table.c -o fuzz_table
 *     ./fuzz_table -max_total_time=60 -rss_limit_mb=512 work/ tests/fuzz/corpus/table
 *
 * Input: one octet of what it is (bit 0: properties), then the wire.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "table.h"

/* How much a value can grow when it is written as py-amqp does: an int8 becomes an int32. */
enum { GROWTH = 3 };

typedef struct output {
    wire_writer to;
    uint8_t *opened[TABLE_DEPTH_MAX + 1]; /* where the first values of the open containers are */
    size_t depth;
} output;

typedef struct digest {
    uint64_t hash;
    size_t events;
} digest;

static void add(digest *d, const void *ptr, size_t len)
{
    const uint8_t *p = ptr;
    d->hash = (d->hash ^ len) * 1099511628211u;
    for (size_t i = 0; i < len; i++)
        d->hash = (d->hash ^ p[i]) * 1099511628211u;
}

static void check_inside(wire_view v, const uint8_t *ptr, const uint8_t *end)
{
    CHECK(v.ptr >= ptr && v.ptr <= end && v.len <= (size_t)(end - v.ptr),
          "a view outside of the bytes");
}

static void add_item(digest *d, int kind, const table_item *item)
{
    if (kind == TABLE_BYTES) /* written as text */
        kind = TABLE_TEXT;
    d->events++;
    add(d, &kind, sizeof kind);
    if (kind == TABLE_CLOSE)
        return;
    if (item->key.ptr != NULL)
        add(d, item->key.ptr, item->key.len);
    if (kind == TABLE_TEXT)
        add(d, item->bytes.ptr, item->bytes.len);
    if (kind == TABLE_INTEGER || kind == TABLE_BOOL || kind == TABLE_DECIMAL)
        add(d, &item->integer, sizeof item->integer);
    if (kind == TABLE_DECIMAL)
        add(d, &item->scale, sizeof item->scale);
    if (kind == TABLE_REAL)
        add(d, &item->real, sizeof item->real);
    if (kind == TABLE_TIMESTAMP)
        add(d, &item->timestamp, sizeof item->timestamp);
}

static bool write_opening(output *out, uint8_t type)
{
    if (!table_open(&out->to, type))
        return false;
    out->opened[out->depth++] = out->to.pos;
    return true;
}

static bool write_item(output *out, int kind, const table_item *item)
{
    if (kind == TABLE_CLOSE)
        return table_close(out->opened[--out->depth], out->to.pos);
    if (item->key.ptr != NULL && !wire_write_shortstr(&out->to, item->key.ptr, item->key.len))
        return false;
    switch (kind) {
    case TABLE_TEXT:
    case TABLE_BYTES:
        return table_write_text(&out->to, item->bytes.ptr, item->bytes.len);
    case TABLE_INTEGER:
        return table_write_integer(&out->to, item->integer);
    case TABLE_BOOL:
        return table_write_bool(&out->to, item->integer != 0);
    case TABLE_REAL:
        return table_write_real(&out->to, item->real);
    case TABLE_DECIMAL:
        return table_write_decimal(&out->to, item->scale, (int32_t)item->integer);
    case TABLE_TIMESTAMP:
        return table_write_timestamp(&out->to, item->timestamp);
    case TABLE_VOID:
        return table_write_void(&out->to);
    case TABLE_OPEN_TABLE:
        return write_opening(out, 'F');
    case TABLE_OPEN_ARRAY:
        return write_opening(out, 'A');
    default:
        return false;
    }
}

/* Reads to the end, and writes into `out` unless NULL. Returns the last result of table_next. */
static int walk(const uint8_t *ptr, size_t len, digest *d, output *out)
{
    table_reader r;
    table_item item;
    wire_cursor c = wire_cursor_over(ptr, len);
    int rc = table_begin(&r, &c);
    if (rc < 0)
        return rc;
    const uint8_t *end = c.pos;
    CHECK(out == NULL || write_opening(out, 0), "no room");
    while ((rc = table_next(&r, &item)) > TABLE_DONE) {
        if (rc != TABLE_CLOSE && item.key.ptr != NULL)
            check_inside(item.key, ptr, end);
        if (rc == TABLE_TEXT || rc == TABLE_BYTES)
            check_inside(item.bytes, ptr, end);
        add_item(d, rc, &item);
        CHECK(d->events <= len, "more events than octets");
        CHECK(out == NULL || write_item(out, rc, &item), "no room");
    }
    CHECK(rc != TABLE_DONE || r.at.pos == end, "done before the end");
    CHECK(rc != TABLE_DONE || out == NULL || table_close(out->opened[0], out->to.pos), "too long");
    return rc;
}

static void there_and_back(const uint8_t *ptr, size_t len)
{
    static output out;
    size_t room = GROWTH * len + TABLE_VALUE_MAX;
    uint8_t *block = malloc(room);
    if (block == NULL)
        abort();
    out.to = wire_writer_over(block, room);
    out.depth = 0;
    digest first = {0}, second = {0};
    if (walk(ptr, len, &first, &out) == TABLE_DONE) {
        size_t written = (size_t)(out.to.pos - block);
        CHECK(walk(block, written, &second, NULL) == TABLE_DONE, "written and not read");
        CHECK(first.hash == second.hash && first.events == second.events, "another table");
    }
    free(block);
}

static void properties(const uint8_t *ptr, size_t len)
{
    property_reader r;
    property_item item;
    int count = 0, last = -1;
    int rc = properties_begin(&r, ptr, len);
    while (rc >= 0 && (rc = properties_next(&r, &item)) > PROPERTIES_DONE) {
        CHECK(item.index > last && item.index < PROPERTY_COUNT && rc == property_kind(item.index));
        last = item.index;
        count++;
        if (rc == PROPERTY_SHORTSTR || rc == PROPERTY_TABLE)
            check_inside(item.bytes, ptr, ptr + len);
        if (rc == PROPERTY_TABLE)
            there_and_back(item.bytes.ptr, item.bytes.len);
        CHECK(rc != PROPERTY_OCTET || item.number <= 255);
    }
    CHECK(count <= PROPERTY_COUNT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (data[0] & 1)
        properties(data + 1, size - 1);
    else
        there_and_back(data + 1, size - 1);
    return 0;
}
