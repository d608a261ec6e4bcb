"""Celery's repr of simple arguments. Documented in _repr.pyi."""

from libc.stdint cimport int64_t

cdef enum:
    # The deepest nesting of containers that is described here, even if Celery would show more.
    MAX_LEVELS = 32

cdef int64_t LARGEST = 0x7FFFFFFFFFFFFFFF


cdef class _Pieces:
    """The parts of the text so far, and how many characters are left."""

    cdef list parts
    cdef Py_ssize_t left

    cdef bint add(self, str text):
        self.left -= len(text)
        self.parts.append(text)
        return self.left > 0

    # These methods return False if the value is not simple or the text is too long.

    cdef bint add_value(self, value, int levels) except -1:
        kind = type(value)
        if kind is str:
            return self.add_text(<str>value)
        if kind is int:
            return -LARGEST <= value <= LARGEST and self.add(str(value))
        if kind is float or kind is bool or value is None:
            return self.add(str(value))
        if levels <= 0:
            return False
        if kind is tuple:
            return (
                self.add("(")
                and self.add_items(value, levels - 1)
                and self.add(",)" if len(<tuple>value) == 1 else ")")
            )
        if kind is list:
            return self.add("[") and self.add_items(value, levels - 1) and self.add("]")
        if kind is dict:
            return self.add("{") and self.add_pairs(<dict>value, levels - 1) and self.add("}")
        return False

    cdef bint add_text(self, str text) except -1:
        # Celery escapes quotes and nothing else.
        if len(text) >= self.left:
            return False
        return self.add("'" + text.replace("'", "\\'") + "'")

    cdef bint add_items(self, items, int levels) except -1:
        cdef bint first = True
        for item in items:
            if not (first or self.add(", ")) or not self.add_value(item, levels):
                return False
            first = False
        return True

    cdef bint add_pairs(self, dict pairs, int levels) except -1:
        cdef bint first = True
        for key, value in pairs.items():
            if type(key) is not str or not (first or self.add(", ")):
                return False
            if not self.add_text(<str>key) or not self.add(": "):
                return False
            if not self.add_value(value, levels):
                return False
            first = False
        return True


def simple_repr(value, Py_ssize_t maxlen, int maxlevels):
    """Celery's saferepr(value, maxlen, maxlevels) if the value is simple, else None."""
    cdef _Pieces pieces = _Pieces.__new__(_Pieces)
    pieces.parts = []
    pieces.left = maxlen
    if not pieces.add_value(value, min(maxlevels, <int>MAX_LEVELS)):
        return None
    return "".join(pieces.parts)
