# The hot loop of the way in: reader -> table -> whoever waits, for the deliveries that nearly all
# are: JSON in UTF-8, uncompressed, with a correlation id. Every other one goes to `deliver_slowly`,
# which has the whole meaning (`matching.py`); here is only the short way to the same end.
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    void PyObject_GC_UnTrack(void *)
    bint PyObject_GC_IsTracked(object)

from fastrpc._amqp cimport FrameReader
from fastrpc._frame_c cimport FRAME_DELIVERY, FRAME_NEED_MORE, frame_event, wire_view
from fastrpc._pending cimport PendingTable

from weakref import ref

from fastrpc._json import MISS
from fastrpc._json import loads as _loads
from fastrpc._pending import UNCLAIMED

cdef object _miss = MISS
cdef object _json_loads = _loads
cdef object _ref = ref
cdef int _unclaimed = UNCLAIMED


cdef inline bint _is(wire_view view, const char *text, size_t size) noexcept:
    return view.len == size and memcmp(view.ptr, text, size) == 0


cdef enum:
    # The task id stands this close to the end of a body, as Celery and we write it.
    TAIL = 24
    # orjson copies its input. From this many bytes on memory matters more than its speed.
    LARGE = 4 * 1024 * 1024


cdef inline bint ends_with(wire_view body, const unsigned char *id, size_t size) noexcept:
    cdef Py_ssize_t from_end
    for from_end in range(TAIL + 1):
        if size + <size_t>from_end > body.len:
            return False
        if memcmp(body.ptr + (body.len - size - <size_t>from_end), id, size) == 0:
            return True
    return False


cdef int spare_the_collector(dict meta) except -1:
    # Thousands of metas that live on, each with its empty list of children, have the garbage
    # collector go through the whole heap while results come in; that was a third of the CPU
    # time. CPython does not track a dict of atoms, either, and tracks it when that changes.
    children = meta.get("children")
    if type(children) is list and not <list>children:
        PyObject_GC_UnTrack(<void *>children)
    for value in meta.values():
        if PyObject_GC_IsTracked(value):
            return 0
    PyObject_GC_UnTrack(<void *>meta)
    return 0


cdef inline bint contains(tuple waiters, object waiter) noexcept:
    for other in waiters:
        if other is waiter:
            return True
    return False


cdef inline bint _is_plain_json(frame_event *e) noexcept:
    return (
        e.content_type.ptr != NULL
        and _is(e.content_type, b"application/json", 16)
        and (e.content_encoding.ptr == NULL or _is(e.content_encoding, b"utf-8", 5))
        and (e.headers.ptr == NULL or _is(e.headers, b"\0\0\0\0", 4))
        and e.correlation_id.ptr != NULL
        and e.correlation_id.len > 0
        and e.body_dropped == 0
    )


cdef class Fulfiller:
    def __init__(self, *, is_plain, as_python, on_error):
        self.watched = {}
        self.woken = []
        self._plain = {}
        self._is_plain = is_plain
        self._as_python = as_python
        self._on_error = on_error

    cpdef object fulfil(self, object result, dict meta):
        cdef object error = None
        if result is None:  # a weak waiter that went
            return
        self.fulfilled += 1
        try:
            if meta["status"] == "SUCCESS" and not meta.get("children") and self.is_plain(result):
                make_ready(result, meta)
            else:
                result._maybe_set_cache(self._as_python(dict(meta)))
        except Exception as exc:  # from a callback of the application, or a hostile meta
            error = exc
        waits = self.watched.pop(<Py_ssize_t><void *>result, None)
        if waits is None:
            if error is not None:
                self._on_error(result, error)
        elif type(waits) is tuple:
            for wait in <tuple>waits:
                self.notify(wait, result, error)
        else:
            self.notify(waits, result, error)

    cdef int notify(self, object wait, object result, object error) except -1:
        if error is not None:
            wait.errors.append(error)
        wait.arrived.append(result)
        if not self.woken or self.woken[-1] is not wait:
            self.woken.append(wait)
        return 0

    cdef bint is_plain(self, object result) except -1:
        cls = type(result)
        plain = self._plain.get(cls)
        if plain is None:
            plain = self._plain[cls] = bool(self._is_plain(cls))
        return plain


cdef dict _no_kwargs = {}  # vine only ever unpacks it


cdef int make_ready(object result, dict meta) except -1:
    # AsyncResult._maybe_set_cache(meta), and what vine's promise does in it, for a result that
    # has neither children nor an exception, less the calls that find nothing to do:
    # `_on_fulfilled` would only take the result out of the table, as the caller does.
    promise = result.on_ready
    result._cache = meta
    if promise.ready or promise.cancelled or promise.args or promise.kwargs:
        promise(result)
        return 0
    promise.value = ((result,), _no_kwargs)
    promise.ready = True
    listener = promise._svpending
    if listener is not None:
        try:
            listener(result)
        finally:
            promise._svpending = None
        return 0
    listeners = promise._lvpending
    if listeners is not None:
        try:
            while listeners:
                listeners.popleft()(result)
        finally:
            promise._lvpending = None
    return 0


cdef class DeliveryLoop:
    def __init__(
        self,
        FrameReader reader not None,
        PendingTable table not None,
        int channel,
        uint64_t ack_every,
        *,
        Fulfiller fulfiller not None,
        frozenset ready_states not None,
        object load_text,
        object deliver_slowly,
        object dispatch,
        object acknowledge,
    ):
        self.reader = reader
        self.table = table
        self.channel = channel
        self.ack_every = ack_every
        self.fulfiller = fulfiller
        self.ready_states = ready_states
        self.load_text = load_text
        self.deliver_slowly = deliver_slowly
        self.dispatch = dispatch
        self.acknowledge = acknowledge

    def run(self, bint short_way, double now):
        cdef frame_event *e = &self.reader.event
        cdef int kind
        cdef uint64_t tag
        cdef uint64_t run = self.runs + 1
        self.runs = run
        if self.delivering:
            self.shown = False  # by the run that we are in, which goes on with it afterwards
        while True:
            # Shown until it is delivered: an exception thrown into this thread loses nothing.
            if not self.shown:
                kind = self.reader.next_event()
                if kind == FRAME_NEED_MORE:
                    return
                if kind != FRAME_DELIVERY or e.channel != self.channel:
                    self.dispatch(kind)
                    continue
                self.shown = True
            tag = e.delivery_tag
            self.delivering = True
            try:
                if not (short_way and _is_plain_json(e) and self.deliver(e, now)):
                    self.deliver_slowly()
            finally:
                self.delivering = False
            if run == self.runs:
                self.shown = False
            # Else a callback waited for another result: the reader has moved on meanwhile.
            run = self.runs
            self.taken += 1
            if tag > self.last_tag:
                self.last_tag = tag
            if self.last_tag - self.acked_tag >= self.ack_every:
                self.acknowledge()

    cdef bint deliver(self, frame_event *e, double now) except -1:
        """The short way; False if it does not lead to the end."""
        cdef const unsigned char *id = e.correlation_id.ptr
        cdef size_t size = e.correlation_id.len
        cdef unsigned char[255] kept
        cdef int64_t evicted
        cdef tuple waiters = self.table.waiters_bytes(id, size)
        if not waiters:
            if self.table.state_bytes(id, size) == _unclaimed:
                return False  # which of the two states is the newer one?
            if not ends_with(e.body, id, size):
                return False  # another task's?
            # Nothing since `waiters` let another thread run: nobody began to wait meanwhile.
            evicted = self.table.store_bytes(id, size, NULL, 0, e.body.ptr, e.body.len, now)
            if evicted < 0:
                self.duplicates += 1
            return True
        meta = _json_loads(self.reader.body_bytes()) if e.body.len < LARGE else self.load_large()
        if meta is _miss or type(meta) is not dict or not self.is_final(<dict>meta, id, size):
            return False
        spare_the_collector(<dict>meta)
        memcpy(kept, id, size)  # a callback may have the reader move on
        self.fulfil(waiters, (), <dict>meta)
        # Finished only now, for the same reason as `shown`; others may have begun to wait.
        self.fulfil(self.table.finish_bytes(kept, size), waiters, <dict>meta)
        return True

    cdef object load_large(self):
        """As `_json_loads`, with the body in memory only once beside what is made of it."""
        try:
            text = self.reader.body_text()
        except UnicodeDecodeError:
            return _miss  # `deliver_slowly` says what is wrong with it
        return self.load_text(text)

    cdef int fulfil(self, tuple waiters, tuple known, dict meta) except -1:
        for waiter in waiters:
            if not contains(known, waiter):
                result = waiter() if type(waiter) is _ref else waiter
                self.fulfiller.fulfil(result, meta)
                meta = dict(meta)  # each its own
        return 0

    cdef bint is_final(self, dict meta, const unsigned char *id, size_t size) except -1:
        """Whether it is the meta of a final state of the very task in the correlation id."""
        cdef Py_ssize_t length
        cdef const char *text
        task_id = meta.get("task_id")
        status = meta.get("status")
        if type(task_id) is not str or type(status) is not str or "result" not in meta:
            return False
        if not task_id.isascii():
            return False
        text = PyUnicode_AsUTF8AndSize(task_id, &length)
        return (
            <size_t>length == size
            and memcmp(text, id, size) == 0
            and status in self.ready_states
        )
