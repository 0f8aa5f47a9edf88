"""The byte ring. ring.pxd has its rules."""
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcpy

from ..base.atomics cimport wk_u32_add
from ..base.linux cimport iovec
from .pool cimport LARGEST_CLASS_BITS, NO_CLASS, Block, Pool, block_data, pool_drop, pool_take

cdef enum:
    LARGEST = 1 << LARGEST_CLASS_BITS


cdef inline uint32_t _mask(Ring *ring) noexcept nogil:
    return ring.block.capacity - 1


cdef inline uint32_t _min(uint32_t a, uint32_t b) noexcept nogil:
    return a if a < b else b


cdef bint _move(Ring *ring, Pool *pool, uint32_t size) noexcept nogil:
    """Move the unread bytes to the start of a block of at least `size` bytes.
    The old block lives on while a lease or a flush holds it."""
    cdef Block *block = pool_take(pool, size)
    if block == NULL:
        return False
    cdef uint32_t n = ring_len(ring)
    if ring.block != NULL:
        ring_copy(ring, block_data(block), n, 0)
        pool_drop(ring.block, pool)
    ring.block = block
    ring.head = 0
    ring.tail = n
    return True


cdef inline bint _make_room(Ring *ring, Pool *pool, uint32_t n) noexcept nogil:
    """See to it that `n` more bytes fit, 1 or more."""
    cdef uint32_t used = ring_len(ring)
    if ring.block == NULL or ring.block.capacity - used < n:
        return _move(ring, pool, used + n)
    return True


cdef inline void _store(Ring *ring, uint32_t index, const void *data, uint32_t n) noexcept nogil:
    cdef uint32_t at = index & _mask(ring)
    cdef uint32_t first = _min(n, ring.block.capacity - at)
    cdef unsigned char *base = block_data(ring.block)
    memcpy(base + at, data, first)
    memcpy(base, <const unsigned char *>data + first, n - first)


cdef bint ring_write(Ring *ring, Pool *pool, const void *data, uint32_t n) noexcept nogil:
    """Append all `n` bytes; False (and nothing written) without memory. `pool`
    is the calling thread's. The caller bounds the ring's size."""
    if n == 0:
        return True
    if not _make_room(ring, pool, n):
        return False
    _store(ring, ring.tail, data, n)
    ring.tail += n
    return True


cdef void _store_spans(Ring *ring, uint32_t index, const iovec *spans, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        _store(ring, index, spans[i].iov_base, <uint32_t>spans[i].iov_len)
        index += <uint32_t>spans[i].iov_len


cdef bint ring_write_spans(
    Ring *ring, Pool *pool, const iovec *spans, int count, uint32_t n
) noexcept nogil:
    """Append several pieces, `n` bytes in all; or nothing, as `ring_write`."""
    if n == 0:
        return True
    if not _make_room(ring, pool, n):
        return False
    _store_spans(ring, ring.tail, spans, count)
    ring.tail += n
    return True


cdef bint ring_prepend(
    Ring *ring, Pool *pool, const iovec *spans, int count, uint32_t n
) noexcept nogil:
    """Put pieces, `n` bytes in all, before what is unread; or nothing, as `ring_write`."""
    if n == 0:
        return True
    if not _make_room(ring, pool, n):
        return False
    ring.head -= n
    _store_spans(ring, ring.head, spans, count)
    return True


cdef bint ring_reserve(Ring *ring, Pool *pool, uint32_t n, uint32_t more) noexcept nogil:
    """See to it that `n` more bytes fit, 1 or more; if that takes another block, one with room
    for `more`, which are expected behind them. False without memory."""
    cdef uint32_t used = ring_len(ring)
    if ring.block != NULL and ring.block.capacity - used >= n:
        return True
    return _move(ring, pool, used + n + more) or (more > 0 and _move(ring, pool, used + n))


cdef inline int _spans_from(Ring *ring, uint32_t position, uint32_t n, iovec *spans) noexcept nogil:
    """`n` bytes (1 or more) from a position on, as up to two spans."""
    cdef uint32_t at = position & _mask(ring)
    cdef uint32_t first = _min(n, ring.block.capacity - at)
    spans[0].iov_base = block_data(ring.block) + at
    spans[0].iov_len = first
    if first == n:
        return 1
    spans[1].iov_base = block_data(ring.block)
    spans[1].iov_len = n - first
    return 2


cdef int ring_free_spans(Ring *ring, iovec *spans, uint32_t n) noexcept nogil:
    """Where the next `n` bytes (1 or more) will stand, for which there is room: up to two
    spans. Who has written them adds `n` to `tail`."""
    return _spans_from(ring, ring.tail, n, spans)


cdef void ring_patch(Ring *ring, uint32_t offset, const void *data, uint32_t n) noexcept nogil:
    """Overwrite `n` unread bytes from `offset` on. The caller has ensured that nobody else
    looks at them."""
    _store(ring, ring.head + offset, data, n)


cdef void ring_retract(Ring *ring, Pool *pool, uint32_t n) noexcept nogil:
    """Drop the last `n` unread bytes; an empty ring returns its block."""
    ring.tail -= n
    if ring.head == ring.tail:
        ring_clear(ring, pool)


cdef void ring_expect(Ring *ring, Pool *pool, uint32_t n, uint32_t size) noexcept nogil:
    """Before `n` bytes are written to a ring that will hold `size` in the end: if its
    block is too small, and a pool keeps none that is large enough, take the final one at once.
    Its memory is committed as it is written; doubling repeatedly would copy everything,
    under the lock. If there is no memory for it, `ring_write` tries a smaller one."""
    cdef uint32_t needed = ring_len(ring) + n
    if needed > LARGEST and size > needed and ring.block != NULL and ring.block.capacity < needed:
        _move(ring, pool, size)


cdef Block *ring_pin_large(Ring *ring) noexcept nogil:
    """A reference to the ring's block, if it is so large that freeing it takes long; else
    NULL. The caller, which is about to empty the ring, drops it after the lock is released."""
    cdef Block *block = ring.block
    if block == NULL or block.size_class != NO_CLASS:
        return NULL
    wk_u32_add(&block.refs, 1)
    return block


cdef void ring_adopt(Ring *ring, Block *block, uint32_t n) noexcept nogil:
    """Give an empty ring a block whose first `n` bytes are written."""
    ring.block = block
    ring.head = 0
    ring.tail = n


cdef Block *ring_exchange(Ring *ring, Block *block, uint32_t n) noexcept nogil:
    """Go on in another block as large, to which the first `n` bytes have been copied.
    The old one, for the caller to drop."""
    cdef Block *old = ring.block
    cdef uint32_t size = ring_len(ring)
    ring_copy(ring, block_data(block) + n, size - n, n)
    ring_adopt(ring, block, size)
    return old


cdef void ring_copy(Ring *ring, void *out, uint32_t n, uint32_t offset) noexcept nogil:
    """Copy `n` unread bytes from `offset` on, which must be there, to `out`."""
    if n == 0:
        return
    cdef uint32_t at = (ring.head + offset) & _mask(ring)
    cdef uint32_t first = _min(n, ring.block.capacity - at)
    cdef unsigned char *base = block_data(ring.block)
    memcpy(out, base + at, first)
    memcpy(<unsigned char *>out + first, base, n - first)


cdef int ring_spans(Ring *ring, iovec *spans) noexcept nogil:
    """The unread bytes as up to two spans, for one gathering write."""
    cdef uint32_t n = ring_len(ring)
    return _spans_from(ring, ring.head, n, spans) if n else 0


cdef void ring_discard(Ring *ring, Pool *mine, uint32_t n) noexcept nogil:
    """Drop the first `n` unread bytes; an empty ring returns its block.
    The caller has ensured that no lease shows them."""
    ring.head += n
    if ring.head == ring.tail:
        ring_clear(ring, mine)


cdef void ring_clear(Ring *ring, Pool *mine) noexcept nogil:
    """Drop everything, and return the block."""
    if ring.block != NULL:
        pool_drop(ring.block, mine)
        ring.block = NULL
    ring.head = 0
    ring.tail = 0


cdef bint ring_wraps(Ring *ring, uint32_t n) noexcept nogil:
    """Whether the first `n` unread bytes, which are there, are in two pieces."""
    return n > 0 and (ring.head & _mask(ring)) + n > ring.block.capacity


cdef unsigned char *ring_contiguous(Ring *ring, Pool *pool, uint32_t n) noexcept nogil:
    """The first `n` unread bytes (at least 1, and there) in one piece: if
    they wrap, the ring first moves to a new block. NULL without memory."""
    if ring_wraps(ring, n) and not _move(ring, pool, ring_len(ring)):
        return NULL
    return block_data(ring.block) + (ring.head & _mask(ring))


cdef inline bint _matches(Ring *ring, const unsigned char *needle, uint32_t length,
                          uint32_t offset) noexcept nogil:
    cdef uint32_t i
    for i in range(1, length):
        if ring_at(ring, offset + i) != needle[i]:
            return False
    return True


cdef long ring_find(Ring *ring, const unsigned char *needle, uint32_t length,
                    uint32_t start) noexcept nogil:
    """The first position of `needle` (at least 1 byte) at or after `start`, as an
    offset from the first unread byte; -1 if it is not there."""
    cdef uint32_t n = ring_len(ring)
    cdef uint32_t offset = start
    cdef uint32_t at, piece
    cdef unsigned char *base
    cdef unsigned char *hit
    while offset < n and n - offset >= length:
        at = (ring.head + offset) & _mask(ring)
        piece = _min(n - offset, ring.block.capacity - at)
        base = block_data(ring.block) + at
        hit = <unsigned char *>memchr(base, needle[0], piece)
        if hit == NULL:
            offset += piece
            continue
        offset += <uint32_t>(hit - base)
        if n - offset < length:
            return -1
        if _matches(ring, needle, length, offset):
            return offset
        offset += 1
    return -1
