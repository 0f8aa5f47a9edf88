"""The Trio side of a relay: one operation that receives and sends on both connections, as far
as other tasks can see, and leaves the work to the reactors. reactor/relay.pxd has the rules.

While it lasts it is the `reader` and the `sender` of both, so that others get
`trio.BusyResourceError`. It ends when the reactors report that the relay is done (READABLE of
either connection), when a connection is let go of, or when it is cancelled. In each case the relay
is stopped first, before anybody else can use a connection.
"""
cimport cython
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.pool cimport Pool
from ..reactor.relay cimport Relay, relay_done, relay_drop, relay_new, relay_start, relay_stop
from ..reactor.slot cimport Slot
from .operation cimport ABORT_SUCCEEDED, WOKEN_UP, Operation, Wake, make_trap
from .send cimport Sending, SendHalf

import trio


def relay_native(SendHalf a not None, SendHalf b not None, uint32_t buffer):
    """Relay until both directions have ended. A checkpoint."""
    cdef Relaying operation = Relaying.__new__(Relaying)
    operation.conn = a
    operation.other = b
    operation.buffer = buffer
    return operation


@cython.final
cdef class Relaying(Sending):
    cdef SendHalf other
    cdef Relay *relay
    cdef uint32_t buffer
    cdef bint taken             # it is the reader and sender of both

    cdef object start(self):
        self.conn.ensure_free()
        self.other.ensure_free()
        trap = self.enter()
        if trap is not None:
            return trap
        trap = make_trap(self._abort)
        self.relay = relay_new(self.conn.slot, self.other.slot, self.buffer)
        if self.relay == NULL:
            raise MemoryError
        self.taken = True
        self.take(self.conn)
        self.take(self.other)
        relay_start(self.relay)
        return self.parked(trap)

    cdef void take(self, SendHalf conn) noexcept:
        """From here on nobody else in Trio's thread receives or sends."""
        cdef Slot *slot = conn.slot
        conn.reader = self
        conn.sender = self
        conn.core.settle(slot)
        if slot.corked:
            conn.core.uncork(slot)
        pthread_mutex_lock(&slot.lock)
        slot.rcvlowat = 0
        slot.paused = False     # as a receive that resumes reading does
        pthread_mutex_unlock(&slot.lock)

    cdef void give_back(self, SendHalf conn) noexcept:
        if conn.reader is self:
            conn.reader = None
        if conn.sender is self:
            conn.sender = None

    cdef void stop(self) noexcept:
        """Idempotent. In a forked child the reactors, and perhaps the lock, are the parent's."""
        cdef Pool *mine = NULL
        cdef Pool *others = NULL
        if self.conn.core.forked or self.conn.core.hub == NULL or self.other.core.hub == NULL:
            return
        # A finalizer may let go in another thread, to which no pool belongs.
        if self.conn.core.thread == PyThread_get_thread_ident():
            mine = self.conn.core.hub.pool
            others = self.other.core.hub.pool
        with nogil:
            relay_stop(self.relay, mine, others)

    cdef void release(self) noexcept:
        if self.taken:
            self.taken = False
            self.stop()
            self.give_back(self.conn)
            self.give_back(self.other)

    def _abort(self, raise_cancel):
        self.task = None
        self.release()
        return ABORT_SUCCEEDED

    cdef bint tears(self) noexcept:
        # Before one of the connections is let go of: what the relay holds for it is queued
        # first, and no reactor touches the other's slot from here on.
        if self.taken:
            self.stop()
        return False

    cdef int make_way(self) except -1:
        return self.conn.ensure_no_sender()     # nobody's bytes go between

    cdef Wake wake(self) noexcept:
        """Called once for each of the connections that ends, and for completions of what
        was before."""
        if self.task is None:
            return WOKEN_UP
        if (self.conn.slot != NULL and self.other.slot != NULL and not relay_done(self.relay)
                and not self.conn.core.forked):
            self.conn.reader = self     # the caller has taken it away
            self.other.reader = self
            return WOKEN_UP
        return Operation.wake(self)

    cdef object proceed(self):
        cdef Relay *relay = self.relay
        self.release()
        self.conn.ensure_usable()       # since it began there may have been a fork
        self.other.ensure_usable()
        if not relay.done:
            which = "a" if self.conn.slot == NULL else "b"
            raise trio.ClosedResourceError(f"{which} was closed while it was relayed")
        side = &relay.sides[relay.culprit]
        self.result = (
            relay.sides[0].moved, relay.sides[1].moved, side.error, relay.culprit,
        )
        return None

    cdef void finish(self) noexcept:
        self.release()

    def __dealloc__(self):
        if self.relay != NULL:
            relay_drop(self.relay)
