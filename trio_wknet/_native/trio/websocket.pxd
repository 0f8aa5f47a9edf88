from libc.stdint cimport uint32_t, uint64_t

from ..reactor.slot cimport Slot
from ..reactor.websocket cimport CloseCode, Decoder, Record
from .core cimport Observer
from .receive cimport Receive
from .send cimport SendHalf

cdef enum:
    MAX_MESSAGES = 1 << 30      # that may be asked for


cdef class Agreed:
    cdef readonly object request
    cdef readonly object subprotocol
    cdef readonly double close_timeout      # seconds
    cdef object inflater
    cdef object deflater


cdef class WebSocketReceive(Observer):
    cdef readonly SendHalf conn
    cdef Decoder *ws            # a reference; the slot's while the connection is open
    cdef Agreed agreed
    cdef bint closing           # it was closed here
    # Where compression was agreed on (_websocket/deflate.py), else None.
    cdef object inflater
    cdef object deflater
    cdef uint32_t compressed    # messages that were, modulo 2**32
    cdef list latches           # of tasks that wait for a control frame, or the end

    cdef void attach(self, SendHalf conn, Decoder *ws) noexcept
    cdef void leave(self) noexcept
    cdef bint unmarked(self) noexcept
    cdef int link(self, bytes unread) except -1
    cdef bint feed(self, const unsigned char *data, uint32_t n) noexcept
    cdef bint is_linked(self) noexcept
    cdef int ensure_ready(self) except -1
    cdef object take_one(self, bint wait)
    cdef list take_many(self, Py_ssize_t most, bint wait)
    cdef int cut_many(self, list messages, Py_ssize_t most, Record *record) except -1
    cdef object cut(self, Slot *slot, Record *record, uint32_t base)
    cdef object take_large(self, Record *record)
    cdef object inflate(self, Record *record, object packed)
    cdef object refuse(self, CloseCode code, bytes reason)
    cdef void consume(self, uint32_t n, uint32_t messages) noexcept
    cdef bint is_over(self, Slot *slot, bint wait) noexcept
    cdef bint nothing_yet(self) noexcept
    cdef bint is_over_now(self) except -1
    cdef bint is_told(self, bint wait) noexcept
    cdef object why_closed(self, bint sending)
    cdef void end_at_hole(self) noexcept
    cdef void free_pings(self, uint64_t up_to) noexcept


cdef class ReceiveMessages(Receive):
    cdef WebSocketReceive channel
