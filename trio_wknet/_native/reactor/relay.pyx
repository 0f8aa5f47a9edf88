"""The reactors' half of relays. relay.pxd has the rules."""
from libc.stdint cimport int32_t, uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_add, wk_u32_or, wk_u32_store, wk_u32_sub, wk_u64_bump, wk_u64_load,
    wk_u64_store_relaxed,
)
from ..base.files cimport wk_splice_to_socket
from ..base.linux cimport (
    AF_UNIX, EAGAIN, EINTR, EINVAL, ENOMEM, EPIPE, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT,
    EPOLLPRI, EPOLLRDHUP, F_SETPIPE_SZ, MSG_DONTWAIT, O_CLOEXEC, O_NONBLOCK, SHUT_WR,
    SPLICE_F_MOVE, SPLICE_F_NONBLOCK, close, errno, fcntl, iovec, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock, read, recv, shutdown, splice,
)
from ..base.memory cimport (
    FOR_PIPES, FOR_RELAYS, memory_free, memory_pipe, memory_take, memory_zeroed,
)
from .bucket cimport Rate, bucket_allows, bucket_spend, bucket_wait, rate_of
from .hub cimport RECEIVE_BUFFER, notify
from .lists cimport list_append
from .pool cimport block_data
from .ring cimport ring_discard, ring_len, ring_spans, ring_write_spans
from .send cimport ACCEPTED, CLOSED, FULL, Sent, send_message
from .sender cimport HELD, QUEUED, SHUT, sender_state
from .slot cimport DIVERT, ENDED, FLUSH, NEW, OPEN, READABLE
from .slot_map cimport slot_map_get
from .transfer cimport (
    cannot_flush, end_of_input, flush, note_pending_error, note_received, resume_reading,
    stamp, watch_rate,
)
from .wake cimport reactor_give, reactor_post

cdef enum:
    BUDGET = 4 * RECEIVE_BUFFER     # bytes of a direction in one step
    # A receive of so much is a sign of bulk: what follows is spliced. A splice that brings less
    # than the other is a sign of messages.
    BULK_FROM = 32768
    BULK_DOWN_TO = 8192
    DEFAULT_PIPE = 65536            # bytes, the system's


# --- the Trio side's steps ---------------------------------------------------------


cdef Relay *relay_new(Slot *a, Slot *b, uint32_t buffer) noexcept nogil:
    """A relay that the caller has a reference to; NULL without memory."""
    cdef Relay *relay = <Relay *>memory_zeroed(FOR_RELAYS, 1, sizeof(Relay))
    cdef uint32_t i
    cdef Side *side
    if relay == NULL:
        return NULL
    pthread_mutex_init(&relay.gate, NULL)
    wk_u32_store(&relay.users, 1)
    relay.buffer = buffer
    for i in range(2):
        side = &relay.sides[i]
        side.diversion.act = _act
        side.diversion.leave = _leave
        side.start.run = _start
        side.stop.run = _stop
        side.relay = relay
        side.slot = a if i == 0 else b
        side.reactor = <Reactor *>side.slot.reactor
        side.handle = wk_u64_load(&side.slot.handle)
        side.index = i
        side.pipe[0] = -1
        side.pipe[1] = -1
        side.fresh = True
    return relay


cdef void relay_start(Relay *relay) noexcept nogil:
    """The Trio side has seen to it that nobody else receives or sends on either connection."""
    cdef uint32_t i
    wk_u32_add(&relay.users, 2)
    for i in range(2):
        reactor_give(relay.sides[i].reactor, &relay.sides[i].start)


cdef bint relay_done(Relay *relay) noexcept nogil:
    cdef bint done
    pthread_mutex_lock(&relay.gate)
    done = relay.done
    pthread_mutex_unlock(&relay.gate)
    return done


cdef void relay_stop(Relay *relay, Pool *pool_a, Pool *pool_b) noexcept nogil:
    """Stop it for good, and leave both connections to whoever uses them next. The pools are the
    calling thread's; NULL: what the pipes hold is dropped. Idempotent."""
    cdef uint32_t i
    pthread_mutex_lock(&relay.gate)
    if relay.over:
        pthread_mutex_unlock(&relay.gate)
        return
    relay.over = True
    for i in range(2):
        _empty(&relay.sides[i], &relay.sides[1 - i], pool_a if i else pool_b)
        _close_pipe(&relay.sides[i])
    pthread_mutex_unlock(&relay.gate)
    # A connection that is let go of gets its command behind this; its reactor may run that first.
    wk_u32_add(&relay.users, 2)
    for i in range(2):
        reactor_give(relay.sides[i].reactor, &relay.sides[i].stop)


cdef void relay_drop(Relay *relay) noexcept nogil:
    """Drop a reference. The last one's holder sees what the others did, since each step of the
    count acquires and releases."""
    if wk_u32_sub(&relay.users, 1) > 1:
        return
    _close_pipe(&relay.sides[0])
    _close_pipe(&relay.sides[1])
    pthread_mutex_destroy(&relay.gate)
    memory_free(FOR_RELAYS, relay)


cdef void _empty(Side *source, Side *sink, Pool *pool) noexcept nogil:
    """Put what a pipe holds in the outbound ring that it was meant for. Without memory it is a
    hole, which ends that stream."""
    cdef unsigned char *data
    cdef uint32_t n = 0
    cdef ssize_t got
    cdef Sent outcome = FULL
    if source.held == 0 or sink.error or pool == NULL:
        return
    data = <unsigned char *>memory_take(FOR_RELAYS, source.held)
    while data != NULL and n < source.held:
        got = read(source.pipe[0], data + n, source.held - n)
        if got > 0:
            n += <uint32_t>got
        elif got == 0 or errno != EINTR:
            break
    if data != NULL and n == source.held:
        outcome = _queue(pool, sink.slot, data, n)
    memory_free(FOR_RELAYS, data)
    source.held = 0
    if outcome == ACCEPTED:
        source.moved += n
    elif outcome == FULL:
        _leave_hole(sink.slot)


cdef void _leave_hole(Slot *slot) noexcept nogil:
    """Nothing goes behind it: see `cannot_flush`. No side has let go of the descriptor."""
    shutdown(slot.fd, SHUT_WR)
    pthread_mutex_lock(&slot.lock)
    if slot.pending_error == 0:
        slot.pending_error = ENOMEM
    pthread_mutex_unlock(&slot.lock)


cdef void _close_pipe(Side *side) noexcept nogil:
    cdef int i
    for i in range(2):
        if side.pipe[i] >= 0:
            close(side.pipe[i])
            side.pipe[i] = -1


# --- beginning and ending, in a connection's reactor ---------------------------------------


cdef void _start(Reactor *reactor, Job *job) noexcept nogil:
    cdef Side *side = <Side *>(<char *>job - <size_t>&(<Side *>NULL).start)
    cdef Slot *slot = slot_map_get(reactor.hub.slot_map, side.handle)
    if slot == NULL or (slot.state != NEW and slot.state != OPEN):
        relay_drop(side.relay)
        return
    # The job's reference is the slot's from here on.
    slot.beyond.diversion = &side.diversion
    side.to_the_end = True      # edges may have been lost while reading was paused
    _act(<void *>reactor, slot, EPOLLIN | EPOLLOUT)


cdef void _stop(Reactor *reactor, Job *job) noexcept nogil:
    cdef Side *side = <Side *>(<char *>job - <size_t>&(<Side *>NULL).stop)
    cdef Slot *slot = slot_map_get(reactor.hub.slot_map, side.handle)
    reactor.descriptor_freed = True     # its pipes
    if slot != NULL and slot.beyond.diversion == &side.diversion:
        _leave(slot)
    if slot != NULL and slot.state == OPEN:
        # The relay has consumed edges.
        flush(reactor, slot)
        resume_reading(reactor, slot)
    relay_drop(side.relay)


cdef void _leave(Slot *slot) noexcept nogil:
    """The slot points to the relay no more."""
    cdef Side *side = <Side *>slot.beyond.diversion
    slot.beyond.diversion = NULL
    relay_drop(side.relay)


cdef bint _act(void *which, Slot *slot, uint32_t events) noexcept nogil:
    """Take a connection's part in its relay as far as it goes for now."""
    cdef Reactor *reactor = <Reactor *>which
    cdef Side *side = <Side *>slot.beyond.diversion
    cdef Side *other = &side.relay.sides[1 - side.index]
    cdef Relay *relay = side.relay
    cdef bint same = other.reactor == reactor
    cdef bint over
    # What this step calls may come back here: sending fails, and what is left is to be read.
    if side.acting:
        side.again = True
        return True
    pthread_mutex_lock(&relay.gate)
    over = relay.over
    if not over and not relay.done:
        side.acting = True
        if same:
            other.acting = True
        _note_events(reactor, side, events)
        _step(reactor, side, other, same)
        if side.again or (same and other.again):
            side.readable = True
            other.readable = other.readable or same
            side.again = False
            if same:
                other.again = False
            _step(reactor, side, other, same)
        side.acting = False
        _continue_later(reactor, side)
        if same:
            other.acting = False
            other.again = False
            _continue_later(reactor, other)
        side.again = False
        if side.over and other.over:
            relay.done = True
            notify(reactor, slot, READABLE)
    pthread_mutex_unlock(&relay.gate)
    if over:
        _leave(slot)
    return not over


cdef void _continue_later(Reactor *reactor, Side *side) noexcept nogil:
    """Read on in the next turn, if the budget or something else has stopped it."""
    if side.readable and not (side.stalled or side.ended or side.over):
        list_append(&reactor.ready, &side.slot.ready)


cdef void _note_events(Reactor *reactor, Side *side, uint32_t events) noexcept nogil:
    cdef Side *other = &side.relay.sides[1 - side.index]
    cdef uint32_t bits = 0
    if events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.to_the_end = True
        pthread_mutex_lock(&side.slot.lock)
        side.slot.hung_up = True
        if side.slot.end_wanted:
            side.slot.end_wanted = False
            bits = ENDED
        pthread_mutex_unlock(&side.slot.lock)
        notify(reactor, side.slot, bits)
    if events & EPOLLPRI:
        side.to_the_end = True
    if events & (EPOLLERR | EPOLLHUP) and side.over and not other.over:
        # It is not read any more, so nothing else would show that its peer is gone.
        note_pending_error(side.slot)
        pthread_mutex_lock(&side.slot.lock)
        _fail_sink(other, side, side.slot.error or side.slot.pending_error or EPIPE)
        pthread_mutex_unlock(&side.slot.lock)
    if events & EPOLLIN and side.stalled:
        note_received(reactor, side.slot)       # for idle rules, as when reading is paused
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        side.readable = True
    if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
        side.full = False


cdef void _step(Reactor *reactor, Side *side, Side *other, bint same) noexcept nogil:
    """Send what there is for this side, then read from it. With one reactor for both, what the
    first has made room for is read, too."""
    if side.slot.state != OPEN:
        return
    _deliver(reactor, other, side)
    _read(reactor, side, other, same)
    if same:
        if other.slot.state == OPEN:
            _deliver(reactor, side, other)
            _read(reactor, other, side, True)
    else:
        _call(side, other)


cdef void _call(Side *side, Side *other) noexcept nogil:
    """Have the other side's reactor look, if it has something to do: bytes or the end to send,
    or, now that there is room, to read."""
    if ((side.held > 0 or side.ended) and not side.over and not other.full) or (
            other.readable and not other.stalled and not other.over):
        reactor_post(other.slot, DIVERT)


# --- sending, in the reactor of the side that sends ----------------------------------------


cdef void _deliver(Reactor *reactor, Side *source, Side *sink) noexcept nogil:
    """Send what is held for a side, then the end; and let the other one read on if there is
    room."""
    cdef uint32_t queued
    if source.over:
        return
    while source.held > 0 and not sink.full:
        if not _splice_out(reactor, source, sink):
            break
    if source.over:
        return
    if source.ended and source.held == 0:
        _send_end(reactor, source, sink)
    if source.stalled and source.held == 0:
        pthread_mutex_lock(&sink.slot.lock)
        queued = ring_len(&sink.slot.outbound)
        pthread_mutex_unlock(&sink.slot.lock)
        if queued <= source.relay.buffer // 2:
            source.stalled = False
            source.readable = True


cdef bint _splice_out(Reactor *reactor, Side *source, Side *sink) noexcept nogil:
    """From the pipe to the socket. False if that must wait, or has failed for good."""
    cdef Slot *slot = sink.slot
    cdef Rate *rate = rate_of(slot)
    cdef size_t allowed = source.held
    cdef ssize_t n
    cdef int32_t error
    cdef bint may
    pthread_mutex_lock(&slot.lock)
    error = _barred(slot)
    may = not error and ring_len(&slot.outbound) == 0 and not sender_state(slot) & HELD
    if may:
        wk_u32_or(&slot.mail.sending.owner, QUEUED)
    pthread_mutex_unlock(&slot.lock)
    if error:
        _fail_sink(source, sink, error)
        return False
    if not may:
        return False        # what is queued goes first; `act` is called when it is sent
    if rate != NULL:        # its bucket belongs to the turn to send
        allowed = bucket_allows(&rate.write, allowed, reactor.now)
    if allowed == 0:
        bucket_wait(&rate.write, reactor.now)
        watch_rate(reactor, slot)
        sink.full = True    # until the wheel comes to it, as to an edge
        flush(reactor, slot)
        return False
    if reactor.hub.in_loop:
        n = wk_splice_to_socket(source.pipe[0], slot.fd, allowed)
    else:                   # this thread blocks all signals
        n = splice(source.pipe[0], NULL, slot.fd, NULL, allowed,
                   SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    error = errno if n < 0 else 0
    if n > 0:
        source.held -= <uint32_t>n
        source.moved += n
        wk_u64_bump(&slot.flushed, n)
        wk_u64_bump(&slot.flush_calls, 1)
        wk_u64_store_relaxed(&slot.last_flushed, stamp(reactor, slot))
        if rate != NULL:
            bucket_spend(&rate.write, n, reactor.now)
    elif error == EAGAIN:
        sink.full = True    # an edge will report that it is not any more
    flush(reactor, slot)    # what was queued meanwhile; and the turn is let go of
    if error and error != EAGAIN and error != EINTR:
        cannot_flush(reactor, slot, error)
        _fail_sink(source, sink, error)
        return False
    return True


cdef inline int32_t _barred(Slot *slot) noexcept nogil:
    """Under the lock: the errno with which nothing can be sent any more, or 0."""
    if slot.error or slot.pending_error:
        return slot.error or slot.pending_error
    return EPIPE if slot.refusing or sender_state(slot) & SHUT else 0


cdef void _send_end(Reactor *reactor, Side *source, Side *sink) noexcept nogil:
    """Send FIN, once nothing is queued ahead of it."""
    cdef Slot *slot = sink.slot
    cdef bint may, shut
    pthread_mutex_lock(&slot.lock)
    shut = sender_state(slot) & SHUT != 0
    may = ring_len(&slot.outbound) == 0 and not sender_state(slot) & (HELD | QUEUED)
    if may:
        # By fetch-or, so that it does not matter what the Trio side tries.
        wk_u32_or(&slot.mail.sending.owner, SHUT)
    pthread_mutex_unlock(&slot.lock)
    if not may:
        return
    if not shut:
        shutdown(slot.fd, SHUT_WR)      # fails only if the connection is broken
    source.over = True


cdef void _fail_sink(Side *source, Side *sink, int32_t error) noexcept nogil:
    """A side cannot be sent to, which ends one direction. What it has sent before is still
    read."""
    source.over = True
    sink.readable = True
    _blame(sink, error)


cdef void _blame(Side *side, int32_t error) noexcept nogil:
    if side.error == 0:
        side.error = error
    if not side.relay.broken:
        side.relay.broken = True
        side.relay.culprit = side.index


# --- reading, in the reactor of the side that reads -----------------------------------------


cdef void _read(Reactor *reactor, Side *source, Side *sink, bint same) noexcept nogil:
    """Read, and send on, until there is no more, or no room, or the budget is used up."""
    cdef ssize_t budget = BUDGET
    cdef ssize_t n = 0
    while budget > 0 and source.readable and not (source.stalled or source.ended or source.over):
        if source.fresh:
            n = _forward_ring(reactor, source, sink, same)
        elif source.held > 0 or (source.bulk and not source.cannot_splice):
            n = _splice_in(reactor, source, sink, same)
        else:
            n = _copy(reactor, source, sink, same)
        if n < 0:
            return
        budget -= n


cdef uint32_t _room(Side *source, Side *sink, bint same) noexcept nogil:
    """How much may be read; 0 stalls. A ring that its own reactor does not drain is empty, but
    for what it is about to drain."""
    cdef uint32_t used = source.held
    if not same or sink.slot.draining or sink.slot.state != OPEN:
        pthread_mutex_lock(&sink.slot.lock)
        used += ring_len(&sink.slot.outbound)
        pthread_mutex_unlock(&sink.slot.lock)
    source.stalled = used >= source.relay.buffer
    return 0 if source.stalled else source.relay.buffer - used


cdef uint32_t _room_to_read(
    Reactor *reactor, Side *source, Side *sink, bint same
) noexcept nogil:
    """How much may be read from the socket: no more than the connection's rate allows. If that is
    nothing, it counts as having nothing to read, until the wheel comes to it."""
    cdef Rate *rate = rate_of(source.slot)
    cdef uint32_t room = _room(source, sink, same)
    if room == 0 or rate == NULL:
        return room
    room = <uint32_t>bucket_allows(&rate.read, room, reactor.now)
    if room == 0:
        bucket_wait(&rate.read, reactor.now)
        watch_rate(reactor, source.slot)
        source.readable = False
        source.to_the_end = True        # edges are lost meanwhile
    return room


cdef ssize_t _forward_ring(Reactor *reactor, Side *source, Side *sink, bint same) noexcept nogil:
    """What was received before the relay began, or how it ended. The reactor alone adds to the
    ring and, during a relay, takes from it: so the spans stay where they are without the
    lock."""
    cdef Slot *slot = source.slot
    cdef iovec spans[2]
    cdef uint32_t n = _room(source, sink, same)
    cdef int32_t error
    cdef bint ended
    cdef int count
    if n == 0:
        return -1
    pthread_mutex_lock(&slot.lock)
    count = ring_spans(&slot.inbound, spans)
    n = min(n, ring_len(&slot.inbound))
    error = slot.error
    ended = slot.ended
    pthread_mutex_unlock(&slot.lock)
    if n == 0:
        source.fresh = False
        if error:
            _fail_source(source, sink, error)
        elif ended:
            _note_end(reactor, source, sink, same)
        return -1 if error or ended else 0
    if spans[0].iov_len >= n:
        spans[0].iov_len = n
        count = 1
    else:
        spans[1].iov_len = n - spans[0].iov_len
    if not _forward(reactor, source, sink, spans, count, n, same):
        return -1
    pthread_mutex_lock(&slot.lock)
    ring_discard(&slot.inbound, reactor.pool, n)
    pthread_mutex_unlock(&slot.lock)
    return n


cdef ssize_t _copy(Reactor *reactor, Side *source, Side *sink, bint same) noexcept nogil:
    """Receive, and send what came. -1: there was nothing."""
    cdef Slot *slot = source.slot
    cdef uint32_t asked = min(_room_to_read(reactor, source, sink, same), <uint32_t>RECEIVE_BUFFER)
    cdef iovec span
    cdef ssize_t n
    if asked == 0:
        return -1
    span.iov_base = block_data(reactor.buffer)
    n = recv(slot.fd, span.iov_base, asked, MSG_DONTWAIT)
    if n <= 0:
        return _nothing(reactor, source, sink, same, n)
    reactor.moved += n
    _count_received(reactor, slot, n)
    source.bulk = n >= BULK_FROM
    if n < asked and not source.to_the_end:
        source.readable = False
    span.iov_len = n
    return n if _forward(reactor, source, sink, &span, 1, <uint32_t>n, same) else -1


cdef ssize_t _splice_in(Reactor *reactor, Side *source, Side *sink, bint same) noexcept nogil:
    """From the socket to the pipe; and on, if this is the other side's reactor, too."""
    cdef ssize_t n
    cdef uint32_t room = _room_to_read(reactor, source, sink, same)
    if room == 0:
        return -1
    if source.pipe[0] < 0 and not _open_pipe(source):
        source.cannot_splice = True     # for want of descriptors: copied for good
        return 0
    n = splice(source.slot.fd, NULL, source.pipe[1], NULL, room,
               SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    if n < 0 and errno == EINVAL and source.held == 0:
        source.cannot_splice = True
        return 0
    if n <= 0:
        if n < 0 and errno == EAGAIN and source.held > 0:
            source.stalled = True       # it may be the pipe that is full
            if same:
                _deliver(reactor, source, sink)
            return -1 if source.stalled else 0
        return _nothing(reactor, source, sink, same, n)
    source.held += <uint32_t>n
    _count_received(reactor, source.slot, n)
    source.bulk = n >= BULK_DOWN_TO
    if same:
        _deliver(reactor, source, sink)
    return n


cdef bint _open_pipe(Side *side) noexcept nogil:
    if memory_pipe(FOR_PIPES, side.pipe, O_CLOEXEC | O_NONBLOCK) < 0:
        side.pipe[0] = -1
        side.pipe[1] = -1
        return False
    if side.relay.buffer > DEFAULT_PIPE:
        # If that is refused, a smaller pipe does it, too.
        fcntl(side.pipe[0], F_SETPIPE_SZ, <int>side.relay.buffer)
    return True


cdef void _count_received(Reactor *reactor, Slot *slot, ssize_t n) noexcept nogil:
    """During a relay reading is not paused, so these are the reactor's."""
    cdef Rate *rate = rate_of(slot)
    wk_u64_bump(&slot.received, n)
    wk_u64_bump(&slot.receive_calls, 1)
    note_received(reactor, slot)
    if rate != NULL:
        bucket_spend(&rate.read, n, reactor.now)


cdef ssize_t _nothing(
    Reactor *reactor, Side *source, Side *sink, bint same, ssize_t n
) noexcept nogil:
    """A call has brought no bytes: for now, or there will be none."""
    cdef int32_t error = errno if n < 0 else 0
    if error == EINTR:
        return 0
    if error == EAGAIN:
        source.readable = False
        source.to_the_end = source.slot.family == AF_UNIX or source.slot.hung_up
        return -1
    end_of_input(reactor, source.slot, error)
    pthread_mutex_lock(&source.slot.lock)
    error = source.slot.error
    pthread_mutex_unlock(&source.slot.lock)
    if error:
        _fail_source(source, sink, error)
    else:
        _note_end(reactor, source, sink, same)
    return -1


cdef void _note_end(Reactor *reactor, Side *source, Side *sink, bint same) noexcept nogil:
    source.ended = True
    if same and sink.slot.state == OPEN:
        _deliver(reactor, source, sink)


cdef void _fail_source(Side *source, Side *sink, int32_t error) noexcept nogil:
    """A side is broken, and so are both directions. What it has sent before may be held for the
    other one; `relay_stop` queues that."""
    _blame(source, error)
    source.over = True
    sink.over = True


cdef bint _forward(
    Reactor *reactor, Side *source, Side *sink, const iovec *spans, int count, uint32_t n,
    bint same
) noexcept nogil:
    """Send bytes that were read, or queue what cannot be sent now. False if the other side is
    broken."""
    cdef Sent outcome
    cdef int32_t error
    if same and sink.slot.state == OPEN:
        outcome = send_message(reactor, sink.slot, spans, count, <uint32_t>-1)
    else:
        outcome = _queue_spans(reactor.pool, sink.slot, spans, count, n)
    if outcome == ACCEPTED:
        source.moved += n
        return True
    pthread_mutex_lock(&sink.slot.lock)
    error = ENOMEM if outcome == FULL else _barred(sink.slot) or EPIPE
    pthread_mutex_unlock(&sink.slot.lock)
    if outcome == FULL:
        _leave_hole(sink.slot)
    _fail_sink(source, sink, error)
    return False


cdef Sent _queue_spans(
    Pool *pool, Slot *slot, const iovec *spans, int count, uint32_t n
) noexcept nogil:
    """Leave bytes to another thread's reactor to send. The pool is the calling thread's."""
    cdef Sent outcome = ACCEPTED
    pthread_mutex_lock(&slot.lock)
    if _barred(slot):
        outcome = CLOSED
    elif not ring_write_spans(&slot.outbound, pool, spans, count, n):
        outcome = FULL
    else:
        # Who turns 0 into QUEUED sees to it that it is sent: by FLUSH.
        wk_u32_or(&slot.mail.sending.owner, QUEUED)
    pthread_mutex_unlock(&slot.lock)
    if outcome == ACCEPTED:
        reactor_post(slot, FLUSH)
    return outcome


cdef Sent _queue(Pool *pool, Slot *slot, void *data, uint32_t n) noexcept nogil:
    cdef iovec span
    span.iov_base = data
    span.iov_len = n
    return _queue_spans(pool, slot, &span, 1, n)
