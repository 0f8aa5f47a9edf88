"""The engine's budget. budget.pxd has its rules.

The fractions. Between PAUSE and the whole there must be room for those who are waited for: a
quarter is, with 64 KiB to each receive, what some thousand of them take in a turn. RESUME is so
far below that what one drain frees does not flip the state to and fro. RELIEF leaves room for
many steps, so that finding the largest, which looks at every connection, is rare; and it is
near, so that few are ended.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ..base.atomics cimport (
    wk_fence, wk_u32_add, wk_u32_cas, wk_u32_exchange, wk_u32_load, wk_u32_load_relaxed,
    wk_u32_store, wk_u32_sub, wk_u64_add, wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.memory cimport FOR_SETUP, memory_zeroed
from .hub cimport RECEIVE_BUFFER, Budget, Hub, Reactor
from .lists cimport linked, list_append, list_remove
from .pool cimport Pool
from .slot cimport Slot
from .wake cimport kick
from .websocket cimport Decoder, decoder_of

cdef enum:
    SIXTEENTHS_TO_PAUSE = 12
    SIXTEENTHS_TO_RESUME = 10
    SIXTEENTHS_OF_RELIEF = 15
    STEPS = 64                  # of all pools together
    KEEP_SHARE = 64             # each pool keeps a share of it for reuse at most


cdef bint budget_set(Hub *hub, uint64_t most) noexcept nogil:
    """Before the reactors turn: know all pools, and if `most` is not 0, bound them. False without
    memory."""
    cdef Budget *budget = hub.budget
    cdef uint32_t i
    budget.pools = <Pool **>memory_zeroed(FOR_SETUP, hub.count + 1, sizeof(Pool *))
    if budget.pools == NULL:
        return False
    for i in range(hub.count):
        budget.pools[i] = hub.reactors[i].pool
    budget.count = hub.count
    if not hub.in_loop:
        budget.pools[budget.count] = hub.pool
        budget.count += 1
    budget.own = <uint64_t>hub.count * RECEIVE_BUFFER
    if most == 0:
        return True
    budget.most = most
    budget.pause_at = most // 16 * SIXTEENTHS_TO_PAUSE
    budget.resume_below = most // 16 * SIXTEENTHS_TO_RESUME
    budget.relief = most // 16 * SIXTEENTHS_OF_RELIEF
    budget.step = most // (STEPS * budget.count)
    for i in range(budget.count):
        _watch(hub, budget.pools[i])
    return True


cdef void _watch(Hub *hub, Pool *pool) noexcept nogil:
    """What it promises is memory of the process: so what is freed goes back to the system."""
    pool.keep_at_most = min(pool.keep_at_most, hub.budget.most // KEEP_SHARE)
    pool.maps = True
    pool.hub = <void *>hub
    pool.on_move = _moved
    _open_window(hub.budget, pool)


cdef void _open_window(Budget *budget, Pool *pool) noexcept nogil:
    """Have `_moved` called once the pool has grown or shrunk by a step. If two threads do this
    at once, one of them with an older value, the next block that is taken or dropped calls
    again."""
    cdef uint64_t live = wk_u64_load_relaxed(&pool.live)
    wk_u64_store_relaxed(&pool.low, live - min(live, budget.step))
    wk_u64_store_relaxed(&pool.high, live + budget.step)


cdef void _moved(Pool *pool) noexcept nogil:
    """By any thread, holding any lock: only atomics, and eventfds, which do not block."""
    cdef Hub *hub = <Hub *>pool.hub
    _open_window(hub.budget, pool)
    _judge(hub)


cdef void budget_end(Budget *budget) noexcept nogil:
    """No other thread turns any more: there is no bound from here on."""
    cdef uint32_t i
    budget.most = 0
    wk_u32_store(&budget.near, 0)
    wk_u32_store(&budget.over, 0)
    for i in range(budget.count):
        wk_u64_store_relaxed(&budget.pools[i].low, 0)
        wk_u64_store_relaxed(&budget.pools[i].high, <uint64_t>-1)


cdef uint64_t budget_total(Budget *budget) noexcept nogil:
    """What is held now. Other threads count meanwhile; a sum that would be negative by that
    is 0."""
    cdef uint64_t total = wk_u64_load_relaxed(&budget.collected)
    cdef uint32_t i
    for i in range(budget.count):
        total += wk_u64_load_relaxed(&budget.pools[i].live)
    return total - min(total, budget.own)


cdef void budget_collect(Hub *hub, int64_t change) noexcept nogil:
    """Under the GIL: the memory of a frame that is collected outside of the ring was taken, or
    let go of."""
    wk_u64_add(&hub.budget.collected, <uint64_t>change)
    if hub.budget.most:
        _judge(hub)


cdef void _judge(Hub *hub) noexcept nogil:
    """Set the state by the sum, and sum again after each change, until nothing changes."""
    cdef Budget *budget = hub.budget
    cdef uint64_t total
    cdef uint32_t near
    while True:
        wk_fence()
        total = budget_total(budget)
        near = wk_u32_load(&budget.near)
        if not near and total >= budget.pause_at:
            if wk_u32_cas(&budget.near, &near, 1):
                wk_u64_add(&budget.pauses, 1)
        elif near and total < budget.resume_below:
            if wk_u32_cas(&budget.near, &near, 0):
                _go_on(hub)
        else:
            break
    if total > budget.most and wk_u32_exchange(&budget.over, 1) == 0:
        _kick_all(hub)


cdef void _kick_all(Hub *hub) noexcept nogil:
    cdef uint32_t i
    for i in range(hub.count):
        kick(hub.reactors[i])


cdef void _go_on(Hub *hub) noexcept nogil:
    """Have every reactor try again what it holds back."""
    wk_u32_add(&hub.budget.epoch, 1)
    _kick_all(hub)


# --- reading -------------------------------------------------------------------------


cdef bint budget_stops(Reactor *reactor, Slot *slot) noexcept nogil:
    """Near the budget, under the slot's lock: whether nothing is to be read here for now.

    Where nobody waits for bytes it is `paused`, as at its mark. Then a receive has the reactor
    read on, which sees that it waits; so a task that does take its bytes is never stopped. A
    WebSocket's message that is not whole counts as waited for: nothing could be taken.

    Else it is on the list `held_back`, and `paused` is not set, because somebody waits, who
    would not look again. It is tried when the state changes, and when its peer has read
    (`flush`)."""
    cdef Decoder *ws = decoder_of(slot)
    if slot.rcvlowat == 0 and (ws == NULL or ws.whole):
        slot.paused = True
        return True
    if slot.draining or budget_is_over(reactor.budget):
        list_append(&reactor.held_back, &slot.ready)
        return True
    return False


cdef void budget_lets_go(Reactor *reactor, Slot *slot) noexcept nogil:
    """All that was sent to it is gone: it may be read again."""
    if linked(&slot.ready):
        list_remove(&slot.ready)
        list_append(&reactor.ready, &slot.ready)


# --- ending connections (relief.pyx, and trio/relief.pyx) ------------------------------------


cdef void budget_doom(Hub *hub) noexcept nogil:
    """By the Trio side: a connection was ended, whose reactor is to free the rest of it. Or this
    side is about to end some: until `budget_freed`, nobody asks for more."""
    wk_u32_add(&hub.budget.dooming, 1)


cdef void budget_freed(Hub *hub) noexcept nogil:
    """That is done. After the last one somebody has to see whether it was enough: a reactor."""
    if wk_u32_sub(&hub.budget.dooming, 1) == 1:
        kick(hub.reactors[0])


cdef void budget_relieved(Hub *hub) noexcept nogil:
    """No more is to be ended for now. If the sum is still above the budget, because there is
    nothing to end, reading goes on: a program that holds views of all of it, say, must be able
    to let go of them."""
    if wk_u32_exchange(&hub.budget.over, 0):
        _go_on(hub)
