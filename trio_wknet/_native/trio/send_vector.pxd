from cpython.buffer cimport Py_buffer

from ..base.linux cimport iovec
from .send cimport SendHalf, SendingData


cdef class VectorHalf(SendHalf):
    pass


# Sends what `spans` show. Subclasses fill them in `validate`, and keep what they point into.
cdef class SendSpans(SendingData):
    cdef iovec *spans
    cdef Py_ssize_t count
    cdef Py_ssize_t at              # the first that is not all sent
    cdef Py_buffer *views           # what is held until all is sent, or given up
    cdef Py_ssize_t held

    cdef int reserve(self, Py_ssize_t count) except -1
    cdef void add(self, const void *data, size_t n) noexcept
    cdef int hold(self, object data, Py_ssize_t which) except -1
    cdef str name_of(self, Py_ssize_t which)
    cdef void advance(self, size_t n) noexcept


# Sends messages, each of them whole or not at all. Subclasses also set `ends` and `total`.
cdef class SendWhole(SendSpans):
    cdef bint single
    cdef unsigned char *scratch     # what was written for the wire
    cdef size_t *ends               # on the wire, of each message
    cdef size_t total

    cdef void count_first(self, Py_ssize_t n) noexcept
    cdef void leave_begun(self) noexcept

cdef tuple as_tuple(object things, str name, str kind)
