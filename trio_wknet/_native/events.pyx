# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Event mode: connections served by callbacks, without a task or an object each.

While nothing happens a connection is its slot. A completion finds the server in
the slot, the server makes the `Conn` and calls back; when the callback has
returned and nobody kept the object, it is gone again.

Order. Completions reach the Trio thread through the drain alone, and a callback of
a connection is started only in its QUIET phase, so they never overlap:

    accepted -> on_connect -> on_data, while there are bytes it has not seen -> on_close

What comes while a callback runs (RUNNING) is not noted anywhere: its end looks at
the connection afresh, under the lock under which the reactor adds bytes, and either
goes on or arranges for the next wake. So nothing is lost, and input that a callback
leaves for later does not call it again before more has come.

Whoever closes the connection, the Stream tells the server (`left`). on_close is
called from the drain then, or by the end of the callback under way, never from
inside whatever called close.
"""
from libc.stdint cimport uint32_t

from trio_wknet._native.conn cimport ACCEPTED, CLOSE, DROP, ENDED, IDLE, READABLE, Slot
from trio_wknet._native.core cimport Endpoint, Server
from trio_wknet._native.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from trio_wknet._native.listen cimport NativeListener
from trio_wknet._native.ring cimport ring_len
from trio_wknet._native.stream cimport Stream

from collections.abc import Coroutine
from contextvars import copy_context

import trio


cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1
    Py_ssize_t Py_REFCNT(object o)

cdef extern from *:
    """
    static inline int wk_has_weakrefs(PyObject *o)
    {
        Py_ssize_t offset = Py_TYPE(o)->tp_weaklistoffset;
        return offset != 0 && *(PyObject **)((char *)o + offset) != NULL;
    }
    """
    bint has_weakrefs "wk_has_weakrefs"(object o)

cdef enum:
    MOST_AT_ONCE = 1024         # connections taken from the queue by one look

# Where a connection stands (slot.phase).
cdef enum Phase:
    QUIET = 0           # no callback is under way; the reactor wakes us for news
    RUNNING = 1         # one is, in the drain or as a task; news wait for its end

# What a look at a connection found.
cdef enum Found:
    NOTHING = 0         # and the reactor will tell when that changes
    UNSEEN = 1          # bytes that no callback has seen
    OVER = 2            # the peer has ended, and every byte was seen


cdef class EventServer(Server):
    """One `serve_events`. Its Python subclass runs async callbacks as tasks."""

    def __init__(self, NativeListener listener, nursery, on_data, on_connect, on_close,
                 on_error, tell):
        self.core = listener.core
        self.listener = listener
        self.nursery = nursery
        self.context = copy_context()
        self.on_data = on_data
        self.on_connect = on_connect
        self.on_close = on_close
        self.on_error = on_error
        self.tell = tell
        self.running = {}
        self.gone = []

    # --- from the drain ------------------------------------------------------
    # These are where a callback's exception must stop: the drain runs inside Trio.

    cdef void accepted(self) noexcept:
        try:
            PyContext_Enter(self.context)
            try:
                self.bury()
                self.welcome()
            finally:
                PyContext_Exit(self.context)
        except BaseException as exception:
            self.fail(exception)

    cdef void completed(self, Slot *slot, uint32_t bits) noexcept:
        cdef Endpoint conn
        try:
            if slot.owner != NULL or bits & IDLE:
                # Whoever waits on the connection itself, in an async callback.
                conn = self.core.conn_of(slot)
                conn.completed(bits)
                if conn.slot == NULL:
                    return
            if slot.phase == QUIET and bits & (READABLE | ENDED) and self.failure is None:
                PyContext_Enter(self.context)
                try:
                    self.pump(slot)
                finally:
                    PyContext_Exit(self.context)
        except BaseException as exception:
            self.fail(exception)

    # --- serving -------------------------------------------------------------

    cdef void welcome(self) except *:
        """Take in accepted connections."""
        cdef Slot *slot
        cdef Slot *following
        while self.accepting:
            try:
                slot = self.listener.take_slots(MOST_AT_ONCE)
            except trio.ClosedResourceError:
                # Whether that is an error is for `serve_events` to say.
                self.accepting = False
                self.tell()
                return
            if slot == NULL:
                return
            while slot != NULL:
                following = slot.chain
                self.greet(slot)
                slot = following

    cdef void greet(self, Slot *slot) except *:
        self.core.claim(slot)
        slot.server = <void *>self
        slot.phase = QUIET
        self.open += 1
        if self.on_connect is not None:
            self.call(slot, self.on_connect)
        else:
            self.pump(slot)

    cdef void pump(self, Slot *slot) except *:
        """Go on with a connection that is QUIET."""
        cdef uint32_t arrived
        cdef int found = self.look(slot, &arrived)
        if found == UNSEEN:
            slot.seen = arrived
            self.call(slot, self.on_data)
        elif found == OVER:
            self.close(slot)

    cdef int look(self, Slot *slot, uint32_t *arrived) noexcept:
        """See what is new. If nothing is, arrange to be told: of one more byte
        than is there, or of the end. A reactor that paused, because the bytes that
        callbacks left have reached the bound, goes on once some are taken."""
        cdef int found = NOTHING
        cdef uint32_t unread
        pthread_mutex_lock(&slot.lock)
        unread = ring_len(&slot.inbound)
        arrived[0] = slot.taken + unread
        if unread > 0 and arrived[0] != slot.seen:
            found = UNSEEN
        elif slot.ended or slot.error or slot.foretold:
            found = OVER
        else:
            slot.wanted = unread + 1
            slot.end_wanted = True
        pthread_mutex_unlock(&slot.lock)
        return found

    cdef void call(self, Slot *slot, callback) except *:
        """Call back about a connection, and see to what comes of it."""
        cdef Stream conn = self.lend(slot)
        slot.phase = RUNNING
        try:
            awaitable = callback(conn)
            if awaitable is not None:
                self.spawn(self._run, conn, awaitable)
                return
        except BaseException as exception:
            if not self.settled(conn, exception):
                raise
            return
        self.callback_done(conn)
        if self.spare is None and Py_REFCNT(conn) == 1 and not has_weakrefs(conn):
            if conn.unmarked():
                conn.forget()
                self.spare = conn

    cdef Stream lend(self, Slot *slot):
        """The object of a connection, for a callback. Where there is none, that of the
        last callback will do, if nobody kept it: a plain callback thus makes no
        object for each message."""
        cdef Stream conn = self.spare
        if slot.owner != NULL or conn is None:
            return self.core.conn_of(slot)
        self.spare = None
        conn.attach(self.core, slot)
        return conn

    cdef void spawn(self, runner, Stream conn, awaitable) except *:
        """Run the rest of an async callback as a task."""
        if not isinstance(awaitable, Coroutine):
            raise TypeError(
                f"a callback must return None or be an async function, not return {awaitable!r}"
            )
        try:
            self.nursery.start_soon(runner, conn, awaitable)
        except BaseException:
            awaitable.close()
            raise

    cdef void callback_done(self, Stream conn) except *:
        """A plain callback has returned. What there is to do now waits for the next
        drain: one connection shall not keep the others from theirs."""
        cdef Slot *slot = conn.slot
        cdef uint32_t arrived
        if slot == NULL:
            self.ended(conn)
            return
        slot.phase = QUIET
        if self.look(slot, &arrived) != NOTHING:
            self.core.requeue(slot, READABLE)

    def _next(self, Stream conn):
        """An async callback has returned: the next one to await, or None."""
        cdef Slot *slot = conn.slot
        cdef uint32_t arrived
        cdef int found
        if slot == NULL:
            self.ended(conn)
            return None
        found = self.look(slot, &arrived)
        if found == UNSEEN:
            slot.seen = arrived
            awaitable = self.on_data(conn)
            if awaitable is None:
                self.callback_done(conn)
            return awaitable
        slot.phase = QUIET
        if found == OVER:
            self.close(slot)
        return None

    cdef bint settled(self, Stream conn, exception):
        """A callback raised: end the connection. True if on_error has dealt with
        it, so that the others go on being served."""
        cdef bint dealt_with = self.on_error is not None and isinstance(exception, Exception)
        try:
            if dealt_with:
                self.on_error(conn, exception)
        finally:
            conn.let_go(CLOSE if dealt_with else DROP, "closed")
            self.ended(conn)
        return dealt_with

    def _settled(self, Stream conn, exception):
        return self.settled(conn, exception)

    # --- the end of a connection ---------------------------------------------

    cdef void close(self, Slot *slot) except *:
        """The peer has ended, and all it sent was seen."""
        cdef Stream conn = self.core.conn_of(slot)
        slot.phase = RUNNING
        conn.let_go(CLOSE, "closed")
        self.ended(conn)

    cdef void left(self, Endpoint conn, str reason) noexcept:
        """A connection is being let go of, by whomever."""
        if conn.slot.phase == QUIET:
            self.gone.append(conn)
            if self.listener.slot != NULL:
                self.core.requeue(self.listener.slot, ACCEPTED)
        elif reason == "idle" and conn in self.running:
            self.running[conn].cancel()
        # else the end of the callback sees it

    cdef void bury(self):
        """Call on_close for connections that ended between callbacks."""
        while self.gone:
            try:
                self.ended(self.gone.pop(0))
            except BaseException as exception:
                self.fail(exception)

    cdef void ended(self, Stream conn) except *:
        """The last callback of a connection, which was let go of."""
        if conn.buried:
            return          # it was this callback that raised
        conn.buried = True
        if self.on_close is None:
            self.count_down()
            return
        try:
            awaitable = self.on_close(conn, conn._reason())
            if awaitable is not None:
                self.spawn(self._run_last, conn, awaitable)
                return
        except BaseException as exception:
            self.count_down()
            if self.on_error is None or not isinstance(exception, Exception):
                raise
            self.on_error(conn, exception)
            return
        self.count_down()

    def _set_running(self, Stream conn, scope):
        """Which cancel scope an async callback runs in, for idleness to end it."""
        if scope is None:
            self.running.pop(conn, None)
        else:
            self.running[conn] = scope

    def _ended(self, Stream conn):
        self.ended(conn)

    cdef void count_down(self):
        self.open -= 1
        if self.open == 0 and not self.accepting:
            self.tell()

    def _count_down(self):
        self.count_down()

    # --- the end of it all ---------------------------------------------------

    def _start(self):
        """Take over the listener, and what waits there."""
        self.accepting = True
        self.listener.hand_to(self)

    cdef void fail(self, exception):
        """Have `serve_events` raise this; the first of several counts."""
        if self.failure is None:
            self.failure = exception
        self.tell()

    @property
    def _failure(self):
        return self.failure

    def _stop(self):
        """Close what is still served, apart from connections whose callback runs as
        a task: that task is being cancelled, and sees to it."""
        cdef uint32_t cursor = 0
        cdef Slot *slot
        cdef Stream conn
        self.accepting = False
        self.listener.hand_to(None)
        slot = self.core.next_claimed(&cursor)
        while slot != NULL:
            if slot.server == <void *>self and slot.phase == QUIET:
                conn = self.core.conn_of(slot)
                conn.let_go(DROP, "closed")
            slot = self.core.next_claimed(&cursor)
        self.bury()
