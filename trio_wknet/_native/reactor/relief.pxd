from .hub cimport Reactor
from .slot cimport Slot

cdef void mind_budget(Reactor *reactor) noexcept nogil
cdef void shed(Reactor *reactor, Slot *slot) noexcept nogil
