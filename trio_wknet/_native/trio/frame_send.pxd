from .frames cimport Frames


cdef class FrameSend(Frames):
    cdef object sending(self, object frames, bint single)
    cdef void count_sent(self, Py_ssize_t n, size_t size) noexcept
    cdef int send_now(self, object frames, bint single) except -1
    cdef bint send_bytes(self, object frames, bint single) except -1
