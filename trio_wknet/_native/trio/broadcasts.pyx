"""The Trio side's half of broadcasts: what it sends does not overtake them.

Facts. A broadcast to thousands takes a reactor tens of milliseconds, and the Trio side goes on
meanwhile. What it sends to a member then must arrive behind the broadcast, whether the reactor
has come to that member or not.

Decision. Before the Trio side sends on a connection, it looks whether broadcasts are in progress
that have not come to it. If so it queues them itself, in the connection's outbound ring: it
goes ahead of the reactor, which skips that member. So nobody waits, and a connection that is in
no broadcast pays for one comparison. While there are some, finding a member takes constant time
for each of them.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_or, wk_u64_load
from ..base.linux cimport ENOBUFS, pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.broadcast cimport OVER, PENDING, TAKEN, is_barred, note_slow
from ..reactor.handles cimport NOWHERE, handles_find
from ..reactor.ring cimport ring_len, ring_write
from ..reactor.sender cimport QUEUED, SHUT, sender_state


cdef void broadcasts_add(Broadcasts *pending, BroadcastJob *job) noexcept nogil:
    job.following = NULL
    if pending.first == NULL:
        pending.first = job
    else:
        pending.last.following = job
    pending.last = job


cdef void broadcasts_remove(Broadcasts *pending, BroadcastJob *job) noexcept nogil:
    """Reactors finish in any order."""
    cdef BroadcastJob *before = NULL
    cdef BroadcastJob *at = pending.first
    while at != job:
        before = at
        at = at.following
    if before == NULL:
        pending.first = job.following
    else:
        before.following = job.following
    if pending.last == job:
        pending.last = before


cdef bint broadcasts_settle(Broadcasts *pending, Slot *slot, Pool *mine) noexcept nogil:
    """Queue what is PENDING for a connection. Returns whether it is the reactor's turn now;
    then the caller posts FLUSH."""
    cdef uint64_t handle = wk_u64_load(&slot.handle)
    cdef BroadcastJob *job = pending.first
    cdef uint32_t at
    cdef bint gave_turn = False
    while job != NULL:
        if job.reactor == slot.reactor:
            at = handles_find(&job.members, handle)
            if at != NOWHERE and _settle_one(job, at, slot, mine):
                gave_turn = True
        job = job.following
    return gave_turn


cdef bint _settle_one(BroadcastJob *job, uint32_t at, Slot *slot, Pool *mine) noexcept nogil:
    cdef uint32_t n = job.payload.size
    cdef bint gave_turn = False
    pthread_mutex_lock(&slot.lock)
    if job.outcomes[at] != PENDING:     # the reactor was first
        pass
    elif slot.error or slot.pending_error or sender_state(slot) & SHUT or is_barred(job, slot):
        job.outcomes[at] = OVER
    elif ring_len(&slot.outbound) + n > slot.limits.outbound:
        note_slow(job, at, slot)
    elif not ring_write(&slot.outbound, mine, <const char *>job.payload.data, n):
        note_slow(job, at, slot)        # no memory
    else:
        job.outcomes[at] = TAKEN
        gave_turn = wk_u32_or(&slot.mail.sending.owner, QUEUED) == 0
    if slot.refusing and not slot.send_error:
        slot.send_error = ENOBUFS       # until it is closed, when the job is done
    pthread_mutex_unlock(&slot.lock)
    return gave_turn
