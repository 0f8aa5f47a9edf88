# What the connections of a listener share: its totals, and what its drain has to know.
from libc.stdint cimport uint32_t

from .totals cimport Totals


cdef class Point:
    """A place where a handler waits, which a drain may end (idle_point.pyx)."""
    cdef int end(self) except -1


cdef class Handed:
    cdef readonly Totals totals     # the listener's
    cdef readonly uint32_t count    # open connections that `accept` returned
    cdef public object on_none      # called when the last of them is closed
    cdef readonly bint draining
    cdef set points                 # the points that tasks are in; None before the first

    cdef void left(self) noexcept
    cdef int enter(self, Point point) except -1
    cdef void leave(self, Point point) noexcept
