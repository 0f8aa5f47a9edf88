# Which connections are corked, in a turn of Trio's loop. See cork.pyx for why.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    CORK_BYTES = 32768      # when a connection holds this many, they are sent at once

cdef struct Corks:
    uint64_t *handles       # of connections, some of which are not corked any more
    uint32_t count
    uint32_t room
    uint8_t turn            # counted modulo 256: if it is mistaken, a send is only corked
    bint open               # a turn is in progress, and its end will be reported

cdef bint corks_add(Corks *corks, uint64_t handle) noexcept nogil
cdef void corks_free(Corks *corks) noexcept nogil
