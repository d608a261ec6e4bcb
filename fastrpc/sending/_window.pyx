# The documentation of all public names is in _window.pyi.
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

from fastrpc.wire._reader cimport FrameReader
from fastrpc.wire.cframe cimport FRAME_METHOD, FRAME_RAW, frame_event
from fastrpc.wire.cwire cimport wire_load64


cdef enum:
    CONFIRM_SIZE = 13  # class and method id, delivery tag, bits
    MULTIPLE = 1


cdef inline bint is_method(const uint8_t *payload, const char *ids) noexcept:
    return memcmp(payload, ids, 4) == 0


cdef class ConfirmWindow:
    """What was sent in confirm mode and is not confirmed yet, by delivery tag."""

    cdef dict messages
    cdef readonly list refused
    cdef readonly Py_ssize_t bytes
    cdef public uint64_t confirmed

    def __cinit__(self):
        self.messages = {}
        self.refused = []

    def __len__(self):
        return len(self.messages)

    def __iter__(self):
        return iter(self.messages.values())

    def add(self, uint64_t tag, message):
        """The message was sent under this delivery tag; tags only grow."""
        self.messages[tag] = message
        self.bytes += len(message.body)

    def drain_into(self, again):
        """Move all messages, in the order of their tags, to the left end of a deque."""
        again.extendleft(reversed(list(self.messages.values())))
        self.messages.clear()
        self.bytes = 0

    def confirm(self, uint64_t tag, bint multiple, bint taken):
        """basic.ack (taken) or basic.nack came for that tag."""
        self.settle(tag, multiple, taken)

    def read(self, FrameReader reader not None):
        """Take confirms out of the reader; returns the kind of the next other event."""
        cdef frame_event *e = &reader.event
        cdef const uint8_t *payload
        cdef int kind
        cdef bint taken
        while True:
            kind = reader.next_event()
            if kind != FRAME_RAW or e.type != FRAME_METHOD or e.payload.len < CONFIRM_SIZE:
                return kind
            payload = e.payload.ptr
            taken = is_method(payload, b"\x00\x3c\x00\x50")  # basic.ack
            if not taken and not is_method(payload, b"\x00\x3c\x00\x78"):  # basic.nack
                return kind
            self.settle(wire_load64(payload + 4), payload[12] & MULTIPLE, taken)

    cdef int settle(self, uint64_t tag, bint multiple, bint taken) except -1:
        if not multiple:
            return self.settle_one(tag, taken)
        cdef list tags = []
        for sent in self.messages:  # in the order of their tags
            if <uint64_t>sent > tag:
                break
            tags.append(sent)
        for sent in tags:
            self.settle_one(sent, taken)
        return 0

    cdef int settle_one(self, uint64_t tag, bint taken) except -1:
        message = self.messages.pop(tag, None)
        if message is None:
            return 0
        self.bytes -= len(message.body)
        if taken:
            self.confirmed += 1
        else:
            self.refused.append(message)
        return 0
