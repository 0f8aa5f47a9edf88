"""After a stall: what had arrived before a deadline counts.

Facts. Trio looks at all of its sockets right before it expires deadlines. So bytes that
came in time are received, however long a task has blocked the loop, or the process was
stopped. Here a turn of the in-loop reactor takes EVENTS events at most; and when a process
continues, Trio's thread may be ahead of a reactor's, which has not looked yet. Trio would
then cancel tasks that wait for bytes that arrived long ago.

Decision. The hook after each of Trio's waits notices when it is called later than expected,
because tasks computed for long or the process was stopped. Then a look is owed: at
everything that has arrived by now. If one of Trio's deadlines has passed while a look is
owed, the hook looks before Trio expires deadlines:

* in-loop by turning the reactor until epoll has no more, or has returned as many events as
  there are connections (its list is first in, first out);
* with threads, which were asked for the look when the stall was noticed, by waiting for
  them, without the GIL.

Callbacks of event mode run inside the hook, and may block the loop in the same way.

Between the hook and the expiry of deadlines other instruments run, and
a few lines of Trio's. There the process may be stopped, or another thread may keep the GIL. A
wait that a deadline would end after such a pause is not ended: its task is woken after
the next look, spuriously, and Trio cancels it when it waits again (`puts_off` in
core.pyx).

Under load without a stall, an in-loop reactor may have more events than a turn takes for
many turns in a row. That is no reason to give up small turns (EVENTS in hub.pxd). But
what is older than OLDEST_NS is owed a look, too.

Trade-off. The clock is read twice for each of Trio's waits (50 ns), and Trio's statistics,
which show whether a deadline has passed, are read when a look is owed. What arrived
within the last SLACK before a deadline may come too late, as always.

For idle timeouts, the reactor looks at a socket before it reports it as idle
(reactor.pyx); and the Trio side gives more time to connections whose news it could not have
seen (`became_idle` in idle_scopes.pyx).
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_fence, wk_u32_load, wk_u32_load_relaxed, wk_u32_store
from ..base.linux cimport POLLIN, monotonic_ns, poll, pollfd
from ..reactor.hub cimport EVENTS, Hub
from ..reactor.mailbox cimport mailbox_waiting
from ..reactor.measure cimport measure_run_begins, measure_run_ends
from ..reactor.wake cimport kick, eventfd_clear
from ..reactor.wheel cimport NEVER

cdef enum:
    SLACK_BUSY_NS = 20000000    # the longest run of tasks that is not a stall
    SLACK_ASLEEP_NS = 2000000   # the longest oversleeping that is not a stall
    OLDEST_NS = 250000000
    PATIENCE_NS = 1000000000
    MAX_WAITS = 3              # for reactors, in one call of the hook


cdef void stall_watch_new(StallWatch *watch) noexcept nogil:
    watch.expected = NEVER


cdef void stall_sleep(StallWatch *watch, Hub *hub, double timeout) noexcept nogil:
    """Trio is about to sleep for `timeout` seconds at most."""
    cdef uint64_t now = monotonic_ns()
    if wk_u32_load_relaxed(&hub.measures.on):
        measure_run_ends(&hub.measures, now, True)
    watch.was_busy = now > watch.expected
    watch.expected = now + <uint64_t>(timeout * 1e9) + SLACK_ASLEEP_NS


cdef bint stall_called(StallWatch *watch, Hub *hub) noexcept nogil:
    """The hook is called. Returns whether that is late."""
    watch.called = monotonic_ns()
    watch.begun = watch.called
    if wk_u32_load_relaxed(&hub.measures.on):
        measure_run_begins(&hub.measures, watch.called)
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
    """In-loop: the reactor has turned, or its epoll was not ready, since the hook
    was called, or since the last turn in the same call. `full`: epoll may have more."""
    watch.turns += 1
    if not full:
        watch.looked_at = watch.called
    elif watch.ahead > hub.reactors[0].taken:
        watch.ahead -= hub.reactors[0].taken
        return
    else:
        watch.looked_at = watch.mark
    watch.mark = watch.called
    watch.ahead = _connections(hub)


cdef inline uint32_t _connections(Hub *hub) noexcept nogil:
    return wk_u32_load_relaxed(&hub.reactors[0].connections)


cdef bint stall_is_behind(StallWatch *watch, Hub *hub) noexcept nogil:
    """After a drain: whether something may have arrived by now that is owed a look. It is
    bounded in one call of the hook: load that never ends must not block Trio."""
    cdef uint64_t now = monotonic_ns()
    if now > watch.called + SLACK_BUSY_NS:
        _owe(watch, hub, now)           # callbacks took long
    watch.expected = now + SLACK_BUSY_NS
    if not hub.in_loop:
        return watch.owed != 0 and watch.turns < MAX_WAITS and not _is_told(watch, hub)
    if watch.turns > _connections(hub) // EVENTS + 3:   # all but the first take EVENTS
        return False
    if watch.looked_at >= watch.owed and watch.looked_at + OLDEST_NS >= now:
        return False
    watch.called = now
    hub.reactors[0].hurries = True
    return True


cdef bint stall_begins(StallWatch *watch, Hub *hub) noexcept nogil:
    """Outside of the hook: whether its next call is already late."""
    return not hub.virtual and monotonic_ns() > watch.expected


cdef bint stall_was_late(StallWatch *watch, Hub *hub) noexcept nogil:
    """In a drain: whether what it reports may be old, because the hook was called late or
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
    """After a drain: whether it has reported everything that is owed. Reactors sent up what
    they found before they said that they had looked, but perhaps after the drain began."""
    if not _all_looked(hub):
        return False
    if mailbox_waiting(&hub.completions):
        return False
    watch.owed = 0
    return True


cdef void stall_wait_for_reactors(StallWatch *watch, Hub *hub) noexcept nogil:
    """Wait until every reactor has looked at everything that had arrived when it was asked,
    and has sent up what it found.

    No wake is lost: a reactor stores `looked` and then loads `looks_awaited`; here it is
    the other way round, with a full fence between the two on either side, as in hub_wake.
    A reactor waits for no other thread, so this ends as soon as its thread had a core for some
    turns. It may not get one, so the wait is bounded."""
    cdef pollfd one
    cdef uint64_t now = monotonic_ns()
    cdef uint64_t until = now + PATIENCE_NS
    one.fd = hub.wakefd
    one.events = POLLIN
    watch.turns += 1
    while now < until:
        wk_u32_store(&hub.looks_awaited, 1)
        wk_fence()
        if _all_looked(hub):
            break
        poll(&one, 1, <int>((until - now) // 1000000) + 1)
        eventfd_clear(hub.wakefd)      # whatever it was written for is drained next
        now = monotonic_ns()
    if now >= until:
        watch.turns = MAX_WAITS
    wk_u32_store(&hub.looks_awaited, 0)
