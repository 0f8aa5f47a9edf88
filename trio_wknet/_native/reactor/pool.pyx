"""Pools of memory blocks in size classes. pool.pxd has the rules."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport (
    wk_fence, wk_u32, wk_ptr_cas, wk_ptr_exchange, wk_ptr_load_relaxed, wk_u32_exchange,
    wk_u32_load, wk_u32_load_relaxed, wk_u32_store, wk_u32_store_relaxed, wk_u32_sub,
    wk_u64_add, wk_u64_load_relaxed, wk_u64_store_relaxed, wk_u64_sub,
)
from ..base.memory cimport (
    FOR_BLOCKS, FOR_SETUP, memory_free, memory_map, memory_take, memory_unmap, memory_zeroed,
)


cdef inline uint8_t _class_of(uint32_t size) noexcept nogil:
    """The smallest class whose blocks hold `size` bytes, or NO_CLASS."""
    cdef uint8_t bits = SMALLEST_CLASS_BITS
    while bits <= LARGEST_CLASS_BITS:
        if size <= (<uint32_t>1 << bits):
            return bits - SMALLEST_CLASS_BITS
        bits += 1
    return NO_CLASS


cdef inline uint32_t _round_up(uint32_t size) noexcept nogil:
    cdef uint32_t capacity = 1 << SMALLEST_CLASS_BITS
    while capacity < size:
        capacity <<= 1
    return capacity


cdef Pool *pool_new(uint64_t keep_at_most) noexcept nogil:
    """An empty pool, or NULL without memory."""
    cdef Pool *pool = <Pool *>memory_zeroed(FOR_SETUP, 1, sizeof(Pool))
    if pool != NULL:
        pool.keep_at_most = keep_at_most
        wk_u64_store_relaxed(&pool.high, <uint64_t>-1)
    return pool


cdef void pool_free(Pool *pool) noexcept nogil:
    """Free the pool. Blocks of it may be in use still, but by leases alone: the last one
    to be given back takes the pool along. Leases go under the GIL, one at a time, and
    who closes an engine holds it, too."""
    pool_trim(pool)
    if wk_u64_load_relaxed(&pool.live) == 0:
        memory_free(FOR_SETUP, pool)
        return
    pool.keep_at_most = 0
    pool.on_excess = NULL
    wk_u64_store_relaxed(&pool.low, 0)          # on_move is for engines that are open
    wk_u64_store_relaxed(&pool.high, <uint64_t>-1)
    pool.abandoned = True


cdef void pool_trim(Pool *pool) noexcept nogil:
    """Free every kept block. Only the owner may call this."""
    cdef int i
    _collect_returned(pool)
    for i in range(CLASSES):
        while pool.free[i] != NULL:
            _release(pool, _pop(pool, i))
        pool.idle_count[i] = 0


cdef void pool_trim_idle(Pool *pool) noexcept nogil:
    """Free what was not needed since the last call, the largest blocks first, down to
    POOL_FLOOR. Only the owner may call this."""
    cdef int i
    _collect_returned(pool)
    for i in range(CLASSES - 1, -1, -1):
        while pool.idle_count[i] > 0 and wk_u64_load_relaxed(&pool.kept) > POOL_FLOOR:
            pool.idle_count[i] -= 1
            _release(pool, _pop(pool, i))
        pool.idle_count[i] = pool.free_count[i]


cdef bint _has_excess(Pool *pool) noexcept nogil:
    return (wk_u64_load_relaxed(&pool.kept) > POOL_FLOOR
            or wk_u64_load_relaxed(&pool.released) >= MUCH_RELEASED)


cdef bint pool_settled(Pool *pool) noexcept nogil:
    """Whether there is nothing to free. If so the watcher need not look again
    until on_excess is called. Callable in any one thread.

    A thread that returns a block counts it and then looks at `excess`; here the order is
    the other way round. So at least one side sees the other. (If a processor lets the
    look in pool_drop overtake the count, the blocks of that moment may stay until the
    next one is returned.)"""
    if _has_excess(pool):
        return False
    wk_u32_store(&pool.excess, False)
    wk_fence()
    if not _has_excess(pool):
        return True
    wk_u32_store(&pool.excess, True)
    return False


cdef void _note(Pool *pool) noexcept nogil:
    """There is something to free: call on_excess, unless it was called already."""
    if wk_u32_exchange(&pool.excess, True) == 0 and pool.on_excess != NULL:
        pool.on_excess(pool.watcher)


cdef inline Block *_pop(Pool *pool, uint8_t size_class) noexcept nogil:
    """Take a block out of a free list, which has one."""
    cdef Block *block = pool.free[size_class]
    pool.free[size_class] = block.next
    pool.free_count[size_class] -= 1
    wk_u64_sub(&pool.kept, block.capacity)
    return block


cdef inline void _push(Pool *pool, Block *block) noexcept nogil:
    block.next = pool.free[block.size_class]
    pool.free[block.size_class] = block
    pool.free_count[block.size_class] += 1


cdef void _release(Pool *pool, Block *block) noexcept nogil:
    """Free a block."""
    cdef uint32_t capacity = block.capacity
    if block.mapped:
        memory_unmap(FOR_BLOCKS, block, sizeof(Block) + capacity)
    else:
        memory_free(FOR_BLOCKS, block)
        pool_note_released(pool, capacity)


cdef void pool_note_released(Pool *pool, uint32_t size) noexcept nogil:
    """Count bytes that were freed. Callable in any thread, holding any lock."""
    if (wk_u64_add(&pool.released, size) + size >= MUCH_RELEASED
            and not wk_u32_load_relaxed(&pool.excess)):
        _note(pool)


cdef void _collect_returned(Pool *pool) noexcept nogil:
    """Move what other threads returned to the owner's free lists."""
    cdef Block *block = <Block *>wk_ptr_exchange(&pool.returned, NULL)
    cdef Block *following
    while block != NULL:
        following = block.next
        _push(pool, block)
        block = following


cdef Block *_allocate(Pool *pool, uint8_t size_class, uint32_t size) noexcept nogil:
    cdef uint32_t capacity
    if size_class == NO_CLASS:
        capacity = _round_up(size)
    else:
        capacity = <uint32_t>1 << (size_class + SMALLEST_CLASS_BITS)
    cdef bint mapped = pool.maps and capacity >= LEAST_MAPPED
    cdef size_t whole = sizeof(Block) + capacity
    cdef Block *block = <Block *>(
        memory_map(FOR_BLOCKS, whole) if mapped else memory_take(FOR_BLOCKS, whole)
    )
    if block != NULL:
        block.mapped = mapped
        block.pool = pool
        block.capacity = capacity
        block.size_class = size_class
        wk_u64_add(&pool.allocated, 1)
    return block


cdef Block *pool_take(Pool *pool, uint32_t size) noexcept nogil:
    """A block of at least `size` bytes with one reference, or NULL without
    memory. Only the pool's own thread may call this."""
    cdef uint8_t size_class = _class_of(size)
    cdef Block *block = NULL
    cdef uint64_t live
    if size_class != NO_CLASS:
        if pool.free[size_class] == NULL and wk_ptr_load_relaxed(&pool.returned) != NULL:
            _collect_returned(pool)
        if pool.free[size_class] != NULL:
            block = _pop(pool, size_class)
        if pool.free_count[size_class] < pool.idle_count[size_class]:
            pool.idle_count[size_class] = pool.free_count[size_class]
    if block == NULL:
        block = _allocate(pool, size_class, size)
        if block == NULL and wk_u64_load_relaxed(&pool.kept):
            # What is kept for reuse is of other sizes, and would be in the way for seconds.
            pool_trim(pool)
            block = _allocate(pool, size_class, size)
        if block == NULL:
            return NULL
    wk_u64_add(&pool.taken, 1)
    wk_u32_store_relaxed(&block.refs, 1)
    live = wk_u64_add(&pool.live, block.capacity) + block.capacity
    if live > wk_u64_load_relaxed(&pool.high):
        pool.on_move(pool)
    return block


cdef void _push_returned(Pool *pool, Block *block) noexcept nogil:
    cdef void *head = wk_ptr_load_relaxed(&pool.returned)
    while True:
        block.next = <Block *>head
        if wk_ptr_cas(&pool.returned, &head, block):
            return


cdef void pool_drop(Block *block, Pool *mine) noexcept nogil:
    """Drop one reference; the last one returns the block. `mine` is the
    pool of the calling thread, or NULL if that is not known: only the
    owner may touch the free lists."""
    cdef Pool *pool = block.pool
    cdef uint64_t kept, live
    # A sole owner needs no locked instruction: no other thread can add references.
    if wk_u32_load(&block.refs) != 1 and wk_u32_sub(&block.refs, 1) != 1:
        return
    live = wk_u64_sub(&pool.live, block.capacity) - block.capacity
    if live < wk_u64_load_relaxed(&pool.low):
        pool.on_move(pool)
    # Two droppers may both pass this check and overshoot the bound by a block
    # each, which is harmless.
    if (block.size_class == NO_CLASS
            or wk_u64_load_relaxed(&pool.kept) + block.capacity > pool.keep_at_most):
        _release(pool, block)
        if live == 0 and pool.abandoned:
            memory_free(FOR_SETUP, pool)
        return
    kept = wk_u64_add(&pool.kept, block.capacity) + block.capacity
    if pool == mine:
        _push(pool, block)
    else:
        _push_returned(pool, block)
    if kept > POOL_FLOOR and not wk_u32_load_relaxed(&pool.excess):
        _note(pool)
