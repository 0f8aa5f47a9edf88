"""What waits for descriptors or memory: ports that cannot accept, and connections that
epoll cannot watch (accept.pyx says what is then done).

Each is on its reactor's list `starved` then, and `disarmed`. A shortage lasts until
something succeeds: a retry does not end it. Its begin and its end are reported to the
Trio side, for the log (SHORTAGE).
"""
from ..base.atomics cimport wk_u32_add, wk_u32_store, wk_u32_sub
from ..base.linux cimport EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOSPC
from .hub cimport Hub, Reactor, notify
from .lists cimport list_append, list_remove
from .slot cimport NEW, PORT, SHORTAGE, Slot
from .timeouts cimport timeout_clear, timeout_set

cdef enum:
    RETRY_NS = 50000000     # how often it is tried again


cdef bint is_shortage(int error) noexcept nogil:
    return (error == EMFILE or error == ENFILE or error == ENOBUFS or error == ENOMEM
            or error == ENOSPC)


cdef void wait_for_resources(Reactor *reactor, Slot *slot, int error) noexcept nogil:
    """Wait until there is what a port or a connection lacks."""
    if not slot.disarmed:
        slot.disarmed = True
        list_append(&reactor.starved, &slot.ready)
        _note_shortage(reactor, slot, error)
    if slot.kind == PORT or slot.state == NEW:      # else it has a deadline of its own
        slot.deadline = reactor.now + RETRY_NS
        timeout_set(reactor, slot)


cdef void _note_shortage(Reactor *reactor, Slot *slot, int error) noexcept nogil:
    """Count one more that waits. The first one is reported."""
    cdef Hub *hub = reactor.hub
    if slot.kind == PORT:
        wk_u32_store(&slot.beyond.listener.scarce.listener.error, error)
        if wk_u32_add(&slot.beyond.listener.scarce.listener.starved, 1) == 0:
            wk_u32_add(&slot.beyond.listener.shortages, 1)
            notify(reactor, slot.beyond.listener, SHORTAGE)
    else:
        wk_u32_store(&hub.shortage, error)
        if wk_u32_add(&hub.unwatched, 1) == 0:
            wk_u32_add(&hub.shortages, 1)
            notify(reactor, hub.beacon, SHORTAGE)


cdef void end_shortage(Reactor *reactor, Slot *slot) noexcept nogil:
    """It waits no longer, because it succeeded or closes. If it was the last, that is
    reported."""
    if not slot.disarmed:
        return
    slot.disarmed = False
    list_remove(&slot.ready)
    timeout_clear(reactor, slot)
    if slot.kind == PORT:
        if wk_u32_sub(&slot.beyond.listener.scarce.listener.starved, 1) == 1:
            notify(reactor, slot.beyond.listener, SHORTAGE)
    elif wk_u32_sub(&reactor.hub.unwatched, 1) == 1:
        notify(reactor, reactor.hub.beacon, SHORTAGE)
