# Mirrors src_c/table.h, which says what each call means and who owns what.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t

from fastrpc.wire.cwire cimport wire_cursor, wire_view, wire_writer


cdef extern from "table.h" nogil:
    enum:
        TABLE_DEPTH_MAX
        TABLE_DONE
        TABLE_TEXT
        TABLE_BYTES
        TABLE_INTEGER
        TABLE_BOOL
        TABLE_REAL
        TABLE_DECIMAL
        TABLE_TIMESTAMP
        TABLE_VOID
        TABLE_OPEN_TABLE
        TABLE_OPEN_ARRAY
        TABLE_CLOSE
        TABLE_ELENGTH
        TABLE_ETYPE
        TABLE_EDEPTH
        TABLE_EFLAGS
        TABLE_TEXT_OVERHEAD
        TABLE_VALUE_MAX

    ctypedef struct table_item:
        wire_view key
        wire_view bytes
        int64_t integer
        double real
        uint64_t timestamp
        uint8_t scale
        uint8_t type

    ctypedef struct table_reader:
        pass

    int table_begin(table_reader *r, wire_cursor *c)
    int table_next(table_reader *r, table_item *item)

    bint table_write_text(wire_writer *w, const void *ptr, size_t len)
    bint table_write_integer(wire_writer *w, int64_t v)
    bint table_write_bool(wire_writer *w, bint v)
    bint table_write_real(wire_writer *w, double v)
    bint table_write_timestamp(wire_writer *w, uint64_t v)
    bint table_write_decimal(wire_writer *w, uint8_t scale, int32_t unscaled)
    bint table_write_void(wire_writer *w)
    bint table_open(wire_writer *w, uint8_t type)
    bint table_close(uint8_t *first, const uint8_t *end)

    enum:
        PROPERTY_COUNT
        PROPERTIES_DONE
        PROPERTY_SHORTSTR
        PROPERTY_TABLE
        PROPERTY_OCTET
        PROPERTY_LONGLONG

    ctypedef struct property_item:
        int index
        wire_view bytes
        uint64_t number

    ctypedef struct property_reader:
        pass

    int property_kind(int index)
    uint16_t property_flag(int index)
    int properties_begin(property_reader *r, const uint8_t *ptr, size_t len)
    int properties_next(property_reader *r, property_item *item)
