# The largest holders of an engine that is over its budget (reactor/budget.pxd), one after the
# other, to be ended. In Trio's thread, which holds the connections that are looked at.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.hub cimport Hub
from ..reactor.slot cimport Slot

cdef enum:
    CLASSES_HELD = 48       # a class for each power of 2


cdef struct Relief:
    Hub *hub
    uint32_t cursor
    uint32_t least_class    # all of the classes above are ended,
    uint64_t rest           # and of this one as many as hold so many bytes
    Slot *largest
    bint only_largest
    uint32_t ended


cdef void relief_begin(Relief *relief, Hub *hub) noexcept
cdef Slot *relief_next(Relief *relief) noexcept
cdef void relief_end(Slot *slot, Hub *hub) noexcept
