"""Allocators for the C code, and memory that memoryviews may show."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t

from fastrpc.wire.calloc cimport allocator


cdef extern from "Python.h":
    # By pointer, because resizing moves the object.
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) noexcept
    int _PyBytes_Resize(PyObject **, Py_ssize_t) noexcept
    void drop "Py_DECREF"(PyObject *) noexcept
    char *bytes_data "PyBytes_AS_STRING"(PyObject *) noexcept


# The reader assembles bodies directly in bytes objects, so a finished body is not copied. The C
# code sees the data of the object; the object starts this many bytes before it.
cdef Py_ssize_t bytes_offset = PyBytes_AS_STRING(b"x") - <char *><PyObject *>b"x"


cdef inline PyObject *bytes_of(void *data) noexcept:
    return <PyObject *>(<char *>data - bytes_offset)


cdef bytes take_bytes(void *data):
    cdef PyObject *body = bytes_of(data)
    taken = <bytes>body
    drop(body)  # the reference that the allocator held
    return taken


cdef void *bytes_resize(void *ctx, void *data, size_t size) noexcept:
    cdef PyObject *body
    if data == NULL:
        body = new_bytes(NULL, <Py_ssize_t>size)
    else:
        body = bytes_of(data)
        _PyBytes_Resize(&body, <Py_ssize_t>size)  # frees the old one and sets NULL if it fails
    if body == NULL:
        PyErr_Clear()  # the C code returns FRAME_ENOMEM, which becomes a MemoryError
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


cdef allocator bytes_allocator() noexcept:
    cdef allocator inside
    inside.resize, inside.free, inside.ctx = bytes_resize, bytes_free, NULL
    return inside


cdef class Area:
    # Memory that memoryviews may show. It counts them, so that none ever shows freed memory.

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
