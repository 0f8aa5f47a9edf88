# Idle rules: after how long without bytes, and in which direction, a connection
# counts as idle. One 32-bit word, milliseconds << 2 | direction, so that either
# side reads it whole; 0 means no rule.
#
# Moving bytes only stores the time, and nothing is notified: the wheel asks `idle_due` when
# it comes to the connection, and puts it back for the remaining time (netty's
# IdleStateHandler and the lastActivity of WuKongIM's wknet work in the same way).
#
# A reactor knows one rule for each connection, and when that comes due it only
# reports it: it sets the rule to 0, posts IDLE, and stops watching. The Trio side
# (idle_scopes.pyx) decides what follows. It may have several idle
# scopes on a connection, and sets a rule that comes due no later than any of them. So a
# rule that is not 0 is being watched; one that comes due too early costs a check.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load_relaxed, wk_u64_load_relaxed
from .slot cimport Slot
from .wheel cimport NEVER

cdef enum Direction:
    EITHER = 0          # since the last byte in either direction
    READ = 1            # since the last byte received
    WRITE = 2           # since the last byte sent
    EACH = 3            # since the last byte in the direction that is idle longer

cdef enum:
    MAX_IDLE_MS = 0x3FFFFFFF       # 12 days; longer waits are looked at in between


cdef inline uint32_t idle_ms(uint64_t ns) noexcept nogil:
    """A time in a rule's milliseconds: rounded up, and at most MAX_IDLE_MS."""
    return <uint32_t>min(ns / 1000000 + (ns % 1000000 != 0), <uint64_t>MAX_IDLE_MS)


cdef inline uint32_t idle_rule(uint32_t ms, uint32_t direction) noexcept nogil:
    return ms << 2 | direction


cdef inline uint64_t idle_last(
    Slot *slot, uint32_t direction, uint64_t since
) noexcept nogil:
    """When a connection was last active (ns), at `since` at the earliest."""
    cdef uint64_t received = max(since, wk_u64_load_relaxed(&slot.last_received))
    cdef uint64_t sent = max(since, wk_u64_load_relaxed(&slot.last_sent),
                             wk_u64_load_relaxed(&slot.last_flushed))
    if direction == READ:
        return received
    if direction == WRITE:
        return sent
    return max(received, sent) if direction == EITHER else min(received, sent)


cdef inline uint64_t idle_due_by(Slot *slot, uint32_t rule) noexcept nogil:
    """When a rule comes due (ns) if no more bytes move."""
    cdef uint64_t since
    if rule == 0:
        return NEVER
    since = max(slot.opened, wk_u64_load_relaxed(&slot.idle_since))
    return idle_last(slot, rule & 3, since) + <uint64_t>(rule >> 2) * 1000000


cdef inline uint64_t idle_due(Slot *slot) noexcept nogil:
    """When the connection's own rule comes due."""
    return idle_due_by(slot, wk_u32_load_relaxed(&slot.idle))


cdef inline uint32_t strictest(uint32_t one, uint32_t other) noexcept nogil:
    """A rule that comes due no later than either of two, of which 0 is none."""
    if one == 0 or other == 0:
        return one | other
    return idle_rule(min(one >> 2, other >> 2), (one | other) & 3)


cdef inline uint64_t timeout_part_due(Slot *slot, uint32_t rule, uint64_t since) noexcept nogil:
    """When one of the two rules of an idle timeout comes due; NEVER without it."""
    if rule == 0:
        return NEVER
    return idle_last(slot, rule & 3, since) + <uint64_t>(rule >> 2) * 1000000


cdef inline uint64_t timeout_due(Slot *slot) noexcept nogil:
    """When a claimed connection's idle timeout comes due; NEVER without one."""
    return min(timeout_part_due(slot, slot.limits.idle, slot.waiting_for.timeout_since),
               timeout_part_due(slot, slot.limits.idle_write, slot.tally.write_since))
