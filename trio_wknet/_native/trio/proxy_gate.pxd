# Where accepted connections wait for their PROXY header.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.admission cimport Reason
from ..reactor.slot cimport Slot
from .admission cimport NativeAdmission
from .core cimport Core, Server
from .failure_log cimport FailureLog


cdef class ProxyGate(Server):
    cdef Core core
    cdef Slot *listener         # NULL before the listener opens, and after it
    cdef object trusted
    cdef NativeAdmission admission  # which takes addresses from headers; None: there is none
    cdef uint64_t patience      # ns
    cdef uint64_t grace         # ns: for which each keeps its place
    cdef dict pending           # addresses of slots whose header is awaited, in order, with
                                # whether their grace is over; their `server` is this; None
                                # once closed
    cdef Slot *oldest           # slots that have passed, for accept to take
    cdef Slot *newest
    cdef readonly uint64_t refused
    cdef uint64_t unwelcome     # of these, because of their address, in spite of their header
    cdef FailureLog log

    cdef void open(self, Core core, Slot *listener, NativeAdmission admission) noexcept
    cdef void close(self) noexcept
    cdef void take_in(self) noexcept
    cdef void receive(self, Slot *slot) noexcept
    cdef void examine(self, Slot *slot, bint time_is_up) noexcept
    cdef bytes look(self, Slot *slot, bint *over)
    cdef bint late(self, Slot *slot) noexcept
    cdef bint wait_for(self, Slot *slot, uint32_t size, uint32_t seen) noexcept
    cdef void watch(self, Slot *slot) noexcept
    cdef bint welcomes(self, Slot *slot, header) noexcept
    cdef void admit(self, Slot *slot, header, uint32_t size) noexcept
    cdef void leave(self, Slot *slot) noexcept
    cdef void give_up(self, Slot *slot, data) noexcept
    cdef void note_grace(self, Slot *slot) noexcept
    cdef void make_room(self, uint32_t wanted) noexcept
    cdef list past_grace(self, uint32_t most)
    cdef bint is_pending(self, address) noexcept
    cdef void say_rest(self) noexcept
    cdef void refuse(
        self, Slot *slot, uint32_t command, int level, why, Reason reason=*
    ) noexcept
