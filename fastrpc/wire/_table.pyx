"""Header tables and content properties, as py-amqp encodes them. Documented in _table.pyi."""
from calendar import timegm
from datetime import datetime, timezone
from decimal import Decimal
from struct import pack

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING,
    PyBytes_CheckExact,
    PyBytes_FromStringAndSize,
    PyBytes_GET_SIZE,
)
from cpython.exc cimport PyErr_Clear
from cpython.float cimport PyFloat_AS_DOUBLE
from cpython.long cimport PyLong_CheckExact
from cpython.mem cimport PyMem_RawFree, PyMem_RawRealloc
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_CheckExact
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint16_t

from fastrpc.wire.ctable cimport (
    PROPERTY_COUNT,
    PROPERTY_LONGLONG,
    PROPERTY_OCTET,
    PROPERTY_SHORTSTR,
    PROPERTY_TABLE,
    TABLE_BOOL,
    TABLE_BYTES,
    TABLE_CLOSE,
    TABLE_DECIMAL,
    TABLE_DEPTH_MAX,
    TABLE_DONE,
    TABLE_EDEPTH,
    TABLE_EFLAGS,
    TABLE_ETYPE,
    TABLE_INTEGER,
    TABLE_OPEN_ARRAY,
    TABLE_OPEN_TABLE,
    TABLE_REAL,
    TABLE_TEXT,
    TABLE_TEXT_OVERHEAD,
    TABLE_VALUE_MAX,
    TABLE_VOID,
    properties_begin,
    properties_next,
    property_flag,
    property_item,
    property_kind,
    property_reader,
    table_begin,
    table_close,
    table_item,
    table_next,
    table_open,
    table_reader,
    table_write_bool,
    table_write_integer,
    table_write_real,
    table_write_text,
    table_write_void,
)
from fastrpc.wire.cwire cimport (
    wire_cursor,
    wire_cursor_over,
    wire_room,
    wire_store16,
    wire_view,
    wire_write_bytes,
    wire_write_shortstr,
    wire_write_u16,
    wire_writer_over,
)

from fastrpc.errors import TableError


cdef extern from "Python.h":
    # By pointer, so that a failure is a NULL to check for, without a try block.
    PyObject *decode_utf8 "PyUnicode_DecodeUTF8"(const char *, Py_ssize_t, const char *)
    void drop "Py_DECREF"(PyObject *)
    bint PyUnicode_IS_ASCII(object)
    int64_t PyLong_AsLongLongAndOverflow(object, int *) except? -1


cdef tuple _properties = (
    "content_type",
    "content_encoding",
    "application_headers",
    "delivery_mode",
    "priority",
    "correlation_id",
    "reply_to",
    "expiration",
    "message_id",
    "timestamp",
    "type",
    "user_id",
    "app_id",
    "cluster_id",
)

cdef object _datetime = datetime
cdef object _decimal = Decimal
cdef object _utc = timezone.utc
cdef object _end = object()


# ---------------------------------------------------------------- reading


cdef inline bytes copy_view(wire_view view):
    return PyBytes_FromStringAndSize(<const char *>view.ptr, <Py_ssize_t>view.len)


cdef inline object text_or_bytes(wire_view view):
    cdef PyObject *text = decode_utf8(<const char *>view.ptr, <Py_ssize_t>view.len, "surrogatepass")
    if text == NULL:
        return decode_again(view)
    value = <object>text
    drop(text)
    return value


cdef object decode_again(wire_view view):
    PyErr_Clear()
    try:
        return view.ptr[: view.len].decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return copy_view(view)


cdef object value_of(int kind, const table_item *item):
    if kind == TABLE_TEXT:
        return text_or_bytes(item.bytes)
    if kind == TABLE_VOID:
        return None
    if kind == TABLE_INTEGER:
        return item.integer
    if kind == TABLE_OPEN_TABLE:
        return {}
    if kind == TABLE_OPEN_ARRAY:
        return []
    if kind == TABLE_BOOL:
        return item.integer != 0
    if kind == TABLE_REAL:
        return item.real
    if kind == TABLE_BYTES:
        return copy_view(item.bytes)
    if kind == TABLE_DECIMAL:
        return _decimal(item.integer) / _decimal(10 ** <object>item.scale)
    return _datetime.fromtimestamp(item.timestamp, tz=_utc).replace(tzinfo=None)


cdef int malformed(int rc, uint8_t type) except -1:
    if rc == TABLE_ETYPE:
        raise TableError(f"Unknown value in table: {chr(type)!r}")
    if rc == TABLE_EDEPTH:
        raise TableError(f"table with more than {TABLE_DEPTH_MAX} levels")
    if rc == TABLE_EFLAGS:
        raise TableError("continuation bit in the property flags")
    raise TableError("a value in a table or in the properties runs past their end")


cdef dict take_table(wire_cursor *c):
    cdef table_reader reader
    cdef table_item item
    # The open containers, innermost last. Each keeps the next alive; `table` keeps the first.
    cdef PyObject *opened[TABLE_DEPTH_MAX + 1]
    cdef size_t depth = 0
    cdef dict table = {}
    cdef int kind
    opened[0] = <PyObject *>table
    kind = table_begin(&reader, c)
    if kind < 0:
        malformed(kind, 0)
    while True:
        kind = table_next(&reader, &item)
        if kind == TABLE_CLOSE:
            depth -= 1
            continue
        if kind <= TABLE_DONE:
            break
        value = value_of(kind, &item)
        if item.key.ptr != NULL:
            (<dict>opened[depth])[text_or_bytes(item.key)] = value
        else:
            (<list>opened[depth]).append(value)
        if kind == TABLE_OPEN_TABLE or kind == TABLE_OPEN_ARRAY:
            depth += 1
            opened[depth] = <PyObject *>value
    if kind < 0:
        malformed(kind, item.type)
    return table


cdef dict read_table(const uint8_t *ptr, size_t len):
    cdef wire_cursor c = wire_cursor_over(ptr, len)
    return take_table(&c)


cdef dict read_properties(const uint8_t *ptr, size_t len):
    cdef property_reader reader
    cdef property_item item
    cdef dict properties = {}
    cdef int kind = properties_begin(&reader, ptr, len)
    if kind < 0:
        malformed(kind, 0)
    while True:
        kind = properties_next(&reader, &item)
        if kind == PROPERTY_SHORTSTR:
            value = item.bytes.ptr[: item.bytes.len].decode("utf-8", "surrogatepass")
        elif kind == PROPERTY_TABLE:
            value = read_table(item.bytes.ptr, item.bytes.len)
        elif kind == PROPERTY_OCTET or kind == PROPERTY_LONGLONG:
            value = item.number
        else:
            break
        properties[_properties[item.index]] = value
    if kind < 0:
        malformed(kind, 0)
    return properties


# ---------------------------------------------------------------- writing


cdef int write_buffer_reserve(write_buffer *out, size_t size) except -1:
    cdef size_t used, cap
    cdef uint8_t *moved
    if wire_room(&out.to) >= size:
        return 0
    used = out.to.pos - out.start
    cap = max(<size_t>1024, 2 * <size_t>(out.to.end - out.start), used + size)
    moved = <uint8_t *>PyMem_RawRealloc(out.start, cap)
    if moved == NULL:
        raise MemoryError()
    out.start = moved
    out.to = wire_writer_over(moved + used, cap - used)
    return 0


cdef void write_buffer_free(write_buffer *out) noexcept:
    PyMem_RawFree(out.start)
    out.start = out.to.pos = out.to.end = NULL


cdef inline size_t written(write_buffer *out) noexcept:
    return out.to.pos - out.start


cdef int write_raw(write_buffer *out, bytes data) except -1:
    write_buffer_reserve(out, PyBytes_GET_SIZE(data))
    wire_write_bytes(&out.to, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
    return 0


cdef int write_short(write_buffer *out, const char *ptr, size_t size) except -1:
    if size > 255:
        pack("B", size)  # raises
    write_buffer_reserve(out, 1 + size)
    wire_write_shortstr(&out.to, ptr, size)
    return 0


cdef int write_shortstr(write_buffer *out, object text) except -1:
    cdef Py_ssize_t size = 0
    cdef const char *ptr
    if PyUnicode_CheckExact(text) and PyUnicode_IS_ASCII(text):
        ptr = PyUnicode_AsUTF8AndSize(text, &size)
        return write_short(out, ptr, size)
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    if PyBytes_CheckExact(text):
        return write_short(out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
    write_raw(out, pack("B", len(text)))
    return write_raw(out, memoryview(text).tobytes())


cdef int write_long(write_buffer *out, const char *ptr, size_t size) except -1:
    if size > UINT32_MAX:
        pack(">I", size)  # raises
    write_buffer_reserve(out, TABLE_TEXT_OVERHEAD + size)
    table_write_text(&out.to, ptr, size)
    return 0


cdef int write_text(write_buffer *out, object text) except -1:
    cdef Py_ssize_t size = 0
    cdef const char *ptr
    if PyUnicode_CheckExact(text) and PyUnicode_IS_ASCII(text):
        ptr = PyUnicode_AsUTF8AndSize(text, &size)
        return write_long(out, ptr, size)
    if isinstance(text, str):
        text = text.encode("utf-8", "surrogatepass")
    return write_long(out, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef int write_integer(write_buffer *out, object value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    if overflow:
        pack(">q", value)  # raises
    write_buffer_reserve(out, TABLE_VALUE_MAX)
    table_write_integer(&out.to, number)
    return 0


cdef int write_real(write_buffer *out, double value) except -1:
    write_buffer_reserve(out, TABLE_VALUE_MAX)
    table_write_real(&out.to, value)
    return 0


cdef int write_decimal(write_buffer *out, object value) except -1:
    sign, digits, exponent = value.as_tuple()
    unscaled = 0
    for digit in digits:
        unscaled = unscaled * 10 + digit
    return write_raw(out, pack(">cBi", b"D", -exponent, -unscaled if sign else unscaled))


cdef size_t open_container(write_buffer *out, uint8_t type) except 0:
    """Start a container; return the offset of its first value in the buffer."""
    write_buffer_reserve(out, TABLE_VALUE_MAX)
    table_open(&out.to, type)
    return written(out)


cdef int close_container(write_buffer *out, size_t first) except -1:
    if not table_close(out.start + first, out.to.pos):
        pack(">I", written(out) - first)  # raises
    return 0


cdef int write_value(write_buffer *out, object value) except -1:
    """Write a value that is not a container, with its type. ValueError: AMQP has no such type."""
    if PyUnicode_CheckExact(value):
        return write_text(out, value)
    if value is None:
        write_buffer_reserve(out, TABLE_VALUE_MAX)
        table_write_void(&out.to)
        return 0
    if PyLong_CheckExact(value):
        return write_integer(out, value)
    if value is True or value is False:
        write_buffer_reserve(out, TABLE_VALUE_MAX)
        table_write_bool(&out.to, value is True)
        return 0
    # From here on subclasses count too, in the order in which py-amqp checks the types.
    if isinstance(value, (str, bytes)):
        return write_text(out, value)
    if isinstance(value, float):
        return write_real(out, PyFloat_AS_DOUBLE(value))
    if isinstance(value, int):
        return write_integer(out, value)
    if isinstance(value, _decimal):
        return write_decimal(out, value)
    if isinstance(value, _datetime):
        return write_raw(out, pack(">cQ", b"T", timegm(value.utctimetuple())))
    raise ValueError()


cdef int write_values(write_buffer *out, object pairs) except -1:
    """Write all pairs of a table, and the containers in their values. It loops and does not
    recurse: a thread's stack may be small, and Python's recursion limit does not protect it."""
    cdef size_t first[TABLE_DEPTH_MAX + 1]
    cdef bint array[TABLE_DEPTH_MAX + 1]
    cdef list opened = [iter(pairs)]
    cdef size_t depth = 0
    key = value = None
    first[0], array[0] = written(out), False
    try:
        while True:
            item = next(opened[depth], _end)
            if item is _end:
                close_container(out, first[depth])
                if depth == 0:
                    return 0
                opened.pop()
                depth -= 1
                continue
            if array[depth]:
                value = item
            else:
                key, value = item
                write_shortstr(out, key)
            item = None  # so that the dict's iterator can reuse the tuple
            if not isinstance(value, (dict, list, tuple)):
                write_value(out, value)
                continue
            if depth == TABLE_DEPTH_MAX:
                raise RecursionError(f"a table with more than {TABLE_DEPTH_MAX} levels")
            depth += 1
            array[depth] = not isinstance(value, dict)
            first[depth] = open_container(out, c"A" if array[depth] else c"F")
            opened.append(iter(value if array[depth] else value.items()))
    except ValueError:
        where = "" if array[depth] else f" for key {key!r}"
        raise TableError(
            f"Table type {type(value)!r}{where} not handled by amqp. [value: {value!r}]"
        )


cdef int write_table(write_buffer *out, object table) except -1:
    cdef size_t before = written(out)
    try:
        open_container(out, 0)
        if table:
            write_values(out, table.items())
        return 0
    except BaseException:
        out.to.pos = out.start + before
        raise


cdef int write_property(write_buffer *out, int kind, object value) except -1:
    if kind == PROPERTY_SHORTSTR:
        return write_shortstr(out, value or "")
    if kind == PROPERTY_TABLE:
        return write_table(out, value)
    return write_raw(out, pack("B" if kind == PROPERTY_OCTET else ">Q", value))


cdef int write_properties(write_buffer *out, object properties) except -1:
    cdef size_t before = written(out)
    cdef uint16_t flags = 0
    cdef int i
    try:
        write_buffer_reserve(out, 2)
        wire_write_u16(&out.to, 0)
        for i in range(PROPERTY_COUNT):
            value = properties.get(_properties[i])
            if value is not None:
                flags |= property_flag(i)
                write_property(out, property_kind(i), value)
        wire_store16(out.start + before, flags)
        return 0
    except BaseException:
        out.to.pos = out.start + before
        raise


# ---------------------------------------------------------------- for Python


ctypedef dict (*reading)(const uint8_t *, size_t)
ctypedef int (*writing)(write_buffer *, object) except -1


cdef dict loads(reading read, object data):
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return read(<const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef bytes dumps(writing write, object value):
    cdef write_buffer out
    out.start = out.to.pos = out.to.end = NULL
    try:
        write(&out, value)
        return PyBytes_FromStringAndSize(<const char *>out.start, written(&out))
    finally:
        write_buffer_free(&out)


def loads_table(data):
    """Decode a table, which starts with the 4 bytes of its length."""
    return loads(read_table, data)


def dumps_table(table):
    """Encode a dict as a table."""
    return dumps(write_table, table)


def loads_properties(data):
    """Decode the properties of a basic content header."""
    return loads(read_properties, data)


def dumps_properties(properties):
    """Encode properties as in a basic content header."""
    return dumps(write_properties, properties)
