"""After a stall: what had arrived before a deadline counts.

Facts. Trio looks at all of its sockets right before it expires deadlines. So bytes that
came in time are received, however long a task has held up the loop, or the process was
stopped. Here a turn of the in-loop reactor takes EVENTS events at most; and when a process
goes on, Trio's thread may be ahead of a reactor's, which has not looked yet. Trio would
cancel whoever waits for bytes that arrived long ago.

Decision. The hook after each of Trio's waits notices when it is called later than it was
to be, because tasks computed for long or the process stood still. Then a look is owed: at
all that had arrived by now. If one of Trio's deadlines has passed while a look is owed,
the hook sees to it before Trio expires deadlines:

* in-loop by turning the reactor until epoll has no more, or has given as many events as
  there are connections (its list is first in, first out);
* with threads, which were asked for the look when the stall was noticed, by waiting for
  them, without the GIL.

Callbacks of event mode run inside the hook, and may hold up the loop just so.

Between the hook and the expiry of deadlines there is a moment, too: other instruments, and
a few lines of Trio's, where the process may be stopped, or another thread keep the GIL. A
wait that a deadline would end after such a moment is not ended: its task is woken behind
the next look, as if for nothing, and Trio cancels it when it waits again (`puts_off` in
core.pyx).

Under load without a stall, an in-loop reactor may have more events than a turn takes for
many turns in a row. That is no reason to give up small turns (EVENTS in reactor.pxd). But
what is older than OLDEST_NS is owed a look, too.

Trade-off. The clock is read twice for each of Trio's waits (50 ns), and Trio's statistics,
which tell whether a deadline has passed, are asked for when a look is owed. What arrived
within the last SLACK before a deadline may come too late, as ever.

Idle timeouts are the reactor's, which looks at a socket before it calls it idle
(timeouts.pyx); and the Trio side gives those time that it could not hear of
(`became_idle` in idle_scopes.pyx).
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_fence, wk_u32_load, wk_u32_load_relaxed, wk_u32_store
from ..base.linux cimport POLLIN, monotonic_ns, poll, pollfd
from ..reactor.hub cimport EVENTS, Hub
from ..reactor.mailbox cimport mailbox_waiting
from ..reactor.wake cimport kick, eventfd_clear
from ..reactor.wheel cimport NEVER

cdef enum:
    SLACK_BUSY_NS = 20000000    # tasks may run for so long before that is a stall
    SLACK_ASLEEP_NS = 2000000   # and a sleep may last so much longer than asked for
    OLDEST_NS = 250000000
    PATIENCE_NS = 1000000000
    MAX_WAITS = 3              # for reactors, in one call of the hook


cdef void stall_watch_new(StallWatch *watch) noexcept nogil:
    watch.expected = NEVER


cdef void stall_sleep(StallWatch *watch, double timeout) noexcept nogil:
    """Trio is about to sleep for so many seconds at most."""
    cdef uint64_t now = monotonic_ns()
    watch.was_busy = now > watch.expected
    watch.expected = now + <uint64_t>(timeout * 1e9) + SLACK_ASLEEP_NS


cdef bint stall_called(StallWatch *watch, Hub *hub) noexcept nogil:
    """The hook is called. Whether that is late."""
    watch.called = monotonic_ns()
    watch.begun = watch.called
    watch.turns = 0
    watch.late = watch.was_busy or watch.called > watch.expected
    watch.was_busy = False
    if watch.late:
        _owe(watch, hub, watch.called)
    return watch.late


cdef void _owe(StallWatch *watch, Hub *hub, uint64_t now) noexcept nogil:
    cdef uint32_t i
    watch.owed = now
    if hub.in_loop:
        return
    for i in range(hub.count):
        # A count, not a time: a thread may be stopped between looking and reading the
        # clock. Only this thread writes it.
        wk_u32_store(&hub.reactors[i].asked, wk_u32_load_relaxed(&hub.reactors[i].asked) + 1)
        kick(hub.reactors[i])


cdef void stall_turned(StallWatch *watch, Hub *hub, bint full) noexcept nogil:
    """In-loop: the reactor has turned, or Trio's epoll has nothing of its, since the hook
    was called, or since the last turn in the same call. `full`: epoll may have more."""
    watch.turns += 1
    if not full:
        watch.looked_at = watch.called
    elif watch.ahead > EVENTS:
        watch.ahead -= EVENTS
        return
    else:
        watch.looked_at = watch.mark
    watch.mark = watch.called
    watch.ahead = _connections(hub)


cdef inline uint32_t _connections(Hub *hub) noexcept nogil:
    return wk_u32_load_relaxed(&hub.reactors[0].connections)


cdef bint stall_is_behind(StallWatch *watch, Hub *hub) noexcept nogil:
    """After a drain: whether something may have arrived by now that is owed a look. Not
    without end in one call of the hook: load that never ceases must not hold up Trio."""
    cdef uint64_t now = monotonic_ns()
    if now > watch.called + SLACK_BUSY_NS:
        _owe(watch, hub, now)           # callbacks took so long
    watch.expected = now + SLACK_BUSY_NS
    if not hub.in_loop:
        return watch.owed != 0 and watch.turns < MAX_WAITS and not _is_told(watch, hub)
    if watch.turns > _connections(hub) // EVENTS + 2:
        return False
    if watch.looked_at >= watch.owed and watch.looked_at + OLDEST_NS >= now:
        return False
    watch.called = now
    return True


cdef bint stall_begins(StallWatch *watch, Hub *hub) noexcept nogil:
    """Outside the hook: whether so much time has passed since that the next one is late."""
    return not hub.virtual and monotonic_ns() > watch.expected


cdef bint stall_was_late(StallWatch *watch, Hub *hub) noexcept nogil:
    """In a drain: whether what it tells may be old, because the hook was called late or
    callbacks have taken long."""
    if hub.virtual:
        return False        # its time stands still meanwhile
    return watch.late or monotonic_ns() > watch.called + SLACK_BUSY_NS


# --- with threads ---------------------------------------------------------------


cdef bint _all_looked(Hub *hub) noexcept nogil:
    cdef uint32_t i
    for i in range(hub.count):
        if wk_u32_load(&hub.reactors[i].looked) != wk_u32_load_relaxed(&hub.reactors[i].asked):
            return False
    return True


cdef bint _is_told(StallWatch *watch, Hub *hub) noexcept nogil:
    """After a drain: whether it has told all that is owed. What reactors found they had
    sent up before they said that they had looked, but perhaps after the drain began."""
    if not _all_looked(hub):
        return False
    if mailbox_waiting(&hub.completions):
        return False
    watch.owed = 0
    return True


cdef void stall_wait_for_reactors(StallWatch *watch, Hub *hub) noexcept nogil:
    """Wait until every reactor has looked at all that had arrived when it was asked, and
    has sent up what it found.

    No wake is lost: a reactor stores `looked` and then loads `looks_awaited`; here it is
    the other way round, with a full fence between the two on either side, as in hub_wake.
    A reactor waits for nobody, so this ends as soon as its thread had a core for some
    turns. That it may not get one is what the bound is for."""
    cdef pollfd bell
    cdef uint64_t now = monotonic_ns()
    cdef uint64_t until = now + PATIENCE_NS
    bell.fd = hub.wakefd
    bell.events = POLLIN
    watch.turns += 1
    while now < until:
        wk_u32_store(&hub.looks_awaited, 1)
        wk_fence()
        if _all_looked(hub):
            break
        poll(&bell, 1, <int>((until - now) // 1000000) + 1)
        eventfd_clear(hub.wakefd)      # whatever it rang for is drained next
        now = monotonic_ns()
    if now >= until:
        watch.turns = MAX_WAITS
    wk_u32_store(&hub.looks_awaited, 0)
