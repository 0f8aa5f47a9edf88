# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The connection matrix. Its rules stand in matrix.pxd."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset
from posix.stdlib cimport posix_memalign

from trio_wknet._native.atomics cimport (
    wk_ptr_load, wk_ptr_store, wk_u32_add, wk_u32_load, wk_u32_sub,
    wk_u64_load, wk_u64_store,
)
from trio_wknet._native.conn cimport CONNECTION, FREE, Slot
from trio_wknet._native.linux cimport (
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)


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


cdef void _assert_layout() noexcept nogil:
    """What conn.pxd says of lines, checked by the C compiler: the first and the
    last field of each kind. Compiles to nothing."""
    static_assert_(sizeof(Slot) == 7 * LINE)
    static_assert_(line_of(&(<Slot *>NULL).opened) == 0)
    static_assert_(starts_line(&(<Slot *>NULL).inbound))
    static_assert_(line_of(&(<Slot *>NULL).oldest) == 1)
    static_assert_(starts_line(&(<Slot *>NULL).reactor))
    static_assert_(line_of(&(<Slot *>NULL).chain) == 2)
    static_assert_(starts_line(&(<Slot *>NULL).up))
    static_assert_(line_of(&(<Slot *>NULL).users) == 3)
    static_assert_(starts_line(&(<Slot *>NULL).timer))
    static_assert_(line_of(&(<Slot *>NULL).last_received) == 4)
    static_assert_(line_of(&(<Slot *>NULL).disarmed) == 5)
    static_assert_(starts_line(&(<Slot *>NULL).owner))


cdef Slot *matrix_at(Matrix *matrix, uint32_t index) noexcept nogil:
    """The slot of an index, or NULL where no slab is."""
    if index >= <uint32_t>SLABS * SLAB_SLOTS:
        return NULL
    cdef Slot *slab = <Slot *>wk_ptr_load(&matrix.slabs[index >> SLAB_BITS])
    if slab == NULL:
        return NULL
    return &slab[index & (SLAB_SLOTS - 1)]


cdef Matrix *matrix_new() noexcept nogil:
    """An empty matrix, or NULL without memory."""
    cdef Matrix *matrix = <Matrix *>calloc(1, sizeof(Matrix))
    if matrix != NULL:
        pthread_mutex_init(&matrix.lock, NULL)
    return matrix


cdef void matrix_free(Matrix *matrix) noexcept nogil:
    """Free the matrix and all slots. No thread may use it any more."""
    cdef uint32_t i, j
    cdef Slot *slab
    for i in range(matrix.slab_count):
        slab = <Slot *>wk_ptr_load(&matrix.slabs[i])
        for j in range(<uint32_t>SLAB_SLOTS):
            pthread_mutex_destroy(&slab[j].lock)
        free(slab)
    pthread_mutex_destroy(&matrix.lock)
    free(matrix.free)
    free(matrix)


cdef bint _add_slab(Matrix *matrix) noexcept nogil:
    """Add a slab and put its indices on the free stack. Under the lock."""
    cdef uint32_t capacity = (matrix.slab_count + 1) * SLAB_SLOTS
    cdef uint32_t *grown
    cdef Slot *slab
    cdef uint32_t j, index
    _assert_layout()
    if matrix.slab_count == SLABS:
        return False
    if capacity > matrix.free_capacity:
        grown = <uint32_t *>realloc(matrix.free, 2 * capacity * sizeof(uint32_t))
        if grown == NULL:
            return False
        matrix.free = grown
        matrix.free_capacity = 2 * capacity
    if posix_memalign(<void **>&slab, LINE, SLAB_SLOTS * sizeof(Slot)) != 0:
        return False
    memset(slab, 0, SLAB_SLOTS * sizeof(Slot))
    # Highest index first, so that the lowest is taken first.
    for j in range(<uint32_t>SLAB_SLOTS):
        index = capacity - 1 - j
        pthread_mutex_init(&slab[SLAB_SLOTS - 1 - j].lock, NULL)
        wk_u64_store(&slab[SLAB_SLOTS - 1 - j].handle, <uint64_t>1 << 32 | index)
        matrix.free[matrix.free_count] = index
        matrix.free_count += 1
    wk_ptr_store(&matrix.slabs[matrix.slab_count], slab)
    matrix.slab_count += 1
    return True


cdef Slot *matrix_take(Matrix *matrix) noexcept nogil:
    """A reset slot of kind CONNECTION, or NULL without memory."""
    cdef Slot *slot = NULL
    pthread_mutex_lock(&matrix.lock)
    if matrix.free_count > 0 or _add_slab(matrix):
        matrix.free_count -= 1
        slot = matrix_at(matrix, matrix.free[matrix.free_count])
    pthread_mutex_unlock(&matrix.lock)
    if slot == NULL:
        return NULL
    memset(&slot.fd, 0, <char *>&slot.owner - <char *>&slot.fd)
    slot.kind = CONNECTION
    slot.fd = -1
    wk_u32_add(&matrix.count, 1)
    return slot


cdef void matrix_return(Matrix *matrix, Slot *slot) noexcept nogil:
    """Take a slot back. From here on its old handle finds nothing."""
    cdef uint64_t handle = wk_u64_load(&slot.handle)
    cdef uint32_t generation = <uint32_t>(handle >> 32) + 1
    if generation == 0:     # 0 would make index 0's handle the reactor's own
        generation = 1
    slot.kind = FREE
    wk_u64_store(&slot.handle, <uint64_t>generation << 32 | <uint32_t>handle)
    wk_u32_sub(&matrix.count, 1)
    pthread_mutex_lock(&matrix.lock)
    matrix.free[matrix.free_count] = <uint32_t>handle
    matrix.free_count += 1
    pthread_mutex_unlock(&matrix.lock)


cdef Slot *matrix_get(Matrix *matrix, uint64_t handle) noexcept nogil:
    """The slot that a handle means, or NULL if that connection is over."""
    cdef Slot *slot = matrix_at(matrix, <uint32_t>handle)
    if slot == NULL or wk_u64_load(&slot.handle) != handle or slot.kind == FREE:
        return NULL
    return slot


cdef void matrix_after_fork(Matrix *matrix) noexcept nogil:
    """In a forked child: make the locks usable, which the parent's threads may
    have held at that moment."""
    cdef uint32_t i, j
    cdef Slot *slab
    pthread_mutex_init(&matrix.lock, NULL)
    for i in range(matrix.slab_count):
        slab = <Slot *>wk_ptr_load(&matrix.slabs[i])
        for j in range(<uint32_t>SLAB_SLOTS):
            pthread_mutex_init(&slab[j].lock, NULL)


cdef Slot *matrix_each(Matrix *matrix, uint32_t *cursor) noexcept nogil:
    """The next slot in use, moving the cursor (0 at first); NULL at the end.
    Meant for an engine that is being taken down: no other thread runs."""
    cdef Slot *slot
    while cursor[0] < matrix.slab_count * SLAB_SLOTS:
        slot = matrix_at(matrix, cursor[0])
        cursor[0] += 1
        if slot.kind != FREE:
            return slot
    return NULL


cdef class SlotTable:
    """The matrix with a Python face, for tests."""
    cdef Matrix *_matrix

    def __cinit__(self):
        self._matrix = matrix_new()
        if self._matrix == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self._matrix != NULL:
            matrix_free(self._matrix)

    def __len__(self):
        return wk_u32_load(&self._matrix.count)

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
