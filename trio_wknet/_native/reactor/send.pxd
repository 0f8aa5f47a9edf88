from libc.stdint cimport uint32_t

from ..base.linux cimport iovec
from .hub cimport Reactor
from .slot cimport Slot

# What became of a message that a reactor was to send.
cdef enum Sent:
    ACCEPTED = 0        # sent, or queued: it will be, unless the connection breaks
    FULL = 1            # more than `limit` bytes would be unsent
    CLOSED = 2          # nothing can be sent any more

# A message in two steps, for who has more to do in the visit to the lock.
cdef Sent admit(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n, uint32_t limit,
    uint32_t *state
) noexcept nogil
cdef Sent send_admitted(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n, uint32_t state
) noexcept nogil
cdef Sent send_message(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t limit
) noexcept nogil
