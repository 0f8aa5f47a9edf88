# Which connections are corked, in a turn of Trio's loop. See cork.pyx for why.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    CORK_BYTES = 32768      # at so many the connection is sent to at once

cdef struct Corks:
    uint64_t *handles       # of connections, some of which are not corked any more
    uint32_t count
    uint32_t room
    uint8_t turn            # counted modulo 256: taken for another one, a send is corked
    bint open               # a turn goes on, whose end will be told of

cdef bint corks_add(Corks *corks, uint64_t handle) noexcept nogil
cdef void corks_free(Corks *corks) noexcept nogil
