# After a stall: what had arrived before a deadline counts. See stall.pyx.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.hub cimport Hub

cdef struct StallWatch:
    uint64_t expected       # ns: when the hook should be called next, at the latest
    uint64_t called         # ns: when it was called last, or continued with another look
    uint64_t begun          # ns: when it was called last
    uint64_t owed           # ns: what had arrived by then must still be looked at; 0: nothing
    bint late               # it was called later than expected
    bint was_busy           # Trio began to sleep later than expected
    bint put_off            # deadlines have passed whose tasks wait for the next look
    # In-loop: what had arrived by `looked_at` has been looked at. `mark` and `ahead` are the
    # same for a look in progress: how many events may be ahead of what arrived later.
    uint64_t looked_at
    uint64_t mark
    uint32_t ahead
    uint32_t turns          # of the reactor, or waits for reactors, since the hook was called

cdef void stall_watch_new(StallWatch *watch) noexcept nogil
cdef void stall_sleep(StallWatch *watch, Hub *hub, double timeout) noexcept nogil
cdef bint stall_called(StallWatch *watch, Hub *hub) noexcept nogil
cdef void stall_turned(StallWatch *watch, Hub *hub, bint full) noexcept nogil
cdef bint stall_is_behind(StallWatch *watch, Hub *hub) noexcept nogil
cdef bint stall_begins(StallWatch *watch, Hub *hub) noexcept nogil
cdef bint stall_was_late(StallWatch *watch, Hub *hub) noexcept nogil
cdef void stall_wait_for_reactors(StallWatch *watch, Hub *hub) noexcept nogil
