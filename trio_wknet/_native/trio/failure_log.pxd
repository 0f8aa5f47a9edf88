# The log lines about what peers do wrong.
from libc.stdint cimport int64_t, uint64_t


cdef class FailureLog:
    cdef object logger
    cdef str rest               # the line about those that got none, with a %d
    cdef int rest_level
    cdef double lines           # the lines still allowed at `lines_at`
    cdef uint64_t lines_at      # ns
    cdef uint64_t unsaid        # failures since the last line that were not logged

    cpdef int64_t take_line(self, int level) noexcept
    cdef int64_t take_line_at(self, int level, uint64_t now) noexcept
