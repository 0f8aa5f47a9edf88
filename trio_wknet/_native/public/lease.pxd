# A view that pins: bytes of a block, shown without a copy.
#
# A lease holds three things, for as long as any view of it lives:
#   a reference to the block, so that the bytes stay where they are, whatever
#       becomes of the ring that they were in;
#   its lender, which keeps the block's pool alive;
#   a pin of the lender, which refuses to take or discard bytes meanwhile.
#
# The last view may go in any thread that collects garbage, so the block is
# given back as a foreign one. The lender is told in that thread, under the GIL.
from ..reactor.pool cimport Block


cdef class Lender:
    """Whoever owns a ring and shows bytes of it."""
    cdef unsigned int pins      # leases alive


cdef class Lease:
    cdef Lender lender
    cdef Block *block
    cdef const unsigned char *data
    cdef Py_ssize_t length


cdef Lease lend(Lender lender, Block *block, const unsigned char *data, Py_ssize_t length)
