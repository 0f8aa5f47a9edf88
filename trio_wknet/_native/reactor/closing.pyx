"""Ending connections on the reactor.

Closing a socket that holds unread input makes Linux send a reset, which
destroys what the peer has not yet read. So a graceful close flushes the
outbound ring, sends FIN, and then lingers: it reads and discards until the peer
finishes too, bounded in bytes and in time (RFC 1122, 4.2.2.13; nginx calls it
lingering_close). Once the peer's kernel has acknowledged everything, it lingers for a tenth of
that time at most.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport wk_fence, wk_u32_load, wk_u32_sub
from ..base.linux cimport (
    AF_UNIX, AF_UNSPEC, EAGAIN, EINTR, EPOLL_CTL_DEL, MSG_DONTWAIT, SHUT_RDWR, SHUT_WR,
    SIOCOUTQ, SO_LINGER, SOL_SOCKET, close, connect, epoll_ctl, epoll_event, errno, ioctl,
    linger_t, pthread_mutex_lock, pthread_mutex_unlock, recv, setsockopt, shutdown, sockaddr,
)
from .admission cimport admission_unref
from .hub cimport RECEIVE_BUFFER, Reactor, notify
from .lists cimport list_append, list_remove
from .mailbox cimport notification_mark
from .places cimport end_hold, place_leave
from .pool cimport block_data, pool_note_released
from .rate cimport rate_free
from .ring cimport ring_clear
from .shortage cimport end_shortage
from .slot cimport (
    CONNECTION, DETACHED, ENDED, FLUSHING, FORGOTTEN, GONE, LINGERING, PORT, RELEASED, Slot,
    take_acceptor,
)
from .timeouts cimport timeout_clear, timeout_set
from .transfer cimport flush

cdef enum:
    DISCARD_BUDGET = 4 * RECEIVE_BUFFER     # bytes per connection and turn
    LINGER_CHECKS = 20      # within the time that lingering may take
    HANDLER_BYTES = 2560        # of an idle connection's task, as in docs/scale.md


cdef void close_gracefully(Reactor *reactor, Slot *slot) noexcept nogil:
    if slot.beyond.diversion != NULL:
        slot.beyond.diversion.leave(slot)
    pthread_mutex_lock(&slot.lock)
    ring_clear(&slot.inbound, reactor.pool)
    pthread_mutex_unlock(&slot.lock)
    if not slot.disarmed:
        list_remove(&slot.ready)
    slot.state = FLUSHING
    slot.acknowledged = False
    slot.linger_until = reactor.now + <uint64_t>slot.limits.linger_ms * 1000000
    slot.deadline = slot.linger_until
    on_closing_event(reactor, slot)
    if slot.state == FLUSHING:
        timeout_set(reactor, slot)


cdef void on_closing_event(Reactor *reactor, Slot *slot) noexcept nogil:
    """Take a closing connection as far as it goes for now."""
    if slot.state == FLUSHING:
        flush(reactor, slot)
        if not slot.draining:
            _finish(reactor, slot)
    # While flushing, too: a peer that does not read before it has sent
    # everything would otherwise block for good.
    _discard_input(reactor, slot)
    if slot.error != 0 or (slot.state == LINGERING and slot.ended):
        close_now(reactor, slot)
    elif slot.discarded > slot.limits.linger_bytes or reactor.now >= slot.linger_until:
        close_now(reactor, slot)
    elif slot.state == FLUSHING:
        list_append(&reactor.leaving, &slot.ready)  # unless it is to be continued at once


cdef void _finish(Reactor *reactor, Slot *slot) noexcept nogil:
    if not slot.shut:
        shutdown(slot.fd, SHUT_WR)
        slot.shut = True
    if not slot.disarmed:
        list_remove(&slot.ready)    # of what is leaving: it holds nothing any more
    slot.state = LINGERING
    _check_later(reactor, slot)


cdef void _check_later(Reactor *reactor, Slot *slot) noexcept nogil:
    slot.deadline = min(
        slot.linger_until,
        reactor.now + <uint64_t>slot.limits.linger_ms * (1000000 // LINGER_CHECKS),
    )
    timeout_set(reactor, slot)


cdef void on_closing_timeout(Reactor *reactor, Slot *slot) noexcept nogil:
    """Check a closing connection: now and then while it lingers, and when its time is up. A peer
    that goes on sending, and never finishes, must not hold the connection for all of that time.
    Once the peer's kernel has everything that we sent, and FIN, no reset can destroy it in
    flight; but a reset would report an error to the application before it has read. So the
    application gets the time from one check to the next, after the check that found everything
    acknowledged."""
    on_closing_event(reactor, slot)
    if slot.state != LINGERING:
        return
    if slot.acknowledged:
        close_now(reactor, slot)
        return
    slot.acknowledged = _is_acknowledged(slot)
    _check_later(reactor, slot)


cdef bint _is_acknowledged(Slot *slot) noexcept nogil:
    cdef int unacknowledged = 0
    if slot.family == AF_UNIX:
        return True             # what was sent is in the peer's socket at once
    # FIN counts, too.
    return ioctl(slot.fd, SIOCOUTQ, &unacknowledged) != 0 or unacknowledged == 0


cdef void _discard_input(Reactor *reactor, Slot *slot) noexcept nogil:
    """Read and discard. The Trio side has let go, so `ended` and `error` belong to the
    reactor alone now."""
    cdef ssize_t n
    cdef ssize_t budget = DISCARD_BUDGET
    while budget > 0 and not slot.ended and slot.error == 0:
        n = recv(slot.fd, block_data(reactor.buffer), RECEIVE_BUFFER, MSG_DONTWAIT)
        if n > 0:
            budget -= n
            slot.discarded += <uint32_t>n
            if slot.discarded > slot.limits.linger_bytes:
                return
        elif n == 0:
            slot.ended = True
            return
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            slot.error = errno
            return
    if budget <= 0:
        if not slot.disarmed:
            list_remove(&slot.ready)
        list_append(&reactor.ready, &slot.ready)


cdef void reset(Reactor *reactor, Slot *slot) noexcept nogil:
    """Close with RST: what the peer has not yet received is lost."""
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    cdef sockaddr nowhere
    setsockopt(slot.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    if wk_u32_load(&reactor.hub.shared):
        # Disconnects TCP, with RST, even if another process holds the socket.
        memset(&nowhere, 0, sizeof(nowhere))
        nowhere.sa_family = AF_UNSPEC
        connect(slot.fd, &nowhere, sizeof(nowhere))
    close_now(reactor, slot)


cdef void close_now(Reactor *reactor, Slot *slot) noexcept nogil:
    """Unlink, EPOLL_CTL_DEL, close, in this order, so that no event of this descriptor can be
    taken for one of the next owner of its number. (Without EPOLL_CTL_DEL a duplicate in another
    process would keep a closed descriptor registered.)"""
    cdef epoll_event unused
    if slot.kind == CONNECTION and slot.beyond.diversion != NULL:
        slot.beyond.diversion.leave(slot)
    end_shortage(reactor, slot)
    end_hold(reactor, slot)
    list_remove(&slot.ready)
    timeout_clear(reactor, slot)
    pthread_mutex_lock(&slot.lock)
    ring_clear(&slot.inbound, reactor.pool)
    ring_clear(&slot.outbound, reactor.pool)
    pthread_mutex_unlock(&slot.lock)
    if slot.fd >= 0:        # else detached, and taken
        if slot.state != FORGOTTEN:
            epoll_ctl(reactor.epfd, EPOLL_CTL_DEL, slot.fd, &unused)
            # If a forked child holds the descriptor, too, closing ends nothing. A
            # listening socket may be meant for others, which go on using it.
            if slot.kind == CONNECTION and wk_u32_load(&reactor.hub.shared):
                shutdown(slot.fd, SHUT_RDWR)
        close(slot.fd)
        reactor.descriptor_freed = True
    slot.fd = -1
    slot.state = GONE
    if slot.kind == CONNECTION:
        # Its task, if it has one, ends about now, too: see trim.pyx.
        pool_note_released(reactor.pool, HANDLER_BYTES)
        place_leave(reactor, slot)
        rate_free(slot)
        _count_down(reactor)
    elif slot.kind == PORT:
        if slot.door.admission != NULL:
            admission_unref(slot.door.admission)
        _leave_queue(reactor, slot.beyond.listener)
        leave_listener(reactor, slot.beyond.listener)
    release(reactor, slot)


cdef void _leave_queue(Reactor *reactor, Slot *listener) noexcept nogil:
    """A port adds nothing more. After the last one the queue is complete, which wakes
    `accept`. The port still holds its reference here: other reactors may
    drop theirs at any time, and the slot must not be released before this is done."""
    cdef uint32_t bits
    if wk_u32_sub(&listener.mail.listener.ports, 1) > 1:
        return
    pthread_mutex_lock(&listener.lock)
    listener.ended = True
    bits = take_acceptor(listener)
    pthread_mutex_unlock(&listener.lock)
    notify(reactor, listener, bits)


cdef void leave_listener(Reactor *reactor, Slot *listener) noexcept nogil:
    """Drop a reference to a listener: a port's, or the Trio side's. Others may
    release the slot from here on, so nothing of it may be touched afterwards. The one that
    releases it sees what the others did to it before, because each step of the count
    acquires and releases."""
    if wk_u32_sub(&listener.mail.listener.users, 1) == 1:
        release(reactor, listener)


cdef void _count_down(Reactor *reactor) noexcept nogil:
    """One connection fewer. If it was the last, and the Trio side waits for that, it is
    reported. The Trio side stores the flag, fences and then counts; this side counts, fences
    and then looks at the flag. So at least one sees the other."""
    if wk_u32_sub(&reactor.connections, 1) == 1:
        wk_fence()
        if wk_u32_load(&reactor.hub.quiet_wanted):
            notify(reactor, reactor.hub.beacon, ENDED)


cdef void release(Reactor *reactor, Slot *slot) noexcept nogil:
    """Return the slot: after the event batch, or by the drain that holds its
    notification (slot.pxd)."""
    if notification_mark(&slot.completion, RELEASED):
        slot.chain = reactor.dead
        reactor.dead = slot


cdef void forget(Reactor *reactor, Slot *slot) noexcept nogil:
    """Detach: stop watching, keep the descriptor open for the Trio side."""
    cdef epoll_event unused
    end_shortage(reactor, slot)
    list_remove(&slot.ready)
    timeout_clear(reactor, slot)
    epoll_ctl(reactor.epfd, EPOLL_CTL_DEL, slot.fd, &unused)
    slot.state = FORGOTTEN
    notify(reactor, slot, DETACHED)
