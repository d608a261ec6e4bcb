"""Frames of any type, written one after another into one buffer. Documented in _frames.pyi."""

from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastrpc.wire._table cimport (
    write_buffer,
    write_buffer_free,
    write_buffer_reserve,
    write_properties,
    write_shortstr,
)
from fastrpc.wire.cframe cimport FRAME_BODY, FRAME_END, FRAME_HEADER, FRAME_METHOD, FRAME_OVERHEAD
from fastrpc.wire.cpublish cimport PUBLISH_ACK_SIZE, publish_ack
from fastrpc.wire.cwire cimport (
    wire_load32,
    wire_store16,
    wire_store32,
    wire_write_bytes,
    wire_write_u8,
    wire_write_u16,
    wire_write_u32,
    wire_write_u64,
)


cdef enum:
    CLASS_BASIC = 60
    BASIC_PUBLISH = 40
    # Octets of a frame's type, channel and size.
    HEAD = 7
    # A buffer that grew beyond this is freed when it has been sent.
    KEEP = 256 * 1024


cdef class FrameBuffer:
    """Frames to be sent, byte for byte as py-amqp writes them."""

    cdef write_buffer out
    cdef Py_ssize_t exports

    def __cinit__(self):
        self.out.start = self.out.to.pos = self.out.to.end = NULL
        self.exports = 0

    def __dealloc__(self):
        write_buffer_free(&self.out)

    def __len__(self):
        return self.out.to.pos - self.out.start

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.out.start, self.out.to.pos - self.out.start, True, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *view):
        self.exports -= 1

    # Called before every change: memory that a view shows must not move.
    cdef int begin(self) except -1:
        if self.exports:
            raise BufferError("the frames are in use")
        return 0

    cdef inline size_t used(self) noexcept:
        return self.out.to.pos - self.out.start

    cdef size_t open_frame(self, uint8_t type, uint16_t channel) except? 0:
        # An offset, not a pointer, because the buffer moves when it grows.
        cdef size_t start = self.used()
        write_buffer_reserve(&self.out, HEAD + 32)
        wire_write_u8(&self.out.to, type)
        wire_write_u16(&self.out.to, channel)
        wire_write_u32(&self.out.to, 0)
        return start

    cdef int close_frame(self, size_t start) except -1:
        cdef size_t size = self.used() - start - HEAD
        if size > <size_t>0xFFFFFFFF:
            raise OverflowError("frame too large")
        wire_store32(self.out.start + start + 3, <uint32_t>size)
        write_buffer_reserve(&self.out, 1)
        wire_write_u8(&self.out.to, FRAME_END)
        return 0

    cdef int write_header(
        self, uint16_t channel, uint16_t class_id, properties, uint64_t size
    ) except -1:
        cdef size_t start = self.open_frame(FRAME_HEADER, channel)
        wire_write_u16(&self.out.to, class_id)
        wire_write_u16(&self.out.to, 0)
        wire_write_u64(&self.out.to, size)
        if isinstance(properties, bytes):
            self.append(properties)
        else:
            write_properties(&self.out, properties)
        return self.close_frame(start)

    cdef int cut_back(self, size_t mark) except -1:
        self.out.to.pos = self.out.start + mark
        return 0

    def view(self):
        """The whole buffer as a read-only memoryview."""
        return PyMemoryView_FromObject(self)

    def clear(self):
        """Forget all frames."""
        self.begin()
        if self.out.to.end - self.out.start > KEEP:
            write_buffer_free(&self.out)
        self.out.to.pos = self.out.start

    def truncate(self, size_t size):
        """Forget everything after the first `size` bytes."""
        self.begin()
        if size < self.used():
            self.cut_back(size)

    def frame(self, uint8_t type, uint16_t channel, payload):
        """Append a frame of any type."""
        cdef size_t mark
        self.begin()
        mark = self.used()
        try:
            self.open_frame(type, channel)
            self.append(payload)
            self.close_frame(mark)
        except BaseException:
            self.cut_back(mark)
            raise

    cdef int append(self, payload) except -1:
        cdef Py_buffer view
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            write_buffer_reserve(&self.out, view.len)
            wire_write_bytes(&self.out.to, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return 0

    def method(self, uint16_t channel, tuple signature, args):
        """Append a method frame; `args` are encoded already."""
        cdef uint16_t class_id = signature[0], method_id = signature[1]
        cdef size_t mark
        self.begin()
        mark = self.used()
        try:
            self.open_frame(FRAME_METHOD, channel)
            wire_write_u16(&self.out.to, class_id)
            wire_write_u16(&self.out.to, method_id)
            self.append(args)
            self.close_frame(mark)
        except BaseException:
            self.cut_back(mark)
            raise

    def header(self, uint16_t channel, uint16_t class_id, properties, uint64_t size):
        """Append the content header of a body of `size` bytes."""
        cdef size_t mark
        self.begin()
        mark = self.used()
        try:
            self.write_header(channel, class_id, properties, size)
        except BaseException:
            self.cut_back(mark)
            raise

    def publish(
        self,
        uint16_t channel,
        exchange,
        routing_key,
        bint mandatory,
        bint immediate,
        properties,
        uint64_t size,
    ):
        """Append basic.publish and the content header of a body of `size` bytes."""
        cdef size_t mark
        self.begin()
        mark = self.used()
        try:
            self.open_frame(FRAME_METHOD, channel)
            wire_write_u16(&self.out.to, CLASS_BASIC)
            wire_write_u16(&self.out.to, BASIC_PUBLISH)
            wire_write_u16(&self.out.to, 0)
            write_shortstr(&self.out, exchange or "")
            write_shortstr(&self.out, routing_key or "")
            write_buffer_reserve(&self.out, 1)
            wire_write_u8(&self.out.to, mandatory | (immediate << 1))
            self.close_frame(mark)
            self.write_header(channel, CLASS_BASIC, properties, size)
        except BaseException:
            self.cut_back(mark)
            raise

    def body(self, uint16_t channel, data, uint32_t frame_max):
        """Append `data` in as many body frames as it needs; none if it is empty."""
        cdef Py_buffer view
        cdef size_t mark, at = 0, left, n, chunk = frame_max - FRAME_OVERHEAD
        self.begin()
        mark = self.used()
        if frame_max <= FRAME_OVERHEAD:
            raise ValueError(f"frame_max is {frame_max}")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            left = view.len
            write_buffer_reserve(&self.out, left + (left // chunk + 1) * FRAME_OVERHEAD)
            while left:
                n = min(left, chunk)
                wire_write_u8(&self.out.to, FRAME_BODY)
                wire_write_u16(&self.out.to, channel)
                wire_write_u32(&self.out.to, <uint32_t>n)
                wire_write_bytes(&self.out.to, <uint8_t *>view.buf + at, n)
                wire_write_u8(&self.out.to, FRAME_END)
                at += n
                left -= n
        except BaseException:
            self.cut_back(mark)
            raise
        finally:
            PyBuffer_Release(&view)

    def set_channel(self, uint16_t channel):
        """Send all frames on another channel."""
        cdef uint8_t *at = self.out.start
        self.begin()
        while at < self.out.to.pos:
            wire_store16(at + 1, channel)
            at += wire_load32(at + 3) + FRAME_OVERHEAD

    def ack(self, uint16_t channel, uint64_t delivery_tag, bint multiple=False):
        """Append basic.ack."""
        self.begin()
        write_buffer_reserve(&self.out, PUBLISH_ACK_SIZE)
        publish_ack(self.out.to.pos, channel, delivery_tag, multiple)
        self.out.to.pos += PUBLISH_ACK_SIZE
