from libc.stdint cimport uint64_t

from trio_wknet._native.conn cimport Slot
from trio_wknet._native.reactor cimport Reactor
from trio_wknet._native.wheel cimport Wheel

cdef Wheel *timeouts_new(Reactor *reactor) noexcept nogil
cdef void timeout_set(Reactor *reactor, Slot *slot) noexcept nogil
cdef void timeout_clear(Reactor *reactor, Slot *slot) noexcept nogil
cdef void run_timeouts(Reactor *reactor) noexcept nogil
