# What an application wants to know of a connection that is idle.
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.send cimport SendHalf


cdef class IdleScope:
    """A cancel scope, and how long a direction may be idle before it is cancelled."""
    cdef object scope           # a weak reference
    cdef uint64_t since         # ns: counts from here, or from the last byte
    cdef uint64_t limit         # ns
    cdef uint32_t direction     # as in idle.pxd, and never EACH
    cdef IdleScope older


cdef class IdleScopes(SendHalf):
    cdef IdleScope newest       # first of a list

    cdef void add(self, object scope, uint64_t since, uint64_t limit, uint32_t direction)
    cdef void forget_dead(self)
    cdef void look_by(self, uint64_t now, uint64_t limit, uint32_t direction) noexcept
    cdef void watch(self, uint64_t now, uint64_t due, uint32_t ms, uint32_t direction) noexcept
