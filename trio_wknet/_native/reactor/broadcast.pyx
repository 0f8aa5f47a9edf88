"""A reactor's half of broadcasts. broadcast.pxd has the rules."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load
from ..base.linux cimport iovec, pthread_mutex_lock, pthread_mutex_unlock
from .budget cimport budget_is_over
from .hub cimport Job, Reactor, notify
from .mailbox cimport mailbox_push
from .send cimport ACCEPTED, FULL, Sent, admit, send_admitted
from .slot cimport BROADCAST, NEW, Slot
from .slot_map cimport slot_map_get
from .wake cimport reactor_give
from .websocket cimport Decoder, decoder_of


cdef void broadcast_give(BroadcastJob *job) noexcept nogil:
    """By the Trio side: have the job's reactor do it."""
    job.job.run = _line_up
    reactor_give(job.reactor, &job.job)


cdef void _line_up(Reactor *reactor, Job *job) noexcept nogil:
    job.link.next = NULL
    if reactor.broadcasts == NULL:
        reactor.broadcasts = job
    else:
        reactor.last_broadcast.link.next = &job.link
    reactor.last_broadcast = job


cdef void run_broadcasts(Reactor *reactor) noexcept nogil:
    """Send to the next BROADCAST_STEP members; not while the engine is over its budget, since what
    they do not read would be kept for them."""
    cdef uint32_t budget = BROADCAST_STEP
    cdef BroadcastJob *job
    if budget_is_over(reactor.budget):
        return
    while reactor.broadcasts != NULL and budget > 0:
        job = <BroadcastJob *>reactor.broadcasts        # its first field
        while job.at < job.members.room and budget > 0:
            if job.members.places[job.at] != 0:
                _send_to(reactor, job, job.at)
                budget -= 1
            job.at += 1
        if job.at == job.members.room:
            reactor.broadcasts = <Job *>job.job.link.next
            mailbox_push(&reactor.hub.finished, &job.job.link, &job.job.link)
            notify(reactor, reactor.hub.beacon, BROADCAST)


cdef void _send_to(Reactor *reactor, BroadcastJob *job, uint32_t at) noexcept nogil:
    cdef Slot *slot = slot_map_get(reactor.hub.slot_map, job.members.places[at])
    cdef uint32_t state = 0
    cdef Sent outcome
    cdef iovec span
    if slot == NULL:
        job.outcomes[at] = OVER
        return
    span.iov_base = job.payload.data
    span.iov_len = job.payload.size
    pthread_mutex_lock(&slot.lock)
    if job.outcomes[at] != PENDING:     # the Trio side was first
        pthread_mutex_unlock(&slot.lock)
        return
    outcome = ACCEPTED
    if slot.state == NEW:       # for want of descriptors or memory: later it may be well
        note_slow(job, at, slot)
    elif is_barred(job, slot):
        job.outcomes[at] = OVER
    else:
        outcome = admit(reactor, slot, &span, 1, job.payload.size, slot.limits.outbound, &state)
        if outcome == FULL:
            note_slow(job, at, slot)
        else:
            job.outcomes[at] = TAKEN if outcome == ACCEPTED else OVER
    pthread_mutex_unlock(&slot.lock)
    if job.outcomes[at] != TAKEN:
        return
    outcome = send_admitted(reactor, slot, &span, 1, job.payload.size, state)
    if outcome != ACCEPTED:
        job.broken += 1
    elif state == 0 and not slot.draining:
        job.sent += 1


cdef bint is_barred(const BroadcastJob *job, Slot *slot) noexcept nogil:
    """Under the lock: whether it is to be closed for being slow; or its WebSocket is closing, or
    gone."""
    cdef Decoder *ws
    if slot.refusing:
        return True
    if not job.is_message:
        return False
    ws = decoder_of(slot)
    return ws == NULL or wk_u32_load(&ws.goodbye) != 0


cdef void note_slow(BroadcastJob *job, uint32_t at, Slot *slot) noexcept nogil:
    """Under the lock: it does not get the message. If it is to be closed for that, nothing
    follows: neither by a reactor (`admit`), nor by the Trio side, which looks (`settle`)."""
    job.outcomes[at] = SLOW
    if job.closes_slow:
        slot.refusing = True
