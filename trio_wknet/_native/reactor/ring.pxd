# A byte ring in one block: free-running indices, a power-of-two mask, at most
# two copies (the technique of Linux's kfifo). It grows by moving to a larger
# block and returns its block the moment it is empty, so an idle connection
# holds no buffer.
#
# A ring is not thread-safe by itself. A connection's rings are touched only
# under the connection's lock (slot.pxd says by whom).
#
# Bytes that a lease (lease.pxd) shows are unread, so writing never touches them;
# growing copies them and leaves the old block to the lease, by its reference count.
# The lender ensures that they are not taken out meanwhile.
from libc.stdint cimport uint32_t

from ..base.linux cimport iovec
from .pool cimport Block, Pool, block_data

cdef enum:
    MAX_RING_BYTES = 1 << 30    # the most bytes that a ring may grow to

cdef struct Ring:
    Block *block        # NULL exactly while the ring is empty
    uint32_t head       # next byte to read
    uint32_t tail       # next byte to write; tail - head bytes are unread

cdef inline uint32_t ring_len(Ring *ring) noexcept nogil:
    return ring.tail - ring.head


cdef inline unsigned char ring_at(Ring *ring, uint32_t offset) noexcept nogil:
    """The unread byte at `offset`, which must be there."""
    return block_data(ring.block)[(ring.head + offset) & (ring.block.capacity - 1)]


cdef bint ring_write(Ring *ring, Pool *pool, const void *data, uint32_t n) noexcept nogil
cdef bint ring_write_spans(
    Ring *ring, Pool *pool, const iovec *spans, int count, uint32_t n
) noexcept nogil
cdef bint ring_prepend(
    Ring *ring, Pool *pool, const iovec *spans, int count, uint32_t n
) noexcept nogil
cdef bint ring_reserve(Ring *ring, Pool *pool, uint32_t n, uint32_t more) noexcept nogil
cdef int ring_free_spans(Ring *ring, iovec *spans, uint32_t n) noexcept nogil
cdef void ring_patch(Ring *ring, uint32_t offset, const void *data, uint32_t n) noexcept nogil
cdef void ring_retract(Ring *ring, Pool *pool, uint32_t n) noexcept nogil
cdef void ring_expect(Ring *ring, Pool *pool, uint32_t n, uint32_t size) noexcept nogil
cdef Block *ring_pin_large(Ring *ring) noexcept nogil
cdef void ring_adopt(Ring *ring, Block *block, uint32_t n) noexcept nogil
cdef Block *ring_exchange(Ring *ring, Block *block, uint32_t n) noexcept nogil
cdef void ring_copy(Ring *ring, void *out, uint32_t n, uint32_t offset) noexcept nogil
cdef int ring_spans(Ring *ring, iovec *spans) noexcept nogil
cdef void ring_discard(Ring *ring, Pool *mine, uint32_t n) noexcept nogil
cdef void ring_clear(Ring *ring, Pool *mine) noexcept nogil
cdef bint ring_wraps(Ring *ring, uint32_t n) noexcept nogil
cdef unsigned char *ring_contiguous(Ring *ring, Pool *pool, uint32_t n) noexcept nogil
cdef long ring_find(Ring *ring, const unsigned char *needle, uint32_t length,
                    uint32_t start) noexcept nogil
