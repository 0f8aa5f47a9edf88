"""Views that pin. Their rules stand in lease.pxd."""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo

from ..base.atomics cimport wk_u32_add
from ..reactor.pool cimport Block, pool_drop


cdef class Lender:
    pass


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
            self.lender.pins -= 1
            pool_drop(self.block, NULL)


cdef Lease lend(Lender lender, Block *block, const unsigned char *data, Py_ssize_t length):
    """A lease of `length` bytes at `data`, which lie in `block`."""
    cdef Lease lease = Lease.__new__(Lease)
    lease.lender = lender
    lease.data = data
    lease.length = length
    wk_u32_add(&block.refs, 1)
    lease.block = block
    lender.pins += 1
    return lease
