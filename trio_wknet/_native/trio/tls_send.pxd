from libc.stdint cimport uint32_t

from .send cimport SendHalf
from .tls_receive cimport TLSReceive


cdef class TLSSend(TLSReceive):
    cdef SendHalf over_conn(self, str call)
    cdef bint may_send_now(self, Py_ssize_t n) except -1
    cdef int send_data(self, object data) except -1
    cdef int send_in_turn(self, object data) except -1
    cdef int send_held_in_turn(self) except -1
    cdef int send_now(self, object wire) except -1
    cdef uint32_t unsent(self) noexcept
