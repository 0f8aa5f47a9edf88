"""A reactor's part in the engine's budget: going on where reading was held back, and freeing what
connections hold. budget.pxd has the rules."""
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_u32_load, wk_u32_load_relaxed, wk_u64_add
from ..base.linux cimport ENOBUFS, SHUT_RDWR, SO_LINGER, SOL_SOCKET, linger_t, setsockopt, shutdown
from .admission cimport BUDGET
from .budget cimport budget_freed, budget_is_over, budget_relieved, budget_total
from .closing cimport reset
from .hub cimport Budget, Reactor, notify
from .lists cimport list_append, list_empty, list_remove
from .slot cimport OPEN, RELIEVE, Link, Slot, slot_of_ready
from .transfer cimport end_of_input


cdef void mind_budget(Reactor *reactor) noexcept nogil:
    """In each turn."""
    cdef uint32_t epoch
    if budget_is_over(reactor.budget):
        _relieve(reactor)
    epoch = wk_u32_load_relaxed(&reactor.budget.epoch)
    if epoch != reactor.epoch:
        reactor.epoch = epoch
        _go_on(reactor)


cdef void _go_on(Reactor *reactor) noexcept nogil:
    """Go on reading where that was held back. What still is to be comes back."""
    cdef Link *link
    while not list_empty(&reactor.held_back):
        link = reactor.held_back.next
        list_remove(link)
        list_append(&reactor.ready, link)


cdef void _relieve(Reactor *reactor) noexcept nogil:
    """Over the budget: end what the application has closed already, in that order, and ask the
    Trio side for the rest. While something that it has ended is still to be freed, nothing more
    is."""
    cdef Budget *budget = reactor.budget
    if wk_u32_load(&budget.dooming):
        return
    if budget_total(budget) > budget.most:
        while not list_empty(&reactor.leaving) and budget_total(budget) > budget.relief:
            wk_u64_add(&reactor.hub.refused[<int>BUDGET], 1)
            reset(reactor, slot_of_ready(reactor.leaving.next))
    if budget_total(budget) > budget.most:
        notify(reactor, reactor.hub.beacon, RELIEVE)
    else:
        budget_relieved(reactor.hub)


cdef void shed(Reactor *reactor, Slot *slot) noexcept nogil:
    """The Trio side has ended a connection. What is unsent is dropped, and tasks that wait see
    that it broke. When it is closed, that is by reset, so that the kernel keeps nothing for a
    peer that does not read."""
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    if slot.state == OPEN:
        end_of_input(reactor, slot, ENOBUFS)
        setsockopt(slot.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
        shutdown(slot.fd, SHUT_RDWR)
    budget_freed(reactor.hub)
