"""What a reactor sends by itself on a connection: a whole message, between two messages of the
Trio side's. sender.pxd has the rules for both."""
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from ..base.atomics cimport wk_u32_or, wk_u64_bump, wk_u64_store_relaxed
from ..base.linux cimport (
    EAGAIN, EINTR, ENOMEM, MSG_DONTWAIT, MSG_NOSIGNAL, errno, iovec, msghdr, pthread_mutex_lock,
    pthread_mutex_unlock, sendmsg,
)
from .bucket cimport Rate, bucket_cut, bucket_spend, rate_of
from .hub cimport Reactor, hub_now
from .ring cimport ring_len, ring_prepend, ring_write_spans
from .sender cimport HELD, QUEUED, SHUT, sender_state
from .slot cimport OPEN, Slot
from .transfer cimport cannot_flush, flush

cdef enum:
    MAX_SPANS = 16


cdef Sent send_message(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t limit
) noexcept nogil:
    """Send a message of one or more bytes, in at most MAX_SPANS pieces: all of it or nothing.
    Called by the slot's reactor, in its turn. What the kernel does not take is copied.

    If it is nobody's turn to send, the reactor takes the turn, and sends without the lock.
    Meanwhile the Trio side, which finds QUEUED and an empty ring, may queue a message, or wait
    for its turn: the rest of this message goes before that. If it is somebody's turn, the
    message goes behind what is queued; if the Trio side holds, it sees that when it lets go."""
    cdef uint32_t n = 0
    cdef uint32_t state = 0
    cdef int i
    cdef Sent outcome
    for i in range(count):
        n += <uint32_t>spans[i].iov_len
    pthread_mutex_lock(&slot.lock)
    outcome = admit(reactor, slot, spans, count, n, limit, &state)
    pthread_mutex_unlock(&slot.lock)
    if outcome == ACCEPTED:
        outcome = send_admitted(reactor, slot, spans, count, n, state)
    return outcome


cdef Sent admit(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n, uint32_t limit,
    uint32_t *state
) noexcept nogil:
    """Under the lock: give a message of `n` bytes its place. It is behind what is queued, and
    there it is copied to; or, if it is nobody's turn, the turn is the reactor's from here on.
    `state` says whose turn it was. `send_admitted` must follow."""
    cdef uint32_t seen = sender_state(slot)
    if slot.state != OPEN or seen & SHUT or slot.error or slot.pending_error or slot.refusing:
        return CLOSED
    if ring_len(&slot.outbound) + n > limit:
        return FULL
    seen = wk_u32_or(&slot.mail.sending.owner, QUEUED)
    state[0] = seen
    # Without memory QUEUED is wrong, which does no harm: the owner checks the ring.
    if seen and not ring_write_spans(&slot.outbound, reactor.pool, spans, count, n):
        return FULL
    return ACCEPTED


cdef Sent send_admitted(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n, uint32_t state
) noexcept nogil:
    """Send a message that was admitted, as far as the kernel takes it, unless that is the Trio
    side's to do."""
    if state == 0:
        return _send_first(reactor, slot, spans, count, n)
    if not state & HELD and not slot.draining:
        flush(reactor, slot)
    return ACCEPTED


cdef Sent _send_first(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n
) noexcept nogil:
    """By the reactor, whose turn it is: send a message that is ahead of all others, then
    what was queued meanwhile."""
    cdef msghdr message
    cdef iovec within[MAX_SPANS]
    cdef Rate *rate = rate_of(slot)
    cdef ssize_t sent = -1
    memset(&message, 0, sizeof(message))
    message.msg_iov = <iovec *>spans
    message.msg_iovlen = count
    if rate != NULL:
        memcpy(within, spans, count * sizeof(iovec))
        message.msg_iov = within
        message.msg_iovlen = bucket_cut(&rate.write, within, count, reactor.now)
        if message.msg_iovlen == 0:
            sent = 0            # the rest is kept, and `flush` waits for its rate
    while sent < 0:
        sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0 and errno == EAGAIN:
            sent = 0
            break
        if sent < 0 and errno != EINTR:
            cannot_flush(reactor, slot, errno)
            return CLOSED
    if sent > 0:
        wk_u64_bump(&slot.flushed, sent)
        wk_u64_bump(&slot.flush_calls, 1)
        wk_u64_store_relaxed(&slot.last_flushed, hub_now(reactor.hub))
        if rate != NULL:
            bucket_spend(&rate.write, sent, reactor.now)
    if sent < <ssize_t>n and not _keep_rest(reactor, slot, spans, count, n, <uint32_t>sent):
        cannot_flush(reactor, slot, ENOMEM)     # a hole
        return CLOSED
    flush(reactor, slot)
    return ACCEPTED


cdef bint _keep_rest(
    Reactor *reactor, Slot *slot, const iovec *spans, int count, uint32_t n, uint32_t sent
) noexcept nogil:
    """Put what was not sent at the ring's beginning. False without memory."""
    cdef iovec rest[MAX_SPANS]
    cdef uint32_t left = n - sent
    cdef int i, kept = 0
    cdef bint stored
    for i in range(count):
        if sent >= spans[i].iov_len:
            sent -= <uint32_t>spans[i].iov_len
            continue
        rest[kept].iov_base = <char *>spans[i].iov_base + sent
        rest[kept].iov_len = spans[i].iov_len - sent
        kept += 1
        sent = 0
    pthread_mutex_lock(&slot.lock)
    stored = ring_prepend(&slot.outbound, reactor.pool, rest, kept, left)
    if stored:
        slot.mail.sending.ahead += left     # a task that waits is behind it
    pthread_mutex_unlock(&slot.lock)
    return stored
