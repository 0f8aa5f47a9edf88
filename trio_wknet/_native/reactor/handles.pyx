"""Sets of handles. handles.pxd says what they are."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ..base.memory cimport FOR_HANDLES, memory_free, memory_take, memory_zeroed

cdef enum:
    LEAST_ROOM = 8


cdef inline uint32_t _home(uint64_t handle, uint32_t room) noexcept nogil:
    # Fibonacci hashing (Knuth, volume 3, 6.4): indices are dense, and those of one reactor
    # may be at regular distances.
    return <uint32_t>((handle * <uint64_t>0x9E3779B97F4A7C15) >> 32) & (room - 1)


cdef uint32_t handles_find(const HandleSet *handles, uint64_t handle) noexcept nogil:
    """The place of a handle; NOWHERE if it is not there."""
    cdef uint32_t mask = handles.room - 1
    cdef uint32_t at
    if handles.room == 0:
        return NOWHERE
    at = _home(handle, handles.room)
    while handles.places[at] != 0:
        if handles.places[at] == handle:
            return at
        at = (at + 1) & mask
    return NOWHERE


cdef void _put(HandleSet *handles, uint64_t handle) noexcept nogil:
    cdef uint32_t at = _home(handle, handles.room)
    while handles.places[at] != 0:
        at = (at + 1) & (handles.room - 1)
    handles.places[at] = handle


cdef bint _resize(HandleSet *handles, uint32_t room) noexcept nogil:
    cdef HandleSet other
    cdef uint32_t i
    other.places = <uint64_t *>memory_zeroed(FOR_HANDLES, room, sizeof(uint64_t))
    other.room = room
    other.count = handles.count
    if other.places == NULL:
        return False
    for i in range(handles.room):
        if handles.places[i] != 0:
            _put(&other, handles.places[i])
    memory_free(FOR_HANDLES, handles.places)
    handles[0] = other
    return True


cdef Added handles_add(HandleSet *handles, uint64_t handle) noexcept nogil:
    if handles_find(handles, handle) != NOWHERE:
        return PRESENT
    if 2 * (handles.count + 1) > handles.room:
        if not _resize(handles, max(2 * handles.room, <uint32_t>LEAST_ROOM)):
            return NO_ROOM
    _put(handles, handle)
    handles.count += 1
    return ADDED


cdef bint handles_discard(HandleSet *handles, uint64_t handle) noexcept nogil:
    """Whether it was there. Handles behind it move up, so that no search stops short of them;
    the table shrinks when it is nearly empty, if there is memory for that."""
    cdef uint32_t mask = handles.room - 1
    cdef uint32_t hole = handles_find(handles, handle)
    cdef uint32_t at, home
    if hole == NOWHERE:
        return False
    at = (hole + 1) & mask
    while handles.places[at] != 0:
        home = _home(handles.places[at], handles.room)
        if ((at - home) & mask) >= ((at - hole) & mask):    # a search for it passes the hole
            handles.places[hole] = handles.places[at]
            hole = at
        at = (at + 1) & mask
    handles.places[hole] = 0
    handles.count -= 1
    if handles.room > LEAST_ROOM and 8 * handles.count < handles.room:
        _resize(handles, handles.room // 2)
    return True


cdef bint handles_copy(HandleSet *copy, const HandleSet *handles) noexcept nogil:
    """Make `copy`, which is nothing yet, a copy. False without memory."""
    copy.places = <uint64_t *>memory_take(
        FOR_HANDLES, max(handles.room, <uint32_t>1) * sizeof(uint64_t)
    )
    if copy.places == NULL:
        return False
    memcpy(copy.places, handles.places, handles.room * sizeof(uint64_t))
    copy.room = handles.room
    copy.count = handles.count
    return True


cdef void handles_free(HandleSet *handles) noexcept nogil:
    memory_free(FOR_HANDLES, handles.places)
    handles.places = NULL
    handles.room = 0
    handles.count = 0
