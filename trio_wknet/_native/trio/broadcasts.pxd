# Broadcasts that reactors have not done yet, in the order in which they were given.
# reactor/broadcast.pxd has the rules that both sides keep.
from ..reactor.broadcast cimport BroadcastJob
from ..reactor.pool cimport Pool
from ..reactor.slot cimport Slot

cdef struct Broadcasts:
    BroadcastJob *first
    BroadcastJob *last

cdef void broadcasts_add(Broadcasts *pending, BroadcastJob *job) noexcept nogil
cdef void broadcasts_remove(Broadcasts *pending, BroadcastJob *job) noexcept nogil
cdef bint broadcasts_settle(Broadcasts *pending, Slot *slot, Pool *mine) noexcept nogil
