"""Idle scopes: what happens to a connection through which no bytes move.

A scope is a plain cancel scope of Trio's. What it waits for is in a list of its
connection, which holds the scope weakly: leaving or dropping a scope needs no notice.

Bytes that move only store the time. The reactor checks the connection
by one rule (idle.pxd) and posts IDLE when that comes due. Here, in Trio's thread,
each scope's time is then computed exactly, from when bytes moved last by now, and
the reactor gets the rule that comes due with the first remaining scope:

    the shortest time of all,
    the direction of all, if they have one, else one that is no later than any,
    counted from where it comes due together with the first scope, as of now.

Such a rule never comes due later than a scope, whatever bytes move: a byte moves the rule
no further than the scope that it moves least. If it comes due before any scope, that costs
a check, and another rule.

A scope that is due gets a deadline that has passed. Trio expires deadlines after the
hook in which completions are drained, so its task is cancelled in the same turn. A
scope that was left is not touched by that, and one that is yet to be entered is
cancelled when it is.
"""
from cpython.weakref cimport PyWeakref_NewRef
from libc.math cimport ceil
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load_relaxed, wk_u64_load
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.idle cimport (
    EACH, EITHER, MAX_IDLE_MS, READ, WRITE, idle_due_by, idle_last, idle_ms, idle_rule,
    timeout_due, timeout_part_due,
)
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport CLOSE, ENDED, FLUSHED, READABLE, WRITABLE, Slot
from ..reactor.wheel cimport NEVER
from .stall cimport stall_was_late

import math

import trio

from trio_wknet._idle import Idle

cdef object CancelScope = trio.CancelScope
cdef object current_time = trio.current_time

cdef enum:
    CHECK_AGAIN_MS = 10

cdef uint64_t LONGEST = <uint64_t>1 << 62       # ns, 146 years


cdef uint64_t nanoseconds(str name, value) except? 0:
    """A time span in seconds, more than 0, as nanoseconds; 0 for None."""
    cdef double seconds
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < math.inf:
        never = "; None means no timeout" if name == "idle_timeout" else ""
        raise ValueError(f"{name} must be more than 0 seconds and finite, not {value!r}{never}")
    seconds = min(value, 1e10)
    return min(<uint64_t>ceil(seconds * 1e9), LONGEST)


def timeout_rules(timeout):
    """An idle timeout as a slot holds it, in limits.idle and limits.idle_write; 0 for none."""
    cdef uint64_t ns
    if isinstance(timeout, Idle):
        return (_rule("read", timeout.read, READ), _rule("write", timeout.write, WRITE))
    ns = nanoseconds("idle_timeout", timeout)
    if ns > <uint64_t>MAX_IDLE_MS * 1000000:
        raise ValueError(
            f"idle_timeout must be at most {MAX_IDLE_MS // 1000} seconds, not {timeout!r}"
        )
    return (0 if ns == 0 else idle_rule(idle_ms(ns), EITHER)), 0


cdef uint32_t _rule(str name, seconds, uint32_t direction) except? 0:
    return 0 if seconds is None else idle_rule(idle_ms(nanoseconds(name, seconds)), direction)


cdef object _seconds(uint32_t rule):
    """What a rule allows, in seconds; None without one."""
    return (rule >> 2) / 1000.0 if rule else None


cdef inline uint64_t _span(uint32_t rule) noexcept:
    return <uint64_t>(rule >> 2) * 1000000


cdef uint64_t _due(IdleScope entry, Slot *slot) noexcept:
    """When a scope comes due (ns) if no more bytes move."""
    return idle_last(slot, entry.direction, entry.since) + entry.limit


def expire(scope):
    """Cancel a scope, unless it was left: let Trio's loop do it. If memory runs out
    there, the run ends; not so in a call of `cancel`, which leaves tasks behind that it
    has woken by half, and does nothing when it is called again."""
    if scope.is_relative:       # not entered, and its deadline is not known yet
        scope.cancel()
        return
    now = current_time()
    before = scope.deadline
    if before > now:
        try:
            scope.deadline = now
        except MemoryError:
            scope.deadline = before     # or the next try would change nothing
            raise


cdef bint _try_to_expire(object scope) noexcept:
    try:
        expire(scope)
    except MemoryError:
        return False
    return True


cdef class IdleWatch(Rated):
    """The uppermost native layer of a `Conn`: idle scopes and the idle timeout."""

    def idle_scope(self, seconds=None, *, read=None, write=None):
        """A `trio.CancelScope` that is cancelled when the connection is idle. Not a
        checkpoint::

            with conn.idle_scope(30) as scope:
                async for data in conn:
                    await conn.send_all(data)
            if scope.cancelled_caught:
                ...  # no byte moved for 30 seconds

        If several times are given, the one that passes first counts. Time counts from this
        call, or from the last byte if that is later. The scope is cancelled up to 20 ms
        late, and never early. Bytes that arrived in time count, even if the event loop was
        blocked and could not look at them. It costs nothing per message, however many
        scopes there are. A scope that outlives the connection, or its object in event
        mode, is not cancelled.

        Args:
          seconds: seconds without bytes in either direction; None, the default: no limit. Or
              an `Idle`, whose limits then are ``read`` and ``write``.
          read: seconds without bytes received; None, the default: no limit.
          write: seconds without bytes sent, that is, taken by the kernel; None, the
              default: no limit.

        Returns:
          The scope, to be entered with ``with``.

        Raises:
          trio.ClosedResourceError: if the connection is closed.
          TypeError, ValueError: if a time is not a number, or not finite and more than 0;
              if none is given; or if ``read`` or ``write`` is given beside an `Idle`.
          RuntimeError: if called from another thread.
        """
        if isinstance(seconds, Idle):
            if read is not None or write is not None:
                raise TypeError("read and write must be None if seconds is an Idle")
            seconds, read, write = None, seconds.read, seconds.write
        cdef uint64_t either = nanoseconds("seconds", seconds)
        cdef uint64_t received = nanoseconds("read", read)
        cdef uint64_t sent = nanoseconds("write", write)
        cdef uint64_t now
        if not (either or received or sent):
            raise TypeError("idle_scope needs seconds, read or write")
        scope = CancelScope()
        self.require_open()
        now = self.core.now()
        self.expire_due(0)      # forgets entries whose scope is gone
        if either:
            self.add(scope, now, either, EITHER)
        if received:
            self.add(scope, now, received, READ)
        if sent:
            self.add(scope, now, sent, WRITE)
        return scope

    cdef int require_open(self) except -1:
        self.ensure_usable()
        if self.slot == NULL:
            raise self.closed_error()
        return 0

    cdef void add(self, object scope, uint64_t since, uint64_t limit, uint32_t direction):
        cdef IdleScope entry = IdleScope.__new__(IdleScope)
        entry.scope = PyWeakref_NewRef(scope, None)
        entry.since = since
        entry.limit = limit
        entry.direction = direction
        if self.idle_scopes is None:
            self.idle_scopes = []
        self.idle_scopes.append(entry)
        self.check_by(since, limit, direction)

    cdef bint expire_due(self, uint64_t now) noexcept:
        """Expire the scopes that are due, the handler's too if the idle timeout is, and
        forget them, and entries whose scope is gone. False if memory ran out for some, which
        are still there then."""
        cdef IdleScope entry
        cdef bint done = True
        for entry in self.idle_scopes or ():
            scope = entry.scope()
            entry.is_over = scope is None
            if scope is not None and _due(entry, self.slot) <= now:
                entry.is_over = _try_to_expire(scope)
                done = done and entry.is_over
        if self.handler_scope is not None and timeout_due(self.slot) <= now:
            self.idle_reason = self.which_passed(now)
            if _try_to_expire(self.handler_scope):
                self.handler_scope = None
                self.count_from(now, EACH)
            else:
                done = False
        self.forget_over()
        return done

    cdef void forget_over(self) noexcept:
        cdef IdleScope entry
        cdef Py_ssize_t kept = 0
        cdef list idle_scopes = self.idle_scopes
        if idle_scopes is None:
            return
        for entry in idle_scopes:
            if not entry.is_over:
                idle_scopes[kept] = entry
                kept += 1
        del idle_scopes[kept:]

    # --- the idle timeout ------------------------------------------------------

    @property
    def idle_timeout(self):
        """Seconds without bytes in either direction after which the connection is
        closed, with ``close_reason`` ``"idle"``. An `Idle` has a limit for each direction, and
        the reason is ``"read idle"`` or ``"write idle"``. None: never.

        Its first value is the listener's, and None for a connection that was connected or
        adopted. It can be set to a number of seconds (rounded up to milliseconds), to an
        `Idle` or to None, which takes effect at once: time counts from then, from when the
        connection was accepted, or from the last byte, whichever is latest.

        When it passes, the handler of `Listener.serve` is cancelled, and then the
        connection is closed. If there is no such handler, the connection is closed at
        once, gracefully: tasks that wait on it get `trio.ClosedResourceError`, whose text has
        the reason, and
        callbacks of `Listener.serve_events` that run as tasks are cancelled. Either
        happens up to 20 ms late, and never early.

        It is None once the connection is closed. Setting it raises `TypeError` or
        `ValueError` for anything but None, an `Idle`, or a number above 0 and up to 1073741
        (12 days), and `trio.ClosedResourceError` once the connection is closed.
        """
        cdef uint32_t rule, writing
        if self.slot == NULL:
            return None
        rule, writing = self.slot.limits.idle, self.slot.limits.idle_write
        if writing or rule & 3:
            return Idle(read=_seconds(rule), write=_seconds(writing))
        return _seconds(rule)

    @idle_timeout.setter
    def idle_timeout(self, seconds):
        cdef uint32_t rule, writing
        cdef uint64_t now
        rule, writing = timeout_rules(seconds)
        self.require_open()
        now = self.core.now()
        self.slot.limits.idle = rule
        self.slot.limits.idle_write = writing
        self.count_from(now, EACH)
        if rule:
            self.check_by(now, _span(rule), rule & 3)
        if writing:
            self.check_by(now, _span(writing), WRITE)

    cdef void count_from(self, uint64_t now, uint32_t directions) noexcept:
        """Let the idle timeout count from now, for what these directions concern."""
        if self.slot.limits.idle & 3 == EITHER or directions & READ:
            self.slot.waiting_for.timeout_since = now
        if directions & WRITE:
            self.slot.tally.write_since = now

    cdef str which_passed(self, uint64_t now):
        """The reason for which the idle timeout ends the connection: what came due first."""
        cdef Slot *slot = self.slot
        if slot.limits.idle_write and timeout_part_due(
            slot, slot.limits.idle_write, slot.tally.write_since
        ) < timeout_part_due(slot, slot.limits.idle, slot.waiting_for.timeout_since):
            return "write idle"
        return "read idle" if slot.limits.idle & 3 == READ else "idle"

    def _handler_scope(self):
        """The scope to run a handler in, which the idle timeout cancels instead of
        closing the connection."""
        self.handler_scope = CancelScope()
        return self.handler_scope

    @property
    def _idle_reason(self):
        return self.idle_reason

    @property
    def _timed_out(self):
        return self.timed_out

    # --- checking ----------------------------------------------------------------

    cdef void check_by(self, uint64_t now, uint64_t limit, uint32_t direction) noexcept:
        """Have the reactor check when a new scope comes due, too, unless its current rule is
        strict enough."""
        cdef uint32_t rule = wk_u32_load_relaxed(&self.slot.idle)
        cdef uint32_t ms = idle_ms(limit)
        if rule and rule >> 2 <= ms and rule & direction == direction:
            return
        if rule:
            ms = min(ms, rule >> 2)
        self.watch(now, min(now + limit, idle_due_by(self.slot, rule)), ms, rule & 3 | direction)

    cdef void check_again(self, uint64_t now) noexcept:
        """Have the reactor check when the first of all scopes comes due."""
        cdef uint64_t first = timeout_due(self.slot)
        cdef uint32_t direction = EITHER
        cdef uint32_t ms = MAX_IDLE_MS
        cdef IdleScope entry
        if self.slot.limits.idle:
            ms = self.slot.limits.idle >> 2
            direction |= self.slot.limits.idle & 3
        if self.slot.limits.idle_write:
            ms = min(ms, self.slot.limits.idle_write >> 2)
            direction |= WRITE
        for entry in self.idle_scopes or ():
            first = min(first, _due(entry, self.slot))
            ms = min(ms, idle_ms(entry.limit))
            direction |= entry.direction
        if first != NEVER:
            self.watch(now, first, ms, direction)

    cdef void watch(self, uint64_t now, uint64_t due, uint32_t ms, uint32_t direction) noexcept:
        """Give the reactor a rule that comes due at that time if no bytes move."""
        cdef uint64_t span = <uint64_t>ms * 1000000
        cdef uint64_t since = due - span if due > span else 0
        self.core.watch_idle(self.slot, idle_rule(ms, direction), min(since, now))

    cdef void became_idle(self, uint32_t bits) noexcept:
        """Act on what is due, and have the reactor check when the next will be. Without
        memory for that, have it check again in a moment."""
        cdef uint64_t now = self.core.now()
        self.restart(now, self.moved(bits))
        if stall_was_late(&self.core.stall, self.core.hub) and self.excuse(now):
            return
        if not self.expire_due(now):
            self.core.watch_idle(self.slot, idle_rule(CHECK_AGAIN_MS, EACH), now)
        elif timeout_due(self.slot) > now:
            self.check_again(now)
        else:
            self.timed_out = True
            self.idle_reason = self.which_passed(now)
            self.let_go(CLOSE, self.idle_reason)

    # What arrived in time counts, even if no task could be woken in time: after a stall
    # (stall.pyx), the drain reports idleness together with everything that came before it.

    cdef uint32_t moved(self, uint32_t bits) noexcept:
        """The directions with news that is reported only now, with the idleness."""
        cdef uint32_t directions = 0
        if bits & (READABLE | ENDED):
            directions |= READ
        # If no sender waits, it may be an old one (`on_writable` in transfer.pyx).
        if bits & (WRITABLE | FLUSHED) and self.sender_parked:
            directions |= WRITE
        return directions

    cdef void restart(self, uint64_t now, uint32_t directions) noexcept:
        """Let the time of scopes for any of these directions count from now."""
        cdef IdleScope entry
        if directions == 0:
            return
        self.count_from(now, directions)
        for entry in self.idle_scopes or ():
            if entry.direction == EITHER or entry.direction & directions:
                entry.since = now

    cdef uint32_t due_directions(self, uint64_t now) noexcept:
        """The directions of what is due; EACH for what bytes in either put off, 0 if nothing
        is."""
        cdef Slot *slot = self.slot
        cdef IdleScope entry
        cdef uint32_t directions = 0
        if timeout_part_due(slot, slot.limits.idle, slot.waiting_for.timeout_since) <= now:
            directions |= slot.limits.idle & 3 or EACH
        if timeout_part_due(slot, slot.limits.idle_write, slot.tally.write_since) <= now:
            directions |= WRITE
        for entry in self.idle_scopes or ():
            if _due(entry, slot) <= now:
                directions |= entry.direction or EACH
        return directions

    cdef bint excuse(self, uint64_t now) noexcept:
        """After a stall, once until bytes move again in what is due: restart the time if there
        is something that could not be received meanwhile; else have the reactor check again,
        in a moment, when it has done what tasks asked of it. True if that is all for now."""
        cdef uint64_t before
        cdef uint32_t directions = self.due_directions(now)
        if directions == 0:
            return False
        if directions == EACH:
            directions = EITHER
        try:
            before = self.core.excused.get(wk_u64_load(&self.slot.handle), 0)
            self.core.excused[wk_u64_load(&self.slot.handle)] = now
        except MemoryError:
            return False
        if idle_last(self.slot, directions, 0) < before < self.core.stall.begun:
            return False        # and tasks have run since then
        if self.has_unread():
            self.restart(now, EACH)
            return False
        self.core.watch_idle(self.slot, idle_rule(CHECK_AGAIN_MS, EACH), now)
        return True

    cdef bint has_unread(self) noexcept:
        cdef bint unread
        pthread_mutex_lock(&self.slot.lock)
        unread = ring_len(&self.slot.inbound) > 0 or self.slot.paused
        pthread_mutex_unlock(&self.slot.lock)
        return unread

    cdef bint unmarked(self) noexcept:
        return not self.idle_scopes and self.handler_scope is None and Rated.unmarked(self)

    cdef void let_go(self, uint32_t command, str reason) noexcept:
        self.idle_scopes = None
        self.handler_scope = None
        Rated.let_go(self, command, reason)
