"""Fast path for uncompressed UTF-8 JSON deliveries. Documented in _matcher.pyi.

Everything else falls back to the reference implementation in matcher.py.
"""

from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef extern from "Python.h":
    """
    // Whether a dict is tracked as soon as an object is put into it that the collector tracks.
    #define DICTS_ARE_TRACKED_LATE (PY_VERSION_HEX < 0x030E0000)
    """
    bint DICTS_ARE_TRACKED_LATE
    void PyObject_GC_UnTrack(void *)
    bint PyObject_GC_IsTracked(object)

from fastrpc.wire._reader cimport FrameReader
from fastrpc.client._pending cimport PendingTable
from fastrpc.client._wait cimport ReadingRole, Wait, Watchers
from fastrpc.wire.cframe cimport FRAME_DELIVERY, FRAME_NEED_MORE, frame_event
from fastrpc.wire.cwire cimport wire_view

from collections import deque
from weakref import ref

from fastrpc._json import MISS
from fastrpc._json import loads as _loads
from fastrpc.client._pending import UNCLAIMED
from fastrpc.errors import ProtocolError

cdef object _miss = MISS
cdef object _json_loads = _loads
cdef object _ref = ref
cdef int _unclaimed = UNCLAIMED


cdef inline bint _is(wire_view view, const char *text, size_t size) noexcept:
    return view.len == size and memcmp(view.ptr, text, size) == 0


cdef enum:
    # At most this many bytes follow the task id in a body, as Celery and we write it.
    TAIL = 24
    # orjson copies its input. From this size on, memory matters more than speed.
    LARGE = 4 * 1024 * 1024
    # How often fulfilling a result is tried if an exception is thrown into each attempt.
    ATTEMPTS = 3


cdef inline bint ends_with(wire_view body, const unsigned char *id, size_t size) noexcept:
    cdef Py_ssize_t from_end
    for from_end in range(TAIL + 1):
        if size + <size_t>from_end > body.len:
            return False
        if memcmp(body.ptr + (body.len - size - <size_t>from_end), id, size) == 0:
            return True
    return False


cdef int untrack_from_gc(dict meta) except -1:
    # Thousands of live metas, each with an empty list of children, make the garbage collector
    # traverse the whole heap while results arrive: a third of the CPU time. CPython up to 3.13 does
    # not track a dict of atoms itself, and starts to track it when another object is put into it.
    # From 3.14 on a dict stays as it is: a cycle that is put into it would never be collected.
    children = meta.get("children")
    if type(children) is list and not <list>children:
        PyObject_GC_UnTrack(<void *>children)
    if not DICTS_ARE_TRACKED_LATE:
        return 0
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


cdef class Claimed:
    """The bodies of the results that were handed out last."""

    # Two generations; the older one is dropped as a whole. That costs almost nothing per result,
    # and runs no destructor.
    cdef dict _younger
    cdef dict _older
    cdef uint64_t _bytes  # of the younger generation
    cdef uint64_t _most
    cdef uint64_t _most_bytes

    def __init__(self, uint64_t most, uint64_t most_bytes):
        self._most = most // 2
        self._most_bytes = most_bytes // 2
        self.clear()

    cdef int keep(self, object task_id, bytes format, bytes body) except -1:
        cdef uint64_t size = <uint64_t>len(body)
        if self._most == 0 or size > self._most_bytes:
            return 0
        if <uint64_t>len(self._younger) >= self._most or self._bytes + size > self._most_bytes:
            self._older = self._younger
            self._younger = {}
            self._bytes = 0
        self._bytes += size
        self._younger[task_id] = (format, body) if format else body
        return 0

    def get(self, task_id):
        """(format, body) of the result of ``task_id``, or None."""
        kept = self._younger.get(task_id)
        if kept is None:
            kept = self._older.get(task_id)
        return (b"", kept) if type(kept) is bytes else kept

    def forget(self, task_id):
        """Drop the body of ``task_id``."""
        self._younger.pop(task_id, None)
        self._older.pop(task_id, None)

    def clear(self):
        """Forget everything, as in a forked child."""
        self._younger = {}
        self._older = {}
        self._bytes = 0


cdef class Fulfiller:
    """Makes AsyncResults ready and tells the waits that watch them."""

    cdef PendingTable _table
    cdef Claimed _claimed
    cdef Watchers _watchers
    cdef ReadingRole _role
    cdef public uint64_t fulfilled
    cdef object _thrown
    cdef dict _plain
    cdef object _is_plain
    cdef object _as_python
    cdef object _on_error
    cdef tuple _thrown_in

    def __init__(
        self,
        PendingTable table not None,
        Claimed claimed not None,
        Watchers watchers not None,
        ReadingRole role not None,
        *,
        is_plain,
        as_python,
        on_error,
        tuple thrown_in not None,
    ):
        self._table = table
        self._claimed = claimed
        self._watchers = watchers
        self._role = role
        self._plain = {}
        self._is_plain = is_plain
        self._as_python = as_python
        self._on_error = on_error
        self._thrown_in = thrown_in

    def hand_out(self, task_id, tuple waiters not None, dict meta not None, tuple kept not None):
        """Make ``waiters`` ready with the meta of a final state. The task is then DONE."""
        # Before the id becomes DONE: a caller that finds it DONE expects the body here.
        self._claimed.keep(task_id, kept[0], kept[1])
        thrown = self.fulfil_all(waiters, (), meta)
        late = self.fulfil_all(self._table.finish(task_id), waiters, meta)
        self._watchers.wake()
        if thrown is None:
            thrown = late
        if thrown is None:
            return
        if not self._role.interrupted:
            raise thrown
        # This thread reads. It must count the delivery first, or it would hand it out again.
        self._thrown = thrown

    cpdef object raise_thrown(self):
        """Raise the exception that was thrown in while the last counted delivery was handed out."""
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            raise thrown

    def give_up(self, list results not None, Wait wait not None):
        """End ``wait``: it is not told of ``results`` any more."""
        self._watchers.unwatch(results, wait)
        for result in results:
            # A result with a `then` callback, or watched by another wait, stays registered.
            if result._cache or has_listeners(result) or self._watchers.is_watched(result):
                continue
            if not self._table.discard(result.id, result):
                self._table.discard(result.id, _ref(result))

    cdef object fulfil_all(self, tuple waiters, tuple known, dict meta):
        """Return the exception that was thrown into this thread meanwhile. Raise nothing."""
        cdef object thrown = None
        for waiter in waiters:
            if contains(known, waiter):
                continue
            result = waiter() if type(waiter) is _ref else waiter
            if result is None:  # it was held weakly and was collected
                continue
            if result.on_ready.ready:  # its callback has read, and delivered, a duplicate
                continue
            # Each result gets its own meta; a single one needs no copy.
            another = self.fulfil(result, dict(meta) if known or len(waiters) > 1 else meta)
            if thrown is None:
                thrown = another
        return thrown

    cdef object fulfil(self, object result, dict meta):
        """Return the exception that was thrown into this thread meanwhile. Raise nothing."""
        cdef object thrown = None
        cdef object error = None
        self.fulfilled += 1
        for _ in range(ATTEMPTS):
            try:
                self.set_ready(result, meta)
                break
            except BaseException as exc:
                if isinstance(exc, Exception) and not isinstance(exc, self._thrown_in):
                    error = exc  # from the application's callback, or caused by a hostile meta
                    break
                if thrown is None:
                    thrown = exc
                if result.on_ready.ready:  # it was thrown into a callback
                    break
        else:
            error = thrown
        try:
            if not self._watchers.notify(result, error) and error is not None:
                self._on_error(result, error)
        except BaseException as exc:
            if thrown is None:
                thrown = exc
        return thrown

    cdef int set_ready(self, object result, dict meta) except -1:
        # The callbacks come last; an exception thrown in before them leaves nothing half done.
        cdef bint called_out
        cdef bint plain = self.is_plain(type(result))
        if not plain:
            meta = self._as_python(dict(meta))
        elif meta["status"] != "SUCCESS" or meta.get("children"):
            meta = result._set_cache(self._as_python(dict(meta)))
        if plain and fulfil_promise(result, meta):
            return 0
        called_out = self._role.begin_call_out()
        try:
            if plain:
                call_listeners(result)
            else:
                result._maybe_set_cache(meta)
        finally:
            if called_out:
                self._role.end_call_out()
        return 0

    cdef bint is_plain(self, object cls) except -1:
        plain = self._plain.get(cls)
        if plain is None:
            plain = self._plain[cls] = bool(self._is_plain(cls))
        return plain


cdef dict _no_kwargs = {}  # vine only ever unpacks it


cdef class _Arguments:
    """What the listeners of a promise are called with, as vine unpacks it: ``(result,), {}``.

    The promise must not hold its own result, or only the garbage collector could free the result,
    with its body.
    """

    cdef object ref

    def __iter__(self):
        return iter(((self.ref(),), _no_kwargs))


cdef bint has_listeners(object result) except -1:
    promise = result.on_ready
    return promise._svpending is not None or promise._lvpending is not None


cdef bint fulfil_promise(object result, dict meta) except -1:
    """Do what AsyncResult._maybe_set_cache(meta) does before it calls listeners.

    Return False if there are listeners. The promise would call `_on_fulfilled` first; that only
    removes the result from the table, as the caller does.
    """
    cdef _Arguments arguments = _Arguments.__new__(_Arguments)
    promise = result.on_ready
    result._cache = meta
    arguments.ref = _ref(result)
    promise.value = arguments
    # The promise's weak reference to the result would call Python code when the result is freed. An
    # exception that is thrown into the thread there would be swallowed.
    promise.weak, promise.fun = False, None
    promise.ready = True
    return not has_listeners(result)


cdef int call_listeners(object result) except -1:
    """Do what vine's promise does once it is ready."""
    promise = result.on_ready
    listener = promise._svpending
    if listener is not None:
        try:
            listener(result)
        finally:
            promise._svpending = None
        return 0
    listeners = promise._lvpending
    try:
        while listeners:
            listeners.popleft()(result)
    finally:
        promise._lvpending = None
    return 0


cdef class Delivery:
    """A message from the broker, copied out of the reader's buffer."""

    cdef readonly uint64_t tag
    cdef readonly str consumer_tag
    cdef readonly bytes correlation_id
    cdef readonly bytes body
    cdef readonly uint64_t dropped
    cdef readonly tuple format_key


cdef class DeliveryLoop:
    """Takes deliveries from a reader and hands each to the results that wait for it."""

    cdef FrameReader _reader
    cdef PendingTable _table
    cdef int _channel
    cdef uint64_t _ack_every
    cdef Fulfiller _fulfiller
    cdef frozenset _ready_states
    cdef object _load_text
    cdef object _sink
    cdef object _undelivered
    cdef bint _shown
    cdef readonly bint spoiled
    cdef readonly bint ended
    cdef public uint64_t last_tag
    cdef public uint64_t acked_tag
    cdef public uint64_t taken
    cdef public uint64_t duplicates

    # No other code reads while `_shown` is set, so the event and the memory that it points to do
    # not change. Only callbacks may read (`ReadingRole`), and they run after the last use of both.

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
        object sink,
    ):
        self._reader = reader
        self._table = table
        self._channel = channel
        self._ack_every = ack_every
        self._fulfiller = fulfiller
        self._ready_states = ready_states
        self._load_text = load_text
        self._sink = sink
        self._undelivered = deque()

    @property
    def holds_some(self):
        return self._shown or bool(self._undelivered) or self._reader.buffered

    def run(self, bint fast_path, double now):
        """Deliver everything that the reader has."""
        cdef frame_event *e = &self._reader.event
        cdef int kind
        cdef uint64_t tag
        self.deliver_undelivered()
        while not self.ended:
            # `_shown` stays set until the delivery is handed out, so that an exception thrown into
            # this thread loses nothing.
            if not self._shown:
                kind = self._reader.next_event()
                if kind == FRAME_NEED_MORE:
                    return
                if kind != FRAME_DELIVERY or e.channel != self._channel:
                    self.guarded(self._sink.dispatch, kind)
                    # Deliveries kept meanwhile come first: an acknowledgement is for all up to a
                    # tag, so deliveries must be handed out in order.
                    self.deliver_undelivered()
                    continue
                self._shown = True
            tag = e.delivery_tag
            if fast_path and _is_plain_json(e) and self.deliver(e, now):
                self.count(tag)
            else:
                self._undelivered.append(self.take_out())
                self._shown = False
                self.deliver_undelivered()

    def guarded(self, function, *args):
        """Call ``function(*args)``, which uses the connection."""
        try:
            return function(*args)
        except TimeoutError:
            raise
        except BaseException:
            self.spoiled = True
            raise

    def keep(self):
        """Keep the reader's current delivery until the next ``run``."""
        if self._reader.channel != self._channel:
            raise ProtocolError(f"delivery on channel {self._reader.channel}, without a consumer")
        self._undelivered.append(self.take_out())

    def end(self):
        """Deliver nothing more, as in a forked child, where the connection is the parent's."""
        self.ended = True
        self._undelivered.clear()
        self.acked_tag = self.last_tag

    cdef Delivery take_out(self):
        cdef FrameReader reader = self._reader
        cdef Delivery delivery = Delivery.__new__(Delivery)
        delivery.tag = reader.delivery_tag
        delivery.consumer_tag = (<bytes>reader.consumer_tag).decode("utf-8", "replace")
        delivery.correlation_id = reader.correlation_id
        delivery.dropped = reader.body_dropped
        delivery.body = b"" if delivery.dropped else reader.body_bytes()
        delivery.format_key = (reader.content_type, reader.content_encoding, reader.headers)
        return delivery

    cdef int deliver_undelivered(self) except -1:
        cdef Delivery delivery
        while self._undelivered:
            delivery = self._undelivered.popleft()
            try:
                self._sink.deliver(delivery)
            except BaseException:
                self._undelivered.appendleft(delivery)  # lose nothing if it was thrown in
                raise
            self.count(delivery.tag)
        return 0

    cdef int count(self, uint64_t tag) except -1:
        self.taken += 1
        if tag > self.last_tag:
            self.last_tag = tag
        try:
            if self.last_tag - self.acked_tag >= self._ack_every:
                self.guarded(self._sink.write_acknowledgement)
        finally:
            self._fulfiller.raise_thrown()
        return 0

    cdef bint deliver(self, frame_event *e, double now) except -1:
        """The fast path; False if the delivery needs the reference implementation."""
        cdef const unsigned char *id = e.correlation_id.ptr
        cdef size_t size = e.correlation_id.len
        cdef unsigned char[255] kept
        cdef int64_t evicted
        cdef bytes body = None
        cdef tuple waiters = self._table.waiters_bytes(id, size)
        if not waiters:
            if self._table.state_bytes(id, size) == _unclaimed:
                return False  # only decoding shows which of the two states is newer
            if not ends_with(e.body, id, size):
                return False  # the body may be another task's
            # No other thread has run since `waiters` was read, so there is still no waiter.
            evicted = self._table.store_bytes(id, size, NULL, 0, e.body.ptr, e.body.len, now)
            if evicted < 0:
                self.duplicates += 1
            self._shown = False
            return True
        body_len = e.body.len
        if body_len < LARGE:
            body = self._reader.body_bytes()
            meta = _json_loads(body)
        else:
            meta = self.load_large()
        if meta is _miss or type(meta) is not dict or not self.is_final(<dict>meta, id, size):
            return False
        untrack_from_gc(<dict>meta)
        memcpy(kept, id, size)
        if body is not None:
            self._fulfiller._claimed.keep((<dict>meta)["task_id"], b"", body)
        # From here on callbacks run, which may read the next event.
        self._shown = False
        thrown = self._fulfiller.fulfil_all(waiters, (), <dict>meta)
        # The id becomes DONE only now, because the AsyncResults of a DONE id must be ready. New
        # waiters may have been added meanwhile.
        late = self._fulfiller.fulfil_all(
            self._table.finish_bytes(kept, size), waiters, <dict>meta
        )
        if thrown is None:
            thrown = late
        if thrown is not None:
            self._fulfiller._thrown = thrown
        return True

    cdef object load_large(self):
        """Decode as `_json_loads` does, without a second copy of the body in memory."""
        try:
            text = self._reader.body_text()
        except UnicodeDecodeError:
            return _miss  # the sink reports the error
        return self._load_text(text)

    cdef bint is_final(self, dict meta, const unsigned char *id, size_t size) except -1:
        """Whether `meta` is a final state of the task that the correlation id names."""
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
            and status in self._ready_states
        )
