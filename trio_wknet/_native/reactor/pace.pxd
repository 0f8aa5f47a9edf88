# Connections that are too slow, by their admission: whose first byte does not come, who trickle,
# and who do not read. It rides on the wheel, and costs nothing for a message.
from libc.stdint cimport uint64_t

from .hub cimport Reactor
from .slot cimport Slot
from .wheel cimport NEVER


cdef inline uint64_t pace_due(Slot *slot) noexcept nogil:
    """When the wheel is to look at a connection (ns); by its reactor."""
    return NEVER if slot.door.place == NULL else slot.door.place.look_at


cdef bint pace_begin(Reactor *reactor, Slot *slot) noexcept nogil
cdef void pace_look(Reactor *reactor, Slot *slot) noexcept nogil
