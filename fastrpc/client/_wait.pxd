cdef class Wait:
    cdef readonly double deadline
    cdef readonly object on_message
    cdef readonly str queue
    cdef readonly object on_interval
    cdef readonly object arrived
    cdef object _errors
    cdef readonly object metas
    cdef object _bell

    cdef bint has_news(self) except -1
    cpdef object hear(self, object result, object error=*)
    cdef int hear_meta(self, dict meta) except -1
    cdef int sleep(self, double timeout) except -1
    cdef int wake(self) except -1


cdef class LoopWait(Wait):
    cdef readonly bint expired
    cdef readonly object failure
    cdef object _loop
    cdef list _told
    cdef object _ring
    cdef object _future


cdef class Watchers:
    cdef dict _waits
    cdef dict _listeners
    cdef list _notified

    cdef int watch_one(self, Py_ssize_t key, Wait wait) except -1
    cdef int unwatch_one(self, Py_ssize_t key, Wait wait) except -1
    cdef bint notify(self, object result, object error) except -1
    cpdef object wake(self)


cdef class ReadingRole:
    cdef Watchers _watchers
    cdef dict _sleepers
    cdef object _reader
    cdef public object on_free
    cdef int _depth
    cdef int _calling_out
    cdef object _claimed_by
    cdef Wait _claim

    cdef bint take(self) except -1
    cdef int leave(self) except -1
    cdef int hand_over(self) except -1
    cdef bint begin_call_out(self) except -1
    cdef int end_call_out(self) except -1
