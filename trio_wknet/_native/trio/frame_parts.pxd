from libc.stdint cimport uint32_t

from ..reactor.framing cimport FrameScan
from .framed cimport CompiledFraming
from .send cimport SendHalf


cdef class FrameParts:
    cdef readonly SendHalf conn
    cdef readonly object framing    # as the application gave it
    cdef CompiledFraming compiled
    cdef FrameScan *scan            # a reference; the slot's while the connection is framed

    cdef bint is_linked(self) noexcept
    cdef void leave_scan(self) noexcept
    cdef object take_large(self)
    cdef bint move_part(self, bint stay) except -1
    cdef int move_head(self) except -1
    cdef uint32_t reserve(self, uint32_t there) except 0
    cdef bint pull(self, uint32_t n) except -1
    cdef void take_out(self, uint32_t n, bint moved) noexcept
    cdef int put_back(self) except -1
    cdef void _exchange_partial(self, object data) noexcept
    cdef void _copy_moved(self, unsigned char *out) noexcept
