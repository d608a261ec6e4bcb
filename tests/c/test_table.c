/* table.c: every type octet by octet, nesting, truncated and wrong lengths, and writing.
 * (tests/unit/test_table.py checks equality with py-amqp.) Run by test_c.py. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "amqp_bytes.h"
#include "check.h"
#include "table.h"

/* Copies into a block of exactly that size, so that ASan finds a read of one octet too many. */
static uint8_t *copy(const void *ptr, size_t len)
{
    uint8_t *block = malloc(len != 0 ? len : 1);
    if (block == NULL)
        abort();
    if (len != 0)
        memcpy(block, ptr, len);
    return block;
}

/* Reads to the end and counts the values. Returns the last result of table_next. */
static int walk(const uint8_t *ptr, size_t len, size_t *events)
{
    static table_reader r;
    table_item item;
    wire_cursor c = wire_cursor_over(ptr, len);
    size_t depth = 0;
    int rc = table_begin(&r, &c);
    if (rc < 0)
        return rc;
    const uint8_t *end = c.pos;
    while ((rc = table_next(&r, &item)) > 0) {
        *events += 1;
        if (rc == TABLE_CLOSE) {
            CHECK(depth-- > 0);
            continue;
        }
        if (item.key.ptr != NULL)
            CHECK(item.key.ptr >= ptr && item.key.len <= (size_t)(end - item.key.ptr));
        if (rc == TABLE_TEXT || rc == TABLE_BYTES)
            CHECK(item.bytes.ptr >= ptr && item.bytes.len <= (size_t)(end - item.bytes.ptr));
        if (rc == TABLE_OPEN_TABLE || rc == TABLE_OPEN_ARRAY)
            depth++;
    }
    CHECK(rc != TABLE_DONE || (depth == 0 && r.at.pos == end), "an end inside");
    return rc;
}

static int walk_copy(const void *ptr, size_t len)
{
    uint8_t *block = copy(ptr, len);
    size_t events = 0;
    int rc = walk(block, len, &events);
    CHECK(events <= len, "more events than octets");
    free(block);
    return rc;
}

/* The first value of a table, of that type and at the start of those octets; how much of them is
 * left. Its bytes are compared here: they go when it returns. */
static int read_first(char type, const void *data, size_t len, table_item *item, size_t *left)
{
    table_reader r;
    bytes b = {0};
    add_u32(&b, (uint32_t)(3 + len));
    add_shortstr(&b, "k");
    add_u8(&b, (uint8_t)type);
    add_bytes(&b, data, len);
    wire_cursor c = wire_cursor_over(b.ptr, b.len);
    CHECK(table_begin(&r, &c) == 0 && wire_left(&c) == 0, "begin");
    int rc = table_next(&r, item);
    CHECK(rc < 0 || (item->key.len == 1 && item->key.ptr[0] == 'k' && item->type == (uint8_t)type),
          "key or type");
    if (rc == TABLE_TEXT || rc == TABLE_BYTES)
        CHECK(memcmp(item->bytes.ptr, (const uint8_t *)data + 4, item->bytes.len) == 0,
              "other bytes");
    *left = wire_left(&r.at);
    free(b.ptr);
    return rc;
}

static int read_one(char type, const void *data, size_t len, table_item *item)
{
    size_t left;
    int rc = read_first(type, data, len, item, &left);
    CHECK(rc < 0 || left == 0, "%c: a rest", type);
    return rc;
}

#define READ(type, literal) read_one(type, literal, sizeof literal - 1, &item)

static void test_integers(void)
{
    static const struct {
        char type;
        size_t size;
        bool is_signed;
    } types[] = {{'b', 1, true}, {'B', 1, false}, {'s', 2, true}, {'U', 2, true}, {'u', 2, false},
                 {'I', 4, true}, {'i', 4, false}, {'l', 8, true}, {'L', 8, true}};
    table_item item;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        uint8_t octets[8];
        size_t size = types[i].size;
        int64_t most = (int64_t)(UINT64_MAX >> (65 - 8 * size));

        memset(octets, 0xff, sizeof octets);
        CHECK(read_one(types[i].type, octets, size, &item) == TABLE_INTEGER, "%c", types[i].type);
        CHECK(item.integer == (types[i].is_signed ? -1 : 2 * most + 1), "%c", types[i].type);
        octets[0] = 0x7f;
        CHECK(read_one(types[i].type, octets, size, &item) == TABLE_INTEGER, "%c", types[i].type);
        CHECK(item.integer == most, "%c", types[i].type);
        memset(octets, 0, sizeof octets);
        octets[0] = 0x80;
        CHECK(read_one(types[i].type, octets, size, &item) == TABLE_INTEGER, "%c", types[i].type);
        CHECK(item.integer == (types[i].is_signed ? -most - 1 : most + 1), "%c", types[i].type);
        CHECK(read_one(types[i].type, octets, size - 1, &item) == TABLE_ELENGTH, "%c",
              types[i].type);
    }
}

static void test_values(void)
{
    table_item item;
    size_t left;
    CHECK(READ('S', "\0\0\0\2hi") == TABLE_TEXT && item.bytes.len == 2);
    CHECK(READ('S', "\0\0\0\0") == TABLE_TEXT && item.bytes.len == 0);
    CHECK(READ('x', "\0\0\0\1\377") == TABLE_BYTES && item.bytes.len == 1);
    CHECK(READ('t', "\0") == TABLE_BOOL && item.integer == 0);
    CHECK(READ('t', "\2") == TABLE_BOOL && item.integer == 1);
    CHECK(READ('f', "\277\300\0\0") == TABLE_REAL && item.real == -1.5);
    CHECK(READ('d', "\277\370\0\0\0\0\0\0") == TABLE_REAL && item.real == -1.5);
    CHECK(READ('d', "\177\370\0\0\0\0\0\0") == TABLE_REAL && isnan(item.real));
    CHECK(READ('D', "\377\377\377\377\376") == TABLE_DECIMAL && item.scale == 255 &&
          item.integer == -2);
    CHECK(READ('T', "\377\377\377\377\377\377\377\377") == TABLE_TIMESTAMP &&
          item.timestamp == UINT64_MAX);
    CHECK(READ('V', "") == TABLE_VOID);
    CHECK(READ('F', "\0\0\0\0") == TABLE_OPEN_TABLE);
    CHECK(READ('A', "\0\0\0\0") == TABLE_OPEN_ARRAY);

    CHECK(READ('S', "\0\0\0\2h") == TABLE_ELENGTH);
    CHECK(READ('S', "\377\377\377\377hi") == TABLE_ELENGTH);
    CHECK(READ('x', "\0\0\0") == TABLE_ELENGTH);
    CHECK(READ('t', "") == TABLE_ELENGTH);
    CHECK(READ('f', "\0\0\0") == TABLE_ELENGTH);
    CHECK(READ('d', "\0\0\0\0\0\0\0") == TABLE_ELENGTH);
    CHECK(READ('D', "") == TABLE_ELENGTH);
    CHECK(READ('D', "\0\0\0\0") == TABLE_ELENGTH);
    CHECK(READ('T', "\0\0\0\0\0\0\0") == TABLE_ELENGTH);
    CHECK(READ('F', "\0\0\0\1") == TABLE_ELENGTH);
    CHECK(READ('A', "\377\377\377\377") == TABLE_ELENGTH);

    static const char known[] = "SxbBsUuIilLtfdDTVFA";
    for (int type = 0; type < 256; type++) {
        bool is_known = type != 0 && strchr(known, type) != NULL;
        int rc = read_first((char)type, "\0\0\0\0\0\0\0\0", 8, &item, &left);
        CHECK((rc == TABLE_ETYPE) == !is_known, "type 0x%02x: %d", type, rc);
        CHECK(rc != TABLE_ETYPE || item.type == type, "which type");
    }
}

/* {"a": [{"b": void}, [], true], "c": {}} */
static const char nested[] = "\0\0\0\35"
                             "\1aA\0\0\0\17"
                             "F\0\0\0\3\1bV"
                             "A\0\0\0\0"
                             "t\1"
                             "\1cF\0\0\0\0";

static void test_nesting(void)
{
    static const int kinds[] = {TABLE_OPEN_ARRAY, TABLE_OPEN_TABLE, TABLE_VOID, TABLE_CLOSE,
                                TABLE_OPEN_ARRAY, TABLE_CLOSE,      TABLE_BOOL, TABLE_CLOSE,
                                TABLE_OPEN_TABLE, TABLE_CLOSE,      TABLE_DONE, TABLE_DONE};
    /* 0: a value of an array; -: the end of something */
    static const char keys[] = "a0b-0-0-c---";
    table_reader r;
    table_item item;
    wire_cursor c = wire_cursor_over((const uint8_t *)nested, sizeof nested - 1);
    CHECK(table_begin(&r, &c) == 0 && wire_left(&c) == 0, "begin");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        int rc = table_next(&r, &item);
        CHECK(rc == kinds[i], "event %zu is %d", i, rc);
        if (keys[i] != '-')
            CHECK(keys[i] == '0' ? item.key.ptr == NULL
                                 : item.key.len == 1 && *item.key.ptr == (uint8_t)keys[i],
                  "key of event %zu", i);
    }
}

/* Truncated or changed bytes give an error, or at most another value. */
static void test_cut_and_changed(void)
{
    size_t len = sizeof nested - 1;
    CHECK(walk_copy(nested, len) == TABLE_DONE, "whole");
    for (size_t n = 0; n < len; n++)
        CHECK(walk_copy(nested, n) == TABLE_ELENGTH, "cut at %zu", n);
    for (size_t n = 4; n < len; n++) { /* the length knows of the cut */
        uint8_t *cut = copy(nested, n);
        wire_store32(cut, (uint32_t)(n - 4));
        walk_copy(cut, n);
        free(cut);
    }
    for (size_t n = 0; n < len; n++) {
        for (int octet = 0; octet < 256; octet++) {
            uint8_t *changed = copy(nested, len);
            changed[n] = (uint8_t)octet;
            walk_copy(changed, len);
            free(changed);
        }
    }
}

/* A value that ends within the bytes, but after the end of the table that contains it. */
static void test_lying_lengths(void)
{
    CHECK(walk_copy("\0\0\0\7\1kS\0\0\0\1..........", 21) == TABLE_ELENGTH, "text");
    CHECK(walk_copy("\0\0\0\7\1kF\0\0\0\1..........", 21) == TABLE_ELENGTH, "table");
    CHECK(walk_copy("\0\0\0\6\1kI\0\0\0\1\0\0\0\0", 14) == TABLE_ELENGTH, "integer");
    CHECK(walk_copy("\0\0\0\2\5key", 8) == TABLE_ELENGTH, "key");
    CHECK(walk_copy("\0\0\0\2\1kV", 7) == TABLE_ELENGTH, "type");
    CHECK(walk_copy("\0\0\0\15\1kA\0\0\0\1I\0\0\0\1V", 17) == TABLE_ELENGTH, "in an array");
}

/* `depth` containers inside the outermost table. */
static bytes nest(size_t depth, char type)
{
    size_t each = type == 'F' ? 7 : 5; /* key, type, length */
    bytes b = {0};
    add_u32(&b, (uint32_t)(7 + (depth - 1) * each));
    for (size_t left = depth; left > 0; left--) {
        if (left == depth || type == 'F')
            add_shortstr(&b, "k");
        add_u8(&b, (uint8_t)type);
        add_u32(&b, (uint32_t)((left - 1) * each));
    }
    return b;
}

static void test_depth(void)
{
    static const char types[] = "FA";
    static const size_t depths[] = {1, TABLE_DEPTH_MAX, TABLE_DEPTH_MAX + 1, 100000};
    for (size_t t = 0; t < 2; t++) {
        for (size_t d = 0; d < sizeof depths / sizeof *depths; d++) {
            bytes b = nest(depths[d], types[t]);
            int rc = walk_copy(b.ptr, b.len);
            CHECK(rc == (depths[d] <= TABLE_DEPTH_MAX ? TABLE_DONE : TABLE_EDEPTH), "%zu deep: %d",
                  depths[d], rc);
            free(b.ptr);
        }
    }
}

/* ------------------------------------------------------------------ writing */

typedef bool (*write)(wire_writer *w);

static bool write_text(wire_writer *w)
{
    return table_write_text(w, "hi", 2);
}
static bool write_empty(wire_writer *w)
{
    return table_write_text(w, NULL, 0);
}
static bool write_long(wire_writer *w)
{
    return table_write_integer(w, -2147483647);
}
static bool write_most(wire_writer *w)
{
    return table_write_integer(w, 2147483647);
}
static bool write_below(wire_writer *w)
{
    return table_write_integer(w, -2147483648LL);
}
static bool write_above(wire_writer *w)
{
    return table_write_integer(w, 2147483648LL);
}
static bool write_least(wire_writer *w)
{
    return table_write_integer(w, INT64_MIN);
}
static bool write_bool(wire_writer *w)
{
    return table_write_bool(w, true);
}
static bool write_real(wire_writer *w)
{
    return table_write_real(w, -1.5);
}
static bool write_timestamp(wire_writer *w)
{
    return table_write_timestamp(w, UINT64_MAX);
}
static bool write_decimal(wire_writer *w)
{
    return table_write_decimal(w, 255, -2);
}
static bool write_void(wire_writer *w)
{
    return table_write_void(w);
}
static bool open_table(wire_writer *w)
{
    return table_open(w, 'F');
}
static bool open_outermost(wire_writer *w)
{
    return table_open(w, 0);
}

/* Writes those octets into just enough room, and nothing into less. */
static void expect(const char *name, write to, const void *want, size_t len)
{
    uint8_t got[32] = {0};
    wire_writer w = wire_writer_over(got, len);
    CHECK(to(&w) && wire_room(&w) == 0 && memcmp(got, want, len) == 0, "%s", name);
    for (size_t less = 0; less < len; less++) {
        memset(got, 0x55, sizeof got);
        w = wire_writer_over(got, less);
        CHECK(!to(&w) && w.pos == got, "%s into %zu", name, less);
        for (size_t i = 0; i < sizeof got; i++)
            CHECK(got[i] == 0x55, "%s into %zu: written", name, less);
    }
}

#define EXPECT(to, literal) expect(#to, to, literal, sizeof literal - 1)

static void test_writing(void)
{
    EXPECT(write_text, "S\0\0\0\2hi");
    EXPECT(write_empty, "S\0\0\0\0");
    EXPECT(write_long, "I\200\0\0\1");
    EXPECT(write_most, "I\177\377\377\377");
    EXPECT(write_below, "L\377\377\377\377\200\0\0\0");
    EXPECT(write_above, "L\0\0\0\0\200\0\0\0");
    EXPECT(write_least, "L\200\0\0\0\0\0\0\0");
    EXPECT(write_bool, "t\1");
    EXPECT(write_real, "d\277\370\0\0\0\0\0\0");
    EXPECT(write_timestamp, "T\377\377\377\377\377\377\377\377");
    EXPECT(write_decimal, "D\377\377\377\377\376");
    EXPECT(write_void, "V");
    EXPECT(open_table, "F\0\0\0\0");
    EXPECT(open_outermost, "\0\0\0\0");

    /* The room is fictitious: a length above 4 GiB is refused before any access. */
    uint8_t first[16] = {0};
    if (sizeof(size_t) > 4) {
        const size_t large = (size_t)UINT32_MAX + 1;
        uint8_t *far = (uint8_t *)((uintptr_t)first + large + 16);
        wire_writer w = {first, far};
        CHECK(!table_write_text(&w, first, large) && w.pos == first, "text of 4 GiB");
        CHECK(!table_close(first + 4, (uint8_t *)((uintptr_t)first + 4 + large)), "table of 4 GiB");
    }
    CHECK(table_close(first + 4, first + 9) && wire_load32(first) == 5, "length");
}

/* ------------------------------------------------------------------ properties */

static const char all_properties[] = "\377\374"
                                     "\1t"
                                     "\1e"
                                     "\0\0\0\3\1kV"
                                     "\2"
                                     "\11"
                                     "\2id"
                                     "\5reply"
                                     "\0"
                                     "\1m"
                                     "\377\377\377\377\377\377\377\377"
                                     "\4type"
                                     "\4user"
                                     "\3app"
                                     "\7cluster";

static int walk_properties(const void *ptr, size_t len, size_t *count)
{
    uint8_t *block = copy(ptr, len);
    property_reader r;
    property_item item;
    int last = -1;
    int rc = properties_begin(&r, block, len);
    *count = 0;
    while (rc >= 0 && (rc = properties_next(&r, &item)) > PROPERTIES_DONE) {
        CHECK(item.index > last && rc == property_kind(item.index), "order or kind");
        last = item.index;
        if (rc == PROPERTY_SHORTSTR || rc == PROPERTY_TABLE)
            CHECK(item.bytes.ptr > block &&
                  item.bytes.len <= (size_t)(block + len - item.bytes.ptr));
        *count += 1;
    }
    free(block);
    return rc;
}

static void test_properties(void)
{
    static const struct {
        const char *text;
        uint64_t number;
    } values[PROPERTY_COUNT] = {{"t", 0},   {"e", 0},           {NULL, 0},    {NULL, 2},
                                {NULL, 9},  {"id", 0},          {"reply", 0}, {"", 0},
                                {"m", 0},   {NULL, UINT64_MAX}, {"type", 0},  {"user", 0},
                                {"app", 0}, {"cluster", 0}};
    property_reader r;
    property_item item;
    size_t count, len = sizeof all_properties - 1;

    CHECK(properties_begin(&r, (const uint8_t *)all_properties, len) == 0, "flags");
    for (int i = 0; i < PROPERTY_COUNT; i++) {
        int kind = properties_next(&r, &item);
        CHECK(kind == property_kind(i) && item.index == i, "property %d: %d", i, kind);
        if (kind == PROPERTY_SHORTSTR)
            CHECK(item.bytes.len == strlen(values[i].text) &&
                      memcmp(item.bytes.ptr, values[i].text, item.bytes.len) == 0,
                  "property %d", i);
        else if (kind == PROPERTY_TABLE)
            CHECK(item.bytes.len == 7 && wire_load32(item.bytes.ptr) == 3, "headers");
        else
            CHECK(item.number == values[i].number, "property %d", i);
    }
    CHECK(properties_next(&r, &item) == PROPERTIES_DONE && wire_left(&r.at) == 0, "end");
    CHECK(properties_next(&r, &item) == PROPERTIES_DONE, "still the end");

    for (size_t n = 0; n < len; n++)
        CHECK(walk_properties(all_properties, n, &count) == TABLE_ELENGTH, "cut at %zu", n);
    for (int i = 0; i < PROPERTY_COUNT; i++) {
        uint8_t one[10] = {0};
        wire_store16(one, property_flag(i));
        CHECK(walk_properties(one, sizeof one, &count) == PROPERTIES_DONE && count == 1, "%d", i);
        CHECK(walk_properties(one, 2, &count) == TABLE_ELENGTH && count == 0, "%d without value",
              i);
    }
    CHECK(walk_properties("\0\0", 2, &count) == PROPERTIES_DONE && count == 0, "none");
    CHECK(walk_properties("\0\2", 2, &count) == PROPERTIES_DONE && count == 0, "a flag of nobody");
    CHECK(walk_properties("\0\1", 2, &count) == TABLE_EFLAGS && count == 0, "continued");
}

int main(void)
{
    test_integers();
    test_values();
    test_nesting();
    test_cut_and_changed();
    test_lying_lengths();
    test_depth();
    test_writing();
    test_properties();
    return 0;
}
