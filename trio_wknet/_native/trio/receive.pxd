from libc.stdint cimport uint32_t

from ..reactor.ring cimport ring_len
from ..reactor.slot cimport Slot
from ..reactor.websocket cimport Decoder, decoder_of
from .operation cimport Operation
from .stream cimport Stream

cdef enum:
    SOME_BYTES = 131072         # the most that receive_some returns by default
    # What is copied with the bytes object made under the lock, in one visit.
    AT_ONCE = 16384

# What `look` found.
cdef enum:
    WAIT = 0
    ENOUGH = 1
    OVER = 2                    # the peer ended; what is there is all there will be


cdef inline bint has_room(Slot *slot) noexcept nogil:
    """Whether a reactor that paused is to read again, under the lock: once half is taken, or
    at the first byte if somebody waits for more. A WebSocket message that is not whole cannot
    be taken; so if there is no whole one, the reactor reads on, too."""
    cdef Decoder *ws = decoder_of(slot)
    if ws != NULL and ws.whole == 0:
        return True
    cdef uint32_t mark = slot.limits.inbound if slot.rcvlowat else slot.limits.inbound // 2 + 1
    return ring_len(&slot.inbound) < mark


cdef class ReceiveHalf(Stream):
    cdef int look(self, uint32_t enough, uint32_t *available, bint open_ended=*,
                  bint wait=*) except -1
    cdef void consume(self, uint32_t n) noexcept
    cdef bint resumes(self) noexcept
    cdef void took(self, uint32_t n) noexcept
    cdef object take(self, uint32_t n, uint32_t skip)
    cdef void end_at_hole(self) noexcept
    cdef int ensure_no_receiver(self) except -1
    cdef int ensure_unframed(self) except -1
    cdef int ensure_may_look(self) except -1
    cdef uint32_t unread(self) noexcept
    cdef object take_some(self, Py_ssize_t most, bint wait)
    cdef object take_much(self, Py_ssize_t most, bint wait)
    cdef uint32_t at_hand(self, Py_ssize_t most, uint32_t *more) noexcept
    cdef void copy_out(self, char *out, uint32_t n, uint32_t start=*) noexcept
    cdef uint32_t fill(self, char *out, uint32_t n, uint32_t more, bint stay) noexcept
    cdef ssize_t receive_now(self, char *out, uint32_t n) noexcept
    cdef bint nothing_yet(self) noexcept


cdef class Receive(Operation):
    cdef ReceiveHalf conn
    cdef object argument
    cdef object validate(self)
    cdef int ensure_turn(self) except -1
    cdef bint must_wait(self)
    cdef object attempt(self)


cdef Py_ssize_t positive(str name, value, Py_ssize_t default) except -1
