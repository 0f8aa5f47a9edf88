# What a receive of a TLS stream that knows how much it wants is made of. The top of
# tls_receive.pyx says why.
cimport cython

from .tls cimport TLSBase
from .tls_frames cimport StreamFrames


cdef class Wanted:
    # What is wanted, taken out of what is unread; None if more has to be received first.
    cdef bytes take(self, TLSReceive stream)
    # What to raise if no more will come.
    cdef object incomplete(self, Py_ssize_t there)


@cython.final
cdef class Exactly(Wanted):
    cdef Py_ssize_t count


@cython.final
cdef class Until(Wanted):
    cdef bytes delimiter
    cdef Py_ssize_t most


cdef class TLSReceive(TLSBase):
    cdef StreamFrames frames    # what the channel receives, while there is one
    cdef object channel         # a weak reference to it

    cdef int ensure_nowait(self, str call) except -1
    cdef object read_now(self, Py_ssize_t most)
    cdef int answer_now(self) except -1
    cdef int feed_frames(self, bytes data) except -1
    cdef Exactly exactly(self, object n)
    cdef Until until(self, object delimiter, object max_bytes)
    cdef bytes take_now(self, Wanted wanted, str call)
