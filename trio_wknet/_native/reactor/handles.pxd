# A set of connections, by their handles: a hash table with open addressing and linear probing,
# at most half full. A handle that refers to nothing any more does no harm in it.
from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    NOWHERE = 0xFFFFFFFF

cdef enum Added:
    ADDED = 0
    PRESENT = 1
    NO_ROOM = 2             # no memory: the set is as it was

cdef struct HandleSet:
    uint64_t *places        # 0: an empty one
    uint32_t room           # how many places, a power of two; 0: there is no table
    uint32_t count          # of the handles

cdef Added handles_add(HandleSet *handles, uint64_t handle) noexcept nogil
cdef bint handles_discard(HandleSet *handles, uint64_t handle) noexcept nogil
cdef uint32_t handles_find(const HandleSet *handles, uint64_t handle) noexcept nogil
cdef bint handles_copy(HandleSet *copy, const HandleSet *handles) noexcept nogil
cdef void handles_free(HandleSet *handles) noexcept nogil
