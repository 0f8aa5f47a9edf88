# One reactor: an epoll instance and what it owns. The rest of the reactor side
# is functions on this struct: transfer.pyx moves bytes, accept.pyx takes in
# connections, closing.pyx ends them, reactor.pyx turns the loop.
#
# A Hub is what the reactors of one engine share with the Trio side.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u32_load_relaxed, wk_u64
from ..base.linux cimport epoll_event, monotonic_ns
from .admission cimport REASONS, Place
from .lists cimport list_empty
from .mailbox cimport Batch, Mailbox, Notification, batch_add, notification_mark
from .measure cimport Measures
from .pool cimport Block, Pool
from .slot cimport Link, Slot
from .slot_map cimport SlotMap
from .wheel cimport Wheel

cdef enum:
    RECEIVE_BUFFER = 65536      # bytes, one for all connections of a reactor
    # The most events that one turn takes from epoll. More would mean fewer turns; but what
    # a turn does to a connection (receive, wake, and in-loop run its task) would not find
    # it in the cache any more. (In-loop, 5000 connections: 0.7 of the CPU per
    # message, compared with a list that grows to 4096.)
    EVENTS = 256
    # The same for bytes: if a turn receives more, the next ones take fewer events, down to one.
    # So what is received, copied and sent stays in the caches, and the heap does not grow by a
    # message for each connection, to shrink again. (In-loop, 100 connections that echo
    # messages of 64 KiB: 0.7 to 0.8 of the CPU per message, and no page faults where there were
    # 1.7.)
    TURN_BYTES = 524288
    # What epoll_data carries for descriptors that belong to no slot.
    WAKE_TAG = 0
    TIMER_TAG = 1

# How much the engine may hold for its connections. budget.pxd has the rules.
cdef struct Budget:
    uint64_t most           # bytes; 0: no bound, and all that follows is unused
    uint64_t pause_at
    uint64_t resume_below
    uint64_t relief
    uint64_t step           # by which a pool grows or shrinks before it is looked at
    uint64_t own            # bytes of the reactors' own buffers
    uint32_t count
    Pool **pools
    wk_u32 near             # reading pauses where nobody waits
    wk_u32 over             # nothing is read until connections have been ended
    wk_u32 epoch            # changes when what is held back is to be tried again
    wk_u32 dooming          # connections that were ended, and are still to be freed
    wk_u64 collected        # bytes of frames that are collected outside of rings
    wk_u64 pauses           # statistics

cdef struct Hub:
    SlotMap *slot_map
    Pool *pool              # the Trio side's, for outbound rings
    Mailbox completions
    int wakefd              # eventfd that Trio waits on; in-loop: the reactor's
    wk_u32 asleep           # Trio is about to wait, or waits, and must be woken
    wk_u64 wakes            # statistics: how often it was
    Slot *beacon            # its notification reports what concerns no connection: that a
                            # reactor has none left, that the pool should be trimmed
    Mailbox finished        # broadcasts that are done, each the `link` of its Job
    wk_u32 quiet_wanted     # the Trio side waits until no connection is left
    wk_u32 shared           # a child was forked, and may hold the same descriptors
    wk_u32 looks_awaited    # Trio waits for reactors to look: see stall.pyx
    wk_u32 unwatched        # connections that epoll cannot watch for now (accept.pyx)
    wk_u32 shortage         # the errno of the last such shortage, and their number
    wk_u32 shortages
    wk_u64 refused[REASONS] # statistics: connections that were not let in (admission.pxd)
    Budget *budget
    bint in_loop
    bint virtual            # in-loop under a Trio clock that is not the system's:
    uint64_t virtual_now    # ns; the Trio side keeps it
    bint round_robin
    uint32_t turn           # round robin's next; accepting reactors may race for
                            # it, which costs evenness and nothing else
    uint32_t count
    Reactor **reactors
    Measures measures

# Something for a reactor to do once, in its thread. Embedded in what it is about, which `run`
# may free.
cdef struct Job:
    Notification link
    void (*run)(Reactor *reactor, Job *job) noexcept nogil

cdef struct Reactor:
    Hub *hub
    int epfd
    int wakefd
    int timerfd             # in-loop only, else -1
    Pool *pool
    Block *buffer           # what receives write to; handed over whole for a large one
    epoll_event events[EVENTS]
    uint32_t most           # events that the next turn takes: see TURN_BYTES
    uint32_t taken          # events that the last turn would have taken
    uint64_t moved          # bytes that this turn has received
    bint hurries            # the next turn takes EVENTS: a look is owed (stall.pyx)
    uint64_t now            # ns, read once a turn
    Wheel *wheel            # timeouts.pyx says of what
    uint64_t trim_at        # ns: when to trim memory (trim.pyx); or NEVER
    uint64_t released       # of the pools that it trims, when it last did
    uint64_t alarm_at       # ns: what the timerfd is set to, in-loop; NEVER: unset
    Mailbox commands
    Mailbox jobs            # each the `link` of a Job
    Batch batch             # completions of this turn
    Link ready              # connections that used up their budget of bytes
    Link starved            # what waits for descriptors or memory (accept.pyx)
    Link held               # ports that wait for room (places.pyx)
    Budget *budget          # the hub's: there, it would be on a line that others write
    uint32_t epoch          # of the budget, when what is held back was last tried
    Link held_back          # connections that are not read, by the budget (budget.pyx)
    Link leaving            # connections that were closed, and still send what they hold
    Slot *dead              # to be returned once the event batch ends
    Slot *spare             # for the next accept
    Place *spare_place
    bint descriptor_freed   # something was closed in this turn
    Job *broadcasts         # in the order in which they were given, by `link`
    Job *last_broadcast     # if there are any

    wk_u32 holding          # ports on `held`, as those who leave a place see it
    wk_u32 room_made        # a place was left since they were tried
    wk_u32 kicked           # the eventfd has been written and not yet read
    wk_u32 stopping
    # Trio asks for a look at everything that has arrived, by a count; `looked` is the last
    # count for which that is done: everything is read, and reported.
    wk_u32 asked
    wk_u32 looked
    uint32_t looking        # the count for which a look is in progress
    uint32_t ahead          # events that may be ahead of what arrived since then
    bint full               # the last turn's list of events was full: epoll may have more
    wk_u32 connections      # statistics and least-connections
    wk_u64 turns
    wk_u64 events_seen
    wk_u64 busy             # ns that it worked, while measured (measure.pxd)

cdef inline bint has_more(Reactor *reactor) noexcept nogil:
    """Whether it has work that needs no event: it must not sleep. Over the budget broadcasts
    wait; once it is not, each reactor is woken."""
    return not list_empty(&reactor.ready) or (
        reactor.broadcasts != NULL and not wk_u32_load_relaxed(&reactor.budget.over))


cdef inline uint64_t hub_now(Hub *hub) noexcept nogil:
    return hub.virtual_now if hub.virtual else monotonic_ns()

cdef inline Reactor *least_loaded(Hub *hub, Reactor *reactor) noexcept nogil:
    """The reactor with the fewest connections; `reactor` if none has fewer. Other threads
    change the counts meanwhile, so it may be slightly off."""
    cdef uint32_t i
    for i in range(hub.count):
        if (wk_u32_load_relaxed(&hub.reactors[i].connections)
                < wk_u32_load_relaxed(&reactor.connections)):
            reactor = hub.reactors[i]
    return reactor

cdef inline void notify(Reactor *reactor, Slot *slot, uint32_t bits) noexcept nogil:
    """Report to the Trio side, at the end of the turn."""
    if bits and notification_mark(&slot.completion, bits):
        batch_add(&reactor.batch, &slot.completion)
