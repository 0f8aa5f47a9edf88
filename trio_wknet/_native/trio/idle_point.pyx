"""Idle points: where a handler waits for its next request, so that a drain may end the wait.

An idle point is a cancel scope that the listener of its connection knows for as long as a task
is in it (handed.pyx). A drain gives those that it finds a deadline that has passed, and cancels
the others when they are entered. What there is to read by then is a request that has begun, and
nothing ends its wait. A wait that is over is not cancelled either: Trio calls the hook in which
completions are drained before it expires deadlines, so a receive that has its bytes by then
returns them.

A connection that was accepted a moment ago, perhaps by the drain itself, is not idle because it
has not sent anything yet: its first request is on the way. So its wait lasts until it is
FIRST_REQUEST old. (Over TLS what it has sent must have been decrypted: a handshake is no request.)
"""
cimport cython
from libc.stdint cimport uint64_t

from ..base.atomics cimport wk_u64_load_relaxed
from ..base.linux cimport MSG_DONTWAIT, MSG_PEEK, pthread_mutex_lock, pthread_mutex_unlock, recv
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport Slot
from .events cimport EventServer
from .handed cimport Handed, Point
from .idle_scopes cimport IdleWatch
from .tls cimport TLSBase

import trio

from trio_wknet._native.trio.idle_scopes import expire

cdef object CancelScope = trio.CancelScope
cdef object current_time = trio.current_time

cdef uint64_t FIRST_REQUEST = 1_000_000_000     # ns


@cython.final
cdef class IdlePoint(Point):
    """A context manager, whose value is a cancel scope.

    `conn`: None where no listener can have accepted what is waited for. `tls`: the stream over
    it, if there is one. `holds`: for a layer above that, a function that tells whether it holds
    bytes that were not received from it.
    """
    cdef IdleWatch conn
    cdef TLSBase tls
    cdef object holds
    cdef Handed handed          # while a task is in it
    cdef object scope
    cdef bint entered

    def __cinit__(self, IdleWatch conn, TLSBase tls=None, holds=None):
        self.conn = conn
        self.tls = tls
        self.holds = holds

    def __enter__(self):
        if self.conn is not None:
            self.conn.ensure_usable()
        if self.scope is not None:
            raise RuntimeError("an idle point can be entered once: call idle_point() each time")
        self.scope = CancelScope()
        self.handed = None if self.conn is None else handed_of(self.conn)
        if self.handed is None:
            return self.scope.__enter__()
        self.handed.enter(self)
        try:
            if self.handed.draining:
                self.end()
            self.scope.__enter__()
        except BaseException:
            self.handed.leave(self)
            raise
        self.entered = True
        return self.scope

    def __exit__(self, kind, exception, traceback):
        if self.handed is not None:
            self.handed.leave(self)
        return self.scope.__exit__(kind, exception, traceback)

    cdef int end(self) except -1:
        cdef uint64_t left = 0
        if self.conn.slot != NULL:
            if self.has_begun():
                return 0
            left = self.time_left()
        if left:
            self.scope.deadline = min(self.scope.deadline, current_time() + left / 1e9)
        elif self.entered:
            expire(self.scope)
        else:
            self.scope.cancel()
        return 0

    cdef bint has_begun(self) except -1:
        """Whether there is anything of a request. It may still be in the kernel."""
        cdef Slot *slot = self.conn.slot
        cdef bint begun
        cdef char byte
        pthread_mutex_lock(&slot.lock)
        begun = ring_len(&slot.inbound) > 0
        # A large frame leaves the ring in pieces.
        begun = begun or (slot.by_kind.scan != NULL and slot.by_kind.scan.moved > 0)
        pthread_mutex_unlock(&slot.lock)
        begun = begun or recv(slot.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0
        if begun or (self.tls is not None and self.tls.holds_bytes()):
            return True
        return self.holds is not None and self.holds()

    cdef uint64_t time_left(self) noexcept:
        """The time that a new connection has for its first request (ns)."""
        cdef Slot *slot = self.conn.slot
        cdef bint asked = wk_u64_load_relaxed(&slot.received) > 0
        cdef uint64_t now
        if asked and (self.tls is None or self.tls.has_read):
            return 0
        now = self.conn.core.now()
        if now >= slot.opened + FIRST_REQUEST:
            return 0
        return slot.opened + FIRST_REQUEST - now


cdef Handed handed_of(IdleWatch conn):
    """What a connection's listener has for its drain; None if no listener accepted it."""
    if conn.slot == NULL or conn.handed is not None:
        return conn.handed
    server = None if conn.slot.server == NULL else <object>conn.slot.server
    return (<EventServer>server).listener.handed if isinstance(server, EventServer) else None
