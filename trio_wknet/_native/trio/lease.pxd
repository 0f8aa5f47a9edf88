# A view that pins: bytes of a block, shown without a copy.
#
# A lease holds three things, for as long as any view of it lives:
#   a reference to the block, so that the bytes stay where they are, whatever
#       becomes of the ring that they were in, and of the pool (pool_free);
#   its lender, an object that owns the ring, and the count below;
#   a pin: while there are any, the lender refuses to take or discard bytes.
#
# So what a view shows stays unread until the view goes, and is not overwritten: bytes that
# are added to the ring, by any thread, go to free space, or to another block.
#
# The last view may go in any thread that collects garbage, so the block is returned as by a
# foreign thread. The pin is released in that thread, under the GIL.
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_u32_add
from ..reactor.pool cimport Block


cdef class Lease:
    cdef object lender
    cdef uint32_t *pins         # the lender's leases that pin
    cdef Block *block           # NULL: it pins nothing yet
    cdef const unsigned char *data
    cdef Py_ssize_t length


cdef Lease new_lease(object lender, uint32_t *pins)
cdef object pinned(Py_ssize_t n)


cdef inline void lease_pin(Lease lease, Block *block, const unsigned char *data,
                           Py_ssize_t length) noexcept:
    """Show bytes of a block. No Python code runs, so the caller may hold any lock."""
    lease.data = data
    lease.length = length
    wk_u32_add(&block.refs, 1)
    lease.block = block
    lease.pins[0] += 1
