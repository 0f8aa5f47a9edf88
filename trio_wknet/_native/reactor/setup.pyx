"""Setting up a hub and its reactors, and freeing them."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.linux cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLLIN, EPOLL_CLOEXEC, EPOLL_CTL_ADD,
    TFD_CLOEXEC, TFD_NONBLOCK, close, epoll_create1, epoll_ctl, epoll_event, eventfd,
    timerfd_create,
)
from ..base.memory cimport FOR_SETUP, memory_free, memory_zeroed
from .admission cimport place_free
from .budget cimport budget_end, budget_set
from .descriptors cimport descriptors_begin
from .hub cimport EVENTS, RECEIVE_BUFFER, TIMER_TAG, WAKE_TAG, Budget, Hub, Reactor, hub_now
from .lists cimport list_init
from .pool cimport Pool, pool_drop, pool_free, pool_new, pool_take
from .slot cimport LISTENER
from .slot_map cimport slot_map_free, slot_map_new, slot_map_take
from .timeouts cimport timeouts_new
from .wake cimport kick
from .wheel cimport NEVER, wheel_free

cdef enum:
    POOL_KEEPS = 16777216       # bytes a pool may keep for reuse


cdef bint _watch_own(Reactor *reactor, int fd, uint64_t tag) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = tag
    return fd >= 0 and epoll_ctl(reactor.epfd, EPOLL_CTL_ADD, fd, &event) == 0


cdef void _watch_pool(Reactor *reactor, Pool *pool) noexcept nogil:
    """Wake this reactor when a pool has something to free."""
    pool.on_excess = kick
    pool.watcher = <void *>reactor


cdef Reactor *_reactor_new(Hub *hub) noexcept nogil:
    """A reactor ready to turn; NULL with errno set if something is missing."""
    cdef Reactor *reactor = <Reactor *>memory_zeroed(FOR_SETUP, 1, sizeof(Reactor))
    if reactor == NULL:
        return NULL
    reactor.hub = hub
    reactor.timerfd = -1
    reactor.most = EVENTS
    list_init(&reactor.ready)
    list_init(&reactor.starved)
    list_init(&reactor.held)
    list_init(&reactor.held_back)
    list_init(&reactor.leaving)
    reactor.budget = hub.budget
    reactor.now = hub_now(hub)
    reactor.alarm_at = NEVER
    reactor.trim_at = NEVER
    reactor.wheel = timeouts_new(reactor)
    reactor.epfd = epoll_create1(EPOLL_CLOEXEC)
    reactor.wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    cdef bint ready = reactor.epfd >= 0 and _watch_own(reactor, reactor.wakefd, WAKE_TAG)
    if ready and hub.in_loop:
        # Trio does the waiting, so the tick has to be a descriptor.
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
    # First what may call `kick`, which writes the eventfd.
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
    place_free(reactor.spare_place)
    memory_free(FOR_SETUP, reactor)


cdef Hub *hub_new(
    uint32_t count, bint in_loop, bint round_robin, uint64_t most
) noexcept nogil:
    """A hub with `count` reactors, which holds `most` bytes for its connections (0: no bound);
    NULL with errno set if something is missing."""
    cdef Hub *hub = <Hub *>memory_zeroed(FOR_SETUP, 1, sizeof(Hub))
    if hub == NULL:
        return NULL
    descriptors_begin()
    hub.in_loop = in_loop
    hub.round_robin = round_robin
    hub.wakefd = -1
    hub.slot_map = slot_map_new()
    hub.budget = <Budget *>memory_zeroed(FOR_SETUP, 1, sizeof(Budget))
    if hub.slot_map != NULL:
        hub.beacon = slot_map_take(hub.slot_map)
    hub.reactors = <Reactor **>memory_zeroed(FOR_SETUP, count, sizeof(Reactor *))
    cdef bint ready = hub.beacon != NULL and hub.reactors != NULL and hub.budget != NULL
    while ready and hub.count < count:
        hub.reactors[hub.count] = _reactor_new(hub)
        ready = hub.reactors[hub.count] != NULL
        if ready:
            hub.count += 1
    if ready:
        # In-loop both sides are one thread: one pool, one eventfd.
        hub.pool = hub.reactors[0].pool if in_loop else pool_new(POOL_KEEPS)
        hub.wakefd = (hub.reactors[0].wakefd if in_loop
                      else eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK))
        ready = hub.wakefd >= 0 and hub.pool != NULL
        if hub.pool != NULL:
            _watch_pool(hub.reactors[0], hub.pool)
        hub.beacon.kind = LISTENER
        ready = ready and budget_set(hub, most)
    if not ready:
        hub_free(hub)
        return NULL
    return hub


cdef void hub_free(Hub *hub) noexcept nogil:
    """Free it all. The threads have ended and every slot has been returned."""
    cdef uint32_t i
    if hub.budget != NULL:
        budget_end(hub.budget)
    if not hub.in_loop:
        if hub.wakefd >= 0:
            close(hub.wakefd)
        if hub.pool != NULL:
            pool_free(hub.pool)
    for i in range(hub.count):
        _reactor_free(hub.reactors[i])
    memory_free(FOR_SETUP, hub.reactors)
    if hub.budget != NULL:
        memory_free(FOR_SETUP, hub.budget.pools)
        memory_free(FOR_SETUP, hub.budget)
    if hub.slot_map != NULL:
        slot_map_free(hub.slot_map)
    memory_free(FOR_SETUP, hub)
