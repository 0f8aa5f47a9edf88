from libc.stdint cimport uint32_t

from trio_wknet._native.conn cimport Slot
from trio_wknet._native.reactor cimport Hub, Reactor

cdef void ring_bell(int fd) noexcept nogil
cdef void still_bell(int fd) noexcept nogil
cdef void kick(void *which) noexcept nogil
cdef void hub_wake(Hub *hub) noexcept nogil
cdef void reactor_post(Slot *slot, uint32_t command) noexcept nogil
cdef void reactor_stop(Reactor *reactor) noexcept nogil
