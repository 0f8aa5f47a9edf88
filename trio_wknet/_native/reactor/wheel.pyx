"""The timing wheel. wheel.pxd says what it is, and has its rules.

Invariants between calls:

- A bucket's time is that of its first tick. No bucket that is not empty has a time
  before `tick`, so an owner that turns the wheel at the earliest of these times misses
  nothing.
- On each level, buckets lie less than one ring ahead of the current one. So a place
  in the ring means one bucket number, and is found from the difference.
- A node's bucket is never later than the node: its time may have moved later since
  it was put there, not earlier.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.bits cimport bits_clear, bits_set, count_trailing_zeros
from ..base.memory cimport FOR_SETUP, memory_free, memory_zeroed


cdef enum:
    DUE = 0         # the head of the list of what is due; buckets follow


# --- lists ------------------------------------------------------------------------


cdef inline WheelNode *_node(Wheel *wheel, uint32_t link) noexcept nogil:
    if link > <uint32_t>MAX_NODES:
        return &wheel.heads[link - <uint32_t>MAX_NODES - 1]
    return wheel.locate(wheel.owner, link - 1)


cdef inline uint32_t _head(uint32_t number) noexcept nogil:
    """The link that means a list's head."""
    return number + <uint32_t>MAX_NODES + 1


cdef inline bint _empty(Wheel *wheel, uint32_t number) noexcept nogil:
    return wheel.heads[number].next == _head(number)


cdef inline void _clear(Wheel *wheel, uint32_t number) noexcept nogil:
    wheel.heads[number].prev = _head(number)
    wheel.heads[number].next = _head(number)


cdef inline void _append(Wheel *wheel, uint32_t number, uint32_t link) noexcept nogil:
    cdef WheelNode *head = &wheel.heads[number]
    cdef WheelNode *node = _node(wheel, link)
    node.prev = head.prev
    node.next = _head(number)
    _node(wheel, head.prev).next = link
    head.prev = link


cdef inline void _unlink(Wheel *wheel, WheelNode *node) noexcept nogil:
    _node(wheel, node.prev).next = node.next
    _node(wheel, node.next).prev = node.prev
    node.prev = 0
    node.next = 0


cdef void _splice(Wheel *wheel, uint32_t source, uint32_t target) noexcept nogil:
    """Append all of one list, which is not empty, to another."""
    cdef WheelNode *moved = &wheel.heads[source]
    cdef WheelNode *head = &wheel.heads[target]
    _node(wheel, head.prev).next = moved.next
    _node(wheel, moved.next).prev = head.prev
    _node(wheel, moved.prev).next = _head(target)
    head.prev = moved.prev
    _clear(wheel, source)


# --- a level: which of its buckets are not empty ------------------------------------


cdef inline void _mark(Level *level, uint32_t slot) noexcept nogil:
    bits_set(level.words, slot)
    level.summary |= <uint64_t>1 << (slot >> 6)


cdef inline void _unmark(Level *level, uint32_t slot) noexcept nogil:
    bits_clear(level.words, slot)
    if level.words[slot >> 6] == 0:
        level.summary &= ~(<uint64_t>1 << (slot >> 6))


cdef inline uint32_t _marked_from(Level *level, uint32_t slot) noexcept nogil:
    """The first slot that is marked, from `slot` on and round the ring. There is one."""
    cdef uint32_t word = slot >> 6
    cdef uint64_t bits = level.words[word] & (~<uint64_t>0 << (slot & 63))
    cdef uint64_t others
    if bits == 0:
        others = level.summary & ~((<uint64_t>2 << word) - 1)
        word = count_trailing_zeros(others if others != 0 else level.summary)
        bits = level.words[word]
    return (word << 6) + count_trailing_zeros(bits)


cdef inline uint64_t _first_bucket(Level *level, uint32_t slots) noexcept nogil:
    """The number of the level's first bucket that is not empty. There is one."""
    cdef uint32_t here = level.position % slots
    cdef uint32_t slot = _marked_from(level, here)
    return level.position + (slot - here if slot >= here else slot + slots - here)


# --- time ---------------------------------------------------------------------------


cdef inline uint64_t _tick_due(Wheel *wheel, uint32_t index) noexcept nogil:
    """The first tick at which a node is not early."""
    cdef uint64_t due = wheel.due(wheel.owner, index)
    return due / wheel.tick_ns + (due % wheel.tick_ns != 0)


cdef inline void _go_to(Wheel *wheel, uint64_t tick) noexcept nogil:
    cdef uint32_t i
    wheel.tick = tick
    for i in range(wheel.level_count):
        if wheel.levels[i].position == tick:
            return      # and so are those of the levels above
        wheel.levels[i].position = tick
        tick /= wheel.slots


cdef inline uint64_t _earliest(Wheel *wheel, uint32_t *level) noexcept nogil:
    """The time, in ticks, of the first bucket that is not empty, and its level. NEVER if
    all are empty."""
    cdef uint64_t first = NEVER
    cdef uint64_t time
    cdef uint32_t i
    for i in range(wheel.level_count):
        if wheel.levels[i].summary != 0:
            time = _first_bucket(&wheel.levels[i], wheel.slots) * wheel.levels[i].width
            if time < first:
                first = time
                level[0] = i
    return first


cdef inline void _hang(Wheel *wheel, uint32_t index, uint64_t tick) noexcept nogil:
    """Put a node, which is not linked, into the bucket of a tick."""
    cdef uint64_t bucket = tick if tick > wheel.tick else wheel.tick
    cdef uint32_t i = 0
    cdef uint32_t slot
    # Ends at the last level: its ring holds all of time.
    while bucket - wheel.levels[i].position >= wheel.slots:
        bucket /= wheel.slots
        i += 1
    slot = bucket % wheel.slots
    _append(wheel, 1 + i * wheel.slots + slot, index + 1)
    _mark(&wheel.levels[i], slot)


cdef inline void _pull(Wheel *wheel, WheelNode *node) noexcept nogil:
    """Unlink a node that is linked, and unmark its bucket if it was alone there."""
    cdef uint32_t prev = node.prev
    cdef bint alone = prev == node.next
    cdef uint32_t bucket
    _unlink(wheel, node)
    if alone and prev > _head(DUE):
        bucket = prev - _head(DUE) - 1
        _unmark(&wheel.levels[bucket / wheel.slots], bucket % wheel.slots)


# --- the wheel ------------------------------------------------------------------------


cdef bint _build(Wheel *wheel) noexcept nogil:
    """Add levels until a ring holds the last possible tick."""
    cdef uint64_t last = NEVER / wheel.tick_ns + (wheel.tick_ns > 1)
    cdef uint64_t rest = last
    cdef uint64_t width = 1
    cdef uint32_t i
    wheel.level_count = 1
    while rest >= wheel.slots:
        rest /= wheel.slots
        wheel.level_count += 1
    wheel.levels = <Level *>memory_zeroed(FOR_SETUP, wheel.level_count, sizeof(Level))
    wheel.heads = <WheelNode *>memory_zeroed(
        FOR_SETUP, 1 + wheel.level_count * wheel.slots, sizeof(WheelNode)
    )
    if wheel.levels == NULL or wheel.heads == NULL:
        return False
    for i in range(wheel.level_count):
        wheel.levels[i].width = width
        width *= wheel.slots
    for i in range(1 + wheel.level_count * wheel.slots):
        _clear(wheel, i)
    return True


cdef Wheel *wheel_new(uint64_t tick_ns, uint32_t slots, uint64_t now_ns, void *owner,
                      WheelLocate locate, WheelDue due) noexcept nogil:
    """An empty wheel, or NULL without memory. A tick has at least 1 ns, a ring from 2
    to MAX_SLOTS slots."""
    cdef Wheel *wheel = <Wheel *>memory_zeroed(FOR_SETUP, 1, sizeof(Wheel))
    if wheel == NULL:
        return NULL
    wheel.tick_ns = tick_ns
    wheel.slots = slots
    wheel.owner = owner
    wheel.locate = locate
    wheel.due = due
    if not _build(wheel):
        wheel_free(wheel)
        return NULL
    _go_to(wheel, now_ns / tick_ns)
    return wheel


cdef void wheel_free(Wheel *wheel) noexcept nogil:
    """Free the wheel. Nodes are not touched, linked or not."""
    memory_free(FOR_SETUP, wheel.levels)
    memory_free(FOR_SETUP, wheel.heads)
    memory_free(FOR_SETUP, wheel)


cdef void wheel_add(Wheel *wheel, uint32_t index) noexcept nogil:
    """Link a node for the time that `due` returns; it may be linked already. A node
    that is due already waits for the next turn."""
    cdef WheelNode *node = wheel.locate(wheel.owner, index)
    if wheel_linked(node):
        _pull(wheel, node)
    else:
        wheel.count += 1
    _hang(wheel, index, _tick_due(wheel, index))


cdef void wheel_remove(Wheel *wheel, uint32_t index) noexcept nogil:
    """Unlink a node. One that is not linked is left alone."""
    cdef WheelNode *node = wheel.locate(wheel.owner, index)
    if wheel_linked(node):
        _pull(wheel, node)
        wheel.count -= 1


cdef uint64_t wheel_next(Wheel *wheel) noexcept nogil:
    """When (ns) the next turn finds something to do: nodes that are due, or that move
    down a level, which is before they are due. 0 while there are nodes to take. NEVER
    if nothing is linked, or nothing for the next 584 years."""
    cdef uint32_t level
    cdef uint64_t first
    if not _empty(wheel, DUE):
        return 0
    first = _earliest(wheel, &level)
    return first * wheel.tick_ns if first <= NEVER / wheel.tick_ns else NEVER


cdef void _turn_back(Wheel *wheel, uint64_t tick) noexcept nogil:
    """The clock went back. Put all nodes into the current bucket; the turn finds out
    where each belongs. This is O(buckets) now, and a visit to each node later."""
    cdef uint32_t here = 1 + tick % wheel.slots
    cdef uint32_t i, slot
    for i in range(wheel.level_count):
        while wheel.levels[i].summary != 0:
            slot = _marked_from(&wheel.levels[i], 0)
            _unmark(&wheel.levels[i], slot)
            if 1 + i * wheel.slots + slot != here:
                _splice(wheel, 1 + i * wheel.slots + slot, here)
    _go_to(wheel, tick)
    if not _empty(wheel, here):
        _mark(&wheel.levels[0], here - 1)


cdef bint _empty_bucket(
    Wheel *wheel, uint32_t i, uint32_t slot, uint32_t *visits
) noexcept nogil:
    """Move the nodes of a bucket to where they belong now: among what is due, or to a
    later bucket, which is never this one. False if there are more than may be
    visited."""
    cdef uint32_t number = 1 + i * wheel.slots + slot
    cdef uint32_t index
    cdef uint64_t tick
    while not _empty(wheel, number):
        if visits[0] == 0:
            return False
        visits[0] -= 1
        wheel.visits += 1
        index = wheel.heads[number].next - 1
        _unlink(wheel, wheel.locate(wheel.owner, index))
        tick = _tick_due(wheel, index)
        if tick <= wheel.tick:
            _append(wheel, DUE, index + 1)
        else:
            _hang(wheel, index, tick)
    _unmark(&wheel.levels[i], slot)
    return True


cdef void wheel_turn(Wheel *wheel, uint64_t now_ns) noexcept nogil:
    """Advance to the present, and put what is due into the list to take from. Visits at most
    VISITS_A_TURN nodes: if there are more, `wheel_next` stays in the past, and the
    next turn continues."""
    cdef uint64_t now = now_ns / wheel.tick_ns
    cdef uint32_t visits = VISITS_A_TURN
    cdef uint64_t first
    cdef uint32_t i
    if now < wheel.tick:
        _turn_back(wheel, now)
    while True:
        first = _earliest(wheel, &i)
        if first > now or first == NEVER:
            break
        _go_to(wheel, first)
        if not _empty_bucket(wheel, i, wheel.levels[i].position % wheel.slots, &visits):
            return
    _go_to(wheel, now)


cdef bint wheel_take(Wheel *wheel, uint32_t *index) noexcept nogil:
    """Unlink one of the nodes that are due, the first in order of ticks; False if
    there is none. One whose time has moved meanwhile is not due any more, and goes
    back to the buckets."""
    cdef uint32_t link
    cdef uint64_t tick
    while not _empty(wheel, DUE):
        link = wheel.heads[DUE].next
        _unlink(wheel, _node(wheel, link))
        tick = _tick_due(wheel, link - 1)
        if tick <= wheel.tick:
            wheel.count -= 1
            index[0] = link - 1
            return True
        _hang(wheel, link - 1, tick)
    return False
