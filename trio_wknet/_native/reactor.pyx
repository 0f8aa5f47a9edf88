"""Turning the loop: wait, dispatch, run commands, continue, turn the wheel, publish.

A turn is the same code on a reactor's own thread and inside Trio's (in-loop);
only who waits differs. The steps of a turn are in an order that matters:
memory is returned last, when no event of the batch can name it any more.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from trio_wknet._native.accept cimport close_port, on_acceptable, rearm, retry, watch
from trio_wknet._native.atomics cimport (
    wk_fence, wk_u32_exchange, wk_u32_load, wk_u32_load_relaxed, wk_u32_store, wk_u64_bump,
)
from trio_wknet._native.closing cimport (
    close_gracefully, close_now, forget, leave_listener, on_closing_event, reset,
)
from trio_wknet._native.conn cimport (
    ABORT, ADD, CLOSE, DETACH, DROP, FLUSH, FLUSHING, FORGOTTEN, LINGERING, NEW, OPEN,
    LISTENER, PORT, RESUME, WATCH, Link, Slot, slot_of_down, slot_of_ready,
)
from trio_wknet._native.linux cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT,
    EPOLLRDHUP, EPOLL_CLOEXEC, EPOLL_CTL_ADD, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, close,
    epoll_create1, epoll_ctl, epoll_event, epoll_wait, eventfd, itimerspec, monotonic_ns,
    timerfd_create, timerfd_settime,
)
from trio_wknet._native.links cimport list_empty, list_init, list_remove
from trio_wknet._native.mailbox cimport (
    Letter, batch_send, letter_take, mailbox_take, mailbox_waiting,
)
from trio_wknet._native.matrix cimport matrix_free, matrix_get, matrix_new, matrix_return, matrix_take
from trio_wknet._native.pool cimport Pool, pool_drop, pool_free, pool_new, pool_take
from trio_wknet._native.reactor cimport EVENTS, RECEIVE_BUFFER, Hub, Reactor, hub_now
from trio_wknet._native.timeouts cimport run_timeouts, timeout_set, timeouts_new
from trio_wknet._native.transfer cimport (
    flush, on_readable, on_writable, resume_reading,
)
from trio_wknet._native.trim cimport run_trim
from trio_wknet._native.wake cimport hub_wake, kick, ring_bell, still_bell
from trio_wknet._native.wheel cimport NEVER, wheel_free, wheel_next

cdef enum:
    POOL_KEEPS = 16777216       # bytes a pool may keep for reuse
    LONGEST_SLEEP_MS = 86400000

# What epoll_data carries for the descriptors that belong to no slot.
cdef enum:
    WAKE_TAG = 0
    TIMER_TAG = 1


cdef bint _watch_own(Reactor *reactor, int fd, uint64_t tag) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = tag
    return fd >= 0 and epoll_ctl(reactor.epfd, EPOLL_CTL_ADD, fd, &event) == 0


cdef void _watch_pool(Reactor *reactor, Pool *pool) noexcept nogil:
    """Have this reactor told when a pool has something to give back."""
    pool.on_excess = kick
    pool.watcher = <void *>reactor


cdef Reactor *_reactor_new(Hub *hub) noexcept nogil:
    """A reactor ready to turn; NULL with errno set if something is missing."""
    cdef Reactor *reactor = <Reactor *>calloc(1, sizeof(Reactor))
    if reactor == NULL:
        return NULL
    reactor.hub = hub
    reactor.timerfd = -1
    list_init(&reactor.ready)
    list_init(&reactor.starved)
    reactor.now = hub_now(hub)
    reactor.alarm_at = NEVER
    reactor.trim_at = NEVER
    reactor.wheel = timeouts_new(reactor)
    reactor.epfd = epoll_create1(EPOLL_CLOEXEC)
    reactor.wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    cdef bint ready = reactor.epfd >= 0 and _watch_own(reactor, reactor.wakefd, WAKE_TAG)
    if ready and hub.in_loop:
        # Trio does the waiting, so the tick has to come as a descriptor.
        reactor.timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        ready = _watch_own(reactor, reactor.timerfd, TIMER_TAG)
    reactor.pool = pool_new(POOL_KEEPS)
    if reactor.pool != NULL:
        _watch_pool(reactor, reactor.pool)
        reactor.buffer = pool_take(reactor.pool, RECEIVE_BUFFER)
    ready = ready and reactor.wheel != NULL
    if not ready or reactor.buffer == NULL or reactor.pool == NULL:
        _reactor_free(reactor)
        return NULL
    return reactor


cdef void _reactor_free(Reactor *reactor) noexcept nogil:
    # First what may ring the bell.
    if reactor.buffer != NULL:
        pool_drop(reactor.buffer, reactor.pool)
    if reactor.pool != NULL:
        pool_free(reactor.pool)
    if reactor.timerfd >= 0:
        close(reactor.timerfd)
    if reactor.wakefd >= 0:
        close(reactor.wakefd)
    if reactor.epfd >= 0:
        close(reactor.epfd)
    if reactor.wheel != NULL:
        wheel_free(reactor.wheel)
    free(reactor)


cdef Hub *hub_new(uint32_t count, bint in_loop, bint round_robin) noexcept nogil:
    """A hub with `count` reactors; NULL with errno set if something is missing."""
    cdef Hub *hub = <Hub *>calloc(1, sizeof(Hub))
    if hub == NULL:
        return NULL
    hub.in_loop = in_loop
    hub.round_robin = round_robin
    hub.wakefd = -1
    hub.matrix = matrix_new()
    if hub.matrix != NULL:
        hub.beacon = matrix_take(hub.matrix)
    hub.reactors = <Reactor **>calloc(count, sizeof(Reactor *))
    cdef bint ready = hub.beacon != NULL and hub.reactors != NULL
    while ready and hub.count < count:
        hub.reactors[hub.count] = _reactor_new(hub)
        ready = hub.reactors[hub.count] != NULL
        if ready:
            hub.count += 1
    if ready:
        # In-loop both sides are one thread: one pool, one bell.
        hub.pool = hub.reactors[0].pool if in_loop else pool_new(POOL_KEEPS)
        hub.wakefd = (hub.reactors[0].wakefd if in_loop
                      else eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        ready = hub.wakefd >= 0 and hub.pool != NULL
        if hub.pool != NULL:
            _watch_pool(hub.reactors[0], hub.pool)
        hub.beacon.kind = LISTENER
    if not ready:
        hub_free(hub)
        return NULL
    return hub


cdef void hub_free(Hub *hub) noexcept nogil:
    """Free it all. The threads have ended and every slot has been returned."""
    cdef uint32_t i
    if not hub.in_loop:
        if hub.wakefd >= 0:
            close(hub.wakefd)
        if hub.pool != NULL:
            pool_free(hub.pool)
    for i in range(hub.count):
        _reactor_free(hub.reactors[i])
    free(hub.reactors)
    if hub.matrix != NULL:
        matrix_free(hub.matrix)
    free(hub)


cdef void reactor_run(Reactor *reactor) noexcept nogil:
    """A reactor thread's whole life."""
    while not wk_u32_load(&reactor.stopping):
        reactor_turn(reactor, _patience(reactor))


cdef int _patience(Reactor *reactor) noexcept nogil:
    """How long a thread may sleep: milliseconds, -1 for ever."""
    cdef uint64_t at, now
    if not list_empty(&reactor.ready):
        return 0
    if wk_u32_load(&reactor.asked) != wk_u32_load_relaxed(&reactor.looked):
        return 0
    at = min(wheel_next(reactor.wheel), reactor.trim_at)
    if at == NEVER:
        return -1
    now = monotonic_ns()
    if at <= now:
        return 0
    # Rounded up: waking before the time would mean waiting again, for nothing.
    return <int>min((at - now + 999999) // 1000000, <uint64_t>LONGEST_SLEEP_MS)


cdef void reactor_turn(Reactor *reactor, int timeout) noexcept nogil:
    """One turn; waits at most `timeout` milliseconds (-1: for ever)."""
    cdef uint32_t asked = wk_u32_load(&reactor.asked)
    cdef int n = epoll_wait(reactor.epfd, reactor.events, EVENTS, timeout)
    cdef int i
    reactor.full = n == EVENTS
    reactor.now = hub_now(reactor.hub)
    for i in range(n):
        _dispatch(reactor, &reactor.events[i])
    _run_commands(reactor)
    _continue_ready(reactor)
    run_timeouts(reactor)
    _try_starved(reactor)
    run_trim(reactor)
    publish(reactor)
    set_alarm(reactor)
    if asked != wk_u32_load_relaxed(&reactor.looked) and n >= 0:
        _note_look(reactor, asked)
    wk_u64_bump(&reactor.turns, 1)
    if n > 0:
        wk_u64_bump(&reactor.events_seen, n)


cdef void _note_look(Reactor *reactor, uint32_t asked) noexcept nogil:
    """Trio had asked for a look at all that has arrived before this turn took events from
    epoll. That is done once epoll had no more than a turn takes, or has given as many as
    there are descriptors: its list is first in, first out. See stall.pyx."""
    if reactor.full:
        if reactor.looking != asked:
            reactor.looking = asked
            reactor.ahead = wk_u32_load_relaxed(&reactor.connections) + EVENTS
        if reactor.ahead > EVENTS:
            reactor.ahead -= EVENTS
            return
    wk_u32_store(&reactor.looked, asked)
    wk_fence()
    if (wk_u32_load(&reactor.hub.looks_awaited)
            and wk_u32_exchange(&reactor.hub.looks_awaited, 0)):
        ring_bell(reactor.hub.wakefd)


cdef void publish(Reactor *reactor) noexcept nogil:
    """Send the turn's completions up in one push, then return dead slots."""
    cdef Slot *slot
    if batch_send(&reactor.batch, &reactor.hub.completions):
        hub_wake(reactor.hub)
    while reactor.dead != NULL:
        slot = reactor.dead
        reactor.dead = slot.chain
        matrix_return(reactor.hub.matrix, slot)


cdef void _dispatch(Reactor *reactor, epoll_event *event) noexcept nogil:
    cdef Slot *slot
    cdef uint32_t events = event.events
    if event.data.u64 == WAKE_TAG:
        still_bell(reactor.wakefd)
        wk_u32_exchange(&reactor.kicked, 0)
        return
    if event.data.u64 == TIMER_TAG:
        still_bell(reactor.timerfd)
        reactor.alarm_at = NEVER
        return
    slot = matrix_get(reactor.hub.matrix, event.data.u64)
    if slot == NULL:
        return
    if slot.kind == PORT:
        on_acceptable(reactor, slot)
    elif slot.state == OPEN:
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            on_readable(reactor, slot, events)
        if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
            on_writable(reactor, slot)
    elif slot.state == FLUSHING or slot.state == LINGERING:
        on_closing_event(reactor, slot)


cdef void _run_commands(Reactor *reactor) noexcept nogil:
    """Only what was there when it began: a flood of commands cannot keep the
    reactor from its sockets."""
    cdef Letter *letter
    cdef Letter *following
    if not mailbox_waiting(&reactor.commands):
        return
    letter = mailbox_take(&reactor.commands)
    while letter != NULL:
        following = letter.next
        command(reactor, slot_of_down(letter), letter_take(letter))
        letter = following


cdef void command(Reactor *reactor, Slot *slot, uint32_t bits) noexcept nogil:
    """Carry out what a letter asks. When several bits come together their order
    is that of a connection's life."""
    if bits & ADD and slot.state == NEW:
        if slot.kind == PORT:
            rearm(reactor, slot)
        else:
            watch(reactor, slot)
    if bits & RESUME:
        if slot.kind == PORT:
            rearm(reactor, slot)
        elif slot.state == OPEN:
            resume_reading(reactor, slot)
    if bits & FLUSH and slot.state == OPEN:
        flush(reactor, slot)
    if bits & WATCH and slot.state == OPEN:
        timeout_set(reactor, slot)
    if bits & DETACH:
        forget(reactor, slot)
    if slot.kind == LISTENER:
        if bits & DROP:
            leave_listener(reactor, slot)
        return
    if slot.kind == PORT and bits & CLOSE:
        close_port(reactor, slot)
    elif bits & DROP or (bits & (CLOSE | ABORT) and slot.state == FORGOTTEN):
        close_now(reactor, slot)
    elif bits & ABORT:
        reset(reactor, slot)
    elif bits & CLOSE:
        close_gracefully(reactor, slot)


cdef void _continue_ready(Reactor *reactor) noexcept nogil:
    """Continue each connection that used up its budget, once."""
    cdef Slot *last
    cdef Slot *slot
    if list_empty(&reactor.ready):
        return
    last = slot_of_ready(reactor.ready.prev)
    while not list_empty(&reactor.ready):
        slot = slot_of_ready(reactor.ready.next)
        list_remove(&slot.ready)
        if slot.state == OPEN:
            resume_reading(reactor, slot)
        else:
            on_closing_event(reactor, slot)
        if slot == last:
            return


cdef void _try_starved(Reactor *reactor) noexcept nogil:
    """Go on where descriptors ran out, now that one has become free."""
    cdef Link *link = reactor.starved.next
    cdef Slot *slot
    if not reactor.descriptor_freed:
        return
    reactor.descriptor_freed = False
    while link != &reactor.starved:
        slot = slot_of_ready(link)
        link = link.next        # before the slot leaves the list
        retry(reactor, slot)


cdef void set_alarm(Reactor *reactor) noexcept nogil:
    """In-loop: have the timerfd wake Trio when the wheel wants to be turned, or
    memory looked after."""
    cdef uint64_t at = min(wheel_next(reactor.wheel), reactor.trim_at)
    cdef itimerspec when
    if reactor.timerfd < 0 or reactor.hub.virtual or at == reactor.alarm_at:
        return
    reactor.alarm_at = at
    memset(&when, 0, sizeof(when))
    if at != NEVER:
        when.it_value.tv_sec = <int64_t>(at // 1000000000)
        when.it_value.tv_nsec = <long>(at % 1000000000)
    timerfd_settime(reactor.timerfd, TFD_TIMER_ABSTIME, &when, NULL)
