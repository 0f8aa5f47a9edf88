"""Turning the loop: wait, dispatch, run commands and jobs, broadcast, continue, turn the wheel,
publish.

A turn is the same code on a reactor's own thread and inside Trio's (in-loop);
only the waiting differs. The order of a turn's steps matters:
slots are returned last, when no event of the batch can refer to them any more.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport (
    wk_fence, wk_u32_exchange, wk_u32_load, wk_u32_load_relaxed, wk_u32_store, wk_u64_bump,
)
from ..base.linux cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, TFD_TIMER_ABSTIME, epoll_event,
    epoll_wait, itimerspec, monotonic_ns, timerfd_settime,
)
from .accept cimport close_port, on_acceptable, rearm, retry, watch
from .answer cimport answer
from .broadcast cimport run_broadcasts
from .bucket cimport rate_due
from .closing cimport (
    close_gracefully, close_now, forget, leave_listener, on_closing_event, on_closing_timeout,
    reset,
)
from .hub cimport (
    EVENTS, TIMER_TAG, TURN_BYTES, WAKE_TAG, Job, Reactor, has_more, hub_now, notify,
)
from .idle cimport idle_due
from .keep_alive cimport keep_alive, note_keep_alive
from .lists cimport list_empty, list_remove
from .mailbox cimport Notification, batch_send, notification_take, mailbox_take, mailbox_waiting
from .measure cimport measure_posted
from .pace cimport pace_begin, pace_due, pace_look
from .places cimport room_was_made
from .rate cimport rate_changed, rate_excuse, rate_look
from .relief cimport mind_budget, shed
from .slot cimport (
    ABORT, ADD, ANSWER, CLOSE, CONNECTION, DETACH, DIVERT, DROP, FLUSH, FLUSHING, FORGOTTEN, IDLE,
    LINGERING, LISTENER, NEW, OPEN, PORT, RATE, RESUME, SHED, WATCH, Link, Slot, slot_of_command,
    slot_of_ready,
)
from .slot_map cimport slot_map_at, slot_map_get, slot_map_return
from .timeouts cimport timeout_at, timeout_set
from .transfer cimport flush, look_at_socket, on_readable, on_writable, resume_reading
from .trim cimport run_trim
from .wake cimport hub_wake, eventfd_signal, eventfd_clear
from .wheel cimport NEVER, wheel_next, wheel_take, wheel_turn

cdef enum:
    LONGEST_SLEEP_MS = 86400000


cdef void reactor_run(Reactor *reactor) noexcept nogil:
    """A reactor thread's whole life."""
    while not wk_u32_load(&reactor.stopping):
        reactor_turn(reactor, _patience(reactor))


cdef int _patience(Reactor *reactor) noexcept nogil:
    """How long a thread may sleep: in milliseconds, -1 for no limit."""
    cdef uint64_t at, now
    if has_more(reactor):
        return 0
    if wk_u32_load(&reactor.asked) != wk_u32_load_relaxed(&reactor.looked):
        return 0
    at = min(wheel_next(reactor.wheel), reactor.trim_at)
    if at == NEVER:
        return -1
    now = monotonic_ns()
    if at <= now:
        return 0
    # Rounded up: waking before the time would only mean waiting again.
    return <int>min((at - now + 999999) // 1000000, <uint64_t>LONGEST_SLEEP_MS)


cdef void reactor_turn(Reactor *reactor, int timeout) noexcept nogil:
    """One turn; waits at most `timeout` milliseconds (-1: no limit)."""
    cdef uint32_t asked = wk_u32_load(&reactor.asked)
    # While a look is owed, turns are as large as its count of events assumes.
    cdef bint looks = reactor.hurries or asked != wk_u32_load_relaxed(&reactor.looked)
    cdef int most = EVENTS if looks else <int>reactor.most
    cdef int n = epoll_wait(reactor.epfd, reactor.events, most, timeout)
    cdef Notification *jobs
    cdef uint64_t began = 0
    cdef int i
    reactor.full = n == most
    reactor.taken = most
    reactor.hurries = False
    reactor.moved = 0
    reactor.now = hub_now(reactor.hub)
    if wk_u32_load_relaxed(&reactor.hub.measures.on):
        # In virtual time this clock is another.
        began = monotonic_ns() if reactor.hub.virtual else reactor.now
    for i in range(n):
        _dispatch(reactor, &reactor.events[i])
    if reactor.moved > TURN_BYTES or reactor.most < EVENTS:
        _size_turns(reactor, n)
    # Jobs are taken first: a connection's ADD was posted before a job that names it.
    jobs = mailbox_take(&reactor.jobs) if mailbox_waiting(&reactor.jobs) else NULL
    _run_commands(reactor)
    _run_jobs(reactor, jobs)
    mind_budget(reactor)
    run_broadcasts(reactor)
    _continue_ready(reactor)
    _run_timeouts(reactor)
    _try_starved(reactor)
    _try_held(reactor)
    run_trim(reactor)
    publish(reactor)
    set_alarm(reactor)
    if asked != wk_u32_load_relaxed(&reactor.looked) and n >= 0:
        _note_look(reactor, asked)
    wk_u64_bump(&reactor.turns, 1)
    if n > 0:
        wk_u64_bump(&reactor.events_seen, n)
    if began:
        wk_u64_bump(&reactor.busy, monotonic_ns() - began)


cdef void _size_turns(Reactor *reactor, int n) noexcept nogil:
    """Have the next turn take as many events as bring TURN_BYTES, as these `n` did. If these
    brought much less, twice as many."""
    if reactor.moved > TURN_BYTES:
        reactor.most = max(1, <uint32_t>(n * <uint64_t>TURN_BYTES // reactor.moved))
    elif reactor.full and reactor.moved <= TURN_BYTES // 2:
        reactor.most = min(2 * reactor.most, <uint32_t>EVENTS)


cdef void _note_look(Reactor *reactor, uint32_t asked) noexcept nogil:
    """Trio asked, before this turn took events from epoll, for a look at everything that has
    arrived. That is done once epoll had no more than a turn takes, or has returned as many
    events as there are descriptors: its list is first in, first out. See stall.pyx."""
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
        eventfd_signal(reactor.hub.wakefd)


cdef void publish(Reactor *reactor) noexcept nogil:
    """Send the turn's completions up in one push, then return dead slots."""
    cdef Slot *slot
    if reactor.batch.newest != NULL and wk_u32_load_relaxed(&reactor.hub.measures.on):
        if not reactor.hub.in_loop:
            measure_posted(&reactor.hub.measures)
    if batch_send(&reactor.batch, &reactor.hub.completions):
        hub_wake(reactor.hub)
    while reactor.dead != NULL:
        slot = reactor.dead
        reactor.dead = slot.chain
        slot_map_return(reactor.hub.slot_map, slot)


cdef void _dispatch(Reactor *reactor, epoll_event *event) noexcept nogil:
    cdef Slot *slot
    cdef uint32_t events = event.events
    if event.data.u64 == WAKE_TAG:
        eventfd_clear(reactor.wakefd)
        wk_u32_exchange(&reactor.kicked, 0)
        return
    if event.data.u64 == TIMER_TAG:
        eventfd_clear(reactor.timerfd)
        reactor.alarm_at = NEVER
        return
    slot = slot_map_get(reactor.hub.slot_map, event.data.u64)
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
    """Run the commands that were there when this began, and no more: so a flood of commands
    cannot keep the reactor from its sockets."""
    cdef Notification *notification
    cdef Notification *following
    if not mailbox_waiting(&reactor.commands):
        return
    notification = mailbox_take(&reactor.commands)
    while notification != NULL:
        following = notification.next
        command(reactor, slot_of_command(notification), notification_take(notification))
        notification = following


cdef void _run_jobs(Reactor *reactor, Notification *link) noexcept nogil:
    cdef Job *job
    while link != NULL:
        job = <Job *>link       # its first field
        link = link.next
        job.run(reactor, job)


cdef void command(Reactor *reactor, Slot *slot, uint32_t bits) noexcept nogil:
    """Carry out a notification's commands. If several bits come together, their order
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
    if (bits & (FLUSH | DIVERT) and slot.kind == CONNECTION and slot.state == OPEN
            and slot.beyond.diversion != NULL):
        slot.beyond.diversion.act(<void *>reactor, slot, 0)
    if bits & ANSWER and slot.state == OPEN:
        answer(reactor, slot)
    if bits & WATCH and slot.state == OPEN:
        note_keep_alive(slot)
        pace_begin(reactor, slot)
        timeout_set(reactor, slot)
    if bits & RATE and slot.state == OPEN:
        rate_changed(reactor, slot)
    if bits & SHED:
        shed(reactor, slot)
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


cdef void _run_timeouts(Reactor *reactor) noexcept nogil:
    """Turn the wheel, then act on what came due."""
    cdef uint32_t index
    cdef Slot *slot
    wheel_turn(reactor.wheel, reactor.now)
    while wheel_take(reactor.wheel, &index):
        slot = slot_map_at(reactor.hub.slot_map, index)
        if slot.kind == PORT or slot.state == NEW:
            retry(reactor, slot)
        elif slot.state == OPEN:
            _act_on_idleness(reactor, slot)
        else:
            on_closing_timeout(reactor, slot)


cdef void _act_on_idleness(Reactor *reactor, Slot *slot) noexcept nogil:
    """Report that a connection is idle, if it is. It looks at the socket first: a
    turn takes EVENTS events at most, so if this thread or the process was stopped for
    long, bytes may have come in time that epoll has not reported yet."""
    if rate_due(slot) <= reactor.now:
        rate_look(reactor, slot)
        if timeout_at(reactor, slot) > reactor.now:
            _watch_again(reactor, slot)
            return
    if pace_due(slot) <= reactor.now:
        pace_look(reactor, slot)
        if idle_due(slot) > reactor.now and not slot.keeps_alive:
            timeout_set(reactor, slot)
            return
    look_at_socket(reactor, slot)
    rate_excuse(reactor, slot)
    if slot.keeps_alive:
        keep_alive(reactor, slot)
    if idle_due(slot) > reactor.now:
        timeout_set(reactor, slot)
        return
    wk_u32_store(&slot.idle, 0)
    notify(reactor, slot, IDLE)
    _watch_again(reactor, slot)


cdef void _watch_again(Reactor *reactor, Slot *slot) noexcept nogil:
    if slot.keeps_alive or timeout_at(reactor, slot) != NEVER:
        timeout_set(reactor, slot)


cdef void _try_starved(Reactor *reactor) noexcept nogil:
    """Retry what waits for descriptors, now that one has become free."""
    cdef Link *link = reactor.starved.next
    cdef Slot *slot
    if not reactor.descriptor_freed:
        return
    reactor.descriptor_freed = False
    while link != &reactor.starved:
        slot = slot_of_ready(link)
        link = link.next        # before the slot leaves the list
        retry(reactor, slot)


cdef void _try_held(Reactor *reactor) noexcept nogil:
    """Have ports that wait for room accept, now that there is some: those that are held now,
    once each."""
    cdef Slot *last
    cdef Slot *port
    if not room_was_made(reactor):
        return
    last = slot_of_ready(reactor.held.prev)
    while not list_empty(&reactor.held):
        port = slot_of_ready(reactor.held.next)
        list_remove(&port.ready)        # if it is held again, it comes last
        retry(reactor, port)
        if port == last:
            return


cdef void set_alarm(Reactor *reactor) noexcept nogil:
    """In-loop: set the timerfd to wake Trio when the wheel must be turned, or memory
    trimmed."""
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
