# Doubly linked lists of slots: circular, with a head that belongs to no slot.
# Adding and removing need no search, and removing what is not linked is a no-op.
#
# And queues of slots, linked by `chain`: two pointers that belong to no slot.
from libc.stdint cimport uint32_t

from .slot cimport Link, Slot


cdef inline void list_init(Link *head) noexcept nogil:
    head.prev = head
    head.next = head


cdef inline bint list_empty(Link *head) noexcept nogil:
    return head.next == head


cdef inline bint linked(Link *link) noexcept nogil:
    return link.next != NULL


cdef inline void list_append(Link *head, Link *link) noexcept nogil:
    if linked(link):
        return
    link.prev = head.prev
    link.next = head
    head.prev.next = link
    head.prev = link


cdef inline void list_remove(Link *link) noexcept nogil:
    if not linked(link):
        return
    link.prev.next = link.next
    link.next.prev = link.prev
    link.prev = NULL
    link.next = NULL


cdef inline void queue_append(Slot **oldest, Slot **newest, Slot *slot) noexcept nogil:
    slot.chain = NULL
    if newest[0] == NULL:
        oldest[0] = slot
    else:
        newest[0].chain = slot
    newest[0] = slot


cdef inline Slot *queue_take(
    Slot **oldest, Slot **newest, uint32_t most, uint32_t *taken
) noexcept nogil:
    """Up to `most` slots, as a chain, and their number."""
    cdef Slot *first = oldest[0]
    cdef Slot *last = NULL
    cdef Slot *slot = first
    cdef uint32_t n = 0
    while slot != NULL and n < most:
        n += 1
        last = slot
        slot = slot.chain
    if last != NULL:
        last.chain = NULL
    oldest[0] = slot
    if slot == NULL:
        newest[0] = NULL
    taken[0] = n
    return first if n else NULL
