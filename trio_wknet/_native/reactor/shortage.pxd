from .hub cimport Reactor
from .slot cimport Slot

cdef bint is_shortage(int error) noexcept nogil
cdef void wait_for_resources(Reactor *reactor, Slot *slot, int error) noexcept nogil
cdef void end_shortage(Reactor *reactor, Slot *slot) noexcept nogil
