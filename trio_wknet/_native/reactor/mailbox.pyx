"""Mailboxes. Their rules stand in mailbox.pxd."""
from libc.stdint cimport uint32_t

from ..base.atomics cimport (
    wk_ptr_cas, wk_ptr_exchange, wk_ptr_load_relaxed, wk_u32_exchange, wk_u32_or,
)


cdef bint letter_mark(Letter *letter, uint32_t bits) noexcept nogil:
    """Add bits; True if the caller must now queue the letter."""
    return wk_u32_or(&letter.bits, bits) == 0


cdef uint32_t letter_take(Letter *letter) noexcept nogil:
    """Take all bits. The letter may be queued again from this moment on, so its
    `next` must have been read before."""
    return wk_u32_exchange(&letter.bits, 0)


cdef void mailbox_push(Mailbox *box, Letter *newest, Letter *oldest) noexcept nogil:
    """Push a chain, newest first. The release of the compare-and-swap publishes
    the links and everything the sender wrote before."""
    cdef void *head = wk_ptr_load_relaxed(&box.head)
    while True:
        oldest.next = <Letter *>head
        if wk_ptr_cas(&box.head, &head, newest):
            return


cdef Letter *mailbox_take(Mailbox *box) noexcept nogil:
    """Take everything, oldest first."""
    cdef Letter *letter = <Letter *>wk_ptr_exchange(&box.head, NULL)
    cdef Letter *ordered = NULL
    cdef Letter *following
    while letter != NULL:
        following = letter.next
        letter.next = ordered
        ordered = letter
        letter = following
    return ordered


cdef bint mailbox_waiting(Mailbox *box) noexcept nogil:
    return wk_ptr_load_relaxed(&box.head) != NULL


cdef void batch_add(Batch *batch, Letter *letter) noexcept nogil:
    letter.next = batch.newest
    batch.newest = letter
    if batch.oldest == NULL:
        batch.oldest = letter


cdef bint batch_send(Batch *batch, Mailbox *box) noexcept nogil:
    """Send what was gathered; False if that was nothing."""
    if batch.newest == NULL:
        return False
    mailbox_push(box, batch.newest, batch.oldest)
    batch.newest = NULL
    batch.oldest = NULL
    return True
