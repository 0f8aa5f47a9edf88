# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Idle scopes: what becomes of a connection through which no bytes move.

A scope is a plain cancel scope of Trio's. What it waits for stands in a list of its
connection, which holds it weakly: whoever leaves a scope, or drops it, need not tell.

Bytes that move store the time, and do no more. The reactor looks at the connection
by one rule (idle.pxd) and posts IDLE when that comes due. Here, in Trio's thread,
each scope's time is then computed exactly, from when bytes moved last by now, and
the reactor is given the rule that comes due with the first scope that is left:

    the shortest time of all,
    the direction of all, if they have one, else one that is no later than any,
    counted from where it comes due together with the first scope, as of now.

Such a rule never comes due later than a scope, whatever moves: a byte moves the rule
no further than the scope that it moves least. If it comes due before any, that costs
a look, and another rule.

A scope that is due gets a deadline that has passed. Trio expires deadlines after the
hook in which completions are drained, so its task is cancelled in the same turn. A
scope that was left is not touched by that, and one that is yet to be entered is
cancelled when it is.
"""
from cpython.weakref cimport PyWeakref_NewRef
from libc.math cimport ceil, isfinite
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.atomics cimport wk_u32_load_relaxed
from trio_wknet._native.conn cimport Slot
from trio_wknet._native.idle cimport (
    EITHER, MOST_IDLE_MS, READ, WRITE, idle_due_by, idle_last, idle_ms, idle_rule,
)
from trio_wknet._native.wheel cimport NEVER

import math

import trio

cdef object CancelScope = trio.CancelScope
cdef object current_time = trio.current_time

cdef uint64_t LONGEST = <uint64_t>1 << 62       # ns, 146 years


cdef uint64_t nanoseconds(str name, value) except? 0:
    """A time span in seconds, more than nothing; 0 for None."""
    cdef double seconds
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be more than 0 seconds and finite, not {value!r}")
    seconds = min(value, 1e10)
    return min(<uint64_t>ceil(seconds * 1e9), LONGEST)


cdef uint64_t _due(IdleScope wish, Slot *slot) noexcept:
    """When a scope comes due (ns) if no more bytes move."""
    return idle_last(slot, wish.direction, wish.since) + wish.limit


cdef void _expire(object scope):
    """Cancel a scope, unless it was left."""
    if scope.is_relative:       # not entered, and its deadline is not known yet
        scope.cancel()
        return
    now = current_time()
    if scope.deadline > now:
        scope.deadline = now


cdef class IdleScopes(SendHalf):

    def idle_scope(self, seconds=None, *, read=None, write=None):
        """A `trio.CancelScope` that is cancelled when the connection is idle::

            with conn.idle_scope(30) as scope:
                async for data in conn:
                    await conn.send_all(data)
            if scope.cancelled_caught:
                ...  # no byte moved for 30 seconds

        Args:
          seconds: without bytes in either direction.
          read: seconds without bytes received.
          write: seconds without bytes sent, which is: taken by the kernel.

        Of several, what comes first counts. Time counts from this call, or from the
        last byte if that is later. The scope is cancelled up to 20 ms late, and never
        early. Bytes that move cost nothing more than without a scope, whatever the
        number of scopes. A scope that outlives the connection is not cancelled by it.

        Not a checkpoint. Raises:
          trio.ClosedResourceError: the connection was closed here.
          TypeError, ValueError: for an argument that is not a number, or not more
              than 0 and finite; or if there is none.
        """
        cdef uint64_t either = nanoseconds("seconds", seconds)
        cdef uint64_t received = nanoseconds("read", read)
        cdef uint64_t sent = nanoseconds("write", write)
        cdef uint64_t now
        if not (either or received or sent):
            raise TypeError("idle_scope needs seconds, read or write")
        self.ensure_usable()
        if self.slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        scope = CancelScope()
        now = self.core.now()
        self.forget_dead()
        if either:
            self.add(scope, now, either, EITHER)
        if received:
            self.add(scope, now, received, READ)
        if sent:
            self.add(scope, now, sent, WRITE)
        return scope

    cdef void add(self, object scope, uint64_t since, uint64_t limit, uint32_t direction):
        cdef IdleScope wish = IdleScope.__new__(IdleScope)
        wish.scope = PyWeakref_NewRef(scope, None)
        wish.since = since
        wish.limit = limit
        wish.direction = direction
        wish.older = self.newest
        self.newest = wish
        self.look_by(since, limit, direction)

    cdef void forget_dead(self):
        """Unlink what nobody has a scope of any more."""
        cdef IdleScope wish = self.newest
        cdef IdleScope newer = None
        while wish is not None:
            if wish.scope() is not None:
                newer = wish
            elif newer is None:
                self.newest = wish.older
            else:
                newer.older = wish.older
            wish = wish.older

    cdef void look_by(self, uint64_t now, uint64_t limit, uint32_t direction) noexcept:
        """Have the reactor look when a new wish comes due, too, unless the rule that
        it watches sees to that."""
        cdef uint32_t rule = wk_u32_load_relaxed(&self.slot.idle)
        cdef uint32_t ms = idle_ms(limit)
        if rule and rule >> 2 <= ms and rule & direction == direction:
            return
        if rule:
            ms = min(ms, rule >> 2)
        self.watch(now, min(now + limit, idle_due_by(self.slot, rule)), ms, rule & 3 | direction)

    cdef void watch(self, uint64_t now, uint64_t due, uint32_t ms, uint32_t direction) noexcept:
        """Give the reactor a rule that comes due at that time if no bytes move."""
        cdef uint64_t span = <uint64_t>ms * 1000000
        cdef uint64_t since = due - span if due > span else 0
        self.core.watch_idle(self.slot, idle_rule(ms, direction), min(since, now))

    cdef void became_idle(self) noexcept:
        """Cancel what is due, and have the reactor look when the next will be."""
        cdef Slot *slot = self.slot
        cdef uint64_t now = self.core.now()
        cdef uint64_t first = NEVER
        cdef uint64_t due
        cdef uint32_t direction = EITHER
        cdef uint32_t ms = MOST_IDLE_MS
        cdef IdleScope wish = self.newest
        cdef list expired = []
        self.newest = None
        while wish is not None:
            following = wish.older
            scope = wish.scope()
            due = _due(wish, slot)
            if scope is not None and due <= now:
                expired.append(scope)
            elif scope is not None:
                first = min(first, due)
                ms = min(ms, idle_ms(wish.limit))
                direction |= wish.direction
                wish.older = self.newest
                self.newest = wish
            wish = following
        if first != NEVER:
            self.watch(now, first, ms, direction)
        for scope in expired:
            _expire(scope)

    cdef void let_go(self, uint32_t command, str reason) noexcept:
        self.newest = None
        SendHalf.let_go(self, command, reason)
