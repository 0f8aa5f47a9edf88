"""The steps of the word that says which side may send, and what goes with them. sender.pxd has
the rules. All steps here are the Trio side's, except `sender_drop`; the reactor's other steps
are in transfer.pyx (`flush`) and send.pyx."""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport wk_u32_add, wk_u32_store, wk_u64_bump, wk_u64_store_relaxed
from ..base.linux cimport (
    EAGAIN, EFAULT, EINTR, EPIPE, MSG_DONTWAIT, MSG_NOSIGNAL, errno, iovec, msghdr,
    pthread_mutex_lock, pthread_mutex_unlock, sendmsg,
)
from .bucket cimport bucket_cut, bucket_spend, rate_of
from .pool cimport Block, Pool, pool_drop
from .ring cimport ring_clear, ring_discard, ring_len, ring_prepend, ring_spans
from .slot cimport Slot


cdef inline bint _is_due(Slot *slot) noexcept nogil:
    """Under the lock: whether the reactor has control frames to send (answer.pyx), perhaps
    for want of room until now. They count as queued: FLUSH has it try again."""
    return slot.by_kind.scan != NULL and slot.by_kind.scan.answer_due != 0


cdef bint sender_flush(Slot *slot, Pool *mine, uint64_t now) noexcept nogil:
    """By the Trio side, which holds: send what is queued, and let go. Returns whether a rest is
    left to the reactor; then the caller posts FLUSH."""
    cdef ssize_t sent = sender_push(slot, mine, NULL, now)
    cdef bint left
    pthread_mutex_lock(&slot.lock)
    # The reactor may have added something since, or have had no room to.
    left = ring_len(&slot.outbound) > 0
    sender_set(slot, QUEUED if left else 0)
    left = left or _is_due(slot)
    pthread_mutex_unlock(&slot.lock)
    return left


cdef ssize_t sender_push(Slot *slot, Pool *mine, const iovec *data, uint64_t now) noexcept nogil:
    """By the Trio side, which holds: send what is queued, and `data` behind it (or NULL), in one
    call. Returns how many bytes of `data` the kernel took; -1 if it did not take all of what is
    queued, or sending failed. The connection's rate bounds it as the kernel does.

    The lock is not held in sendmsg. The reference keeps the spans alive: meanwhile the
    reactor may add messages, even move the ring to a larger block, or clear it."""
    cdef iovec spans[3]
    cdef msghdr message
    cdef Block *block
    cdef ssize_t sent
    cdef uint32_t ahead
    cdef int error
    memset(&message, 0, sizeof(message))
    message.msg_iov = spans
    while True:
        pthread_mutex_lock(&slot.lock)
        message.msg_iovlen = ring_spans(&slot.outbound, spans)
        ahead = ring_len(&slot.outbound)
        block = slot.outbound.block
        if block != NULL:
            wk_u32_add(&block.refs, 1)
        pthread_mutex_unlock(&slot.lock)
        if data != NULL:
            spans[message.msg_iovlen] = data[0]
            message.msg_iovlen += 1
        if message.msg_iovlen == 0:
            return 0
        if slot.mark.rated:
            message.msg_iovlen = bucket_cut(
                &rate_of(slot).write, spans, <int>message.msg_iovlen, now
            )
        if message.msg_iovlen == 0:
            sent = -1
            error = EAGAIN
        else:
            sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            error = errno if sent < 0 else 0
        if block != NULL:
            pthread_mutex_lock(&slot.lock)
            if sent > 0 and slot.outbound.block != NULL:
                ring_discard(&slot.outbound, mine, min(<uint32_t>min(sent, <ssize_t>ahead),
                                                       ring_len(&slot.outbound)))
            if slot.outbound.block == NULL:
                sender_set(slot, HELD | QUEUED if _is_due(slot) else HELD)
            pthread_mutex_unlock(&slot.lock)
            pool_drop(block, mine)
        if sent > 0:
            wk_u64_bump(&slot.sent, sent)
            wk_u64_bump(&slot.send_calls, 1)
            wk_u64_store_relaxed(&slot.last_sent, now)
            if slot.mark.rated:
                bucket_spend(&rate_of(slot).write, sent, now)
        if sent >= ahead:
            return sent - ahead
        if error == EFAULT and data != NULL:
            data = NULL         # it cannot be read: what is queued goes without it
        elif sent < 0 and error != EINTR:
            if error != EAGAIN:
                sender_failed(slot, mine, error)
            return -1


cdef void sender_failed(Slot *slot, Pool *mine, int error) noexcept nogil:
    """By the Trio side, which holds: sending failed for good. Receiving goes on to the end of
    what came before.

    A socket reports an error once, to the first call. If that was the call here, reading ends
    in what looks like a FIN, but the peer sent none, and bytes may be missing. So the error is
    left to the reactor, under the lock under which it marks the end. If it read to the end
    between the call and this, the mark is corrected. No receiver can have seen the wrong mark,
    because receivers run in this thread.

    EPIPE says nothing new. Either the error itself was reported before, and says more; or the
    peer's FIN had come, and then the end is a real one."""
    pthread_mutex_lock(&slot.lock)
    ring_clear(&slot.outbound, mine)
    if sender_state(slot) & QUEUED:
        sender_set(slot, HELD)
    if error == EPIPE:
        slot.send_error = slot.error or slot.pending_error or EPIPE
    else:
        slot.send_error = error
        if slot.pending_error == 0:
            slot.pending_error = error
        if slot.ended and slot.error == 0:
            slot.error = error
    pthread_mutex_unlock(&slot.lock)


cdef bint sender_leave(Slot *slot, Pool *mine, const iovec *rest, int count,
                       uint32_t n) noexcept nogil:
    """By the Trio side, which holds: leave the rest of the message that was begun to the
    reactor, ahead of all that is queued, and let go. It is `n` bytes (1 or more), in pieces. The
    caller posts FLUSH. False without memory: then nothing was changed, and the stream has a
    hole in it."""
    cdef bint stored
    pthread_mutex_lock(&slot.lock)
    stored = ring_prepend(&slot.outbound, mine, rest, count, n)
    if stored:
        sender_set(slot, QUEUED)
    pthread_mutex_unlock(&slot.lock)
    return stored


cdef bint sender_wait(Slot *slot, uint32_t how) noexcept nogil:
    """By the Trio side: ask the reactor for a completion, or to hand over its turn, once it has
    sent what is queued now. False if it is not the reactor's turn any more."""
    cdef bint waits
    pthread_mutex_lock(&slot.lock)
    waits = sender_state(slot) & QUEUED != 0
    if waits:
        slot.flush_wanted = how
        slot.mail.sending.ahead = ring_len(&slot.outbound)
    pthread_mutex_unlock(&slot.lock)
    return waits


cdef bint sender_waits(Slot *slot) noexcept nogil:
    """Whether what `sender_wait` asked of the reactor is still to come."""
    cdef bint waits
    pthread_mutex_lock(&slot.lock)
    waits = slot.flush_wanted != 0
    # A connection that broke loses its ring. Sending would find that out by EPIPE, but the
    # error itself says more.
    if not slot.send_error:
        slot.send_error = slot.error or slot.pending_error
    pthread_mutex_unlock(&slot.lock)
    return waits


cdef bint sender_withdraw(Slot *slot) noexcept nogil:
    """Take back what `sender_wait` asked for. False if it has come already: then the Trio side
    holds the turn, if it had asked for HAND_OVER."""
    cdef bint waited
    pthread_mutex_lock(&slot.lock)
    waited = slot.flush_wanted != 0
    slot.flush_wanted = 0
    pthread_mutex_unlock(&slot.lock)
    return waited


cdef bint sender_yield(Slot *slot) noexcept nogil:
    """By the Trio side, which holds: give the reactor the turn for what is queued, and have it
    handed back after that. The caller posts FLUSH. False if nothing is queued."""
    cdef bint left
    pthread_mutex_lock(&slot.lock)
    left = ring_len(&slot.outbound) > 0
    if left:
        slot.flush_wanted = HAND_OVER
        slot.mail.sending.ahead = ring_len(&slot.outbound)
        sender_set(slot, QUEUED)
    pthread_mutex_unlock(&slot.lock)
    return left


cdef bint sender_shut(Slot *slot) noexcept nogil:
    """By the Trio side, which holds: refuse all that would be added from here on. False if
    something is queued."""
    cdef bint left
    pthread_mutex_lock(&slot.lock)
    left = ring_len(&slot.outbound) > 0
    if not left:
        sender_set(slot, HELD | SHUT)
    pthread_mutex_unlock(&slot.lock)
    return not left


cdef void sender_reopen(Slot *slot) noexcept nogil:
    """By the Trio side, which holds: take that back."""
    pthread_mutex_lock(&slot.lock)
    wk_u32_store(&slot.mail.sending.owner, HELD)
    pthread_mutex_unlock(&slot.lock)


cdef void sender_end(Slot *slot, Pool *mine, bint torn) noexcept nogil:
    """By the Trio side, before it lets go of the connection: the reactor sends what is queued. If
    a message is torn, its rest will not be sent, so nothing may follow it."""
    pthread_mutex_lock(&slot.lock)
    slot.flush_wanted = 0
    if torn:
        ring_clear(&slot.outbound, mine)
    sender_set(slot, QUEUED if ring_len(&slot.outbound) else 0)
    pthread_mutex_unlock(&slot.lock)


cdef void sender_drop(Slot *slot, Pool *mine) noexcept nogil:
    """By the reactor, under the lock: nothing will be sent any more, by either side."""
    cdef uint32_t state = sender_state(slot)
    ring_clear(&slot.outbound, mine)
    if state & QUEUED:      # else the word is the Trio side's to write
        sender_set(slot, HELD if slot.flush_wanted == HAND_OVER else state & HELD)
