"""Corking: what one turn of Trio's loop sends to a connection by `send_nowait` leaves in few
calls.

Facts. A send costs the kernel some microseconds, however few bytes it has. A program that sends
many small messages to a connection in one turn pays that for each.

Decision. The first `send_nowait` of a turn goes to the socket at once. What follows in the
same turn is kept in the connection's outbound ring, and is sent in one call when the turn
ends, or as soon as there are CORK_BYTES. The connection is *corked* meanwhile: the Trio side
holds its sending side (sender.pxd), so a reactor's messages queue behind, and whatever else
the Trio side does to the connection (`send_all`, `flush`, closing) sends first what is corked.

A turn ends where Trio is about to wait (`before_io_wait`); and, as callbacks of event mode run
in the drain, where the drain ends. Outside of turns nothing is corked, since nobody would send
it: guest mode's host, and signal handlers, run while Trio waits.

Trade-off. The sends that follow the first are copied once more than necessary. Corking the first
one, too, would cost two visits to the lock and a copy in every turn that sends only one message,
which is most of them, and would not send it any sooner. (docs/decisions.md has the figures.)
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.memory cimport FOR_CORKS, memory_free, memory_resize

cdef enum:
    FIRST_ROOM = 64


cdef bint corks_add(Corks *corks, uint64_t handle) noexcept nogil:
    """False without memory."""
    cdef uint32_t room = corks.room
    cdef void *larger
    if corks.count == room:
        room = room * 2 if room else <uint32_t>FIRST_ROOM
        larger = memory_resize(FOR_CORKS, corks.handles, room * sizeof(uint64_t))
        if larger == NULL:
            return False
        corks.handles = <uint64_t *>larger
        corks.room = room
    corks.handles[corks.count] = handle
    corks.count += 1
    return True


cdef void corks_free(Corks *corks) noexcept nogil:
    memory_free(FOR_CORKS, corks.handles)
    corks.handles = NULL
    corks.room = 0
    corks.count = 0
