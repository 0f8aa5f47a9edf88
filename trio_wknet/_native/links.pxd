# Doubly linked lists of slots: circular, with a head that belongs to no slot.
# Adding and removing need no search, and removing what is not linked is a no-op.
from trio_wknet._native.conn cimport Link


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
