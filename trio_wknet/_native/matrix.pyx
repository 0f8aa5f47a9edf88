"""The connection matrix. Its rules stand in matrix.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.mman cimport (
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, madvise, mmap,
    munmap,
)

from trio_wknet._native.atomics cimport (
    wk_ptr_load, wk_ptr_store, wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u32_store,
    wk_u32_sub, wk_u64_load, wk_u64_store,
)
from trio_wknet._native.conn cimport CONNECTION, Slot
from trio_wknet._native.linux cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from array import array


cdef extern from *:
    """
    #define WK_ASSERT(condition) _Static_assert(condition, #condition)
    #define WK_LINE_OF(member) ((size_t)(member) / 64)
    #define WK_STARTS_LINE(member) ((size_t)(member) % 64 == 0)
    """
    void static_assert_ "WK_ASSERT"(bint condition) nogil
    size_t line_of "WK_LINE_OF"(void *member) nogil
    bint starts_line "WK_STARTS_LINE"(void *member) nogil
    int trailing_zeros "__builtin_ctzll"(unsigned long long word) nogil
    int leading_zeros "__builtin_clzll"(unsigned long long word) nogil

cdef enum:
    LINE = 64               # bytes in a cache line
    SLAB_BYTES = SLAB_SLOTS * sizeof(Slot)

cdef extern from "<stdint.h>" nogil:
    const uint32_t LAST_GENERATION "UINT32_MAX"


cdef void _assert_layout() noexcept nogil:
    """What conn.pxd says of lines, checked by the C compiler: the first and the
    last field of each kind. Compiles to nothing."""
    static_assert_(sizeof(Slot) == 7 * LINE)
    static_assert_(sizeof(Slot) * SLAB_SLOTS % 16384 == 0)
    static_assert_(line_of(&(<Slot *>NULL).keeps) == 0)
    static_assert_(starts_line(&(<Slot *>NULL).inbound))
    static_assert_(line_of(&(<Slot *>NULL).oldest) == 1)
    static_assert_(starts_line(&(<Slot *>NULL).reactor))
    static_assert_(line_of(&(<Slot *>NULL).chain) == 2)
    static_assert_(starts_line(&(<Slot *>NULL).up))
    static_assert_(line_of(&(<Slot *>NULL).opened) == 3)
    static_assert_(starts_line(&(<Slot *>NULL).timer))
    static_assert_(line_of(&(<Slot *>NULL).last_received) == 4)
    static_assert_(line_of(&(<Slot *>NULL).disarmed) == 5)
    static_assert_(starts_line(&(<Slot *>NULL).owner))


# --- bits -------------------------------------------------------------------------


cdef inline void _set(uint64_t *words, uint32_t number) noexcept nogil:
    words[number >> 6] |= <uint64_t>1 << (number & 63)


cdef inline void _clear(uint64_t *words, uint32_t number) noexcept nogil:
    words[number >> 6] &= ~(<uint64_t>1 << (number & 63))


cdef inline uint32_t _lowest(uint64_t *words, uint32_t word) noexcept nogil:
    """The lowest number that is set, from that word on. There is one."""
    while words[word] == 0:
        word += 1
    return (word << 6) + trailing_zeros(words[word])


cdef inline uint32_t _highest(uint64_t *words, uint32_t word) noexcept nogil:
    """The highest number that is set, down from that word. There is one."""
    while words[word] == 0:
        word -= 1
    return (word << 6) + 63 - leading_zeros(words[word])


# --- slabs, under the lock ----------------------------------------------------------


cdef inline bint _spent(Slab *slab) noexcept nogil:
    return slab.generation == LAST_GENERATION


cdef void *_pages(size_t size) noexcept nogil:
    """Memory of zeros, which is real from where it is first touched; or NULL."""
    cdef void *memory = mmap(
        NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0
    )
    return NULL if memory == MAP_FAILED else memory


cdef bint _add_slab(Matrix *matrix) noexcept nogil:
    """Add a slab, cold; False without memory or numbers."""
    cdef uint32_t number = matrix.slab_count
    cdef void *slots
    _assert_layout()
    if number == SLABS:
        return False
    slots = _pages(SLAB_BYTES)
    if slots == NULL:
        return False
    wk_ptr_store(&matrix.slots[number], slots)
    _give_room(matrix, number)
    matrix.slab_count += 1
    return True


cdef inline void _give_room(Matrix *matrix, uint32_t number) noexcept nogil:
    _set(matrix.room, number)
    if number >> 6 < matrix.first_room:
        matrix.first_room = number >> 6


cdef inline bint _find_room(Matrix *matrix, uint32_t *number) noexcept nogil:
    """The lowest slab with a slot to give; False if there is none."""
    while matrix.first_room << 6 < matrix.slab_count:
        if matrix.room[matrix.first_room] != 0:
            number[0] = _lowest(matrix.room, matrix.first_room)
            return True
        matrix.first_room += 1
    return False


cdef void _warm(Matrix *matrix, uint32_t number) noexcept nogil:
    cdef Slab *slab = &matrix.slabs[number]
    memset(slab.free, 0xff, sizeof(slab.free))
    slab.free_count = SLAB_SLOTS
    wk_u32_store(&slab.warm, True)
    wk_u32_add(&matrix.warm_count, 1)


cdef void _cool(Matrix *matrix, uint32_t number) noexcept nogil:
    """Give a slab's pages back. Where the system refuses (they may be locked in
    memory) they stay, and it is all the same: the slots are free as they are."""
    wk_u32_store(&matrix.slabs[number].warm, False)
    wk_u32_sub(&matrix.warm_count, 1)
    madvise(wk_ptr_load(&matrix.slots[number]), SLAB_BYTES, MADV_DONTNEED)


cdef void _emptied(Matrix *matrix, uint32_t number) noexcept nogil:
    """A slab's last slot was returned: cool it or another one, if it is one too many."""
    if _spent(&matrix.slabs[number]):
        _cool(matrix, number)
        return
    _set(matrix.empty, number)
    matrix.empty_count += 1
    if matrix.empty_count > KEEP_WARM:
        # Not just this one: it may be where slots are taken from next.
        number = _highest(matrix.empty, (matrix.slab_count - 1) >> 6)
        _clear(matrix.empty, number)
        matrix.empty_count -= 1
        _cool(matrix, number)


cdef uint32_t _take_from(Matrix *matrix, uint32_t number) noexcept nogil:
    """The number of a slot in a slab that has room."""
    cdef Slab *slab = &matrix.slabs[number]
    cdef uint32_t slot
    if not wk_u32_load_relaxed(&slab.warm):
        _warm(matrix, number)
    elif slab.free_count == SLAB_SLOTS:
        _clear(matrix.empty, number)
        matrix.empty_count -= 1
    slot = _lowest(slab.free, 0)
    _clear(slab.free, slot)
    slab.free_count -= 1
    slab.generation += 1
    if slab.free_count == 0 or _spent(slab):
        _clear(matrix.room, number)
    return slot


# --- the matrix -----------------------------------------------------------------------


cdef Matrix *matrix_new() noexcept nogil:
    """An empty matrix, or NULL without memory."""
    cdef Matrix *matrix = <Matrix *>_pages(sizeof(Matrix))
    if matrix != NULL:
        pthread_mutex_init(&matrix.lock, NULL)
    return matrix


cdef void matrix_free(Matrix *matrix) noexcept nogil:
    """Free the matrix and all slots. No thread may use it any more."""
    cdef uint32_t i
    for i in range(matrix.slab_count):
        munmap(wk_ptr_load(&matrix.slots[i]), SLAB_BYTES)
    pthread_mutex_destroy(&matrix.lock)
    munmap(matrix, sizeof(Matrix))


cdef Slot *matrix_at(Matrix *matrix, uint32_t index) noexcept nogil:
    """The slot of an index, or NULL where no slab is."""
    if index >= <uint32_t>SLABS * SLAB_SLOTS:
        return NULL
    cdef Slot *slots = <Slot *>wk_ptr_load(&matrix.slots[index >> SLAB_BITS])
    if slots == NULL:
        return NULL
    return &slots[index & (SLAB_SLOTS - 1)]


cdef Slot *matrix_take(Matrix *matrix) noexcept nogil:
    """A reset slot of kind CONNECTION, or NULL without memory."""
    cdef uint32_t number, index
    cdef uint64_t generation
    cdef Slot *slots
    cdef bint found
    pthread_mutex_lock(&matrix.lock)
    found = _find_room(matrix, &number) or (
        _add_slab(matrix) and _find_room(matrix, &number))
    if found:
        index = number << SLAB_BITS | _take_from(matrix, number)
        generation = matrix.slabs[number].generation
    pthread_mutex_unlock(&matrix.lock)
    if not found:
        return NULL
    wk_u32_add(&matrix.count, 1)
    slots = <Slot *>wk_ptr_load(&matrix.slots[number])
    return _prepare(&slots[index & (SLAB_SLOTS - 1)], generation << 32 | index)


cdef Slot *_prepare(Slot *slot, uint64_t handle) noexcept nogil:
    """Make a free slot one in use. Whoever finds its handle finds it prepared."""
    pthread_mutex_init(&slot.lock, NULL)
    memset(&slot.fd, 0, <char *>&slot.owner - <char *>&slot.fd)
    slot.kind = CONNECTION
    slot.fd = -1
    wk_u64_store(&slot.handle, handle)
    return slot


cdef void matrix_return(Matrix *matrix, Slot *slot) noexcept nogil:
    """Take a slot back. From here on its old handle finds nothing."""
    cdef uint32_t index = <uint32_t>wk_u64_load(&slot.handle)
    cdef uint32_t number = index >> SLAB_BITS
    cdef Slab *slab = &matrix.slabs[number]
    wk_u64_store(&slot.handle, 0)
    pthread_mutex_destroy(&slot.lock)
    wk_u32_sub(&matrix.count, 1)
    pthread_mutex_lock(&matrix.lock)
    _set(slab.free, index & (SLAB_SLOTS - 1))
    slab.free_count += 1
    if not _spent(slab):
        _give_room(matrix, number)
    if slab.free_count == SLAB_SLOTS:
        _emptied(matrix, number)
    pthread_mutex_unlock(&matrix.lock)


cdef Slot *matrix_get(Matrix *matrix, uint64_t handle) noexcept nogil:
    """The slot that a handle means, or NULL if that connection is over."""
    cdef Slot *slot = matrix_at(matrix, <uint32_t>handle)
    if slot == NULL or handle == 0 or wk_u64_load(&slot.handle) != handle:
        return NULL
    return slot


cdef void matrix_after_fork(Matrix *matrix) noexcept nogil:
    """In a forked child: make the locks usable, which the parent's threads may
    have held at that moment."""
    cdef uint32_t cursor = 0
    cdef Slot *slot
    pthread_mutex_init(&matrix.lock, NULL)
    slot = matrix_each(matrix, &cursor)
    while slot != NULL:
        pthread_mutex_init(&slot.lock, NULL)
        slot = matrix_each(matrix, &cursor)


cdef Slot *matrix_step(Matrix *matrix, uint32_t *cursor) noexcept nogil:
    """The next slot, free or not, moving the cursor (0 at first); NULL at the end.
    Slots of cold slabs are passed over. Other threads may take and return slots
    meanwhile; those that this thread knows to be in use are all met."""
    cdef Slot *slot
    cdef uint32_t number = cursor[0] >> SLAB_BITS
    while number < SLABS and not wk_u32_load(&matrix.slabs[number].warm):
        if wk_ptr_load(&matrix.slots[number]) == NULL:
            return NULL
        number += 1
        cursor[0] = number << SLAB_BITS
    slot = matrix_at(matrix, cursor[0])
    cursor[0] += 1
    return slot


cdef Slot *matrix_each(Matrix *matrix, uint32_t *cursor) noexcept nogil:
    """The next slot in use, moving the cursor (0 at first); NULL at the end.
    Meant for an engine that is being taken down: no other thread runs."""
    cdef Slot *slot = matrix_step(matrix, cursor)
    while slot != NULL and wk_u64_load(&slot.handle) == 0:
        slot = matrix_step(matrix, cursor)
    return slot


cdef class SlotTable:
    """The matrix with a Python face, for tests.

    Args:
      generation: what every slab counts on from.
    """
    cdef Matrix *_matrix

    def __cinit__(self, uint32_t generation=0):
        cdef uint32_t i
        self._matrix = matrix_new()
        if self._matrix == NULL:
            raise MemoryError
        for i in range(SLABS if generation else 0):
            self._matrix.slabs[i].generation = generation

    def __dealloc__(self):
        if self._matrix != NULL:
            matrix_free(self._matrix)

    def __len__(self):
        return wk_u32_load(&self._matrix.count)

    @property
    def warm(self):
        """The numbers of the slabs that have memory."""
        return [i for i in range(self._matrix.slab_count)
                if wk_u32_load(&self._matrix.slabs[i].warm)]

    def add(self, int fd):
        """Take a slot for a pretended descriptor; returns its handle."""
        cdef Slot *slot = matrix_take(self._matrix)
        if slot == NULL:
            raise MemoryError
        slot.fd = fd
        return wk_u64_load(&slot.handle)

    def get(self, uint64_t handle):
        """The descriptor behind a handle, or None for a stale one."""
        cdef Slot *slot = matrix_get(self._matrix, handle)
        return None if slot == NULL else slot.fd

    def remove(self, uint64_t handle):
        """Return the slot; False for a stale handle, which changes nothing."""
        cdef Slot *slot = matrix_get(self._matrix, handle)
        if slot == NULL:
            return False
        matrix_return(self._matrix, slot)
        return True

    def each(self):
        """The handles in use."""
        cdef uint32_t cursor = 0
        cdef Slot *slot = matrix_each(self._matrix, &cursor)
        handles = []
        while slot != NULL:
            handles.append(wk_u64_load(&slot.handle))
            slot = matrix_each(self._matrix, &cursor)
        return handles

    def count_found(self, list handles):
        """How many of these handles mean something; looked up without the GIL."""
        cdef uint64_t[::1] numbers = array("Q", handles)
        cdef Py_ssize_t i
        cdef Py_ssize_t found = 0
        with nogil:
            for i in range(numbers.shape[0]):
                found += matrix_get(self._matrix, numbers[i]) != NULL
        return found

    def swell(self, Py_ssize_t count):
        """Take so many slots and return them, first taken first, without the GIL."""
        cdef Slot *oldest = NULL
        cdef Slot *newest = NULL
        cdef Slot *slot
        with nogil:
            while count > 0:
                count -= 1
                slot = matrix_take(self._matrix)
                if slot == NULL:
                    break
                if newest == NULL:
                    oldest = slot
                else:
                    newest.chain = slot
                newest = slot
            while oldest != NULL:
                slot = oldest
                oldest = slot.chain
                matrix_return(self._matrix, slot)
