"""Correlation id -> its waiters, or the result that was not asked for yet. See _pending.pyi.

Two rules hold in this module. First, each change of the table is complete before an object is
dropped, because a destructor may call back into the table (AsyncResult.__del__ calls discard).
Second, no object that the garbage collector tracks is allocated between finding an entry and the
last use of its pointer, because before Python 3.12 such an allocation may start a collection, which
runs destructors. bytes and str are not tracked.
"""

import os
import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_SetItem
from cpython.ref cimport Py_INCREF, PyObject
from cpython.tuple cimport PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp

cdef extern from "Python.h":
    # NULL as `items` deletes; Cython's own declaration does not allow NULL.
    int PyList_SetSlice(list values, Py_ssize_t low, Py_ssize_t high, PyObject *items) except -1

from fastrpc.client.cpending cimport (
    PENDING_DONE,
    PENDING_EDUPLICATE,
    PENDING_EINVALID,
    PENDING_LOST,
    PENDING_UNCLAIMED,
    PENDING_UNKNOWN,
    PENDING_WAITING,
    pending_body,
    pending_bytes,
    pending_check,
    pending_clear,
    pending_count,
    pending_cursor,
    pending_drop_body,
    pending_entry,
    pending_evicted,
    pending_expire,
    pending_find,
    pending_finish,
    pending_forget,
    pending_format,
    pending_free,
    pending_id,
    pending_limits,
    pending_memory,
    pending_new,
    pending_next,
    pending_reset,
    pending_store,
    pending_table_memory,
    pending_unwait,
    pending_wait,
)
from fastrpc.wire.cwire cimport wire_view

UNKNOWN = PENDING_UNKNOWN
WAITING = PENDING_WAITING
UNCLAIMED = PENDING_UNCLAIMED
DONE = PENDING_DONE
LOST = PENDING_LOST

cdef object _monotonic = time.monotonic
# An idle list of waiters with at most this many places is not freed.
cdef Py_ssize_t KEEP = 1024


cdef class _Several:
    """More than one waiter of an id. Immutable."""

    cdef tuple items


cdef _Several _several(tuple items):
    cdef _Several several = _Several.__new__(_Several)
    several.items = items
    return several


cdef tuple _as_tuple(object held):
    if held is None:
        return ()
    if type(held) is _Several:
        return (<_Several>held).items
    return (held,)


cdef inline wire_view _view(const unsigned char *ptr, size_t len) noexcept:
    cdef wire_view view
    view.ptr, view.len = ptr, len
    return view


cdef inline wire_view _view_bytes(bytes text) noexcept:
    return _view(
        <const unsigned char *>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text)
    )


cdef inline bint _same(wire_view one, wire_view other) noexcept:
    return one.len == other.len and memcmp(one.ptr, other.ptr, one.len) == 0


cdef inline bytes _copy(wire_view view):
    return PyBytes_FromStringAndSize(<const char *>view.ptr, <Py_ssize_t>view.len)


cdef object _view_id(object task_id, wire_view *id):
    """Point `id` at the bytes of an id; valid as long as the returned object lives."""
    cdef Py_ssize_t size
    cdef const char *data
    if isinstance(task_id, str):
        try:
            data = PyUnicode_AsUTF8AndSize(task_id, &size)
            id[0] = _view(<const unsigned char *>data, <size_t>size)
            return task_id
        except UnicodeEncodeError:
            # An id from waiting_ids() that was never UTF-8 on the wire.
            task_id = task_id.encode("utf-8", "surrogateescape")
    if isinstance(task_id, bytes):
        id[0] = _view_bytes(<bytes>task_id)
        return task_id
    raise TypeError(f"a task id is str or bytes, not {type(task_id).__name__}")


cdef int _fail(int64_t code) except -1:
    if code == PENDING_EINVALID:
        raise ValueError("a task id has 1 to 255 bytes, a format up to 255, a body less than 4 GiB")
    raise MemoryError()


cdef uint64_t _limit(str name, object value) except? 0:
    if not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {type(value).__name__}")
    if not 0 <= value < 2**63:
        raise ValueError(f"{name} is 0 or more (and below 2**63), not {value}")
    return value


cdef uint32_t _seconds(double now) noexcept:
    if not now > 0:
        return 0
    return <uint32_t>now if now < 4294967295.0 else <uint32_t>4294967295


cdef class PendingTable:
    """Correlation id -> its waiters, or the result that was not asked for yet."""

    def __cinit__(self, max_unclaimed=1_000_000, max_unclaimed_bytes=256 * 1024 * 1024,
                  max_done=10_000, max_lost=None):
        cdef pending_limits limits
        cdef bytes seed = os.urandom(16)
        limits.max_unclaimed = _limit("max_unclaimed", max_unclaimed)
        limits.max_unclaimed_bytes = _limit("max_unclaimed_bytes", max_unclaimed_bytes)
        limits.max_done = _limit("max_done", max_done)
        limits.max_lost = _limit("max_lost", max_unclaimed if max_lost is None else max_lost)
        self.max_unclaimed = max_unclaimed
        self.max_unclaimed_bytes = max_unclaimed_bytes
        self._waiters = []
        self._table = pending_new(NULL, <const uint8_t *>PyBytes_AS_STRING(seed), &limits)
        if self._table == NULL:
            raise MemoryError()

    def __dealloc__(self):
        pending_free(self._table)
        self._table = NULL
        free(self._free)
        self._free = NULL

    # ---- waiters and their places in the list

    cdef bint _alive(self) noexcept:
        """False once the garbage collector has cleared the list: its places are then invalid."""
        return self._waiters is not None and PyList_GET_SIZE(self._waiters) == self._places

    cdef object _held(self, pending_entry *e):
        """The waiter of e, or _Several; None once the garbage collector has cleared the list."""
        cdef Py_ssize_t place = <Py_ssize_t>e.waiter - 1
        if not self._alive():
            return None
        return <object>PyList_GET_ITEM(self._waiters, place)

    cdef int _reserve(self) except -1:
        """Make sure that there is a free place, the last one in _free."""
        cdef Py_ssize_t size, capacity
        cdef uint32_t *bigger
        if not self._alive():
            raise RuntimeError("the table has been collected as garbage")
        if self._free_count > 0:
            return 0
        size = self._places
        if size == UINT32_MAX:  # the C table stores a place plus one in 32 bits
            raise MemoryError()
        if size == self._free_capacity:
            capacity = 64 if size == 0 else size + size // 2
            bigger = <uint32_t *>realloc(self._free, <size_t>capacity * sizeof(uint32_t))
            if bigger == NULL:
                raise MemoryError()
            self._free = bigger
            self._free_capacity = capacity
        self._waiters.append(None)
        self._places += 1
        self._free[0] = <uint32_t>size
        self._free_count = 1
        return 0

    cdef object _release(self, uint32_t handle):
        """Free the place; return what it held, for the caller to drop."""
        cdef Py_ssize_t place = <Py_ssize_t>handle - 1
        cdef Py_ssize_t size
        if not self._alive():
            return None
        size = self._places
        held = <object>PyList_GET_ITEM(self._waiters, place)
        Py_INCREF(None)
        PyList_SetItem(self._waiters, place, None)
        self._free[self._free_count] = <uint32_t>place
        self._free_count += 1
        if self._free_count == size and size > KEEP:  # all places are free after a peak
            PyList_SetSlice(self._waiters, 0, size, NULL)
            free(self._free)
            self._free = NULL
            self._free_count = 0
            self._free_capacity = 0
            self._places = 0
        return held

    cdef int _exchange(self, wire_view id, object old, object new) except -1:
        """Replace `old` with `new`. 0: `old` is gone, because making `new` ran a destructor."""
        cdef pending_entry *e = pending_find(self._table, id)
        if e == NULL or e.state != PENDING_WAITING or not self._alive() or self._held(e) is not old:
            return 0
        Py_INCREF(new)
        PyList_SetItem(self._waiters, <Py_ssize_t>e.waiter - 1, new)
        return 1  # the caller still holds `old`

    # ---- for other Cython modules

    cdef int state_bytes(self, const unsigned char *id, size_t len) noexcept:
        cdef pending_entry *e = pending_find(self._table, _view(id, len))
        return PENDING_UNKNOWN if e == NULL else e.state

    cdef tuple waiters_bytes(self, const unsigned char *id, size_t len):
        cdef pending_entry *e = pending_find(self._table, _view(id, len))
        if e == NULL or e.state != PENDING_WAITING:
            return ()
        return _as_tuple(self._held(e))

    cdef tuple finish_bytes(self, const unsigned char *id, size_t len):
        cdef uint32_t handle
        cdef int before = pending_finish(self._table, _view(id, len), &handle)
        if before < 0:
            _fail(before)
        if handle == 0:
            return ()
        return _as_tuple(self._release(handle))

    cdef int64_t store_bytes(self, const unsigned char *id, size_t len,
                             const unsigned char *format, size_t format_len,
                             const unsigned char *body, size_t body_len, double now) except -2:
        return self._store(_view(id, len), _view(format, format_len), _view(body, body_len), now)

    cdef int64_t _store(self, wire_view id, wire_view format, wire_view body, double now) except -2:
        cdef int64_t evicted = pending_store(self._table, id, format, body, _seconds(now))
        if evicted >= 0:
            return evicted
        if evicted == PENDING_EDUPLICATE:
            return -1
        return _fail(evicted)

    # ---- for Python

    def add(self, task_id, waiter):
        """Register a waiter; return the previous state."""
        cdef wire_view id
        cdef pending_entry *e
        cdef uint32_t place
        cdef int before
        cdef tuple items
        if waiter is None:
            raise TypeError("a waiter is an object, not None")
        _owner = _view_id(task_id, &id)
        self._reserve()
        place = self._free[self._free_count - 1]
        before = pending_wait(self._table, id, place + 1, &e)
        if before == PENDING_UNKNOWN:
            self._free_count -= 1
            Py_INCREF(waiter)
            PyList_SetItem(self._waiters, <Py_ssize_t>place, waiter)
            return before
        if before < 0:
            _fail(before)
        if before != PENDING_WAITING:
            return before
        while True:
            held = self._held(e)
            if held is waiter:
                return before
            items = _as_tuple(held)
            for item in items:
                if item is waiter:
                    return before
            if self._exchange(id, held, _several((*items, waiter))):
                return before
            e = pending_find(self._table, id)
            if e == NULL or e.state != PENDING_WAITING:
                return self.add(task_id, waiter)

    def discard(self, task_id, waiter):
        """Remove this waiter; return False if it was not waiting."""
        cdef wire_view id
        cdef pending_entry *e
        cdef tuple items, left
        _owner = _view_id(task_id, &id)
        while True:
            e = pending_find(self._table, id)
            if e == NULL or e.state != PENDING_WAITING or waiter is None:
                return False
            held = self._held(e)
            if held is waiter:
                held = self._release(e.waiter)
                pending_unwait(self._table, e)
                return True
            if type(held) is not _Several:
                return False
            items = (<_Several>held).items
            left = tuple([item for item in items if item is not waiter])
            if PyTuple_GET_SIZE(left) == PyTuple_GET_SIZE(items):
                return False
            if self._exchange(id, held, left[0] if PyTuple_GET_SIZE(left) == 1 else _several(left)):
                return True

    def state(self, task_id):
        """UNKNOWN, WAITING, UNCLAIMED, DONE or LOST."""
        cdef wire_view id
        _owner = _view_id(task_id, &id)
        return self.state_bytes(id.ptr, id.len)

    def waiters(self, task_id):
        """The waiters of the id, in the order of add()."""
        cdef wire_view id
        _owner = _view_id(task_id, &id)
        return self.waiters_bytes(id.ptr, id.len)

    def finish(self, task_id):
        """Mark the id as DONE, because its final state was handed out; return its waiters."""
        cdef wire_view id
        _owner = _view_id(task_id, &id)
        return self.finish_bytes(id.ptr, id.len)

    def store(self, task_id, bytes body not None, bytes format not None=b"", now=None):
        """Keep the newest state; return how many ids were evicted, or -1 if the id is DONE."""
        cdef wire_view id
        cdef double arrived = _monotonic() if now is None else now
        if arrived != arrived:
            raise ValueError("now is not a number")
        _owner = _view_id(task_id, &id)
        return self._store(id, _view_bytes(format), _view_bytes(body), arrived)

    def peek(self, task_id):
        """(format, body) of the kept body, or None."""
        cdef wire_view id
        cdef pending_entry *e
        _owner = _view_id(task_id, &id)
        e = pending_find(self._table, id)
        if e == NULL or not e.stored:
            return None
        format = _copy(pending_format(e))
        body = _copy(pending_body(e))
        return format, body

    def drop(self, task_id, tuple kept not None):
        """Drop the kept body if it is still the one that peek() returned; else return False."""
        cdef wire_view id
        cdef pending_entry *e
        cdef bytes format, body
        format, body = kept
        _owner = _view_id(task_id, &id)
        e = pending_find(self._table, id)
        if (
            e == NULL
            or not e.stored
            or not _same(pending_format(e), _view_bytes(format))
            or not _same(pending_body(e), _view_bytes(body))
        ):
            return False
        pending_drop_body(self._table, e)
        return True

    def expire(self, double before):
        """Make UNCLAIMED ids that arrived before that time LOST; return how many."""
        if before != before:
            raise ValueError("before is not a number")
        return pending_expire(self._table, _seconds(before))

    def forget(self, task_id):
        """Drop everything that is known about the id except its waiters."""
        cdef wire_view id
        _owner = _view_id(task_id, &id)
        pending_forget(self._table, id)

    def reset(self, task_id):
        """A task with this id is sent again: DONE and LOST become UNKNOWN."""
        cdef wire_view id
        _owner = _view_id(task_id, &id)
        pending_reset(self._table, id)

    def clear(self):
        """Forget everything, as after a fork."""
        cdef list empty = []
        cdef list _dropped = self._waiters
        self._waiters = empty
        free(self._free)
        self._free = NULL
        self._free_count = 0
        self._free_capacity = 0
        self._places = 0
        pending_clear(self._table)
        # Now `_dropped` is released: destructors see an empty table.

    def waiting_ids(self):
        """The WAITING ids, in no order."""
        cdef pending_cursor cursor
        cdef pending_entry *e
        cdef list ids = []
        cursor.segment = 0
        cursor.slot = 0
        # Copy bytes during the iteration and decode later: decoding may create exceptions, which
        # the garbage collector tracks.
        while True:
            e = pending_next(self._table, &cursor)
            if e == NULL:
                break
            if e.state == PENDING_WAITING:
                ids.append(_copy(pending_id(e)))
        return [(<bytes>id).decode("utf-8", "surrogateescape") for id in ids]

    @property
    def unclaimed(self):
        return pending_count(self._table, PENDING_UNCLAIMED)

    @property
    def unclaimed_bytes(self):
        return pending_bytes(self._table)

    @property
    def waiting(self):
        return pending_count(self._table, PENDING_WAITING)

    @property
    def done(self):
        return pending_count(self._table, PENDING_DONE)

    @property
    def lost(self):
        return pending_count(self._table, PENDING_LOST)

    @property
    def evicted(self):
        return pending_evicted(self._table)

    def __sizeof__(self):
        cdef size_t size = object.__sizeof__(self) + pending_memory(self._table)
        if self._waiters is not None:
            size += self._waiters.__sizeof__()
        return size + <size_t>self._free_capacity * sizeof(uint32_t)

    def _check(self):
        """For tests: 0 if every invariant holds, else the line in pending.c of the broken one."""
        return pending_check(self._table)

    def _table_memory(self):
        """For benchmarks: the memory of the table without its entries, in bytes."""
        return pending_table_memory(self._table)
