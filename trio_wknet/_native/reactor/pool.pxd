# Blocks of memory for rings, in size classes, reused.
#
# A pool belongs to one thread, which alone takes blocks from it and pushes to
# its free lists. Any thread may give a block back: a foreign one pushes it onto
# `returned`, a lock-free stack that the owner empties in one exchange when a
# free list runs dry. Nobody pops a single block from that stack, so it has no
# ABA problem.
#
# What a pool may keep is bounded in bytes; past that a block goes back to the
# allocator at once, from whichever thread drops it. And what it keeps is to be of
# use: the owner calls pool_trim_idle now and then, which gives back as many blocks
# of each class as lay idle all the time since the call before, down to POOL_FLOOR.
# While there is nothing to give back nobody need call: whoever brings a pool above
# that floor, or gives much back to the allocator, tells its watcher (on_excess), once
# until pool_settled has found everything done.
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_ptr, wk_u32, wk_u64

cdef enum:
    SMALLEST_CLASS_BITS = 9     # 512 bytes
    LARGEST_CLASS_BITS = 20     # 1 MiB; larger blocks are not kept
    CLASSES = 12
    NO_CLASS = 255
    POOL_FLOOR = 262144         # bytes that a pool keeps however long they lie idle
    MUCH_RELEASED = 4194304     # bytes; so much may leave holes in the allocator's heap

ctypedef void (*OnExcess)(void *watcher) noexcept nogil

# 32 bytes, so that the data behind it stays aligned for a copy.
cdef struct Block:
    Pool *pool          # where it is given back to
    Block *next         # link in a free list, used only while free
    wk_u32 refs         # the ring, each lease, a flush in progress
    uint32_t capacity   # bytes of data, a power of two
    uint8_t size_class

cdef struct Pool:
    # The owner's: blocks to be taken, how many there are, and the fewest there were
    # since the last pool_trim_idle.
    Block *free[CLASSES]
    uint32_t free_count[CLASSES]
    uint32_t idle_count[CLASSES]
    wk_ptr returned         # given back by other threads
    wk_u64 kept             # bytes in free lists and in `returned`
    wk_u64 live             # bytes in blocks that are in use
    uint64_t keep_at_most
    wk_u64 released         # bytes given to the allocator since the watcher last had
                            # it give them to the system
    wk_u32 excess           # the watcher was told
    OnExcess on_excess      # called by any thread, holding any lock; NULL: nobody is
    void *watcher
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
cdef void pools_starve(bint starved) noexcept nogil

cdef inline unsigned char *block_data(Block *block) noexcept nogil:
    return <unsigned char *>(block + 1)
