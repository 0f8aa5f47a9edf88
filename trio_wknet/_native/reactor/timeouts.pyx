"""What a reactor's timing wheel holds: one timeout for each slot, whose meaning
follows from the slot's state. An open connection may become idle, be too slow, need a ping, or
have waited for its rate; a closing one has a deadline; what waits for descriptors or memory is
tried again."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u64_load
from .bucket cimport rate_due
from .hub cimport Reactor
from .idle cimport idle_due
from .keep_alive cimport keep_alive_look
from .pace cimport pace_due
from .slot cimport OPEN, PORT, Slot
from .slot_map cimport slot_map_at
from .wheel cimport Wheel, WheelNode, wheel_add, wheel_new, wheel_remove

cdef enum:
    TICK_NS = 10000000
    WHEEL_SLOTS = 1000


cdef WheelNode *_timer(void *reactor, uint32_t index) noexcept nogil:
    return &slot_map_at((<Reactor *>reactor).hub.slot_map, index).timer


cdef uint64_t _due(void *reactor, uint32_t index) noexcept nogil:
    return timeout_at(<Reactor *>reactor, slot_map_at((<Reactor *>reactor).hub.slot_map, index))


cdef uint64_t timeout_at(Reactor *reactor, Slot *slot) noexcept nogil:
    """When its timeout comes (ns); NEVER if it has none."""
    cdef uint64_t at
    if slot.kind == PORT or slot.state != OPEN:
        return slot.deadline
    at = min(idle_due(slot), pace_due(slot), rate_due(slot))
    return min(at, keep_alive_look(reactor, slot)) if slot.keeps_alive else at


cdef Wheel *timeouts_new(Reactor *reactor) noexcept nogil:
    return wheel_new(TICK_NS, WHEEL_SLOTS, reactor.now, <void *>reactor, _timer, _due)


cdef inline uint32_t _index(Slot *slot) noexcept nogil:
    return <uint32_t>wk_u64_load(&slot.handle)


cdef void timeout_set(Reactor *reactor, Slot *slot) noexcept nogil:
    """Watch a slot's timeout, or look at it again after it has come nearer."""
    wheel_add(reactor.wheel, _index(slot))


cdef void timeout_clear(Reactor *reactor, Slot *slot) noexcept nogil:
    wheel_remove(reactor.wheel, _index(slot))
