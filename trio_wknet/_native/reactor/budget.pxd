# How much an engine may hold for its connections, all of them together: what `max_buffered` of the
# Python side asks for.
#
# What is counted. Each pool counts the bytes of its blocks that are in use (`live`), with the
# instruction that it needs anyway, whenever a ring takes a block, grows or empties. Their sum,
# and the frames that are collected outside of rings (`collected`), is what the engine holds;
# the reactors' own receive buffers are not counted.
#
# When it is looked at. A pool has a window around its last looked-at value, a `step` to either
# side, and compares with that what the count returns. So a message costs a comparison, and the
# pools are summed once for each step that one of them has grown or shrunk. The sum is off by a
# step for each pool at most, a STEPS-th of the whole for all of them.
#
#   near    from PAUSE on, until it is below RESUME. Reading pauses where nothing is lost by that
#           (`budget_stops`): where nobody waits for what would be read, and where the peer
#           does not read what is sent to it. Where somebody waits, for the rest of a frame
#           say, reading goes on: nothing else would ever free the part that is there.
#   over    above all of it. Nothing is read and no broadcast goes on until connections were
#           ended: those first that the application has closed, and that only send their rest,
#           by their reactor (relief.pyx); then the largest, by the Trio side (trio/relief.pyx), which
#           alone may take bytes out of an inbound ring. They are ended down to RELIEF.
#
# Access:
#   const       most to pools
#   mail        atomics of any thread: near, over, epoch, dooming, collected, pauses
# `near` and `over` are set and cleared by whoever has just summed (`budget_judge`), but for
# `over`, which is cleared where ending is decided. Each setter sums again after it has
# stored, behind a full fence; each pool counts before it looks. So at least one of two
# threads sees the other, and no state outlives its cause by more than a step of each pool.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load_relaxed
from .hub cimport Budget, Hub, Reactor
from .slot cimport Slot

cdef bint budget_set(Hub *hub, uint64_t most) noexcept nogil
cdef void budget_end(Budget *budget) noexcept nogil
cdef uint64_t budget_total(Budget *budget) noexcept nogil
cdef void budget_collect(Hub *hub, int64_t change) noexcept nogil
cdef bint budget_stops(Reactor *reactor, Slot *slot) noexcept nogil
cdef void budget_lets_go(Reactor *reactor, Slot *slot) noexcept nogil
cdef void budget_doom(Hub *hub) noexcept nogil
cdef void budget_freed(Hub *hub) noexcept nogil
cdef void budget_relieved(Hub *hub) noexcept nogil


cdef inline bint budget_is_near(Reactor *reactor) noexcept nogil:
    return wk_u32_load_relaxed(&reactor.budget.near) != 0


cdef inline bint budget_is_over(Budget *budget) noexcept nogil:
    return wk_u32_load_relaxed(&budget.over) != 0
