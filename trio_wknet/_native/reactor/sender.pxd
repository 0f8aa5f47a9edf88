# Who may send on a connection. Both sides may: the Trio side sends from its own thread, and
# a reactor sends what was queued, and messages of its own (send.pyx). What they send are
# messages, and none may land inside another, or overtake one that its sender sent before.
#
# The outbound ring holds whole messages, behind what is being sent. One word, `owner`, says
# whose turn it is to write to the socket and to take bytes out of the ring:
#
#   0               nobody's. The ring is empty, and whoever has a message may send it
#   HELD            the Trio side's: it is in a call to send; or inside a message of which a
#                   part was sent; or it keeps the connection corked (trio/cork.pyx)
#   HELD | QUEUED   the same, and the ring holds messages
#   QUEUED          the reactor's: it empties the ring, or sends a message of its own
#   SHUT            beside any of these: nothing is added any more (FIN was sent, or the
#                   descriptor is handed over)
#
# 1. Nobody but the owner writes to the socket or takes bytes out of the ring. (When the
#    connection breaks the reactor clears the ring, whoever the owner is. It does that under
#    the lock, and the owner looks again after each call.)
# 2. Either side adds whole messages at the ring's end, under the lock, and sets QUEUED in
#    the same visit. The owner alone may put the rest of the message that it has begun at
#    the ring's beginning.
# 3. The Trio side takes 0 -> HELD, and lets go HELD -> 0, by one compare-and-swap each,
#    without the lock. Every other step is under the lock. So a reactor that finds 0 or HELD
#    may only add QUEUED, by a fetch-or, and learns from it what it was added to. Once
#    QUEUED is set the word changes under the lock alone, and a plain store will do; so it
#    does for the Trio side while it holds.
# 4. No message is stranded. What is added while the word is HELD | QUEUED is seen by the
#    Trio side as it lets go: its compare-and-swap fails, and it sends what is there, or
#    leaves it to the reactor with a FLUSH. What is added to QUEUED is seen by the reactor,
#    which does not leave the ring before it has found it empty under the lock, unless the
#    kernel was full, which it will hear of. And whoever turns 0 into QUEUED sends.
# 5. A task that wants the turn while it is the reactor's says so under the lock
#    (HAND_OVER), and counts what goes `ahead` of it. When that is sent the reactor hands
#    the word over as HELD, and what was added meanwhile stays behind that task's message:
#    a stream of messages from elsewhere cannot starve it. TELL only asks to be told.
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
    """By the Trio side: let go of it. False if messages are queued, and it has to be
    `sender_flush` that lets go."""
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
