"""Where the C code and the frames take their memory from."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.exc cimport PyErr_Clear
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t

from fastrpc.wire.calloc cimport allocator


cdef extern from "Python.h":
    # By pointer, because the object moves.
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *, Py_ssize_t) noexcept
    int _PyBytes_Resize(PyObject **, Py_ssize_t) noexcept
    void drop "Py_DECREF"(PyObject *) noexcept
    char *bytes_data "PyBytes_AS_STRING"(PyObject *) noexcept


# The reader assembles bodies straight in bytes objects: the finished one is handed out as it is.
# What the C side sees is the object's data; the object starts this far before it.
cdef Py_ssize_t bytes_offset = PyBytes_AS_STRING(b"x") - <char *><PyObject *>b"x"


cdef inline PyObject *bytes_of(void *data) noexcept:
    return <PyObject *>(<char *>data - bytes_offset)


cdef bytes take_bytes(void *data):
    cdef PyObject *body = bytes_of(data)
    taken = <bytes>body
    drop(body)  # the reference that came with the memory
    return taken


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


cdef allocator bytes_allocator() noexcept:
    cdef allocator inside
    inside.resize, inside.free, inside.ctx = bytes_resize, bytes_free, NULL
    return inside


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
