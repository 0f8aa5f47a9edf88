# Blocks of memory for rings, in size classes, reused.
#
# A pool belongs to one thread, and only that thread takes blocks from it and pushes to
# its free lists. Any thread may return a block: a foreign one pushes it onto
# `returned`, a lock-free stack that the owner empties in one exchange when a
# free list runs dry. A single block is never popped from that stack, so it has no
# ABA problem.
#
# What a pool may keep is bounded in bytes; beyond that a block goes back to the
# allocator at once, from whichever thread drops it. And a pool keeps only what is of
# use: the owner calls pool_trim_idle now and then, which frees as many blocks
# of each class as were idle all the time since the last call, down to POOL_FLOOR.
# While there is nothing to free, no call is needed: the thread that brings a pool above
# that floor, or frees a large amount, calls on_excess, once until pool_settled has found
# everything done.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_ptr, wk_u32, wk_u64

cdef enum:
    SMALLEST_CLASS_BITS = 9     # 512 bytes
    LARGEST_CLASS_BITS = 20     # 1 MiB; larger blocks are not kept
    CLASSES = 12
    NO_CLASS = 255
    POOL_FLOOR = 262144         # bytes that a pool keeps, however long they are idle
    MUCH_RELEASED = 4194304     # bytes; such an amount may leave holes in the heap
    LEAST_MAPPED = 65536        # bytes of a block that may have pages of its own

ctypedef void (*OnExcess)(void *watcher) noexcept nogil
# Called by any thread that takes or drops a block, holding any lock: `live` has left its window.
ctypedef void (*OnMove)(Pool *pool) noexcept nogil

# 32 bytes, so that the data behind it stays aligned for a copy.
cdef struct Block:
    Pool *pool          # the pool that it is returned to
    Block *next         # link in a free list, used only while free
    wk_u32 refs         # the ring, each lease, a flush in progress
    uint32_t capacity   # bytes of data, a power of two
    uint8_t size_class
    bint mapped         # has pages of its own

cdef struct Pool:
    # The owner's: free blocks, their number, and the lowest number since the last
    # pool_trim_idle.
    Block *free[CLASSES]
    uint32_t free_count[CLASSES]
    uint32_t idle_count[CLASSES]
    wk_ptr returned         # blocks returned by other threads
    wk_u64 kept             # bytes in free lists and in `returned`
    wk_u64 live             # bytes in blocks that are in use
    wk_u64 low              # its window: on_move is called below this,
    wk_u64 high             # and above this
    OnMove on_move
    void *hub               # on_move's
    uint64_t keep_at_most
    bint maps           # large blocks get pages of their own, which leave no holes in the heap
    wk_u64 released         # bytes freed since the watcher last returned the heap's holes
                            # to the system
    wk_u32 excess           # on_excess was called
    OnExcess on_excess      # called by any thread, holding any lock; NULL: none
    void *watcher
    bint abandoned          # goes with the last block that is in use
    wk_u64 taken            # statistics: calls, and how many needed malloc
    wk_u64 allocated

cdef Pool *pool_new(uint64_t keep_at_most) noexcept nogil
cdef void pool_free(Pool *pool) noexcept nogil
cdef Block *pool_take(Pool *pool, uint32_t size) noexcept nogil
cdef void pool_drop(Block *block, Pool *mine) noexcept nogil
cdef void pool_trim(Pool *pool) noexcept nogil
cdef void pool_trim_idle(Pool *pool) noexcept nogil
cdef void pool_note_released(Pool *pool, uint32_t size) noexcept nogil
cdef bint pool_settled(Pool *pool) noexcept nogil

cdef inline unsigned char *block_data(Block *block) noexcept nogil:
    return <unsigned char *>(block + 1)
