# The slot map: slots by index, in slabs that never move.
#
# A handle is generation << 32 | index. Looking one up takes two loads and a
# comparison: the slab's pointer is published with release and never changes, and a
# slot holds its handle while it is in use, and 0 while it is free. So a stale handle
# finds nothing, in any thread and at any time.
#
# Each slab counts generations, one for each slot that is taken from it, and
# never beyond the last: then it is used up, and gives no more slots (4096
# slabs are used up after 55 years of 10 000 connections per second). So no two connections
# ever have the same handle. The first generation is 1, so no handle is below 2**32: the
# numbers that the reactor gives to its own descriptors in epoll are not handles.
#
# Slots are taken from the lowest slab that has room, so after a peak the slot map
# becomes dense again, from below. A slab whose slots are all free may be cooled: its
# pages are returned to the system, its addresses stay. The lowest KEEP_WARM such slabs are
# left as they are, so a connection that comes and goes at a slab's edge moves no
# pages.
#
# Why returning pages needs no synchronisation with the other side:
#
# * Any thread may be looking up a stale handle there (epoll, the Trio side). A free
#   slot's handle is 0, and a page that is gone reads as zeros: nothing changes.
#   Generations are kept elsewhere, by the slab.
# * Line 6 of a slot belongs to the Trio side, which may read it at any time without a lock.
#   It reads `claimed` before anything else there, and in a free slot `claimed` is 0
#   and `owner` NULL: the Trio side itself wrote them before it let go. Again nothing
#   changes; and it writes the rest of the line before it reads it.
# * The lock of a free slot is not held. It is initialised when the slot is taken,
#   as is everything else except line 6.
#
# Each slab is a mapping of its own: it starts on a page, and no page has slots of two
# slabs, with any page size. A slab's 114 688 bytes are whole pages of 4 and of
# 16 KiB. Of pages of 64 KiB they take two, of which 16 KiB are never used; the kernel rounds
# the length up in mmap, munmap and madvise alike, so both are mapped and returned.
#
# Slots are taken and returned on several threads (accepting reactors, the Trio
# side), once per connection, under one lock; so is cooling, which takes some
# microseconds for 256 slots.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_ptr, wk_u32
from ..base.linux cimport pthread_mutex_t
from .slot cimport Slot

cdef enum:
    SLAB_BITS = 8
    SLAB_SLOTS = 256
    SLABS = 16384           # 4 194 304 slots
    KEEP_WARM = 4           # slabs without a slot in use that keep their pages

cdef struct Slab:
    uint64_t free[4]        # a bit for each of SLAB_SLOTS
    uint32_t free_count
    uint32_t generation     # of the slot taken last; 0: none was
    wk_u32 warm             # it may have pages, and slots in use

cdef struct SlotMap:
    wk_ptr slots[SLABS]     # the address of each slab's slots
    Slab slabs[SLABS]
    uint64_t room[256]      # a bit for each slab that has a slot to give
    uint64_t empty[256]     # a bit for each warm slab that has no slot in use
    pthread_mutex_t lock
    uint32_t first_room     # no word of `room` before this one has a bit
    uint32_t empty_count
    uint32_t slab_count
    wk_u32 count            # slots in use
    wk_u32 warm_count       # warm slabs

cdef SlotMap *slot_map_new() noexcept nogil
cdef void slot_map_free(SlotMap *slot_map) noexcept nogil
cdef Slot *slot_map_take(SlotMap *slot_map) noexcept nogil
cdef void slot_map_return(SlotMap *slot_map, Slot *slot) noexcept nogil
cdef Slot *slot_map_at(SlotMap *slot_map, uint32_t index) noexcept nogil
cdef Slot *slot_map_get(SlotMap *slot_map, uint64_t handle) noexcept nogil
cdef void slot_map_after_fork(SlotMap *slot_map) noexcept nogil
cdef Slot *slot_map_step(SlotMap *slot_map, uint32_t *cursor) noexcept nogil
cdef Slot *slot_map_each(SlotMap *slot_map, uint32_t *cursor) noexcept nogil
