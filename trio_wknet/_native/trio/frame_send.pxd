from ..reactor.framing cimport FramingSpec
from .frames cimport Frames

cdef str frame_objection(const FramingSpec *spec, const char *data, size_t n)
cdef unsigned char *put_frame(
    const FramingSpec *spec, unsigned char *out, const void *data, size_t n
) noexcept


cdef class FrameSend(Frames):
    cdef object sending(self, object frames, bint single)
    cdef void count_sent(self, Py_ssize_t n, size_t size) noexcept
    cdef int send_now(self, object frames, bint single) except -1
    cdef bint send_bytes(self, object frames, bint single) except -1
