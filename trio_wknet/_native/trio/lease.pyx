"""Views that pin. lease.pxd has their rules."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint32_t

from ..reactor.pool cimport pool_drop


# Its fields are needed up to the very end, so the garbage collector must not
# clear them when it breaks a cycle that a view is part of.
@cython.final
@cython.no_gc_clear
cdef class Lease:
    """Read-only bytes of a ring; what ``obj`` of a peeked memoryview is."""

    def __init__(self):
        raise TypeError("leases are given by peek, not made")

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, <void *>self.data, self.length, True, flags)

    def __dealloc__(self):
        if self.block != NULL:
            self.pins[0] -= 1
            pool_drop(self.block, NULL)


cdef Lease new_lease(object lender, uint32_t *pins):
    """A lease that is to show bytes of the lender's (lease_pin)."""
    cdef Lease lease = Lease.__new__(Lease)
    lease.lender = lender
    lease.pins = pins
    return lease


cdef object pinned(Py_ssize_t n):
    """The exception for taking bytes that a view shows."""
    return BufferError(f"cannot remove {n} bytes while a view from peek() is alive")
