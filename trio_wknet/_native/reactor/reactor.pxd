# Turning the loop of a reactor. hub.pxd declares what it works on.
from libc.stdint cimport uint32_t

from .hub cimport Reactor
from .slot cimport Slot

cdef void reactor_run(Reactor *reactor) noexcept nogil
cdef void reactor_turn(Reactor *reactor, int timeout) noexcept nogil
cdef void command(Reactor *reactor, Slot *slot, uint32_t bits) noexcept nogil
cdef void publish(Reactor *reactor) noexcept nogil
cdef void set_alarm(Reactor *reactor) noexcept nogil
