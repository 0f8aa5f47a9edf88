# Which side may send on a connection. The Trio side sends from its own thread; a reactor sends
# what was queued, and messages of its own (send.pyx). No message may land inside another one, or
# overtake one that the same side sent before.
#
# The outbound ring holds whole messages, behind what is being sent. One word, `owner`, says
# whose turn it is to write to the socket and to take bytes out of the ring:
#
#   0               nobody's. The ring is empty, and either side may take the turn
#   HELD            the Trio side's: it is in a call to send; or inside a message of which a
#                   part was sent; or it keeps the connection corked (trio/cork.pyx)
#   HELD | QUEUED   the same, and the ring holds messages
#   QUEUED          the reactor's: it empties the ring, or sends a message of its own
#   SHUT            beside any of these: nothing is added any more (FIN was sent, or the
#                   descriptor is handed over)
#
# 1. Only the owner writes to the socket or takes bytes out of the ring. (When the connection
#    breaks, the reactor clears the ring even if it is not the owner. It does that under the
#    lock, and the owner checks the ring again after each call.)
# 2. Either side adds whole messages at the ring's end, under the lock, and sets QUEUED in
#    the same visit. The owner alone may put the rest of the message that it has begun at
#    the ring's beginning.
# 3. The Trio side takes 0 -> HELD, and lets go HELD -> 0, by one compare-and-swap each,
#    without the lock. Every other step is under the lock. So a reactor that finds 0 or HELD
#    may only add QUEUED, by a fetch-or, whose result says what it was added to. Once QUEUED is
#    set the word changes only under the lock, and a plain store is enough. The same is true
#    of the Trio side while it holds.
# 4. No message is stranded. What is added while the word is HELD | QUEUED is seen by the
#    Trio side as it lets go: its compare-and-swap fails, and it sends what is there, or
#    leaves it to the reactor with a FLUSH. What is added to QUEUED is seen by the reactor,
#    which leaves the ring only when it has found it empty under the lock, or when the kernel
#    is full, and then epoll reports when it is not. The side that turns 0 into QUEUED sends.
#    A WebSocket's control frames that found no room count as queued (answer.pyx).
# 5. A task that wants the turn while it is the reactor's asks for it under the lock
#    (HAND_OVER), and counts the bytes `ahead` of its message. When these are sent, the reactor
#    hands the word over as HELD, and what was added meanwhile stays behind that task's message.
#    So a stream of messages from elsewhere cannot starve a task. TELL only asks for a
#    completion.
# 6. Nothing goes behind a hole: a message of which a part was sent, and for whose rest there is
#    no memory. The Trio side notes its own in `send_error`, and both sides' in `pending_error`
#    (sender_failed), which reactors look at under the lock. A reactor, and a relay, note theirs
#    in `pending_error` too, and shut the socket down for sending, before the turn is let go of.
#
# In-loop both sides are one thread, and commands are carried out in the middle of what the
# Trio side does; the word means the same.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_cas, wk_u32_load, wk_u32_store
from ..base.linux cimport iovec
from .pool cimport Pool
from .slot cimport Slot

cdef enum Owner:
    HELD = 1
    QUEUED = 2
    SHUT = 4

# In `flush_wanted`.
cdef enum FlushWanted:
    TELL = 1
    HAND_OVER = 2


cdef inline uint32_t sender_state(Slot *slot) noexcept nogil:
    return wk_u32_load(&slot.mail.sending.owner)


cdef inline void sender_set(Slot *slot, uint32_t state) noexcept nogil:
    """Under the lock, by rule 3. SHUT stays."""
    wk_u32_store(&slot.mail.sending.owner, state | sender_state(slot) & SHUT)


cdef inline bint sender_acquire(Slot *slot) noexcept nogil:
    """By the Trio side: take the turn, if it is nobody's."""
    cdef uint32_t seen = 0
    while not wk_u32_cas(&slot.mail.sending.owner, &seen, HELD):
        if seen != 0:
            return False
    return True


cdef inline bint sender_release(Slot *slot) noexcept nogil:
    """By the Trio side: let go of the turn. False if messages are queued; then `sender_flush`
    must let go of it."""
    cdef uint32_t seen = HELD
    while not wk_u32_cas(&slot.mail.sending.owner, &seen, 0):
        if seen != HELD:
            return False
    return True


cdef bint sender_flush(Slot *slot, Pool *mine, uint64_t now) noexcept nogil
cdef ssize_t sender_push(Slot *slot, Pool *mine, const iovec *data, uint64_t now) noexcept nogil
cdef void sender_failed(Slot *slot, Pool *mine, int error) noexcept nogil
cdef bint sender_leave(Slot *slot, Pool *mine, const iovec *rest, int count,
                       uint32_t n) noexcept nogil
cdef bint sender_wait(Slot *slot, uint32_t how) noexcept nogil
cdef bint sender_waits(Slot *slot) noexcept nogil
cdef bint sender_withdraw(Slot *slot) noexcept nogil
cdef bint sender_yield(Slot *slot) noexcept nogil
cdef bint sender_shut(Slot *slot) noexcept nogil
cdef void sender_reopen(Slot *slot) noexcept nogil
cdef void sender_end(Slot *slot, Pool *mine, bint torn) noexcept nogil
cdef void sender_drop(Slot *slot, Pool *mine) noexcept nogil
