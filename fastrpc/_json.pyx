# cython: language_level=3, boundscheck=False, wraparound=False
"""When may orjson stand in for kombu's JSON? See ``_json.pyi`` for the documentation.

Both questions are answered by one pass that allocates nothing and runs no Python code, so with the
GIL held no other thread, finalizer or garbage collection can change what is being looked at, and
borrowed pointers stay good. `dumps` and `loads` ask the question and call orjson without going back
to the interpreter in between: what was checked is what is encoded.

The grammar that the scanner walks (RFC 8259); it need not refuse what is not JSON, because orjson
does that and kombu then has the last word::

    value  = object / array / string / number / true / false / null
    string = '"' *( byte / '\\' byte ) '"'
    number = [ '-' ] 1*digit [ '.' 1*digit ] [ ( 'e' / 'E' ) [ '+' / '-' ] 1*digit ]
"""

from cpython.object cimport Py_LE, PyObject
from libc.math cimport isfinite
from libc.string cimport memchr, memcmp

from orjson import dumps as _orjson_dumps
from orjson import loads as _orjson_loads

cdef extern from "Python.h":
    # Declared over PyObject* so that Cython counts no references; none of these runs Python code
    # for the exact types they are called with.
    PyObject* Py_None
    bint PyBool_Check(PyObject*) noexcept
    bint PyDict_CheckExact(PyObject*) noexcept
    bint PyDict_Next(PyObject*, Py_ssize_t*, PyObject**, PyObject**) noexcept
    bint PyFloat_CheckExact(PyObject*) noexcept
    double PyFloat_AS_DOUBLE(PyObject*) noexcept
    bint PyList_CheckExact(PyObject*) noexcept
    Py_ssize_t PyList_GET_SIZE(PyObject*) noexcept
    PyObject* PyList_GET_ITEM(PyObject*, Py_ssize_t) noexcept
    bint PyLong_CheckExact(PyObject*) noexcept
    long long PyLong_AsLongLongAndOverflow(PyObject*, int*) noexcept
    int PyObject_RichCompareBool(PyObject*, PyObject*, int) noexcept
    bint PyTuple_CheckExact(PyObject*) noexcept
    Py_ssize_t PyTuple_GET_SIZE(PyObject*) noexcept
    PyObject* PyTuple_GET_ITEM(PyObject*, Py_ssize_t) noexcept
    bint PyUnicode_CheckExact(PyObject*) noexcept

    bint PyBytes_CheckExact(object) noexcept
    char* PyBytes_AS_STRING(object) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept
    bint PyByteArray_CheckExact(object) noexcept
    bint PyMemoryView_Check(object) noexcept
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL

# orjson encodes 254 levels of dicts and lists, counts no levels of tuples (a few thousand corrupt
# its buffer), and decodes 1024. kombu's json goes as deep as the interpreter's recursion limit
# allows, which is 1000 less what the caller has used. Real values are nowhere near any of these, so
# the bound keeps well away from all of them.
cdef enum:
    DEPTH = 128
    # repr() of a float has at most 24 characters; what is longer was not written by a machine we know
    FLOAT_CHARS = 32

MAX_DEPTH = DEPTH
MISS = type("MISS", (), {"__slots__": (), "__repr__": lambda self: "MISS"})()

cdef object _miss = MISS
cdef object _uint64_max = 2**64 - 1


cdef bint _plain(PyObject* obj, int room) noexcept:
    """Is `obj` nothing but exact plain types, with at most `room` levels of containers?"""
    cdef int overflow = 0
    cdef Py_ssize_t i = 0
    cdef PyObject* key = NULL
    cdef PyObject* value = NULL

    if PyUnicode_CheckExact(obj) or obj == Py_None or PyBool_Check(obj):
        return True
    if PyLong_CheckExact(obj):
        PyLong_AsLongLongAndOverflow(obj, &overflow)
        if overflow == 0:
            return True
        return overflow > 0 and PyObject_RichCompareBool(obj, <PyObject*>_uint64_max, Py_LE) == 1
    if PyFloat_CheckExact(obj):
        return isfinite(PyFloat_AS_DOUBLE(obj))
    if room == 0:
        return False
    if PyDict_CheckExact(obj):
        while PyDict_Next(obj, &i, &key, &value):
            if not (PyUnicode_CheckExact(key) and _plain(value, room - 1)):
                return False
        return True
    if PyList_CheckExact(obj):
        for i in range(PyList_GET_SIZE(obj)):
            if not _plain(PyList_GET_ITEM(obj, i), room - 1):
                return False
        return True
    if PyTuple_CheckExact(obj):
        for i in range(PyTuple_GET_SIZE(obj)):
            if not _plain(PyTuple_GET_ITEM(obj, i), room - 1):
                return False
        return True
    return False


cdef inline bint _digit(unsigned char c) noexcept:
    return c - c"0" <= 9 and c >= c"0"


cdef bint _differs(const unsigned char* p, const unsigned char* end) noexcept:
    """Might orjson make something else of the text p..end than kombu, and not notice?

    Reads only below `end`. Every byte is passed at most twice: `quote` and `escape` are the next
    `"` and the next backslash, and are searched for again only once they lie behind.
    """
    cdef Py_ssize_t depth = 0
    cdef unsigned char c
    cdef const unsigned char* start
    cdef const unsigned char* quote
    cdef const unsigned char* escape

    escape = <const unsigned char*>memchr(p, c"\\", end - p) if p < end else NULL
    if escape == NULL:
        escape = end

    while p < end:
        c = p[0]
        p += 1
        if c == c'"':
            # Only a key matters, but telling keys from values costs more than it saves.
            if end - p >= 9 and memcmp(p, b'__type__"', 9) == 0:
                return True
            quote = NULL
            while True:
                if quote == NULL or quote < p:  # not looked for yet, or it was escaped
                    quote = <const unsigned char*>memchr(p, c'"', end - p)
                    if quote == NULL:
                        return True
                if quote < escape:
                    break
                # An escape inside the string. One of U+0050 to U+007F could spell `__type__`.
                if end - escape < 2:
                    return True
                if (escape[1] == c"u" and end - escape >= 6 and escape[2] == c"0"
                        and escape[3] == c"0" and c"5" <= escape[4] <= c"7"):
                    return True
                p = escape + 2
                if p < end and p[0] == c"\\":
                    escape = p
                else:
                    escape = <const unsigned char*>memchr(p, c"\\", end - p) if p < end else NULL
                    if escape == NULL:
                        escape = end
            p = quote + 1
        elif c == c"{" or c == c"[":
            depth += 1
            if depth > DEPTH:
                return True
        elif c == c"}" or c == c"]":
            depth -= 1
        elif c == c"-" or _digit(c):
            start = p if c == c"-" else p - 1
            while p < end and _digit(p[0]):
                p += 1
            if p < end and (p[0] == c"." or p[0] == c"e" or p[0] == c"E"):
                while p < end and (_digit(p[0]) or p[0] == c"." or p[0] == c"e" or p[0] == c"E"
                                   or p[0] == c"+" or p[0] == c"-"):
                    p += 1
                if p - start > FLOAT_CHARS:
                    return True
            elif c == c"-":
                # -2**63 has 19 digits, as have integers below it; -0; -Infinity
                if p == start or start[0] == c"0" or p - start > 18:
                    return True
            elif p - start > 19:  # 2**64 - 1 has 20 digits, all of 19 are less
                return True
        elif c == c"\\":
            return True  # no JSON; and the pass counts on `escape` not lying behind
    return False


cdef bint _text(object body, const unsigned char** p, const unsigned char** end) except -1:
    """Point at the bytes of an exact bytes or str; False for anything else or lone surrogates.

    The pointers belong to `body` and are good while the caller holds it.
    """
    cdef Py_ssize_t size = 0
    if PyBytes_CheckExact(body):
        p[0] = <const unsigned char*>PyBytes_AS_STRING(body)
        size = PyBytes_GET_SIZE(body)
    elif type(body) is str:
        try:
            p[0] = <const unsigned char*>PyUnicode_AsUTF8AndSize(body, &size)
        except Exception:
            return False
    else:
        return False
    end[0] = p[0] + size
    return True


cdef object _owned(object body):
    """`body`, or the bytes in it if it is a buffer, which could change while it is looked at."""
    if PyBytes_CheckExact(body) or type(body) is str:
        return body
    if PyByteArray_CheckExact(body) or PyMemoryView_Check(body):
        return bytes(body) if len(body) else b""
    return body


def is_plain(obj):
    return _plain(<PyObject*>obj, DEPTH)


def needs_kombu(body):
    cdef const unsigned char* p = NULL
    cdef const unsigned char* end = NULL
    body = _owned(body)
    return not _text(body, &p, &end) or p == end or _differs(p, end)


def dumps(obj):
    if not _plain(<PyObject*>obj, DEPTH):
        return None
    try:
        return _orjson_dumps(obj)
    except Exception:
        return None


def loads(body):
    cdef const unsigned char* p = NULL
    cdef const unsigned char* end = NULL
    body = _owned(body)
    if not _text(body, &p, &end) or p == end or _differs(p, end):
        return _miss
    try:
        return _orjson_loads(body)
    except Exception:
        return _miss
