# Idle rules: after how long without bytes, and in which direction, a connection
# counts as idle. One 32-bit word, milliseconds << 2 | direction, so that either
# side reads it whole; 0 means no rule.
#
# Moving bytes only stores the time. Nobody is told: the wheel asks `idle_due` when
# it comes to the connection, and puts it back for what is left (netty's
# IdleStateHandler and the reference's lastActivity work the same way).
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.atomics cimport (
    wk_u32_load_relaxed, wk_u64_load_relaxed,
)
from trio_wknet._native.conn cimport Slot
from trio_wknet._native.wheel cimport NEVER

cdef enum Direction:
    EITHER = 0          # since the last byte, whichever way it went
    READ = 1            # since the last byte received
    WRITE = 2           # since the last byte sent
    EACH = 3            # since the last byte in that direction which is idle longer

cdef enum:
    MOST_IDLE_MS = 0x3FFFFFFF       # 12 days; longer waits are looked at in between
    # The time stored with bytes is that of the turn's begin, or older by the rest
    # of the turn; so much is added, lest a connection be called idle early.
    STAMP_LAG_NS = 10000000


cdef inline uint64_t idle_last(Slot *slot, uint32_t direction) noexcept nogil:
    """When a connection was last active (ns)."""
    cdef uint64_t began = max(slot.opened, wk_u64_load_relaxed(&slot.idle_since))
    cdef uint64_t received = max(began, wk_u64_load_relaxed(&slot.last_received))
    cdef uint64_t sent = max(began, wk_u64_load_relaxed(&slot.last_sent),
                             wk_u64_load_relaxed(&slot.last_flushed))
    if direction == READ:
        return received
    if direction == WRITE:
        return sent
    return max(received, sent) if direction == EITHER else min(received, sent)


cdef inline uint64_t idle_due(Slot *slot) noexcept nogil:
    """When its rule comes due (ns) if no more bytes move."""
    cdef uint32_t rule = wk_u32_load_relaxed(&slot.idle)
    if rule == 0:
        return NEVER
    return idle_last(slot, rule & 3) + <uint64_t>(rule >> 2) * 1000000 + STAMP_LAG_NS
