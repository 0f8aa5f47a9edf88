from .lease cimport Lease
from .receive cimport ReceiveHalf


cdef class Views(ReceiveHalf):
    cdef bint pin(self, Lease lease, Py_ssize_t most) except -1
    cdef int straighten(self) except -1
