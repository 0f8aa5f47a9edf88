# The connection matrix: slots by index, in slabs that never move.
#
# A handle is generation << 32 | index. Looking one up is two loads and a
# comparison: the slab's pointer is published with release and never changes,
# and a slot that was returned carries another generation, so a stale handle
# finds nothing. Generations start at 1, so no handle is 0 (the reactor's own
# eventfd has that number in epoll).
#
# Taking and returning slots happens on several threads (accepting reactors, the
# Trio side) and once for each connection, so it is under one lock.
from libc.stdint cimport uint32_t, uint64_t

from trio_wknet._native.atomics cimport wk_ptr, wk_u32
from trio_wknet._native.conn cimport Slot
from trio_wknet._native.linux cimport pthread_mutex_t

cdef enum:
    SLAB_BITS = 8
    SLAB_SLOTS = 256
    SLABS = 16384           # 4 194 304 slots

cdef struct Matrix:
    wk_ptr slabs[SLABS]
    pthread_mutex_t lock
    uint32_t *free          # stack of free indices
    uint32_t free_count
    uint32_t free_capacity
    uint32_t slab_count
    wk_u32 count            # slots in use

cdef Matrix *matrix_new() noexcept nogil
cdef void matrix_free(Matrix *matrix) noexcept nogil
cdef Slot *matrix_take(Matrix *matrix) noexcept nogil
cdef void matrix_return(Matrix *matrix, Slot *slot) noexcept nogil
cdef Slot *matrix_at(Matrix *matrix, uint32_t index) noexcept nogil
cdef Slot *matrix_get(Matrix *matrix, uint64_t handle) noexcept nogil
cdef void matrix_after_fork(Matrix *matrix) noexcept nogil
cdef Slot *matrix_each(Matrix *matrix, uint32_t *cursor) noexcept nogil
