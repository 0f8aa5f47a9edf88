"""What a reactor's timing wheel holds: one timeout for each slot, whose meaning
follows from the slot's state. An open connection may become idle; one that closes
has only so long; what waits for descriptors or memory is tried again."""
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.accept cimport retry
from trio_wknet._native.atomics cimport wk_u32_store, wk_u64_load
from trio_wknet._native.closing cimport on_closing_timeout
from trio_wknet._native.conn cimport IDLE, NEW, OPEN, PORT, Slot
from trio_wknet._native.idle cimport idle_due
from trio_wknet._native.matrix cimport matrix_at
from trio_wknet._native.reactor cimport Reactor, notify
from trio_wknet._native.transfer cimport look_at_socket
from trio_wknet._native.wheel cimport (
    Wheel, WheelNode, wheel_add, wheel_new, wheel_remove, wheel_take, wheel_turn,
)

cdef enum:
    TICK_NS = 10000000
    WHEEL_SLOTS = 1000


cdef WheelNode *_timer(void *reactor, uint32_t index) noexcept nogil:
    return &matrix_at((<Reactor *>reactor).hub.matrix, index).timer


cdef uint64_t _due(void *reactor, uint32_t index) noexcept nogil:
    cdef Slot *slot = matrix_at((<Reactor *>reactor).hub.matrix, index)
    if slot.kind == PORT or slot.state != OPEN:
        return slot.deadline
    return idle_due(slot)


cdef Wheel *timeouts_new(Reactor *reactor) noexcept nogil:
    return wheel_new(TICK_NS, WHEEL_SLOTS, reactor.now, <void *>reactor, _timer, _due)


cdef inline uint32_t _index(Slot *slot) noexcept nogil:
    return <uint32_t>wk_u64_load(&slot.handle)


cdef void timeout_set(Reactor *reactor, Slot *slot) noexcept nogil:
    """Watch a slot's timeout, or look at it again after it has come nearer."""
    wheel_add(reactor.wheel, _index(slot))


cdef void timeout_clear(Reactor *reactor, Slot *slot) noexcept nogil:
    wheel_remove(reactor.wheel, _index(slot))


cdef void run_timeouts(Reactor *reactor) noexcept nogil:
    """Turn the wheel, then act on what came due."""
    cdef uint32_t index
    cdef Slot *slot
    wheel_turn(reactor.wheel, reactor.now)
    while wheel_take(reactor.wheel, &index):
        slot = matrix_at(reactor.hub.matrix, index)
        if slot.kind == PORT or slot.state == NEW:
            retry(reactor, slot)
        elif slot.state == OPEN:
            _act_on_idleness(reactor, slot)
        else:
            on_closing_timeout(reactor, slot)


cdef void _act_on_idleness(Reactor *reactor, Slot *slot) noexcept nogil:
    """Say that a connection is idle, if it is. Not all that has arrived was looked at: a
    turn takes EVENTS events at most, and if this thread or the process stood still for
    long, bytes may have come in time that epoll has yet to tell of."""
    look_at_socket(reactor, slot)
    if idle_due(slot) > reactor.now:
        timeout_set(reactor, slot)
        return
    wk_u32_store(&slot.idle, 0)
    notify(reactor, slot, IDLE)
