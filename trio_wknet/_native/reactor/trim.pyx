"""Returning memory to the system after a peak: once a second while there is something to
return, and not at all otherwise.

A reactor trims its own pool; the first one also asks the Trio side, by the hub's beacon, to
trim the Trio side's pool. Blocks that were not needed for a period are freed
at its end. So memory that rises and falls within a period stays, and costs nothing; an idle
process is not woken once it has settled.

What is freed leaves holes in the allocator's heap, which it keeps. malloc_trim returns
them to the system, but searches the whole heap, and under steady load they would only be
filled again. So it is called when little was freed in a period compared with everything that
was freed since the last call: soon after a peak, and under steady load about once in
MAX_SHARE periods. What counts are blocks of pools, and what the application had for
connections that are closed (closing.pyx). Near the engine's budget the holes are returned in any
case, as blocks of all sizes come and go there, and what it promises is memory of the process.
"""
from libc.stdint cimport uint64_t

from ..base.atomics cimport wk_u32_load_relaxed, wk_u64_exchange, wk_u64_load_relaxed
from ..base.linux cimport malloc_trim
from .budget cimport budget_is_near
from .hub cimport Reactor, notify
from .pool cimport MUCH_RELEASED, Pool, pool_settled, pool_trim_idle
from .slot cimport TRIM
from .wheel cimport NEVER

cdef enum:
    PERIOD_NS = 1000000000
    MAX_SHARE = 64             # little: at most 1 / MAX_SHARE of what was freed


cdef void run_trim(Reactor *reactor) noexcept nogil:
    """Trim if it is time to; or see whether there will be something to trim."""
    if reactor.trim_at == NEVER:
        if _wanted(reactor):
            reactor.trim_at = reactor.now + PERIOD_NS
    elif reactor.now >= reactor.trim_at:
        _trim(reactor)
        reactor.trim_at = NEVER if _settled(reactor) else reactor.now + PERIOD_NS


cdef inline Pool *_other_pool(Reactor *reactor) noexcept nogil:
    """The Trio side's pool, if this reactor looks after it."""
    if reactor.hub.in_loop or reactor != reactor.hub.reactors[0]:
        return NULL
    return reactor.hub.pool


cdef bint _wanted(Reactor *reactor) noexcept nogil:
    cdef Pool *other = _other_pool(reactor)
    return (
        wk_u32_load_relaxed(&reactor.pool.excess)
        or (other != NULL and wk_u32_load_relaxed(&other.excess))
    )


cdef bint _settled(Reactor *reactor) noexcept nogil:
    cdef Pool *other = _other_pool(reactor)
    cdef bint own_settled = pool_settled(reactor.pool)
    cdef bint other_settled = other == NULL or pool_settled(other)
    return own_settled and other_settled


cdef void _trim(Reactor *reactor) noexcept nogil:
    cdef Pool *other = _other_pool(reactor)
    pool_trim_idle(reactor.pool)
    if other != NULL and wk_u32_load_relaxed(&other.excess):
        notify(reactor, reactor.hub.beacon, TRIM)
    _trim_heap(reactor, other)


cdef void _trim_heap(Reactor *reactor, Pool *other) noexcept nogil:
    """Return the heap's holes, if much was released, and little of it lately.

    Any thread counts what it releases, after it has freed it. So what is counted before
    the exchange is free already, and malloc_trim finds it; what is counted after it
    waits for the next time. malloc_trim locks the heap by itself, as malloc does, and
    another reactor may call it too."""
    cdef uint64_t released = wk_u64_load_relaxed(&reactor.pool.released)
    cdef uint64_t lately
    if other != NULL:
        released += wk_u64_load_relaxed(&other.released)
    lately = released - reactor.released
    reactor.released = released
    if released < MUCH_RELEASED:
        return
    if lately > released // MAX_SHARE and not budget_is_near(reactor):
        return
    reactor.released = 0
    wk_u64_exchange(&reactor.pool.released, 0)
    if other != NULL:
        wk_u64_exchange(&other.released, 0)
    malloc_trim(0)
