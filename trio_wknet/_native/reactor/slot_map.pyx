"""The slot map. slot_map.pxd has its rules."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport MADV_DONTNEED, madvise

from ..base.atomics cimport (
    wk_ptr_load, wk_ptr_store, wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u32_store,
    wk_u32_sub, wk_u64_load, wk_u64_store,
)
from ..base.bits cimport bits_clear, bits_highest, bits_lowest, bits_set
from ..base.linux cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from ..base.memory cimport FOR_SETUP, FOR_SLOTS, memory_map, memory_unmap
from ..base.shared cimport wk_byte_store, wk_zero_words
from .slot cimport CONNECTION, Slot



cdef extern from *:
    """
    #define WK_ASSERT(condition) _Static_assert(condition, #condition)
    #define WK_LINE_OF(member) ((size_t)(member) / 64)
    #define WK_STARTS_LINE(member) ((size_t)(member) % 64 == 0)
    """
    void static_assert_ "WK_ASSERT"(bint condition) nogil
    size_t line_of "WK_LINE_OF"(void *member) nogil
    bint starts_line "WK_STARTS_LINE"(void *member) nogil

cdef enum:
    LINE = 64               # bytes in a cache line
    SLAB_BYTES = SLAB_SLOTS * sizeof(Slot)

cdef extern from "<stdint.h>" nogil:
    const uint32_t LAST_GENERATION "UINT32_MAX"


cdef void _assert_layout() noexcept nogil:
    """The C compiler checks what slot.pxd says about cache lines: the first and the
    last field of each kind. Compiles to nothing."""
    static_assert_(sizeof(Slot) == 7 * LINE)
    static_assert_(sizeof(Slot) * SLAB_SLOTS % 16384 == 0)
    static_assert_(line_of(&(<Slot *>NULL).mark) == 0)
    static_assert_(<size_t>&(<Slot *>NULL).fd % 8 == 0)
    static_assert_(starts_line(&(<Slot *>NULL).inbound))
    static_assert_(line_of(&(<Slot *>NULL).by_kind) == 1)
    static_assert_(starts_line(&(<Slot *>NULL).reactor))
    static_assert_(line_of(&(<Slot *>NULL).chain) == 2)
    static_assert_(starts_line(&(<Slot *>NULL).completion))
    static_assert_(line_of(&(<Slot *>NULL).opened) == 3)
    static_assert_(starts_line(&(<Slot *>NULL).timer))
    static_assert_(line_of(&(<Slot *>NULL).last_received) == 4)
    static_assert_(line_of(&(<Slot *>NULL).disarmed) == 5)
    static_assert_(starts_line(&(<Slot *>NULL).owner))


# --- slabs, under the lock ----------------------------------------------------------


cdef inline bint _spent(Slab *slab) noexcept nogil:
    return slab.generation == LAST_GENERATION


cdef bint _add_slab(SlotMap *slot_map) noexcept nogil:
    """Add a slab, cold; False without memory or numbers."""
    cdef uint32_t number = slot_map.slab_count
    cdef void *slots
    _assert_layout()
    if number == SLABS:
        return False
    slots = memory_map(FOR_SLOTS, SLAB_BYTES)
    if slots == NULL:
        return False
    wk_ptr_store(&slot_map.slots[number], slots)
    _give_room(slot_map, number)
    slot_map.slab_count += 1
    return True


cdef inline void _give_room(SlotMap *slot_map, uint32_t number) noexcept nogil:
    bits_set(slot_map.room, number)
    if number >> 6 < slot_map.first_room:
        slot_map.first_room = number >> 6


cdef inline bint _find_room(SlotMap *slot_map, uint32_t *number) noexcept nogil:
    """The lowest slab with a slot to give; False if there is none."""
    while slot_map.first_room << 6 < slot_map.slab_count:
        if slot_map.room[slot_map.first_room] != 0:
            number[0] = bits_lowest(slot_map.room, slot_map.first_room)
            return True
        slot_map.first_room += 1
    return False


cdef void _warm(SlotMap *slot_map, uint32_t number) noexcept nogil:
    cdef Slab *slab = &slot_map.slabs[number]
    memset(slab.free, 0xff, sizeof(slab.free))
    slab.free_count = SLAB_SLOTS
    wk_u32_store(&slab.warm, True)
    wk_u32_add(&slot_map.warm_count, 1)


cdef void _cool(SlotMap *slot_map, uint32_t number) noexcept nogil:
    """Return a slab's pages. If the system refuses (they may be locked in
    memory), they stay, which does no harm: the slots are free as they are."""
    wk_u32_store(&slot_map.slabs[number].warm, False)
    wk_u32_sub(&slot_map.warm_count, 1)
    madvise(wk_ptr_load(&slot_map.slots[number]), SLAB_BYTES, MADV_DONTNEED)


cdef void _emptied(SlotMap *slot_map, uint32_t number) noexcept nogil:
    """A slab's last slot was returned: cool it or another one, if it is one too many."""
    if _spent(&slot_map.slabs[number]):
        _cool(slot_map, number)
        return
    bits_set(slot_map.empty, number)
    slot_map.empty_count += 1
    if slot_map.empty_count > KEEP_WARM:
        # Cool the highest, not this one: the next slots may be taken from this one.
        number = bits_highest(slot_map.empty, (slot_map.slab_count - 1) >> 6)
        bits_clear(slot_map.empty, number)
        slot_map.empty_count -= 1
        _cool(slot_map, number)


cdef uint32_t _take_from(SlotMap *slot_map, uint32_t number) noexcept nogil:
    """The number of a slot in a slab that has room."""
    cdef Slab *slab = &slot_map.slabs[number]
    cdef uint32_t slot
    if not wk_u32_load_relaxed(&slab.warm):
        _warm(slot_map, number)
    elif slab.free_count == SLAB_SLOTS:
        bits_clear(slot_map.empty, number)
        slot_map.empty_count -= 1
    slot = bits_lowest(slab.free, 0)
    bits_clear(slab.free, slot)
    slab.free_count -= 1
    slab.generation += 1
    if slab.free_count == 0 or _spent(slab):
        bits_clear(slot_map.room, number)
    return slot


# --- the slot map -----------------------------------------------------------------------


cdef SlotMap *slot_map_new() noexcept nogil:
    """An empty slot map, or NULL without memory."""
    cdef SlotMap *slot_map = <SlotMap *>memory_map(FOR_SETUP, sizeof(SlotMap))
    if slot_map != NULL:
        pthread_mutex_init(&slot_map.lock, NULL)
    return slot_map


cdef void slot_map_free(SlotMap *slot_map) noexcept nogil:
    """Free the slot map and all slots. No thread may use it any more."""
    cdef uint32_t i
    for i in range(slot_map.slab_count):
        memory_unmap(FOR_SLOTS, wk_ptr_load(&slot_map.slots[i]), SLAB_BYTES)
    pthread_mutex_destroy(&slot_map.lock)
    memory_unmap(FOR_SETUP, slot_map, sizeof(SlotMap))


cdef Slot *slot_map_at(SlotMap *slot_map, uint32_t index) noexcept nogil:
    """The slot of an index, or NULL if there is no slab."""
    if index >= <uint32_t>SLABS * SLAB_SLOTS:
        return NULL
    cdef Slot *slots = <Slot *>wk_ptr_load(&slot_map.slots[index >> SLAB_BITS])
    if slots == NULL:
        return NULL
    return &slots[index & (SLAB_SLOTS - 1)]


cdef Slot *slot_map_take(SlotMap *slot_map) noexcept nogil:
    """A reset slot of kind CONNECTION, or NULL without memory."""
    cdef uint32_t number, index
    cdef uint64_t generation
    cdef Slot *slots
    cdef bint found
    pthread_mutex_lock(&slot_map.lock)
    found = _find_room(slot_map, &number) or (
        _add_slab(slot_map) and _find_room(slot_map, &number))
    if found:
        index = number << SLAB_BITS | _take_from(slot_map, number)
        generation = slot_map.slabs[number].generation
    pthread_mutex_unlock(&slot_map.lock)
    if not found:
        return NULL
    wk_u32_add(&slot_map.count, 1)
    slots = <Slot *>wk_ptr_load(&slot_map.slots[number])
    return _prepare(&slots[index & (SLAB_SLOTS - 1)], generation << 32 | index)


cdef Slot *_prepare(Slot *slot, uint64_t handle) noexcept nogil:
    """Put a free slot into use. The handle is stored last, so a lookup by it finds an
    initialised slot."""
    pthread_mutex_init(&slot.lock, NULL)
    wk_zero_words(&slot.fd, &slot.owner)      # top may look at it (page.pxd)
    wk_byte_store(&slot.kind, CONNECTION)
    slot.fd = -1
    wk_u64_store(&slot.handle, handle)
    return slot


cdef void slot_map_return(SlotMap *slot_map, Slot *slot) noexcept nogil:
    """Take a slot back. From here on its old handle finds nothing."""
    cdef uint32_t index = <uint32_t>wk_u64_load(&slot.handle)
    cdef uint32_t number = index >> SLAB_BITS
    cdef Slab *slab = &slot_map.slabs[number]
    wk_u64_store(&slot.handle, 0)
    pthread_mutex_destroy(&slot.lock)
    wk_u32_sub(&slot_map.count, 1)
    pthread_mutex_lock(&slot_map.lock)
    bits_set(slab.free, index & (SLAB_SLOTS - 1))
    slab.free_count += 1
    if not _spent(slab):
        _give_room(slot_map, number)
    if slab.free_count == SLAB_SLOTS:
        _emptied(slot_map, number)
    pthread_mutex_unlock(&slot_map.lock)


cdef Slot *slot_map_get(SlotMap *slot_map, uint64_t handle) noexcept nogil:
    """The slot that a handle refers to, or NULL if that connection is over."""
    cdef Slot *slot = slot_map_at(slot_map, <uint32_t>handle)
    if slot == NULL or handle == 0 or wk_u64_load(&slot.handle) != handle:
        return NULL
    return slot


cdef void slot_map_after_fork(SlotMap *slot_map) noexcept nogil:
    """In a forked child: make the locks usable, which the parent's threads may
    have held at the time of the fork."""
    cdef uint32_t cursor = 0
    cdef Slot *slot
    pthread_mutex_init(&slot_map.lock, NULL)
    slot = slot_map_each(slot_map, &cursor)
    while slot != NULL:
        pthread_mutex_init(&slot.lock, NULL)
        slot = slot_map_each(slot_map, &cursor)


cdef Slot *slot_map_step(SlotMap *slot_map, uint32_t *cursor) noexcept nogil:
    """The next slot, free or not, moving the cursor (0 at first); NULL at the end.
    Slots of cold slabs are skipped. Other threads may take and return slots
    meanwhile; every slot that this thread knows to be in use is found."""
    cdef Slot *slot
    cdef uint32_t number = cursor[0] >> SLAB_BITS
    while number < SLABS and not wk_u32_load(&slot_map.slabs[number].warm):
        if wk_ptr_load(&slot_map.slots[number]) == NULL:
            return NULL
        number += 1
        cursor[0] = number << SLAB_BITS
    slot = slot_map_at(slot_map, cursor[0])
    cursor[0] += 1
    return slot


cdef Slot *slot_map_each(SlotMap *slot_map, uint32_t *cursor) noexcept nogil:
    """The next slot in use, moving the cursor (0 at first); NULL at the end.
    For an engine that is being closed: no other thread runs."""
    cdef Slot *slot = slot_map_step(slot_map, cursor)
    while slot != NULL and wk_u64_load(&slot.handle) == 0:
        slot = slot_map_step(slot_map, cursor)
    return slot
