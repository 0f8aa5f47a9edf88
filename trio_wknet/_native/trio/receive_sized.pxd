from libc.stdint cimport uint32_t

from .views cimport Views


# How far the unread bytes have been searched.
cdef struct Scan:
    uint32_t done       # the number of bytes that cannot begin a delimiter
    uint32_t taken      # the slot's, when that was found


cdef class Search:
    cdef bytes delimiter
    cdef Scan scan


cdef class ReceiveSized(Views):
    cdef bint may_ask(self) noexcept
    cdef int end_in_callback(self) except -1
    cdef void asked(self) noexcept
    cdef Search search_for(self, bytes delimiter)
    cdef Py_ssize_t most_before(self, bytes delimiter, object max_bytes) except -1
    cdef object take_exactly(self, uint32_t count, bint wait)
    cdef object take_until(self, bytes delimiter, Py_ssize_t most, Scan *scan, bint wait)
    cdef long find(self, bytes delimiter, uint32_t start) noexcept


cdef uint32_t exact_count(object n) except 0
cdef bytes as_delimiter(object delimiter)
