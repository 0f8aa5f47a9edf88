"""What ends the waits of a connection that has rates. bucket.pxd has the rules."""
from ..base.atomics cimport wk_ptr_exchange, wk_u64_load, wk_u64_store, wk_u64_store_relaxed
from ..base.memory cimport FOR_RATES, memory_free, memory_zeroed
from .bucket cimport Rate, bucket_goes_on, bucket_waits, rate_of
from .hub cimport Reactor, hub_now
from .slot cimport Slot
from .transfer cimport note_received, on_writable, resume_reading
from .wheel cimport NEVER


cdef Rate *rate_new() noexcept nogil:
    """Without a bound, and with full buckets; NULL without memory."""
    cdef Rate *rate = <Rate *>memory_zeroed(FOR_RATES, 1, sizeof(Rate))
    if rate != NULL:
        wk_u64_store(&rate.read.at, NEVER)
        wk_u64_store(&rate.write.at, NEVER)
    return rate


cdef void rate_free(Slot *slot) noexcept nogil:
    cdef void *rate = wk_ptr_exchange(&slot.scarce.rate, NULL)
    if rate != NULL:
        memory_free(FOR_RATES, rate)


cdef void rate_changed(Reactor *reactor, Slot *slot) noexcept nogil:
    """The Trio side has set another rate: what waits is to look at that."""
    cdef Rate *rate = rate_of(slot)
    if bucket_goes_on(&rate.read):
        resume_reading(reactor, slot)
    if bucket_goes_on(&rate.write):
        on_writable(reactor, slot)


cdef void rate_look(Reactor *reactor, Slot *slot) noexcept nogil:
    """The wheel came to it: go on in the direction that has waited for long enough. It may wait
    again after that. The other one is not looked at, since it does not move before its time."""
    cdef Rate *rate = rate_of(slot)
    rate_excuse(reactor, slot)
    if wk_u64_load(&rate.read.at) <= reactor.now and bucket_goes_on(&rate.read):
        resume_reading(reactor, slot)
    if wk_u64_load(&rate.write.at) <= reactor.now and bucket_goes_on(&rate.write):
        on_writable(reactor, slot)


cdef void rate_excuse(Reactor *reactor, Slot *slot) noexcept nogil:
    """A direction that its rate holds up is not idle. Such a wait ends after a second at most, and
    another one begins only if there is more to move. (One that goes on now may begin to wait a
    moment later, in Trio's thread. So it is excused as it goes on.)"""
    cdef Rate *rate = rate_of(slot)
    if rate == NULL:
        return
    if bucket_waits(&rate.read):
        rate.waited = reactor.now
        note_received(reactor, slot)
    if bucket_waits(&rate.write):
        rate.waited = reactor.now
        wk_u64_store_relaxed(&slot.last_flushed, hub_now(reactor.hub))
