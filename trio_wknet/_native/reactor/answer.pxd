from .hub cimport Reactor
from .slot cimport Slot

cdef void draw_key(unsigned char *key) noexcept nogil
cdef void answer(Reactor *reactor, Slot *slot) noexcept nogil
