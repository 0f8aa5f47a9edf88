"""Moving bytes on the reactor: socket to inbound ring, outbound ring to socket.

Sockets are watched edge triggered for both directions from the start, so a
connection costs one epoll_ctl in its life. In return:

* After an edge, read until the kernel has no more. A receive that returns
  less than it asked for has emptied a TCP socket, which saves the call that would
  return EAGAIN. This does not hold after RDHUP, HUP or ERR, where the end is still to be
  read, nor if a receive may be cut short: at TCP's urgent byte (reported by PRI), and by
  ancillary data on a unix socket.
* A connection that keeps its reactor busy past a budget goes to the ready list
  and is continued after the others had their turn.
* A connection that has used up its rate (bucket.pxd) goes on when the wheel says so, until
  EAGAIN again.
* A paused connection (inbound at its mark) is not read here, so its edges are lost:
  resuming reads until EAGAIN. Meanwhile the Trio side may receive (`fill` in
  receive.pyx).

Bytes that were received, and for which the ring gets no memory, are a hole. The stream ends
there, as a broken connection does (ENOMEM): what came before it is delivered, and
nothing that comes after. Reserving the memory before each receive would cost every
message a visit to the ring, for a rare case that cannot be waited out: without
memory to receive there is none to handle the message. So the hole ends the stream.
"""
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from ..base.atomics cimport (
    wk_u32_add, wk_u32_exchange, wk_u32_load, wk_u64_bump, wk_u64_load, wk_u64_load_relaxed,
    wk_u64_store_relaxed,
)
from ..base.linux cimport (
    AF_UNIX, EAGAIN, EINTR, ENOMEM, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP,
    IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, POLLOUT, SHUT_WR, SOL_SOCKET, SO_ERROR, TCP_INFO,
    errno, getsockopt, iovec, msghdr, poll, pollfd, pthread_mutex_lock, pthread_mutex_unlock, recv,
    sendmsg, shutdown, socklen_t, tcp_info,
)
from .bucket cimport (
    Rate, bucket_allows, bucket_cut, bucket_spend, bucket_wait, rate_due, rate_of,
)
from .budget cimport budget_is_near, budget_lets_go, budget_stops
from .framing cimport frame_lowat
from .hub cimport RECEIVE_BUFFER, Reactor, hub_now, notify
from .lists cimport list_append, list_remove
from .pool cimport Block, block_data, pool_drop, pool_take
from .ring cimport (
    ring_adopt, ring_discard, ring_expect, ring_len, ring_spans, ring_write,
)
from .sender cimport HAND_OVER, HELD, QUEUED, sender_drop, sender_set, sender_state
from .slot cimport ANSWER, CONTROL, ENDED, FLUSHED, OPEN, READABLE, WRITABLE, Slot
from .wake cimport reactor_post
from .websocket cimport Decoder, decoder_feed, decoder_of
from .wheel cimport NEVER, wheel_add

cdef enum:
    READ_BUDGET = 4 * RECEIVE_BUFFER    # bytes for each connection and turn
    HAND_ON_FROM = 16384                # bytes; below that copying is cheaper
    TCP_CLOCK_MS = 10                   # the resolution of the kernel's times: a tick at 100 Hz


cdef inline uint32_t _mark(Slot *slot) noexcept nogil:
    """The number of bytes that the ring may hold; under the lock. A receiver that waits for
    more than the limit raises it while it waits; a receiver that cannot know how much more it
    will need raises it by one receive at a time. So does a WebSocket's message that is not
    whole, if it is the first: nothing else could be taken."""
    cdef Decoder *ws = decoder_of(slot)
    if ws != NULL:
        if ws.whole:
            return slot.limits.inbound
        return max(slot.limits.inbound, ring_len(&slot.inbound) + RECEIVE_BUFFER)
    if slot.rcvlowat <= slot.limits.inbound:
        return slot.limits.inbound
    return slot.rcvlowat + RECEIVE_BUFFER if slot.open_ended else slot.rcvlowat


cdef inline uint32_t _room(Reactor *reactor, Slot *slot) noexcept nogil:
    """The number of bytes to receive next; under the lock: never more than are left to the
    mark. 0 pauses reading. (The ring may hold more than the mark if the receiver that raised
    it is gone.)"""
    cdef uint32_t mark = _mark(slot)
    cdef uint32_t held = ring_len(&slot.inbound)
    slot.paused = held >= mark
    if slot.paused or (budget_is_near(reactor) and budget_stops(reactor, slot)):
        return 0
    if slot.mark.rated:
        return _rated_room(reactor, slot, min(mark - held, <uint32_t>RECEIVE_BUFFER))
    return min(mark - held, <uint32_t>RECEIVE_BUFFER)


cdef uint32_t _rated_room(Reactor *reactor, Slot *slot, uint32_t room) noexcept nogil:
    """As much of it as the connection's rate allows; if that is nothing, reading waits, and the
    caller has the wheel end that (`watch_rate`), when it has let go of the lock."""
    cdef Rate *rate = rate_of(slot)
    room = <uint32_t>bucket_allows(&rate.read, room, reactor.now)
    if room == 0:
        bucket_wait(&rate.read, reactor.now)
    return room


cdef void watch_rate(Reactor *reactor, Slot *slot) noexcept nogil:
    """Have the wheel end the waits of a connection's rates, if there are any; not under the lock,
    which the wheel's `due` takes."""
    if rate_due(slot) != NEVER:
        wheel_add(reactor.wheel, <uint32_t>wk_u64_load(&slot.handle))


cdef void on_readable(Reactor *reactor, Slot *slot, uint32_t events) noexcept nogil:
    """An edge for input. A dead or finished peer is noticed here, and reported,
    even while the connection is paused."""
    cdef bint over = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0
    cdef bint stopped, left
    cdef uint32_t room = 0
    cdef uint32_t bits = 0
    if slot.beyond.diversion != NULL and slot.beyond.diversion.act(<void *>reactor, slot, events):
        return
    pthread_mutex_lock(&slot.lock)
    if not slot.paused and slot.error == 0:     # nothing is read behind an error
        room = _room(reactor, slot)
    stopped = slot.paused or (room == 0 and slot.error == 0)
    left = stopped and ring_len(&slot.inbound) < slot.limits.inbound
    if over:
        slot.hung_up = True
        if stopped and slot.end_wanted:
            slot.end_wanted = False
            bits = ENDED
    pthread_mutex_unlock(&slot.lock)
    if stopped and events & EPOLLERR:
        note_pending_error(slot)
    notify(reactor, slot, bits)
    # Bytes that are left for the Trio side to receive count as received for idle rules now,
    # though it may receive them much later.
    if left and events & EPOLLIN and not over:
        note_received(reactor, slot)
    if room != 0:
        _receive(reactor, slot, room,
                 over or slot.family == AF_UNIX or (events & EPOLLPRI) != 0)
    else:
        watch_rate(reactor, slot)


cdef void note_pending_error(Slot *slot) noexcept nogil:
    """Remember the error that the socket holds. Asking takes it, so that reading
    will end in what looks like a FIN."""
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    getsockopt(slot.fd, SOL_SOCKET, SO_ERROR, &error, &length)
    pthread_mutex_lock(&slot.lock)
    if error != 0:
        slot.pending_error = error
    pthread_mutex_unlock(&slot.lock)


cdef void resume_reading(Reactor *reactor, Slot *slot) noexcept nogil:
    """Go on reading where a pause or the budget stopped it."""
    cdef uint32_t room = 0
    if slot.beyond.diversion != NULL and slot.beyond.diversion.act(<void *>reactor, slot, EPOLLIN):
        return
    pthread_mutex_lock(&slot.lock)
    if not (slot.paused or slot.ended or slot.error != 0):
        room = _room(reactor, slot)
    pthread_mutex_unlock(&slot.lock)
    if room != 0:
        _receive(reactor, slot, room, True)
    else:
        watch_rate(reactor, slot)


cdef void look_at_socket(Reactor *reactor, Slot *slot) noexcept nogil:
    """Move what can be moved now, whether or not epoll has reported it, and see what the
    kernel has sent lately."""
    cdef pollfd one
    resume_reading(reactor, slot)
    _note_sent_by_kernel(reactor, slot)
    if slot.draining:
        flush(reactor, slot)
    if wk_u32_load(&slot.writable_wanted):
        one.fd = slot.fd
        one.events = POLLOUT
        if poll(&one, 1, 0) > 0:
            on_writable(reactor, slot)


cdef void _note_sent_by_kernel(Reactor *reactor, Slot *slot) noexcept nogil:
    """Store when bytes last left, for idle rules, from the kernel's own count. Nothing else
    counts software that writes to the descriptor itself, as os.sendfile does, or
    what the kernel still sends of a large send_all to a slow peer.

    Both ages must be young. Data is also sent again to a peer that has gone, which
    acknowledges nothing; and one that acknowledges keepalive probes is sent no data."""
    cdef tcp_info info
    cdef socklen_t size = sizeof(info)
    cdef uint64_t age, sent
    if slot.family == AF_UNIX or reactor.hub.virtual:
        return
    if getsockopt(slot.fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0:
        return
    age = max(info.tcpi_last_data_sent, info.tcpi_last_ack_recv) + TCP_CLOCK_MS
    sent = reactor.now - min(reactor.now, age * 1000000)
    if sent > wk_u64_load_relaxed(&slot.last_flushed):
        wk_u64_store_relaxed(&slot.last_flushed, sent)


cdef void _receive(Reactor *reactor, Slot *slot, uint32_t room, bint to_the_end) noexcept nogil:
    """Receive until the kernel has no more, or the budget or the room is used up. A receive
    is short if it brought less than was asked for, however little that was."""
    cdef ssize_t n
    cdef uint32_t asked
    cdef ssize_t budget = READ_BUDGET
    while budget > 0:
        asked = room
        n = recv(slot.fd, block_data(reactor.buffer), asked, MSG_DONTWAIT)
        if n > 0:
            reactor.moved += n
            room = _store(reactor, slot, <uint32_t>n)
            if room == 0:
                watch_rate(reactor, slot)
            if room == 0 or (n < asked and not to_the_end):
                return
            budget -= n
        elif n == 0:
            end_of_input(reactor, slot, 0)
            return
        elif errno == EAGAIN:
            return
        elif errno != EINTR:
            end_of_input(reactor, slot, errno)
            return
    list_remove(&slot.ready)        # it may have been held back before
    list_append(&reactor.ready, &slot.ready)


cdef uint32_t _store(Reactor *reactor, Slot *slot, uint32_t n) noexcept nogil:
    """Put received bytes into the ring. Returns how many to receive next; 0 if reading must
    stop."""
    cdef uint32_t bits = 0
    cdef uint32_t room
    cdef bint stored
    pthread_mutex_lock(&slot.lock)
    if slot.error != 0:     # since this receive began the Trio side has lost some bytes
        pthread_mutex_unlock(&slot.lock)
        return 0
    if decoder_of(slot) != NULL:
        pthread_mutex_unlock(&slot.lock)
        return _store_messages(reactor, slot, n)
    ring_expect(&slot.inbound, reactor.pool, n, slot.rcvlowat)
    stored = (_hand_on(reactor, slot, n)
              or ring_write(&slot.inbound, reactor.pool, block_data(reactor.buffer), n))
    if slot.rcvlowat and ring_len(&slot.inbound) >= slot.rcvlowat:
        slot.rcvlowat = 0
        if slot.by_kind.scan != NULL:       # who waits does so for a whole frame
            slot.rcvlowat = frame_lowat(slot.by_kind.scan, &slot.inbound, slot.limits.inbound)
        if slot.rcvlowat == 0:
            bits = READABLE
    if slot.mark.rated:
        bucket_spend(&rate_of(slot).read, n, reactor.now)
    room = _room(reactor, slot)
    # The end was announced together with these bytes, and reading will not reach it.
    if room == 0 and slot.hung_up and slot.end_wanted:
        slot.end_wanted = False
        bits |= ENDED
    # While reading is paused, the Trio side writes these counters. So they are written
    # under the lock.
    if stored:
        wk_u64_bump(&slot.received, n)
        wk_u64_bump(&slot.receive_calls, 1)
        note_received(reactor, slot)
    pthread_mutex_unlock(&slot.lock)
    if not stored:
        end_of_input(reactor, slot, ENOMEM)
        return 0
    notify(reactor, slot, bits)
    return room


cdef uint32_t _store_messages(Reactor *reactor, Slot *slot, uint32_t n) noexcept nogil:
    """The same for a WebSocket: decode received bytes. The lock is let go of now and then, so
    the decoder may have gone meanwhile: then so has the Trio side, and nobody wants them."""
    cdef Decoder *ws
    cdef const unsigned char *data = block_data(reactor.buffer)
    cdef uint32_t at = 0
    cdef uint32_t room = 0
    cdef uint32_t bits = 0
    cdef bint news = False
    cdef bint no_memory = False
    cdef bint due = False
    while at < n and not no_memory:
        pthread_mutex_lock(&slot.lock)
        ws = decoder_of(slot)
        if ws == NULL or slot.error != 0:
            pthread_mutex_unlock(&slot.lock)
            return 0
        at += decoder_feed(ws, &slot.inbound, reactor.pool, data + at, n - at, &news, &no_memory)
        if slot.rcvlowat and (ws.whole or ws.over):
            slot.rcvlowat = 0
            bits |= READABLE
        if slot.mark.rated and at == n:
            bucket_spend(&rate_of(slot).read, n, reactor.now)
        room = _room(reactor, slot)
        due = ws.scan.answer_due != 0
        if at == n:
            if room == 0 and slot.hung_up and slot.end_wanted:
                slot.end_wanted = False
                bits |= ENDED
            wk_u64_bump(&slot.received, n)
            wk_u64_bump(&slot.receive_calls, 1)
            note_received(reactor, slot)
        pthread_mutex_unlock(&slot.lock)
    if no_memory:
        end_of_input(reactor, slot, ENOMEM)
        return 0
    notify(reactor, slot, bits | CONTROL if news else bits)
    if due:
        reactor_post(slot, ANSWER)
    return room


cdef void note_received(Reactor *reactor, Slot *slot) noexcept nogil:
    """Store when bytes came, by the rule of `stamp`."""
    if wk_u64_load_relaxed(&slot.idle_since) == 0:
        wk_u64_store_relaxed(&slot.last_received, reactor.now)
        return
    wk_u64_store_relaxed(&slot.noticed, reactor.now)
    wk_u64_store_relaxed(&slot.last_received, hub_now(reactor.hub))


cdef uint64_t stamp(Reactor *reactor, Slot *slot) noexcept nogil:
    """The time to store with bytes that have moved: that of the turn's begin, but
    the present time if there was ever an idle rule, which must not come due early.
    A turn may be long, if only because the thread had to wait for its core."""
    return hub_now(reactor.hub) if wk_u64_load_relaxed(&slot.idle_since) else reactor.now


cdef bint _hand_on(Reactor *reactor, Slot *slot, uint32_t n) noexcept nogil:
    """Make the receive buffer itself the ring's block, and take another: a large
    receive into an empty ring is not copied. False if that is not the case, if the ring
    will never need so large a block, or there is no memory."""
    cdef Block *another
    if n < HAND_ON_FROM or slot.inbound.block != NULL or _mark(slot) <= RECEIVE_BUFFER // 2:
        return False
    another = pool_take(reactor.pool, RECEIVE_BUFFER)
    if another == NULL:
        return False
    ring_adopt(&slot.inbound, reactor.buffer, n)
    reactor.buffer = another
    return True


cdef void end_of_input(Reactor *reactor, Slot *slot, int32_t error) noexcept nogil:
    """The peer's FIN was read (error 0), or the connection broke. Wakes the tasks that
    wait to receive or for the end, and after an error also every sender. An
    error is kept even if the FIN was read before it, and what looks like a FIN is
    not one if there was a pending_error."""
    cdef uint32_t bits = 0
    pthread_mutex_lock(&slot.lock)
    slot.hung_up = True
    if error == 0:
        error = slot.pending_error
    if error == 0:
        slot.ended = True
    elif slot.error == 0:
        slot.error = error
    if slot.rcvlowat:
        slot.rcvlowat = 0
        bits |= READABLE
    if slot.end_wanted:
        slot.end_wanted = False
        bits |= ENDED
    if decoder_of(slot) != NULL:
        bits |= CONTROL
    pthread_mutex_unlock(&slot.lock)
    notify(reactor, slot, bits)
    if error != 0:
        _drop_output(reactor, slot)


cdef void _drop_output(Reactor *reactor, Slot *slot) noexcept nogil:
    """Nothing can be sent any more: drop what is unsent, and wake the senders."""
    cdef uint32_t bits = 0
    pthread_mutex_lock(&slot.lock)
    sender_drop(slot, reactor.pool)
    if slot.flush_wanted:
        slot.flush_wanted = 0
        bits = FLUSHED
    pthread_mutex_unlock(&slot.lock)
    slot.draining = False
    if wk_u32_exchange(&slot.writable_wanted, 0):
        bits |= WRITABLE
    notify(reactor, slot, bits)


cdef void on_writable(Reactor *reactor, Slot *slot) noexcept nogil:
    """An edge for output: flush, or wake a waiting sender.

    No wake is lost: the sender sets `writable_wanted`, then tries once more,
    and waits only after a second EAGAIN. The kernel raises the edge after that
    EAGAIN, so the load below sees the flag. A flag set by a sender whose second
    try succeeded makes one spurious completion, which is harmless."""
    if slot.draining:
        flush(reactor, slot)
    if slot.beyond.diversion != NULL:
        slot.beyond.diversion.act(<void *>reactor, slot, EPOLLOUT)
    if wk_u32_load(&slot.writable_wanted) and wk_u32_exchange(&slot.writable_wanted, 0):
        notify(reactor, slot, WRITABLE)


cdef inline bint _goes_on(Slot *slot, uint32_t *bits) noexcept nogil:
    """Under the lock: whether the reactor is to send from the ring. If not, it is somebody
    else's turn from here on, or nobody's."""
    cdef uint32_t state = sender_state(slot)
    cdef uint32_t left = ring_len(&slot.outbound)
    cdef bint hand_over
    if state & HELD or not state & QUEUED:
        return False
    if slot.flush_wanted and slot.mail.sending.ahead == 0:
        hand_over = slot.flush_wanted == HAND_OVER
        slot.flush_wanted = 0
        bits[0] |= FLUSHED
        if hand_over:
            sender_set(slot, HELD | QUEUED if left else HELD)
            return False
    if left == 0:
        sender_set(slot, 0)
    return left > 0


cdef inline int _spans_ahead(Slot *slot, iovec *spans) noexcept nogil:
    """Under the lock: what to send next, up to where it is to be handed over."""
    cdef int count = ring_spans(&slot.outbound, spans)
    cdef size_t ahead = slot.mail.sending.ahead
    if slot.flush_wanted == HAND_OVER:
        if ahead <= spans[0].iov_len:
            spans[0].iov_len = ahead
            return 1
        spans[1].iov_len = min(spans[1].iov_len, ahead - spans[0].iov_len)
    return count


cdef bint _cut_to_rate(Reactor *reactor, Slot *slot, msghdr *message) noexcept nogil:
    """Under the lock, by whose turn it is to send: leave what the connection's rate allows to be
    sent now. If that is nothing, sending waits. One that is closed has none."""
    cdef Rate *rate = rate_of(slot)
    if slot.state != OPEN:
        return True
    message.msg_iovlen = bucket_cut(
        &rate.write, message.msg_iov, <int>message.msg_iovlen, reactor.now
    )
    if message.msg_iovlen == 0:
        bucket_wait(&rate.write, reactor.now)
        return False
    return True


cdef inline bint _may_answer(Slot *slot) noexcept nogil:
    """Under the lock: whether a control frame waits for room, and there is some now."""
    cdef Decoder *ws = decoder_of(slot)
    return (ws != NULL and ws.scan.answer_due and not ws.answering
            and ring_len(&slot.outbound) <= slot.limits.outbound)


cdef void flush(Reactor *reactor, Slot *slot) noexcept nogil:
    """Send the outbound ring, if it is the reactor's turn (sender.pxd), until it is empty,
    or somebody's turn is next, or the kernel, or the connection's rate, takes no more.

    The lock is not held in sendmsg. Meanwhile the Trio side may append, even
    move the ring to a larger block: the reference taken here keeps the spans
    alive, and the bytes sent are still the ring's first ones."""
    cdef iovec spans[2]
    cdef msghdr message
    cdef Block *block
    cdef ssize_t sent
    cdef int32_t error = 0
    cdef uint32_t bits = 0
    cdef bint due
    memset(&message, 0, sizeof(message))
    message.msg_iov = spans
    pthread_mutex_lock(&slot.lock)
    while True:
        if not _goes_on(slot, &bits):
            slot.draining = False
            break
        slot.draining = True
        message.msg_iovlen = _spans_ahead(slot, spans)
        if slot.mark.rated and not _cut_to_rate(reactor, slot, &message):
            error = 0
            break
        block = slot.outbound.block
        wk_u32_add(&block.refs, 1)
        pthread_mutex_unlock(&slot.lock)
        sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
        error = errno if sent < 0 else 0
        pthread_mutex_lock(&slot.lock)
        pool_drop(block, reactor.pool)
        if sent > 0:
            ring_discard(&slot.outbound, reactor.pool, <uint32_t>sent)
            slot.mail.sending.ahead -= min(slot.mail.sending.ahead, <uint32_t>sent)
            wk_u64_bump(&slot.flushed, sent)
            wk_u64_bump(&slot.flush_calls, 1)
            wk_u64_store_relaxed(&slot.last_flushed, stamp(reactor, slot))
            if slot.mark.rated:
                bucket_spend(&rate_of(slot).write, sent, reactor.now)
        elif error != EINTR:
            break
    due = _may_answer(slot)
    pthread_mutex_unlock(&slot.lock)
    notify(reactor, slot, bits)
    if slot.draining:
        watch_rate(reactor, slot)
    if due:
        reactor_post(slot, ANSWER)
    if budget_is_near(reactor) and not slot.draining and slot.state == OPEN:
        budget_lets_go(reactor, slot)
    if error != 0 and error != EAGAIN:
        cannot_flush(reactor, slot, error)


cdef void cannot_flush(Reactor *reactor, Slot *slot, int32_t error) noexcept nogil:
    """Sending failed for good. Senders learn it at once; but what came in before,
    and may be in the kernel behind a pause, is received first. The error comes at
    its end, where the socket, having reported the error here, will show a FIN.

    If it was for lack of memory the socket itself is well, and there is a hole: what the Trio
    side sends, which looks at no lock for that, must not go behind it. So the socket is told to
    refuse it (EPIPE), before the turn to send is let go of."""
    shutdown(slot.fd, SHUT_WR)
    if slot.ended or slot.state != OPEN:
        end_of_input(reactor, slot, error)
        return
    pthread_mutex_lock(&slot.lock)
    if slot.pending_error == 0:
        slot.pending_error = error
    pthread_mutex_unlock(&slot.lock)
    _drop_output(reactor, slot)
    resume_reading(reactor, slot)
