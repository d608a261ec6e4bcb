"""Packing basic.publish and basic.ack into frames. Documented in _encoder.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint16_t, uint64_t

from fastrpc.wire._memory cimport Area, new_area, raw_allocator
from fastrpc.wire._reader cimport checked_frame_max
from fastrpc.wire.calloc cimport allocator
from fastrpc.wire.cpublish cimport (
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
    publish_template,
    publish_template_free,
    publish_template_init,
    publish_write,
)
from fastrpc.wire.cwire cimport wire_view


cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object) noexcept


# A publish buffer up to this size is kept for the next message.
cdef enum:
    KEEP = 256 * 1024


cdef bytes utf8(str text):
    # As py-amqp does: a lone surrogate is sent too.
    return text.encode("utf-8", "surrogatepass")


cdef int view_text(wire_view *view, text, list keep) except -1:
    # ASCII text (all of our own ids) is not copied: the view points into the str itself.
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

    cdef publish_template template
    cdef Area area

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

        # If a view of the last message is still held, this message gets memory of its own.
        cdef Area area = self.area
        if size > KEEP:
            area = new_area(size)  # freed with its view
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
