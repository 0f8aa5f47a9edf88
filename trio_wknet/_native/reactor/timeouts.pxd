from libc.stdint cimport uint64_t

from .hub cimport Reactor
from .slot cimport Slot
from .wheel cimport Wheel

cdef Wheel *timeouts_new(Reactor *reactor) noexcept nogil
cdef uint64_t timeout_at(Reactor *reactor, Slot *slot) noexcept nogil
cdef void timeout_set(Reactor *reactor, Slot *slot) noexcept nogil
cdef void timeout_clear(Reactor *reactor, Slot *slot) noexcept nogil
