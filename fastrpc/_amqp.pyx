# The documentation of all public names is in _amqp.pyi.
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_Clear, PyErr_SetFromErrno
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.errno cimport EBADF, EINTR, errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from fastrpc.calloc cimport allocator
from fastrpc.cframe cimport (
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
from fastrpc.cpublish cimport (
    PUBLISH_ACK_SIZE,
    PUBLISH_ECONTENT_ENCODING,
    PUBLISH_ECONTENT_TYPE,
    PUBLISH_ECORRELATION_ID,
    PUBLISH_EEXCHANGE,
    PUBLISH_EFRAME_MAX,
    PUBLISH_EHEADERS,
    PUBLISH_ENOMEM,
    PUBLISH_EROUTING_KEY,
    PUBLISH_NO_OCTET,
    publish_ack,
    publish_message,
    publish_options,
    publish_size,
    publish_template_free,
    publish_template_init,
    publish_write,
)
from fastrpc.cwire cimport wire_view

from fastrpc.errors import ProtocolError


cdef extern from "Python.h":
    # By pointer, because the object moves.
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) noexcept
    int _PyBytes_Resize(PyObject **, Py_ssize_t) noexcept
    void drop "Py_DECREF"(PyObject *) noexcept
    char *bytes_data "PyBytes_AS_STRING"(PyObject *) noexcept
    bint PyUnicode_IS_ASCII(object) noexcept


cdef extern from * nogil:
    """
    #include <poll.h>
    #ifndef POLLRDHUP  // not Linux: at the peer's end macOS and the BSDs say POLLHUP
    #define POLLRDHUP POLLHUP
    #endif
    """
    enum:
        POLLIN
        POLLNVAL
        POLLRDHUP

    struct pollfd:
        int fd
        short events
        short revents

    int poll(pollfd *, unsigned long, int) noexcept


NEED_MORE = FRAME_NEED_MORE
FRAME = FRAME_RAW
DELIVERY = FRAME_DELIVERY

# A publish buffer up to this size is kept for the next message.
cdef enum:
    KEEP = 256 * 1024


# ---------------------------------------------------------------- memory

# The reader assembles bodies straight in bytes objects: the finished one is handed out as it is.
# What the C side sees is the object's data; the object starts this far before it.
cdef Py_ssize_t bytes_offset = PyBytes_AS_STRING(b"x") - <char *><PyObject *>b"x"


cdef inline PyObject *bytes_of(void *data) noexcept:
    return <PyObject *>(<char *>data - bytes_offset)


cdef void *bytes_resize(void *ctx, void *data, size_t size) noexcept:
    cdef PyObject *body
    if data == NULL:
        body = new_bytes(NULL, <Py_ssize_t>size)
    else:
        body = bytes_of(data)
        _PyBytes_Resize(&body, <Py_ssize_t>size)  # frees the old one and sets NULL if it fails
    if body == NULL:
        PyErr_Clear()  # becomes FRAME_ENOMEM, and that a MemoryError
        return NULL
    return bytes_data(body)


cdef void bytes_free(void *ctx, void *data) noexcept:
    drop(bytes_of(data))


cdef void *raw_resize(void *ctx, void *ptr, size_t size) noexcept:
    cdef void *moved = PyMem_RawRealloc(ptr, size)
    if moved == NULL:
        PyMem_RawFree(ptr)
    return moved


cdef void raw_free(void *ctx, void *ptr) noexcept:
    PyMem_RawFree(ptr)


cdef allocator raw_allocator() noexcept:
    cdef allocator raw
    raw.resize, raw.free, raw.ctx = raw_resize, raw_free, NULL
    return raw


cdef class Area:
    # Memory that a memoryview may show. It counts who looks, so that nobody looks at freed memory.

    def __cinit__(self):
        self.ptr = NULL
        self.len = self.cap = self.exports = 0
        self.readonly = True
        self.owned = False

    def __dealloc__(self):
        if self.owned:
            PyMem_RawFree(self.ptr)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.ptr, self.len, self.readonly, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1


cdef Area new_area(Py_ssize_t size):
    cdef Area area = Area.__new__(Area)
    area.ptr = <uint8_t *>PyMem_RawMalloc(size)
    if area.ptr == NULL:
        raise MemoryError()
    area.owned = True
    area.cap = size
    return area


# ---------------------------------------------------------------- reading


cdef inline bytes copy_view(wire_view view):
    return PyBytes_FromStringAndSize(<const char *>view.ptr, <Py_ssize_t>view.len)


cdef inline object copy_optional(wire_view view):
    return None if view.ptr == NULL else copy_view(view)


cdef uint32_t checked_frame_max(frame_max) except? 0:
    if not (frame_max == 0 or FRAME_MAX_MIN <= frame_max <= 0xFFFFFFFF):
        raise ValueError(
            f"frame_max is {frame_max}: 0 (as long as none is negotiated) or at least "
            f"{FRAME_MAX_MIN}"
        )
    return frame_max


cdef class FrameReader:
    """A cursor over what a broker sends: frames, and whole deliveries."""

    def __cinit__(self, frame_max=131072, max_body=512 * 1024 * 1024):
        cdef allocator raw = raw_allocator()
        cdef allocator body
        body.resize, body.free, body.ctx = bytes_resize, bytes_free, NULL
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
        # Before anything that may move or free what the attributes show.
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
        """Call recv_into once with the free room; returns how many bytes came."""
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
                pass  # counted in exports
            if area.exports:
                # Somebody kept a slice. The memory stays as long as they look; the reader cannot.
                area.ptr, area.owned = frame_reader_surrender(self.reader), True
                self.area = Area.__new__(Area)
                raise BufferError("recv_into kept a view of the read buffer")
        if got == 0:
            raise OSError("Server unexpectedly closed connection")
        if not 0 < got <= <Py_ssize_t>room:
            raise ValueError(f"recv_into returned {got} for a buffer of {room} bytes")
        self.check(frame_reader_commit(self.reader, got))
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

    # What the last next() found.

    cdef int want_delivery(self) except -1:
        if self.kind != FRAME_DELIVERY:
            if self.kind == FRAME_RAW:
                raise RuntimeError("the reader stands at a frame, not at a delivery")
            raise RuntimeError("the reader stands at nothing: call next()")
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
            raise RuntimeError("the reader stands at a delivery, not at a frame")
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

    cdef bytes body_bytes(self):
        cdef uint8_t *data
        cdef PyObject *body
        self.want_delivery()
        if self.cached_body is None:
            if self.cached_text is not None:
                self.cached_body = (<str>self.cached_text).encode()
                return self.cached_body
            data = frame_reader_take_body(self.reader)
            if data == NULL:
                self.cached_body = copy_view(self.event.body)
            else:
                body = bytes_of(data)
                self.cached_body = <bytes>body
                drop(body)  # the reader's reference
        return self.cached_body

    cdef str body_text(self):
        if self.cached_text is None:
            self.cached_text = self.body_bytes().decode("utf-8")
            self.event.body.ptr, self.event.body.len = NULL, 0  # they may have shown the bytes
            self.cached_body = None
        return self.cached_text

    @property
    def body(self):
        return self.body_bytes()


# ---------------------------------------------------------------- writing


cdef bytes utf8(str text):
    # As py-amqp does: a lone surrogate travels, too.
    return text.encode("utf-8", "surrogatepass")


cdef int view_text(wire_view *view, text, list keep) except -1:
    # ASCII, that is every id that is ours, is looked at where it lies.
    cdef Py_ssize_t size = 0
    cdef bytes encoded
    if text is None:
        view.ptr, view.len = NULL, 0
        return 0
    if isinstance(text, str) and PyUnicode_IS_ASCII(text):
        view.ptr = <const uint8_t *>PyUnicode_AsUTF8AndSize(text, &size)
        view.len = <size_t>size
        return 0
    encoded = utf8(text) if isinstance(text, str) else text
    keep.append(encoded)
    view.ptr = <const uint8_t *>PyBytes_AS_STRING(encoded)
    view.len = <size_t>PyBytes_GET_SIZE(encoded)
    return 0


cdef int publish_failed(int rc, wire_view view, name) except -1:
    if rc == PUBLISH_ENOMEM:
        raise MemoryError()
    if rc == PUBLISH_EHEADERS:
        raise ValueError("headers is not an encoded table: 4 bytes of length, then as many bytes")
    if rc == PUBLISH_EFRAME_MAX:
        raise ValueError("the content header does not fit into a frame: headers is too large")
    if name is None:
        raise OverflowError("message too large")
    raise ValueError(f"{name} is {view.len} bytes long, a short string holds 255")


cdef int octet(value, name) except? -1:
    if value is None:
        return PUBLISH_NO_OCTET
    if not 0 <= value <= 255:
        raise ValueError(f"{name} is {value}, an octet holds 0 to 255")
    return value


cdef class PublishEncoder:
    """Packs basic.publish, content header and body frames, byte for byte as py-amqp does."""

    def __cinit__(
        self,
        uint16_t channel,
        exchange,
        content_type=None,
        content_encoding=None,
        bytes headers=None,
        delivery_mode=None,
        priority=None,
        bint mandatory=False,
        frame_max=131072,
    ):
        cdef publish_options options
        cdef list keep = []
        self.template.block = NULL
        options.channel = channel
        options.mandatory = mandatory
        options.frame_max = checked_frame_max(frame_max)
        options.delivery_mode = octet(delivery_mode, "delivery_mode")
        options.priority = octet(priority, "priority")
        view_text(&options.exchange, exchange or "", keep)
        view_text(&options.content_type, content_type, keep)
        view_text(&options.content_encoding, content_encoding, keep)
        view_text(&options.headers, headers, keep)
        cdef allocator raw = raw_allocator()
        cdef int rc = publish_template_init(&self.template, &options, &raw)
        if rc == PUBLISH_EEXCHANGE:
            publish_failed(rc, options.exchange, "exchange")
        elif rc == PUBLISH_ECONTENT_TYPE:
            publish_failed(rc, options.content_type, "content_type")
        elif rc == PUBLISH_ECONTENT_ENCODING:
            publish_failed(rc, options.content_encoding, "content_encoding")
        elif rc < 0:
            publish_failed(rc, options.headers, None)
        self.area = new_area(4096)

    def __dealloc__(self):
        publish_template_free(&self.template)

    def encode(self, routing_key, correlation_id, bytes body not None):
        """All frames of one message in a read-only memoryview."""
        cdef publish_message message
        cdef size_t size = 0
        cdef list keep = []
        view_text(&message.routing_key, routing_key or "", keep)
        view_text(&message.correlation_id, correlation_id, keep)
        message.body.ptr = <const uint8_t *>PyBytes_AS_STRING(body)
        message.body.len = <size_t>PyBytes_GET_SIZE(body)

        cdef int rc = publish_size(&self.template, &message, &size)
        if rc == PUBLISH_EROUTING_KEY:
            publish_failed(rc, message.routing_key, "routing_key")
        elif rc == PUBLISH_ECORRELATION_ID:
            publish_failed(rc, message.correlation_id, "correlation_id")
        elif rc < 0:
            publish_failed(rc, message.body, None)

        # Where the last message is still looked at, it keeps its memory and we take new.
        cdef Area area = self.area
        if size > KEEP:
            area = new_area(size)  # goes with its view
        elif area.exports or area.cap < <Py_ssize_t>size:
            area = new_area(4096 if size <= 4096 else KEEP)
            self.area = area
        rc = publish_write(&self.template, &message, area.ptr, size)
        if rc < 0:
            publish_failed(rc, message.body, None)
        area.len = <Py_ssize_t>size
        return PyMemoryView_FromObject(area)


def encode_ack(uint16_t channel, uint64_t delivery_tag, bint multiple=False):
    """The frame of a basic.ack."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, PUBLISH_ACK_SIZE)
    publish_ack(<uint8_t *>PyBytes_AS_STRING(out), channel, delivery_tag, multiple)
    return out


cdef int look(pollfd *entry) noexcept nogil:
    cdef int n = poll(entry, 1, 0)
    while n < 0 and errno == EINTR:
        n = poll(entry, 1, 0)
    return n


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec + now.tv_nsec * 1e-9


cdef bint look_for(short events, int fd, double busy_wait) except -1:
    """Whether one of ``events``, an error or the end is there."""
    cdef pollfd entry
    cdef int n
    cdef double end
    if fd < 0:  # poll() ignores those
        raise OSError(EBADF, "Bad file descriptor")
    entry.fd, entry.events, entry.revents = fd, events, 0
    n = look(&entry)
    if n == 0 and busy_wait > 0:
        with nogil:
            end = monotonic() + busy_wait
            while n == 0 and monotonic() < end:
                n = look(&entry)
    if n < 0:
        PyErr_SetFromErrno(OSError)
    if entry.revents & POLLNVAL:
        raise OSError(EBADF, "Bad file descriptor")
    return n > 0


def readable(int fd, double busy_wait=0):
    """Whether reading from fd would return at once: with bytes, the end or an error."""
    return look_for(POLLIN, fd, busy_wait)


def hung_up(int fd):
    """Whether the peer has closed the connection."""
    return look_for(POLLRDHUP, fd, 0)
