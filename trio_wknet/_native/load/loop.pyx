"""The load generator's run: ramp, warmup, measurement, drain.

Every phase has a latest end, so a run is bounded by `ramp_timeout + warmup +
duration + grace` whatever the server does.

Open loop. Message number j is due at `origin + j * period` on connection
`j % connections`, known in advance: no queue is kept, and the start of a message
is computed when its answer comes. A connection that lags (or this thread) changes
when a message is sent, never when it counts as begun, which is what keeps
coordinated omission out of the percentiles. Messages due on a connection that is
lost stay due: they end as unfinished.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_load, wk_u32_load_relaxed, wk_u32_store, wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.linux cimport (
    TFD_TIMER_ABSTIME, close, epoll_event, epoll_wait, itimerspec, monotonic_ns,
    timerfd_settime,
)
from .conn cimport (
    CHURN, CONNECTING, DONE, DRAIN, MEASURE, OPEN, OPEN_LOOP, RAMP, TIMEOUT, UPGRADING, WARMUP,
    Conn, Load, begin_connect, fail_conn, on_event, pump,
)


cdef enum:
    EVENTS = 512
    MILLISECOND = 1000000
    TICK = 100 * MILLISECOND
    PATIENCE = 64  # churn: failures beyond one for each connection, before it is over


# What only the loop itself needs.
cdef struct Loop:
    Load *load
    int timer
    int ending
    uint64_t tick_at
    uint64_t ticked_at
    uint64_t ticked_answered
    uint64_t given  # open loop: messages that have come due


cdef int run_loop(Load *load, int timer) noexcept nogil:
    """Run to the end and close every connection; how it ended.

    `timer` is registered with the load's epoll, and so is something that becomes
    readable when `load.stopping` is set, both under handles that no connection has.
    """
    cdef epoll_event[EVENTS] events
    cdef Loop loop
    cdef int ready, i
    begin(&loop, load, timer)
    while phase_of(load) != DONE:
        ready = epoll_wait(load.epoll, events, EVENTS, pause(&loop, monotonic_ns()))
        for i in range(ready):
            if <uint32_t>events[i].data.u64 < load.plan.connections:
                on_event(load, events[i].data.u64, events[i].events)
        turn(&loop, monotonic_ns())
    close_all(load)
    return loop.ending


cdef void begin(Loop *loop, Load *load, int timer) noexcept nogil:
    cdef uint64_t now = monotonic_ns()
    loop.load = load
    loop.timer = timer
    loop.ending = BY_DURATION
    loop.tick_at = loop.ticked_at = now
    loop.ticked_answered = loop.given = 0
    load.opens_at = load.closes_at = load.grace_end = <uint64_t>-1
    load.ramp_end = now + load.plan.ramp_timeout
    wk_u64_store_relaxed(&load.began, now)
    enter(load, RAMP)
    turn(loop, now)


cdef inline uint32_t phase_of(Load *load) noexcept nogil:
    return wk_u32_load_relaxed(&load.phase)


cdef inline void enter(Load *load, uint32_t phase) noexcept nogil:
    wk_u32_store(&load.phase, phase)


cdef void close_all(Load *load) noexcept nogil:
    cdef uint32_t slot
    for slot in range(load.plan.connections):
        if load.conns[slot].fd >= 0:
            close(load.conns[slot].fd)
            load.conns[slot].fd = -1


# -- One turn ------------------------------------------------------------------


cdef void turn(Loop *loop, uint64_t now) noexcept nogil:
    """What is to be done by the clock, after the events of one wait."""
    cdef Load *load = loop.load
    if now >= loop.tick_at:
        tick(loop, now)
    if wk_u32_load(&load.stopping):
        finish(loop, now, STOPPED)
        return
    if load.plan.mode == CHURN or phase_of(load) == RAMP:
        launch(load, now)
    if load.plan.mode == OPEN_LOOP:
        schedule(loop, now)
    advance(loop, now)


cdef void launch(Load *load, uint64_t now) noexcept nogil:
    """Begin connects, each idle slot at most once, while the bounds allow."""
    cdef uint32_t tries = load.idle_count
    while tries and load.connecting < load.plan.connecting:
        if phase_of(load) >= DRAIN or (load.plan.mode == CHURN and spent(load)):
            return
        tries -= 1
        load.idle_count -= 1
        if begin_connect(load, &load.conns[load.idle[load.idle_count]], now):
            load.blocked_since = 0
        else:
            load.blocked_since = load.blocked_since or now
            return


cdef inline bint spent(Load *load) noexcept nogil:
    return load.plan.count != 0 and load.started >= load.plan.count


cdef void schedule(Loop *loop, uint64_t now) noexcept nogil:
    """Open loop: send what has come due since the last turn."""
    cdef Load *load = loop.load
    cdef uint64_t due, fresh, i
    if phase_of(load) != WARMUP and phase_of(load) != MEASURE:
        return
    due = min(<uint64_t>(<double>(now - load.origin) / load.plan.period) + 1,
              load.plan.scheduled)
    fresh = due - loop.given
    for i in range(min(fresh, <uint64_t>load.plan.connections)):
        assign(load, <uint32_t>((loop.given + i) % load.plan.connections), due, now)
    loop.given = due


cdef void assign(Load *load, uint32_t slot, uint64_t due, uint64_t now) noexcept nogil:
    """Give connection `slot` its share of the first `due` messages: each n-th of them."""
    cdef Conn *conn = &load.conns[slot]
    cdef uint64_t share = (due - 1 - slot) / load.plan.connections + 1
    load.started += share - conn.due
    if conn.state != OPEN:
        load.lost += share - conn.due
    conn.due = share
    if conn.state == OPEN:
        pump(load, conn, now)


# -- Phases --------------------------------------------------------------------


cdef void advance(Loop *loop, uint64_t now) noexcept nogil:
    """Go on to the next phase when its time has come."""
    cdef Load *load = loop.load
    cdef uint32_t phase = phase_of(load)
    if phase == RAMP:
        end_ramp(loop, now)
    elif is_dead(load):
        finish(loop, now, loop.ending if phase == DRAIN else lost_ending(load))
    elif is_complete(load):
        finish(loop, now, BY_COUNT if answered(load) else lost_ending(load))
    elif phase == WARMUP and now >= load.origin + load.plan.warmup:
        open_window(load, now)
    elif phase == MEASURE and now >= load.opens_at + load.plan.duration:
        close_window(load, now)
        load.grace_end = now + load.plan.grace
        enter(load, DRAIN)
    if phase_of(load) == DRAIN and (on_their_way(load) == 0 or now >= load.grace_end):
        enter(load, DONE)


cdef void end_ramp(Loop *loop, uint64_t now) noexcept nogil:
    """Begin the traffic once nothing is left to connect; churn has no ramp."""
    cdef Load *load = loop.load
    cdef uint32_t slot
    if load.plan.mode != CHURN:
        if now >= load.ramp_end:
            give_up_connects(load)
        if load.idle_count or load.connecting:
            return
        if is_dead(load):
            finish(loop, now, lost_ending(load))
            return
    load.origin = now
    enter(load, WARMUP)
    if load.plan.warmup == 0:
        open_window(load, now)
    if load.plan.mode != CHURN:
        for slot in range(load.plan.connections):
            if load.conns[slot].state == OPEN:
                pump(load, &load.conns[slot], now)


cdef void give_up_connects(Load *load) noexcept nogil:
    """The ramp took too long: what is not connected by now is a timeout each."""
    cdef uint32_t slot
    load.idle_count = 0
    load.blocked_since = 0
    for slot in range(load.plan.connections):
        if load.conns[slot].state < OPEN:
            fail_conn(load, &load.conns[slot], TIMEOUT)


cdef void open_window(Load *load, uint64_t now) noexcept nogil:
    # Messages belong to the window by the plan's edge, so that an open loop measures
    # exactly what it scheduled; throughput is counted from when the counter is read.
    load.opens_at = load.origin + load.plan.warmup
    load.counted_from = now
    load.answered_before = answered(load)
    enter(load, MEASURE)


cdef void close_window(Load *load, uint64_t now) noexcept nogil:
    load.closes_at = now
    load.window = now - load.counted_from
    load.measured = answered(load) - load.answered_before


cdef void finish(Loop *loop, uint64_t now, int ending) noexcept nogil:
    """End at once, without a drain."""
    if phase_of(loop.load) == MEASURE:
        close_window(loop.load, now)
    loop.ending = ending
    enter(loop.load, DONE)


cdef inline uint64_t on_their_way(Load *load) noexcept nogil:
    return load.started - load.lost - answered(load)


cdef inline uint64_t answered(Load *load) noexcept nogil:
    return wk_u64_load_relaxed(&load.answered)


cdef inline bint is_complete(Load *load) noexcept nogil:
    """The count is reached, and all of it answered or lost."""
    return spent(load) and phase_of(load) < DRAIN and on_their_way(load) == 0


cdef inline bint is_dead(Load *load) noexcept nogil:
    """Nothing more can come, though not all was answered."""
    if load.plan.mode == CHURN:
        return load.failures >= load.plan.connections + PATIENCE
    if wk_u64_load_relaxed(&load.connected):
        return False
    return load.lost != 0 or not spent(load)


cdef inline int lost_ending(Load *load) noexcept nogil:
    return SERVER_GONE if wk_u64_load_relaxed(&load.opened) else UNREACHABLE


# -- The clock -----------------------------------------------------------------


cdef void tick(Loop *loop, uint64_t now) noexcept nogil:
    """Ten times a second: the live rate, and connects that take too long."""
    cdef Load *load = loop.load
    cdef uint64_t messages = answered(load)
    cdef uint64_t elapsed = now - loop.ticked_at
    if elapsed:
        wk_u64_store_relaxed(
            &load.rate, (messages - loop.ticked_answered) * 1000000000 / elapsed)
    loop.ticked_answered = messages
    loop.ticked_at = now
    loop.tick_at = now + TICK
    if load.connecting:
        expire_connects(load, now)
    if load.blocked_since and now - load.blocked_since >= load.plan.connect_timeout:
        expire_blocked(load, now)


cdef void expire_connects(Load *load, uint64_t now) noexcept nogil:
    cdef uint32_t slot
    cdef Conn *conn
    for slot in range(load.plan.connections):
        conn = &load.conns[slot]
        if conn.state not in (CONNECTING, UPGRADING):
            continue
        if now - conn.since >= load.plan.connect_timeout:
            fail_conn(load, conn, TIMEOUT)


cdef void expire_blocked(Load *load, uint64_t now) noexcept nogil:
    """A unix server has not accepted for so long that one connect counts as failed."""
    cdef Conn *conn
    load.blocked_since = 0
    if load.idle_count:
        load.idle_count -= 1
        conn = &load.conns[load.idle[load.idle_count]]
        fail_conn(load, conn, TIMEOUT)


cdef int pause(Loop *loop, uint64_t now) noexcept nogil:
    """Milliseconds to wait for events; less than one of them is the timer's work."""
    cdef Load *load = loop.load
    cdef uint64_t until = min(loop.tick_at, deadline(load))
    if load.blocked_since:
        until = min(until, now + MILLISECOND)
    if load.plan.mode == OPEN_LOOP and phase_of(load) in (WARMUP, MEASURE):
        if loop.given < load.plan.scheduled:
            until = min(until, arm(loop, now))
    return 0 if until <= now else <int>((until - now + MILLISECOND - 1) / MILLISECOND)


cdef uint64_t deadline(Load *load) noexcept nogil:
    """When the present phase ends at the latest."""
    cdef uint32_t phase = phase_of(load)
    if phase == RAMP:
        return load.ramp_end
    if phase == WARMUP:
        return load.origin + load.plan.warmup
    if phase == MEASURE:
        return load.opens_at + load.plan.duration
    return load.grace_end


cdef uint64_t arm(Loop *loop, uint64_t now) noexcept nogil:
    """Set the timer to the next message's time; that time.

    epoll counts in milliseconds, a timerfd in nanoseconds. It is edge triggered
    and never read: each setting makes an edge of its own.
    """
    cdef uint64_t due = loop.load.origin + <uint64_t>(
        <double>loop.given * loop.load.plan.period)
    cdef itimerspec spec
    if due > now:
        spec.it_interval.tv_sec = spec.it_interval.tv_nsec = 0
        spec.it_value.tv_sec = <int64_t>(due / 1000000000)
        spec.it_value.tv_nsec = <long>(due % 1000000000)
        timerfd_settime(loop.timer, TFD_TIMER_ABSTIME, &spec, NULL)
    return due
