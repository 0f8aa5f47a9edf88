# Sends that wait until the tasks of a turn have run. See send_batch.pyx for why.
from libc.stdint cimport uint32_t

from .operation cimport YIELDING, Operation

cdef enum:
    DEFER_UP_TO = 16384         # bytes; above this a send is a batch of its own


cdef class SendBatch:
    cdef list due
    cdef list other             # empty; the two change places
    cdef uint32_t woken         # by the bridge, for this turn: tasks, or about as many
    cdef public uint32_t threshold      # of tasks in a turn: from here on, sends are deferred

    cdef int make_room(self) except -1
    cdef void begin_turn(self) noexcept
    cdef void carry_out(self) noexcept


cdef inline bint batch_wants(SendBatch batch, size_t n) noexcept:
    """Whether a send of `n` bytes is better deferred."""
    return n <= DEFER_UP_TO and batch.woken >= batch.threshold


cdef inline bint batch_keeps_awake(SendBatch batch) noexcept:
    """Whether Trio will not sleep before these are sent, so that another task may park: the
    first one is at a schedule point. (It may have been thrown away since.)"""
    return batch.due and (<Operation>batch.due[0]).state == YIELDING
