# What reactors do about admission: ports that wait for room, and connections' places.
from ..base.linux cimport sockaddr_storage
from .admission cimport Reason
from .hub cimport Hub, Reactor
from .slot cimport Slot

cdef enum:
    HELD = -1               # instead of an errno: a port must wait for room

cdef int place_reserve(Reactor *reactor, Slot *port) noexcept nogil
cdef void place_give_back(Reactor *reactor, Slot *port) noexcept nogil
cdef Reason place_enter(Reactor *reactor, Slot *port, const sockaddr_storage *name) noexcept nogil
cdef void place_leave(Reactor *reactor, Slot *slot) noexcept nogil
cdef void place_wake(Hub *hub) noexcept nogil
cdef void hold(Reactor *reactor, Slot *port) noexcept nogil
cdef bint end_hold(Reactor *reactor, Slot *port) noexcept nogil
cdef bint room_was_made(Reactor *reactor) noexcept nogil
