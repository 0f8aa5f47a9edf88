"""Admission on the reactors: a place is reserved before a connection is accepted, or refused
after it was.

With ``when_full="wait"`` what cannot come in waits in the kernel's queue. The port is *held*
then: on its reactor's list `held`, and not watched by epoll, so that nothing spins. It is tried
again when a place is left (place_wake), or when the rate allows it, by the wheel. A port is
either held, or paused because the listener's queue is full, or starved.

No wake is lost. A port counts as waiting under the lock under which it found no room
(admission_reserve), and `holding` says so of its reactor. Who leaves a place, under that lock,
finds it counted: then it sets `room_made` of that reactor, and kicks it. The reactor clears the
flag before it tries its ports again. So a place that is left during the try sets it once more,
and a kick that comes after the eventfd was read writes it again.

A wake may go to a port for which there is no room any more: then it is held again, in the same
way. Only a port that is held is woken, so two ports cannot wake each other in turn for ever: a
reservation that is given back wakes others, but they are held only by what is reserved.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_exchange, wk_u32_load, wk_u32_store, wk_u64_add,
)
from ..base.linux cimport ENOMEM, sockaddr_storage
from .admission cimport (
    ADMITTED, EXEMPT, Admission, Peer, Place, Reason, admission_enter, admission_give_back,
    admission_leave, admission_reserve, admission_wait_no_more, peer_of, place_new, place_prepare,
)
from .hub cimport Hub, Reactor
from .lists cimport list_append, list_empty, list_remove
from .slot cimport Slot
from .timeouts cimport timeout_clear, timeout_set
from .wake cimport kick
from .wheel cimport NEVER


# --- a connection's place -------------------------------------------------------------------


cdef int place_reserve(Reactor *reactor, Slot *port) noexcept nogil:
    """Before a port accepts: 0, ENOMEM, or HELD. Then `hold` must follow."""
    cdef Admission *admission = port.door.admission
    if reactor.spare_place == NULL:
        reactor.spare_place = place_new()
    if reactor.spare_place == NULL or not place_prepare(reactor.spare_place, admission):
        return ENOMEM
    if not admission.waits:
        return 0
    if admission_reserve(admission, reactor.now, &reactor.holding, &port.deadline):
        return 0
    return HELD


cdef void place_give_back(Reactor *reactor, Slot *port) noexcept nogil:
    """Nobody was there to be accepted."""
    if port.door.admission.waits and admission_give_back(port.door.admission):
        place_wake(reactor.hub)


cdef Reason place_enter(
    Reactor *reactor, Slot *port, const sockaddr_storage *name
) noexcept nogil:
    """Somebody was accepted: whether he may come in. If he is ADMITTED, the spare place is
    his, and goes to his slot; if he is EXEMPT, he needs none."""
    cdef Admission *admission = port.door.admission
    cdef Peer peer
    cdef bint known = not admission.gated and peer_of(name, &peer)
    cdef bint wanted = False
    cdef Reason reason = admission_enter(
        admission, reactor.spare_place, &peer if known else NULL, reactor.now, &wanted
    )
    if wanted:
        place_wake(reactor.hub)
    if reason != ADMITTED and reason != EXEMPT:
        wk_u64_add(&admission.refused[<int>reason], 1)
        wk_u64_add(&reactor.hub.refused[<int>reason], 1)
    return reason


cdef void place_leave(Reactor *reactor, Slot *slot) noexcept nogil:
    """A connection's descriptor is closed."""
    cdef Place *place = slot.door.place
    if place == NULL:
        return
    slot.door.place = NULL
    if admission_leave(place):
        place_wake(reactor.hub)


cdef void place_wake(Hub *hub) noexcept nogil:
    """Have ports that wait for room try again, of any listener."""
    cdef uint32_t i
    for i in range(hub.count):
        if wk_u32_load(&hub.reactors[i].holding):
            wk_u32_store(&hub.reactors[i].room_made, 1)
            kick(hub.reactors[i])


# --- a port that waits ------------------------------------------------------------------------


cdef void hold(Reactor *reactor, Slot *port) noexcept nogil:
    """There is no room (HELD). It counts as waiting already; `deadline` is when the rate
    allows the next one, or NEVER."""
    port.held = True
    list_append(&reactor.held, &port.ready)
    if port.deadline != NEVER:
        timeout_set(reactor, port)


cdef bint end_hold(Reactor *reactor, Slot *port) noexcept nogil:
    """It tries again, or closes. Returns whether it was held."""
    if not port.held:
        return False
    port.held = False
    list_remove(&port.ready)
    timeout_clear(reactor, port)
    admission_wait_no_more(port.door.admission, &reactor.holding)
    return True


cdef bint room_was_made(Reactor *reactor) noexcept nogil:
    """Whether ports that are held are to be tried again."""
    return (not list_empty(&reactor.held) and wk_u32_load(&reactor.room_made)
            and wk_u32_exchange(&reactor.room_made, 0))
