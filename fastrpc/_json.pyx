"""Decides when orjson may stand in for kombu's JSON. Documented in _json.pyi.

Each check is one pass that allocates nothing and runs no Python code. So with the GIL held no other
thread, finalizer or garbage collection can change the checked object, and borrowed pointers stay
valid. `dumps` and `loads` check and then call orjson without running the interpreter in between, so
orjson gets exactly the object that was checked.

The scanner follows this grammar (RFC 8259). It need not refuse text that is not JSON: orjson does,
and then kombu decides::

    value  = object / array / string / number / true / false / null
    string = '"' *( byte / '\\' byte ) '"'
    number = [ '-' ] 1*digit [ '.' 1*digit ] [ ( 'e' / 'E' ) [ '+' / '-' ] 1*digit ]
"""

from cpython.object cimport Py_LE, PyObject
from libc.math cimport isfinite
from libc.string cimport memchr, memcmp

import orjson

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

    bytes PyBytes_FromStringAndSize(const char*, Py_ssize_t)
    bint PyBytes_CheckExact(object) noexcept
    char* PyBytes_AS_STRING(object) noexcept
    Py_ssize_t PyBytes_GET_SIZE(object) noexcept
    bint PyByteArray_CheckExact(object) noexcept
    bint PyMemoryView_Check(object) noexcept
    const char* PyUnicode_AsUTF8AndSize(object, Py_ssize_t*) except NULL

cdef enum:
    # orjson encodes 254 levels of dicts and lists, does not count levels of tuples (a few thousand
    # corrupt its buffer), and decodes 1024. kombu's json is limited by the interpreter's recursion
    # limit, which is 1000 minus the caller's own depth. This bound is far below all of these, and
    # real values are far below this bound.
    DEPTH = 128
    # repr() of a float has at most 24 characters; no known encoder writes more.
    FLOAT_CHARS = 32

MAX_DEPTH = DEPTH
MISS = type("MISS", (), {"__slots__": (), "__repr__": lambda self: "MISS"})()

cdef object _miss = MISS
cdef object _orjson_dumps = orjson.dumps
cdef object _orjson_loads = orjson.loads
cdef object _uint64_max = 2**64 - 1


cdef bint _plain(PyObject* obj, int room) noexcept:
    """Whether `obj` has only exact plain types, and at most `room` levels of containers."""
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


# What a byte outside of a string begins; for most bytes that is nothing of interest.
cdef enum:
    NOTHING, STRING, OPEN, CLOSE, NUMBER, STRAY

cdef int _byte
cdef unsigned char[256] _kind
for _byte in range(256):
    _kind[_byte] = NUMBER if c"0" <= _byte <= c"9" else NOTHING
_kind[c"-"] = NUMBER
_kind[c'"'] = STRING
_kind[c"{"] = _kind[c"["] = OPEN
_kind[c"}"] = _kind[c"]"] = CLOSE
_kind[c"\\"] = STRAY


cdef inline bint _digit(unsigned char c) noexcept:
    return c - c"0" <= 9 and c >= c"0"


cdef bint _differs(const unsigned char* p, const unsigned char* end) noexcept:
    """Whether orjson might decode the text p..end to another value than kombu, without an error.

    Reads only below `end`. Every byte is passed at most twice: `quote` and `escape` are the
    positions of the next `"` and the next backslash, and a new search begins only after `p` has
    passed them.
    """
    cdef Py_ssize_t depth = 0
    cdef unsigned char c, kind
    cdef const unsigned char* start
    cdef const unsigned char* quote
    cdef const unsigned char* escape

    escape = <const unsigned char*>memchr(p, c"\\", end - p) if p < end else NULL
    if escape == NULL:
        escape = end

    while p < end:
        c = p[0]
        p += 1
        kind = _kind[c]
        if kind == NOTHING:
            continue
        if kind == STRING:
            # Only a key matters, but telling keys from values costs more than it saves.
            if end - p >= 9 and memcmp(p, b'__type__"', 9) == 0:
                return True
            quote = NULL
            while True:
                if quote == NULL or quote < p:  # not searched for yet, or it was escaped
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
        elif kind == OPEN:
            depth += 1
            if depth > DEPTH:
                return True
        elif kind == CLOSE:
            depth -= 1
        elif kind == NUMBER:
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
                # -2**63 has 19 digits, and so have integers below it. Also -0 and -Infinity.
                if p == start or start[0] == c"0" or p - start > 18:
                    return True
            elif p - start > 19:  # 2**64 - 1 has 20 digits; every integer of 19 digits is less
                return True
        else:
            # A backslash outside of a string is not JSON, and `p` would pass `escape`.
            return True
    return False


cdef inline bint _text(object body, const unsigned char** p, Py_ssize_t* size) except -1:
    """Point at the text of an exact bytes or str; False for anything else and lone surrogates.

    The text belongs to `body` and does not move while the caller holds a reference to `body`.
    """
    if PyBytes_CheckExact(body):
        p[0] = <const unsigned char*>PyBytes_AS_STRING(body)
        size[0] = PyBytes_GET_SIZE(body)
        return True
    if type(body) is str:
        try:
            p[0] = <const unsigned char*>PyUnicode_AsUTF8AndSize(body, size)
        except Exception:
            return False
        return True
    return False


cdef object _owned(object body):
    """`body`, or a copy as bytes if it is a buffer, which could change while it is checked.

    Raises what ``if body:`` raises, as kombu would.
    """
    if PyByteArray_CheckExact(body) or PyMemoryView_Check(body):
        return bytes(body) if body else b""
    return body


def is_plain(obj):
    """Whether orjson encodes `obj` to the same meaning as kombu, if it encodes it at all."""
    return _plain(<PyObject*>obj, DEPTH)


def needs_kombu(body):
    """Whether orjson could decode `body` to another value than kombu, without an error."""
    cdef const unsigned char* p = NULL
    cdef Py_ssize_t size = 0
    if not PyBytes_CheckExact(body):
        body = _owned(body)
    return not _text(body, &p, &size) or size == 0 or _differs(p, p + size)


def dumps(obj):
    """`obj` encoded by orjson, or None if it is not plain or orjson refuses it."""
    if not _plain(<PyObject*>obj, DEPTH):
        return None
    try:
        payload = _orjson_dumps(obj)
    except Exception:
        return None
    # Return a copy: orjson's own bytes object keeps room for every character to be escaped, eight
    # times its size and more, and results are kept until they are confirmed.
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))


def loads(body):
    """`body` decoded by orjson, or MISS if kombu must decode it."""
    cdef const unsigned char* p = NULL
    cdef Py_ssize_t size = 0
    if not PyBytes_CheckExact(body):
        body = _owned(body)
    if not _text(body, &p, &size) or size == 0 or _differs(p, p + size):
        return _miss
    try:
        return _orjson_loads(body)
    except Exception:
        return _miss
