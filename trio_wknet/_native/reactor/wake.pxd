from libc.stdint cimport uint32_t

from .hub cimport Hub, Job, Reactor
from .slot cimport Slot

cdef void eventfd_signal(int fd) noexcept nogil
cdef void eventfd_clear(int fd) noexcept nogil
cdef void kick(void *which) noexcept nogil
cdef void hub_wake(Hub *hub) noexcept nogil
cdef void reactor_post(Slot *slot, uint32_t command) noexcept nogil
cdef void reactor_give(Reactor *reactor, Job *job) noexcept nogil
cdef void reactor_stop(Reactor *reactor) noexcept nogil
