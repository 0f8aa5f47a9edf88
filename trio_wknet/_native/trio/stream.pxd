# What both halves of a connection share: the endpoint, which task has the turn, and parking.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from ..reactor.framing cimport FrameScan
from .core cimport Endpoint, Observer
from .handed cimport Handed
from .operation cimport Operation
from .totals cimport Totals


# Plain numbers: when a connection is let go of they must be kept without memory.
cdef struct Counters:
    uint64_t received
    uint64_t receive_calls
    uint64_t sent
    uint64_t send_calls
    uint64_t idle               # ns
    uint64_t age                # ns
    uint32_t unread
    uint32_t unsent


# How far `detach` has come, once everything is sent.
cdef enum:
    DETACH_ASKED = 1
    DETACH_DONE = 2     # the reactor has forgotten the descriptor


cdef class Stream(Endpoint):
    cdef Operation reader       # parked in a receive
    cdef uint32_t pins          # leases of its bytes
    cdef Operation sender       # has the turn to send, parked or not
    cdef bint sender_parked
    cdef object read_trap       # made at the first wait, used for all
    cdef object write_trap
    cdef object on_end          # to be called once, when the peer ends
    cdef bint end_due           # it has not been called, for lack of memory
    cdef uint8_t detaching      # DETACH_ASKED or DETACH_DONE, while `detach` waits
    cdef str reason             # why it was let go of
    cdef int32_t end_error      # unless it ended before: the errno,
    cdef bint end_seen          # or the peer's end
    cdef uint8_t ended_for      # the Reason for which we ended it from outside, or 0
    cdef object kept            # the application's context, while the slot has none
    cdef object header          # its PROXY header, once let go
    cdef bint buried            # event mode: on_close was called
    cdef object variables       # event mode: its context, once let go, if it has its own
    cdef FrameScan *scan        # event mode, if framed: a reference, once let go
    cdef Handed handed          # of the listener that accepted it; None: closed, or none has
    cdef bint handed_out        # by `accept`: it counts there
    cdef Stream next_gone       # event mode: on_close is due, to this one before
    cdef Counters final         # once let go
    cdef uint8_t *names         # of both ends, once let go (addresses.pxd)
    # Conn's own, made when first needed
    cdef public object _end_watchers    # to be called when the peer ends
    cdef public object _facade
    cdef public dict _addresses         # by which end's

    cdef object park_reader(self, Operation operation)
    cdef object park_sender(self, Operation operation)
    cdef bint is_served_frames(self) noexcept
    cdef str server_name(self)
    cdef int ensure_not_served(self) except -1
    cdef Observer observer(self)
    cdef void tell_observer(self, Observer observer) noexcept
    cdef object closed_error(self)
    cdef void became_idle(self, uint32_t bits) noexcept
    cdef void wake_reader(self) noexcept
    cdef void wake_sender(self) noexcept
    cdef void let_go(self, uint32_t command, str reason) noexcept
    cdef void keep_names(self) noexcept
    cdef void hand_to(self, Handed handed, bint out) noexcept
    cdef void hand_back(self) noexcept
    cdef bint unmarked(self) noexcept
    cdef void _tell_end(self) noexcept
    cdef void _exchange_context(self, void *context) noexcept
    cdef int ensure_no_reader(self) except -1
    cdef int ensure_unpinned(self) except -1
    cdef void begin_to_detach(self) noexcept
    cdef void look_at_end(self) noexcept
    cdef str cause(self)
    cdef str _why(self)
    cdef Totals totals(self)
    cdef void add_to_totals(self) noexcept
    cdef void count(self, Counters *into) noexcept


cdef object broken(int32_t error)
