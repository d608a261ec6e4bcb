"""Reading AMQP 0-9-1 frames from a socket. Documented in _reader.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from fastrpc.wire._memory cimport Area, bytes_allocator, raw_allocator, take_bytes
from fastrpc.wire._table cimport read_properties
from fastrpc.wire.calloc cimport allocator
from fastrpc.wire.cframe cimport (
    FRAME_DELIVERY,
    FRAME_ENOMEM,
    FRAME_HAS_DELIVERY_MODE,
    FRAME_HAS_PRIORITY,
    FRAME_MAX_MIN,
    FRAME_NEED_MORE,
    FRAME_RAW,
    frame_reader_buffered,
    frame_reader_commit,
    frame_reader_frame_max,
    frame_reader_free,
    frame_reader_message,
    frame_reader_new,
    frame_reader_next,
    frame_reader_reserve,
    frame_reader_set_body_max,
    frame_reader_set_frame_max,
    frame_reader_surrender,
    frame_reader_take_body,
)
from fastrpc.wire.cwire cimport wire_view

from fastrpc.errors import ProtocolError


cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT

    Py_ssize_t c_recv "recv"(int, void *, size_t, int) noexcept


NEED_MORE = FRAME_NEED_MORE
FRAME = FRAME_RAW
DELIVERY = FRAME_DELIVERY


# As py-amqp says it.
cdef str CLOSED = "Server unexpectedly closed connection"


cdef inline bytes copy_view(wire_view view):
    return PyBytes_FromStringAndSize(<const char *>view.ptr, <Py_ssize_t>view.len)


cdef inline object copy_optional(wire_view view):
    return None if view.ptr == NULL else copy_view(view)


cdef inline str shortstr(wire_view view):
    return view.ptr[: view.len].decode("utf-8", "surrogatepass")


cdef uint32_t checked_frame_max(frame_max) except? 0:
    if not (frame_max == 0 or FRAME_MAX_MIN <= frame_max <= 0xFFFFFFFF):
        raise ValueError(
            f"frame_max is {frame_max}: 0 (as long as none is negotiated) or at least "
            f"{FRAME_MAX_MIN}"
        )
    return frame_max


cdef class FrameReader:
    """A cursor over the bytes that a broker sends: frames, and whole deliveries."""

    def __cinit__(self, frame_max=131072, max_body=512 * 1024 * 1024):
        cdef allocator raw = raw_allocator()
        cdef allocator body = bytes_allocator()
        cdef uint32_t checked = checked_frame_max(frame_max)
        cdef uint64_t body_max = max_body
        self.kind = FRAME_NEED_MORE
        self.area = Area.__new__(Area)
        self.area.readonly = False
        self.reader = frame_reader_new(&raw, &body)
        if self.reader == NULL:
            raise MemoryError()
        frame_reader_set_frame_max(self.reader, checked)
        frame_reader_set_body_max(self.reader, body_max)

    def __dealloc__(self):
        frame_reader_free(self.reader)

    cdef int begin(self) except -1:
        # Called before anything that may move or free the memory behind the attributes.
        if self.receiving:
            raise RuntimeError("the reader is in use: its recv() has not returned yet")
        self.kind = FRAME_NEED_MORE
        self.cached_body = self.cached_text = None
        return 0

    cdef int check(self, int rc) except -1:
        if rc >= 0:
            return rc
        if rc == FRAME_ENOMEM:
            raise MemoryError("no memory for an incoming message")
        raise ProtocolError(frame_reader_message(self.reader).decode())

    def recv(self, recv_into):
        """Call recv_into once with the free room; return the bytes received."""
        cdef uint8_t *ptr = NULL
        cdef size_t room = 0
        cdef Py_ssize_t got
        cdef Area area = self.area
        self.begin()
        self.check(frame_reader_reserve(self.reader, 0, &ptr, &room))
        area.ptr, area.len = ptr, <Py_ssize_t>room
        view = PyMemoryView_FromObject(area)
        self.receiving = True
        try:
            got = recv_into(view)
        finally:
            self.receiving = False
            try:
                view.release()
            except BufferError:
                pass  # exports counts it
            if area.exports:
                # recv_into kept a slice: its memory must stay, so the reader gives it up and dies.
                area.ptr, area.owned = frame_reader_surrender(self.reader), True
                self.area = Area.__new__(Area)
                raise BufferError("recv_into kept a view of the read buffer")
        if got == 0:
            raise OSError(CLOSED)
        if not 0 < got <= <Py_ssize_t>room:
            raise ValueError(f"recv_into returned {got} for a buffer of {room} bytes")
        self.check(frame_reader_commit(self.reader, got))
        return got

    def recv_now(self, int fd):
        """Receive what is there from the socket ``fd``; return how many bytes that was."""
        cdef uint8_t *ptr = NULL
        cdef size_t room = 0
        cdef Py_ssize_t got
        self.begin()
        self.check(frame_reader_reserve(self.reader, 0, &ptr, &room))
        got = c_recv(fd, ptr, room, MSG_DONTWAIT)
        while got < 0 and errno == EINTR:
            got = c_recv(fd, ptr, room, MSG_DONTWAIT)
        if got > 0:
            self.check(frame_reader_commit(self.reader, got))
        elif got == 0:
            raise OSError(CLOSED)
        elif errno != EAGAIN:
            PyErr_SetFromErrno(OSError)
        else:
            got = 0
        return got

    def feed(self, bytes data not None):
        """Append bytes that were received elsewhere."""
        cdef uint8_t *ptr = NULL
        cdef size_t room = 0
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        self.begin()
        if n != 0:
            self.check(frame_reader_reserve(self.reader, n, &ptr, &room))
            memcpy(ptr, PyBytes_AS_STRING(data), n)
            self.check(frame_reader_commit(self.reader, n))

    cdef int next_event(self) except -1:
        self.begin()
        self.kind = self.check(frame_reader_next(self.reader, &self.event))
        return self.kind

    def next(self):
        """Go to the next event: NEED_MORE, FRAME or DELIVERY."""
        return self.next_event()

    @property
    def buffered(self):
        return frame_reader_buffered(self.reader) != 0

    @property
    def frame_max(self):
        return frame_reader_frame_max(self.reader)

    @frame_max.setter
    def frame_max(self, value):
        frame_reader_set_frame_max(self.reader, checked_frame_max(value))

    # The current event: what the last next() found.

    cdef int want_delivery(self) except -1:
        if self.kind != FRAME_DELIVERY:
            if self.kind == FRAME_RAW:
                raise RuntimeError("the current event is a frame, not a delivery")
            raise RuntimeError("no current event: call next() first")
        return 0

    @property
    def channel(self):
        if self.kind == FRAME_NEED_MORE:
            self.want_delivery()
        return self.event.channel

    @property
    def frame_type(self):
        if self.kind == FRAME_NEED_MORE:
            self.want_delivery()
        return self.event.type

    @property
    def payload(self):
        if self.kind == FRAME_DELIVERY:
            raise RuntimeError("the current event is a delivery, not a frame")
        if self.kind == FRAME_NEED_MORE:
            self.want_delivery()
        return copy_view(self.event.payload)

    @property
    def body_dropped(self):
        self.want_delivery()
        return self.event.body_dropped

    @property
    def consumer_tag(self):
        self.want_delivery()
        return copy_view(self.event.consumer_tag)

    @property
    def delivery_tag(self):
        self.want_delivery()
        return self.event.delivery_tag

    @property
    def redelivered(self):
        self.want_delivery()
        return self.event.redelivered

    @property
    def exchange(self):
        self.want_delivery()
        return copy_view(self.event.exchange)

    @property
    def routing_key(self):
        self.want_delivery()
        return copy_view(self.event.routing_key)

    @property
    def content_type(self):
        self.want_delivery()
        return copy_optional(self.event.content_type)

    @property
    def content_encoding(self):
        self.want_delivery()
        return copy_optional(self.event.content_encoding)

    @property
    def headers(self):
        self.want_delivery()
        return copy_optional(self.event.headers)

    @property
    def delivery_mode(self):
        self.want_delivery()
        if not self.event.property_flags & FRAME_HAS_DELIVERY_MODE:
            return None
        return self.event.delivery_mode

    @property
    def priority(self):
        self.want_delivery()
        if not self.event.property_flags & FRAME_HAS_PRIORITY:
            return None
        return self.event.priority

    @property
    def correlation_id(self):
        self.want_delivery()
        return copy_optional(self.event.correlation_id)

    @property
    def method_args(self):
        self.want_delivery()
        return copy_view(self.event.method_args)

    @property
    def header(self):
        self.want_delivery()
        return copy_view(self.event.header)

    @property
    def delivery_args(self):
        self.want_delivery()
        return (
            shortstr(self.event.consumer_tag),
            self.event.delivery_tag,
            bool(self.event.redelivered),
            shortstr(self.event.exchange),
            shortstr(self.event.routing_key),
        )

    @property
    def properties(self):
        # The first 12 bytes are the class, the weight and the size of the body.
        self.want_delivery()
        return read_properties(self.event.header.ptr + 12, self.event.header.len - 12)

    cdef bytes body_bytes(self):
        cdef uint8_t *data
        self.want_delivery()
        if self.cached_body is None:
            if self.cached_text is not None:
                self.cached_body = (<str>self.cached_text).encode()
                return self.cached_body
            data = frame_reader_take_body(self.reader)
            if data == NULL:
                self.cached_body = copy_view(self.event.body)
            else:
                self.cached_body = take_bytes(data)
        return self.cached_body

    cdef str body_text(self):
        if self.cached_text is None:
            self.cached_text = self.body_bytes().decode("utf-8")
            # The view may point into the bytes object that is dropped here.
            self.event.body.ptr, self.event.body.len = NULL, 0
            self.cached_body = None
        return self.cached_text

    @property
    def body(self):
        return self.body_bytes()
