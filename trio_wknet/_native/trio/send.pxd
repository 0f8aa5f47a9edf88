from libc.stdint cimport int32_t, uint32_t

from .operation cimport Operation
from .receive_sized cimport ReceiveSized


cdef class SendHalf(ReceiveSized):
    cdef int ensure_no_sender(self) except -1
    cdef int may_send(self) except -1
    cdef bint queue_empty(self, bint wait) noexcept
    cdef int _send_or_queue(self, const char *data, Py_ssize_t n) except -1
    cdef Py_ssize_t push(self, const char *data, Py_ssize_t n) except -1
    cdef void failed(self, int32_t error) noexcept
    cdef void arm(self) noexcept
    cdef bint queue_rest(self, const char *data, uint32_t n) except -1
    cdef int shut_down_sending(self) except -1


cdef class Sending(Operation):
    cdef SendHalf conn
    cdef object argument
    cdef object validate(self)
    cdef int take_turn(self) except -1
    cdef object begin(self)
    cdef object park(self)
    cdef bint attempt(self) except -1
