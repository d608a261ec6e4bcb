# The documentation of all public names is in _window.pyi.
#
# A message moves between two places inside one compiled call, because an exception can be thrown
# into the thread between any two bytecodes: it then never finds the message in neither place. The
# message enters the new place first, so that running out of memory leaves it in both rather than
# in none.
from collections import deque
from time import monotonic

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

from fastrpc.wire._reader cimport FrameReader
from fastrpc.wire.cframe cimport FRAME_METHOD, FRAME_RAW, frame_event
from fastrpc.wire.cwire cimport wire_load64


cdef enum:
    METHOD_SIZE = 4  # class and method id
    CONFIRM_SIZE = 13  # class and method id, delivery tag, bits
    MULTIPLE = 1
    ASK_AFTER = 1 << 16  # without confirms: bytes between two questions


cdef inline bint is_method(const uint8_t *payload, const char *ids) noexcept:
    return memcmp(payload, ids, 4) == 0


cdef class ConfirmWindow:
    """All unconfirmed messages: in flight, to be sent again, or refused."""

    cdef dict messages  # in flight, by delivery tag
    cdef dict retried  # delivery tag -> refusals, of those in flight that were refused before
    cdef readonly object again
    cdef readonly object refused
    cdef readonly Py_ssize_t bytes
    cdef readonly Py_ssize_t refused_bytes
    cdef public uint64_t confirmed
    cdef readonly Py_ssize_t ahead
    cdef object questions  # unanswered: for each the bytes between the question before it and it
    cdef Py_ssize_t unasked  # bytes since the last question

    def __cinit__(self):
        self.messages = {}
        self.retried = {}
        self.again = deque()
        self.refused = deque()
        self.questions = deque()

    def __len__(self):
        return len(self.messages) + len(self.again) + len(self.refused)

    def __iter__(self):
        return iter([self.messages[tag] for tag in self.messages if tag not in self.retried])

    @property
    def in_flight(self):
        return len(self.messages) + len(self.questions)

    @property
    def refused_count(self):
        return len(self.retried) + len(self.refused)

    def has_room(self, Py_ssize_t count, Py_ssize_t size, Py_ssize_t ahead):
        """Whether a new message may be sent."""
        return (
            not self.again
            and len(self.messages) - len(self.retried) < count
            and self.bytes < size
            and self.ahead < ahead
        )

    def holds(self, correlation_id):
        """Whether a message with this correlation id is kept."""
        if not self.messages and not self.again and not self.refused:
            return False  # nearly always so of the connection for large results
        # Copied in one step: a garbage collection during the iteration may change the originals.
        for message in list(self.messages.values()):
            if message.correlation_id == correlation_id:
                return True
        for message in tuple(self.again):
            if message.correlation_id == correlation_id:
                return True
        for _, _, message in tuple(self.refused):
            if message.correlation_id == correlation_id:
                return True
        return False

    def add(self, uint64_t tag, message):
        """Note that ``message`` was sent; tags only grow."""
        self.messages[tag] = message
        if self.again and self.again[0] is message:
            self.again.popleft()
        elif self.refused and self.refused[0][2] is message:
            self.retried[tag] = self.refused[0][1]
            self.refused.popleft()
        else:
            self.bytes += len(message.body)

    def forget(self, message, Py_ssize_t size):
        """Note that ``message`` was sent and will not be confirmed; return whether to ask now."""
        if self.again and self.again[0] is message:
            self.again.popleft()
            self.bytes -= len(message.body)
        self.unasked += size
        if self.unasked < ASK_AFTER:
            return False
        self.questions.append(self.unasked)
        self.ahead += self.unasked
        self.unasked = 0
        return True

    def append(self, message):
        """Put ``message`` at the end of ``again``."""
        self.again.append(message)
        self.bytes += len(message.body)

    def lose(self):
        """The link is lost: move the messages in flight to ``again`` and ``refused``."""
        for tag in reversed(list(self.messages)):
            message = self.messages[tag]
            if tag in self.retried:
                self.refused.appendleft((0.0, self.retried[tag], message))
            else:
                self.again.appendleft(message)
        self.messages.clear()
        self.retried.clear()
        self.questions.clear()
        self.ahead = self.unasked = 0

    def replace(self, message, substitute):
        """Replace a message in ``again`` with ``substitute``, or drop it if that is None."""
        place = self.again.index(message)
        self.bytes -= len(message.body)
        if substitute is None:
            del self.again[place]
        else:
            self.again[place] = substitute
            self.bytes += len(substitute.body)

    def give_up(self):
        """Drop the first message of ``refused``; return how often it was refused, and it."""
        _, refusals, message = self.refused.popleft()
        self.refused_bytes -= len(message.body)
        return refusals, message

    def drop_only(self):
        """Drop the only message in flight; return it."""
        (message,) = self.messages.values()
        if self.retried:
            self.refused_bytes -= len(message.body)
        else:
            self.bytes -= len(message.body)
        self.messages.clear()
        self.retried.clear()
        return message

    def count_into(self, stats):
        """Move ``confirmed`` to the counter of that name."""
        stats.confirmed += self.confirmed
        self.confirmed = 0

    def confirm(self, uint64_t tag, bint multiple, bint taken):
        """Handle ``basic.ack`` (``taken``) or ``basic.nack`` for the message under ``tag``."""
        self.settle(tag, multiple, taken)

    def read(self, FrameReader reader not None):
        """Take confirms out of ``reader`` until it shows another event; return its kind."""
        cdef frame_event *e = &reader.event
        cdef const uint8_t *payload
        cdef int kind
        cdef bint taken
        while True:
            kind = reader.next_event()
            if kind != FRAME_RAW or e.type != FRAME_METHOD or e.payload.len < METHOD_SIZE:
                return kind
            payload = e.payload.ptr
            if self.questions and is_method(payload, b"\x00\x3c\x00\x0b"):  # basic.qos-ok
                self.ahead -= self.questions.popleft()
                continue
            if e.payload.len < CONFIRM_SIZE:
                return kind
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

    cdef int settle_one(self, object tag, bint taken) except -1:
        message = self.messages.get(tag)
        if message is None:
            return 0
        cdef Py_ssize_t size = len(message.body)
        cdef bint retried = bool(self.retried) and tag in self.retried
        if not taken:
            self.refused.append((monotonic(), self.retried.get(tag, 0) + 1, message))
        del self.messages[tag]
        if retried:
            del self.retried[tag]
        else:
            self.bytes -= size
        if taken:
            self.confirmed += 1
            if retried:
                self.refused_bytes -= size
        elif not retried:
            self.refused_bytes += size
        return 0
