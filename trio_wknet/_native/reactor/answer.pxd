from .hub cimport Reactor
from .slot cimport Slot

cdef void answer(Reactor *reactor, Slot *slot) noexcept nogil
