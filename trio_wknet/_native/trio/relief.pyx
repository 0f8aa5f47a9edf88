"""Which connections to end when an engine is over its budget: the largest, and as many as that
takes. relief.pxd says more.

A connection holds its rings' blocks, and what is collected of a frame outside of the ring. All
connections are looked at twice: once to sum by powers of 2, and once to pick from the top. So
ending many costs no more than ending one, and one that is picked holds at least half of what
any does that is not; where ending one is enough, it is the largest of all.

If all of them together do not hold what is too much, others do: views of `Conn.peek` on
connections that are closed, say. Then not all are ended, but only the largest, if that holds
more than a small share. So views that hold it all do not end those who hold next to nothing.
"""
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport wk_u64_add
from ..base.linux cimport ENOBUFS, pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.admission cimport BUDGET
from ..reactor.budget cimport budget_total
from ..reactor.framing cimport FrameScan, frame_next
from ..reactor.pool cimport Block, pool_drop
from ..reactor.ring cimport ring_clear, ring_pin_large
from ..reactor.slot cimport CONNECTION, Slot
from ..reactor.slot_map cimport slot_map_step
from ..reactor.websocket cimport Decoder, decoder_discard, decoder_of
from .framed cimport framed_forget_part


cdef enum:
    LEAST_SHARE = 64


cdef inline uint64_t _capacity(Block *block) noexcept:
    return 0 if block == NULL else block.capacity


cdef uint64_t _held(Slot *slot) noexcept:
    """Bytes that a connection holds which this side may end; 0 if it has done so."""
    cdef FrameScan *scan = slot.by_kind.scan
    cdef uint64_t held
    if slot.over_budget:
        return 0
    pthread_mutex_lock(&slot.lock)
    held = _capacity(slot.inbound.block) + _capacity(slot.outbound.block)
    pthread_mutex_unlock(&slot.lock)
    if scan != NULL and scan.partial != NULL:
        held += PyBytes_GET_SIZE(<object>scan.partial)
    return held


cdef inline uint32_t _class_of(uint64_t held) noexcept:
    cdef uint32_t number = 0
    while held > 1 and number < <uint32_t>CLASSES_HELD - 1:
        held >>= 1
        number += 1
    return number


cdef Slot *_next_claimed(Relief *relief) noexcept:
    """As Core.next_claimed."""
    cdef Slot *slot = slot_map_step(relief.hub.slot_map, &relief.cursor)
    while slot != NULL and not (slot.claimed and slot.kind == CONNECTION):
        slot = slot_map_step(relief.hub.slot_map, &relief.cursor)
    return slot


cdef void relief_begin(Relief *relief, Hub *hub) noexcept:
    cdef uint64_t sums[CLASSES_HELD]
    cdef uint64_t total = budget_total(hub.budget)
    cdef uint64_t most = 0
    cdef uint64_t held, all_held = 0
    cdef Slot *slot
    memset(relief, 0, sizeof(Relief))
    memset(sums, 0, sizeof(sums))
    relief.hub = hub
    relief.least_class = CLASSES_HELD
    if total <= hub.budget.most:
        return
    relief.rest = total - hub.budget.relief
    slot = _next_claimed(relief)
    while slot != NULL:
        held = _held(slot)
        sums[_class_of(held)] += held
        all_held += held
        if held > most:
            most = held
            relief.largest = slot
        slot = _next_claimed(relief)
    relief.cursor = 0
    relief.only_largest = most >= relief.rest or all_held < relief.rest
    if all_held < relief.rest and most < hub.budget.most // LEAST_SHARE:
        relief.largest = NULL
        return
    while not relief.only_largest and relief.least_class > 0:
        relief.least_class -= 1
        if sums[relief.least_class] >= relief.rest:
            return
        relief.rest -= sums[relief.least_class]


cdef Slot *relief_next(Relief *relief) noexcept:
    """The next one to end; NULL if these were all."""
    cdef Slot *slot = relief.largest
    cdef uint64_t held
    cdef uint32_t number
    if slot == NULL or relief.only_largest:
        relief.largest = NULL
        return slot
    slot = _next_claimed(relief)
    while slot != NULL:
        held = _held(slot)
        number = _class_of(held)
        if held and number > relief.least_class:
            return slot
        if held and number == relief.least_class and relief.rest > 0:
            relief.rest -= min(relief.rest, held)
            return slot
        slot = _next_claimed(relief)
    return NULL


cdef void relief_end(Slot *slot, Hub *hub) noexcept:
    """End a connection as one that broke, and drop what it has received: this side's part of
    that, no receive of which is in progress here. SHED must be posted, for the reactor's
    part: what is unsent, and the socket. The reactor reads the error under this lock, and adds
    nothing more."""
    cdef FrameScan *scan = slot.by_kind.scan
    cdef Decoder *ws
    cdef Block *block
    pthread_mutex_lock(&slot.lock)
    slot.over_budget = True
    if slot.error == 0:
        slot.error = ENOBUFS
    block = ring_pin_large(&slot.inbound)
    ws = decoder_of(slot)
    if ws != NULL:
        decoder_discard(ws, &slot.inbound, hub.pool)
    else:
        ring_clear(&slot.inbound, hub.pool)
        if scan != NULL:
            frame_next(scan)
    pthread_mutex_unlock(&slot.lock)
    if block != NULL:
        pool_drop(block, hub.pool)
    if scan != NULL and ws == NULL:
        framed_forget_part(scan)
    if not slot.send_error:
        slot.send_error = ENOBUFS
    wk_u64_add(&hub.refused[<int>BUDGET], 1)
