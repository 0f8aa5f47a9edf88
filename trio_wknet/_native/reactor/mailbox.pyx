"""Mailboxes. mailbox.pxd has their rules."""
from libc.stdint cimport uint32_t

from ..base.atomics cimport (
    wk_ptr_cas, wk_ptr_exchange, wk_ptr_load_relaxed, wk_u32_exchange, wk_u32_or,
)


cdef bint notification_mark(Notification *notification, uint32_t bits) noexcept nogil:
    """Add bits; True if the caller must now queue the notification."""
    return wk_u32_or(&notification.bits, bits) == 0


cdef uint32_t notification_take(Notification *notification) noexcept nogil:
    """Take all bits. The notification may be queued again from this moment on, so its
    `next` must have been read before."""
    return wk_u32_exchange(&notification.bits, 0)


cdef void mailbox_push(Mailbox *box, Notification *newest, Notification *oldest) noexcept nogil:
    """Push a chain, newest first. The release of the compare-and-swap publishes
    the links and everything the sender wrote before."""
    cdef void *head = wk_ptr_load_relaxed(&box.head)
    while True:
        oldest.next = <Notification *>head
        if wk_ptr_cas(&box.head, &head, newest):
            return


cdef Notification *mailbox_take(Mailbox *box) noexcept nogil:
    """Take everything, oldest first."""
    cdef Notification *notification = <Notification *>wk_ptr_exchange(&box.head, NULL)
    cdef Notification *ordered = NULL
    cdef Notification *following
    while notification != NULL:
        following = notification.next
        notification.next = ordered
        ordered = notification
        notification = following
    return ordered


cdef bint mailbox_waiting(Mailbox *box) noexcept nogil:
    return wk_ptr_load_relaxed(&box.head) != NULL


cdef void batch_add(Batch *batch, Notification *notification) noexcept nogil:
    notification.next = batch.newest
    batch.newest = notification
    if batch.oldest == NULL:
        batch.oldest = notification


cdef bint batch_send(Batch *batch, Mailbox *box) noexcept nogil:
    """Send what was collected; False if that was nothing."""
    if batch.newest == NULL:
        return False
    mailbox_push(box, batch.newest, batch.oldest)
    batch.newest = NULL
    batch.oldest = NULL
    return True
