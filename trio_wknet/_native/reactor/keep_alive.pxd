from libc.stdint cimport uint64_t

from .hub cimport Reactor
from .slot cimport Slot

cdef void note_keep_alive(Slot *slot) noexcept nogil
cdef uint64_t keep_alive_look(Reactor *reactor, Slot *slot) noexcept nogil
cdef void keep_alive(Reactor *reactor, Slot *slot) noexcept nogil
