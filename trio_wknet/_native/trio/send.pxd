from libc.stdint cimport uint32_t

from ..base.linux cimport iovec
from ..reactor.slot cimport Slot
from .operation cimport Operation
from .receive_sized cimport ReceiveSized


cdef enum:
    # Above this a send copies for longer than handing the GIL over takes.
    HOLD_GIL_UP_TO = 16384


cdef object unreadable()


cdef class SendHalf(ReceiveSized):
    cdef int ensure_no_sender(self) except -1
    cdef int ensure_free(self) except -1
    cdef int may_send(self) except -1
    cdef int ensure_unbroken(self) except -1
    cdef Py_ssize_t push(self, const char *data, Py_ssize_t n, bint wait) except -1
    cdef Py_ssize_t push_behind(self, const char *data, Py_ssize_t n) except -2
    cdef void arm(self) noexcept
    cdef size_t allowed(self, size_t n) noexcept
    cdef void spent(self, size_t n) noexcept
    cdef void wait_for_rate(self) noexcept
    cdef void release(self) noexcept
    cdef int leave_rest(self, const iovec *rest, int count, uint32_t n) except -1
    cdef int _send_or_queue(self, const char *data, Py_ssize_t n) except -1
    cdef bint is_corking(self, Slot *slot, Py_ssize_t n) noexcept
    cdef int send_at_once(self, const char *data, Py_ssize_t n) except -1
    cdef int cork_message(self, const char *data, uint32_t n) except -1
    cdef bint queue_behind(self, const char *data, uint32_t n) except -1
    cdef uint32_t add_message(self, const char *data, uint32_t n) except? 0


cdef class Sending(Operation):
    cdef SendHalf conn
    cdef object argument
    cdef int waiting            # for the reactor: TELL or HAND_OVER (sender.pxd)
    cdef bint holding           # the sending side is this operation's
    cdef bint behind            # what is queued goes ahead of it
    cdef object validate(self)
    cdef int take_turn(self) except -1
    cdef object begin(self)
    cdef object park(self)
    cdef bint attempt(self) except -1
    cdef int make_way(self) except -1
    cdef bint acquire(self) except -1
    cdef void wait_behind(self) noexcept
    cdef void release(self) noexcept


cdef class SendingData(Sending):
    cdef size_t left            # bytes
    cdef bint begun             # a part was sent
    cdef bint sent              # all of them, and the sending side is let go of
    cdef bint deferred          # until the tasks of this turn have run
    cdef bint may_defer(self) noexcept
    cdef object defer(self)
    cdef bint take_sending_side(self) except -1
    cdef bint push_behind(self) except -1
    cdef int push(self) except -1
    cdef void let_go_of_data(self) noexcept
