# Mail between the two sides: commands go down, completions come up.
#
# A notification is embedded in the slot that it is about, and carries a set of bits. A
# sender sets bits by fetch-or; the sender that turned 0 into non-0 queues the notification,
# so a notification is in at most one queue at a time and a mailbox never holds more
# notifications than there are connections. The receiver takes the whole queue, and
# from each notification its bits by exchange: bits set before the exchange are handled
# now, bits set after it queue the notification again. So no wake is lost, and no thread
# waits for another.
#
# The queue is a stack that is only ever pushed to or taken whole, hence it has no ABA
# problem; taking it reverses it into the order of sending.
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_ptr, wk_u32

cdef struct Notification:
    Notification *next
    wk_u32 bits

cdef struct Mailbox:
    wk_ptr head

# Notifications that one thread has collected, to be sent with one push.
cdef struct Batch:
    Notification *newest
    Notification *oldest

cdef bint notification_mark(Notification *notification, uint32_t bits) noexcept nogil
cdef uint32_t notification_take(Notification *notification) noexcept nogil
cdef void mailbox_push(Mailbox *box, Notification *newest, Notification *oldest) noexcept nogil
cdef Notification *mailbox_take(Mailbox *box) noexcept nogil
cdef bint mailbox_waiting(Mailbox *box) noexcept nogil
cdef void batch_add(Batch *batch, Notification *notification) noexcept nogil
cdef bint batch_send(Batch *batch, Mailbox *box) noexcept nogil
