"""A listener's gate: accepted connections wait here for their PROXY header.

The gate is their server (slot.server) meanwhile, so the drain reports their bytes to it. While
a header is awaited there is no task and no object, the application does not know of the
connection, and the connection does not delay others:

    ports -> listener's queue -> gate: pending -> gate: passed -> accept

The listener counts all of them as waiting. So they are bounded together
(limits.accept_queue), and a drained listener is not reported as empty while
one may still come.

When a connection is admitted or refused outside of `take_in`, ACCEPTED is posted to the
listener, so that it wakes the accepting task, and lets ports resume.

The time for a header is an idle rule of the connection, for writing: nothing is sent
before the connection is admitted, so the rule comes due if it was not admitted for that
time, whatever arrived.

Silent connections would take the places of others for all of that time. So there are two
times: after its grace, a short part of the time, a connection may stay only while its place is
not needed. When ports have stopped because the queue is full, the connections that have waited
longest are refused until ports resume. Connections that come with their header pass at once,
however many are pending. The grace keeps a burst of honest connections, whose headers are still
in flight, from displacing each other.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load_relaxed, wk_u32_store_relaxed, wk_u64_add, wk_u64_load
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.admission cimport MAX_PER_ADDRESS, PROXY_HEADER, Reason
from ..reactor.idle cimport WRITE, idle_ms, idle_rule
from ..reactor.lists cimport queue_append, queue_take
from ..reactor.ring cimport ring_copy, ring_discard, ring_len
from ..reactor.slot cimport ABORT, ACCEPTED, DROP, IDLE, READABLE, RESUME, Slot
from .admission cimport NativeAdmission
from .receive cimport has_room

import logging

from trio_wknet._admission import packed_address
from trio_wknet._proxy.header import MAX_HEADER, header_size, parse_header
from trio_wknet._proxy.trust import peer_of

logger = logging.getLogger("trio_wknet.proxy_protocol")

cdef enum:
    MAX_AT_ONCE = 64           # connections taken in by one drain
    GRACE_PART = 20             # the grace is this fraction of the time for a header

cdef uint32_t MAX_HEADER_BYTES = MAX_HEADER
cdef int DEBUG = logging.DEBUG, INFO = logging.INFO, WARNING = logging.WARNING


cdef str _words(str why, object what):
    """Why a connection is refused; shorter if there is no memory."""
    try:
        return f"{why} {what}"
    except MemoryError:
        return why


@cython.final
cdef class ProxyGate(Server):
    """The gate of a listener with `proxy_protocol`.

    Args:
      trusted: the peers whose headers are used; all others are refused.
      seconds: the time for a header.
    """

    def __cinit__(self, trusted, double seconds):
        self.trusted = trusted
        self.patience = <uint64_t>(seconds * 1e9)
        self.grace = self.patience // GRACE_PART
        self.pending = {}
        self.log = FailureLog(logger, "refused %d more connections, unlogged", WARNING)

    cdef void open(self, Core core, Slot *listener, NativeAdmission admission) noexcept:
        """Begin, before any port feeds the listener."""
        self.core = core
        self.listener = listener
        self.admission = admission
        listener.accept_wanted = True

    cdef void close(self) noexcept:
        """Let go of all connections that were not accepted."""
        cdef uint32_t n
        cdef Slot *following
        cdef Slot *slot = queue_take(&self.oldest, &self.newest, <uint32_t>-1, &n)
        self.listener = NULL
        while slot != NULL:
            following = slot.chain
            self.core.let_go_unseen(slot)
            slot = following
        pending, self.pending = self.pending, None
        for address in pending:
            slot = <Slot *><size_t>address
            if slot.server == <void *>self:     # else it left, but its entry stayed
                slot.server = NULL
                self.core.let_go_unseen(slot)

    # --- coming in -----------------------------------------------------------

    cdef void take_in(self) noexcept:
        """Take in what ports have accepted: some now, and the rest by the next drains."""
        cdef Slot *listener = self.listener
        cdef Slot *slot
        cdef Slot *following
        cdef uint32_t n
        pthread_mutex_lock(&listener.lock)
        slot = queue_take(&listener.by_kind.oldest, &listener.door.newest, MAX_AT_ONCE, &n)
        listener.accept_wanted = slot == NULL and not listener.ended
        pthread_mutex_unlock(&listener.lock)
        if slot != NULL:
            self.core.requeue(listener, ACCEPTED)
        while slot != NULL:
            following = slot.chain
            if self.listener == NULL:       # closed by what was run for one before it
                self.core.let_go_unseen(slot)
            else:
                self.receive(slot)
            slot = following

    cdef void receive(self, Slot *slot) noexcept:
        # The calls below may close the listener, and `close` must find this slot.
        slot.server = <void *>self
        try:
            self.pending[<size_t>slot] = False
            trusted = self.trusted.trusts(slot.fd, slot.family)
        except Exception as failure:        # it is gone, and its peer is unknown
            self.refuse(slot, DROP, DEBUG, failure)
            return
        if self.listener == NULL:
            return
        if trusted:
            self.examine(slot, False)
        else:
            self.refuse(slot, ABORT, INFO, "proxy_protocol does not trust it")

    cdef void completed(self, Slot *slot, uint32_t bits) noexcept:
        cdef ProxyGate alive = self      # even if garbage is collected meanwhile
        if bits & (READABLE | IDLE):
            alive.examine(slot, bits & IDLE)
        if bits & IDLE and alive.is_pending(<size_t>slot):
            alive.note_grace(slot)

    # --- looking -------------------------------------------------------------

    cdef void examine(self, Slot *slot, bint time_is_up) noexcept:
        """Admit a connection, or refuse it, or have it wait for more. Only the reactor says that
        time may be up, because it has read the socket before."""
        cdef bint over
        cdef uint32_t size
        while True:
            try:
                data = self.look(slot, &over)
                size = header_size(data)
                header = parse_header(data[:size]) if size <= <uint32_t>len(data) else None
            except Exception as failure:
                self.refuse(slot, ABORT, WARNING, _words("no valid PROXY header:", failure))
                return
            if self.listener == NULL:       # closed by a finalizer meanwhile
                return
            if header is not None:
                self.admit(slot, header, size)
                return
            if over or (time_is_up and self.late(slot)):
                self.give_up(slot, data)
                return
            if self.wait_for(slot, size, <uint32_t>len(data)):
                return

    cdef bint late(self, Slot *slot) noexcept:
        return self.core.now() - slot.opened >= self.patience

    cdef void note_grace(self, Slot *slot) noexcept:
        """A connection's grace is over, and the reactor has read its socket since."""
        try:
            self.pending[<size_t>slot] = True
        except MemoryError:
            pass        # it keeps its place
        if self.listener != NULL:
            self.core.requeue(self.listener, ACCEPTED)      # ports may wait for the place

    cdef void make_room(self, uint32_t wanted) noexcept:
        """Ports have stopped: refuse up to `wanted` connections whose grace is over, oldest
        first, unless their header has arrived by now."""
        cdef Slot *slot
        try:
            old = self.past_grace(wanted)
        except MemoryError:
            return
        for address in old:
            slot = <Slot *><size_t>address
            if self.is_pending(address):    # it may have gone while others were examined
                self.examine(slot, False)
            if self.is_pending(address):
                self.refuse(slot, ABORT, WARNING, "no PROXY header yet, and others wait")

    cdef list past_grace(self, uint32_t most):
        old = []
        if self.pending is not None:
            for address, over in self.pending.items():
                if over:
                    old.append(address)
                if len(old) == most:
                    break
        return old

    cdef bint is_pending(self, address) noexcept:
        return self.pending is not None and address in self.pending

    cdef bytes look(self, Slot *slot, bint *over):
        """The bytes that are there, up to the length of the longest header."""
        cdef uint32_t n
        pthread_mutex_lock(&slot.lock)
        try:
            n = min(ring_len(&slot.inbound), MAX_HEADER_BYTES)
            data = PyBytes_FromStringAndSize(NULL, n)
            ring_copy(&slot.inbound, PyBytes_AS_STRING(data), n, 0)
            over[0] = slot.ended or slot.error != 0
        finally:
            pthread_mutex_unlock(&slot.lock)
        return data

    cdef bint wait_for(self, Slot *slot, uint32_t size, uint32_t seen) noexcept:
        """Arrange for a wake at `size` bytes, or the end, or when time is up. False if there is
        more by now than was seen."""
        cdef bint news, resume = False
        pthread_mutex_lock(&slot.lock)
        news = ring_len(&slot.inbound) > seen or slot.ended or slot.error != 0
        if not news:
            slot.rcvlowat = size
            resume = slot.paused        # at a mark below that
            slot.paused = False
        pthread_mutex_unlock(&slot.lock)
        if news:
            return False
        self.watch(slot)
        if resume and self.listener != NULL:
            self.core.post(slot, RESUME)
        return True

    cdef void watch(self, Slot *slot) noexcept:
        """Have the reactor report when the connection's grace is over, and then when its time
        is up."""
        cdef uint64_t time = self.patience
        if self.core.now() - slot.opened < self.grace:
            time = self.grace
        cdef uint32_t rule = idle_rule(idle_ms(time), WRITE)
        if wk_u32_load_relaxed(&slot.idle) != rule:
            self.core.watch_idle(slot, rule, slot.opened)

    # --- going on ------------------------------------------------------------

    cdef void admit(self, Slot *slot, header, uint32_t size) noexcept:
        """Pass a connection on to `accept`, with its header and without the header's bytes."""
        cdef bint resume
        if self.admission is not None and not self.welcomes(slot, header):
            return
        try:
            self.core.headers[wk_u64_load(&slot.handle)] = header
        except MemoryError as failure:
            self.refuse(slot, ABORT, WARNING, failure)
            return
        pthread_mutex_lock(&slot.lock)
        ring_discard(&slot.inbound, self.core.hub.pool, size)
        slot.rcvlowat = 0
        resume = slot.paused and has_room(slot)
        if resume:
            slot.paused = False
        pthread_mutex_unlock(&slot.lock)
        # The idle timeout is set when it is accepted.
        wk_u32_store_relaxed(&slot.idle, 0)
        self.leave(slot)
        queue_append(&self.oldest, &self.newest, slot)
        if self.admission is not None:
            self.admission.begin(self.core, slot, size)
        self.core.requeue(self.listener, ACCEPTED)
        if resume:
            self.core.post(slot, RESUME)

    cdef bint welcomes(self, Slot *slot, header) noexcept:
        """Whether admission lets in the peer that the header names; if not, it is refused."""
        cdef Reason reason
        try:
            peer = packed_address(header.source)
        except Exception as failure:
            self.refuse(slot, ABORT, WARNING, failure)
            return False
        if self.listener == NULL:       # closed by a finalizer meanwhile
            return False
        reason = self.admission.enter(self.core, slot, peer)
        if reason == MAX_PER_ADDRESS:
            self.refuse(slot, ABORT, DEBUG, "too many connections from its address", reason)
        return reason != MAX_PER_ADDRESS

    cdef void leave(self, Slot *slot) noexcept:
        slot.server = NULL
        try:
            self.pending.pop(<size_t>slot, None)
        except MemoryError:
            pass        # `close` sees that it is gone

    cdef void give_up(self, Slot *slot, data) noexcept:
        """Refuse a connection that ended before its header was complete, or takes too long."""
        cdef uint32_t command = DROP
        cdef int level = WARNING
        cdef str why = "it ended before its PROXY header, after"
        if self.late(slot):
            command = ABORT
            why = "no PROXY header in time, but"
        elif not data:
            level = DEBUG   # without a byte: so balancers check whether a server listens
        self.refuse(slot, command, level, _words(why, data))

    cdef void refuse(
        self, Slot *slot, uint32_t command, int level, why, Reason reason=PROXY_HEADER
    ) noexcept:
        cdef Slot *listener
        cdef int64_t before = self.log.take_line(level)
        try:
            peer = peer_of(slot.fd, slot.family) if before >= 0 else None
        except MemoryError:
            peer = None
        listener = self.listener
        if listener == NULL:        # closed by a finalizer meanwhile, the slot too
            return
        self.refused += 1
        if reason == PROXY_HEADER:
            wk_u64_add(&self.core.hub.refused[<int>PROXY_HEADER], 1)
        else:
            self.unwelcome += 1         # counted by admission
        self.leave(slot)
        self.core.post(slot, command)
        pthread_mutex_lock(&listener.lock)
        listener.waiting -= 1
        pthread_mutex_unlock(&listener.lock)
        self.core.requeue(listener, ACCEPTED)
        if before >= 0:
            # Last: handlers of logging may do anything.
            self.log.write(level, before, "refused a connection from %r: %s", peer, why)

    cdef void say_rest(self) noexcept:
        """The listener is closed: log how many refusals got no line."""
        self.log.write_rest()
