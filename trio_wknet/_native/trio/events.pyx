"""Event mode: connections served by callbacks, without a task or an object each.

While nothing happens a connection is its slot. A completion finds the server in
the slot, the server makes the `Conn` and calls back; when the callback has
returned and nobody kept the object, it is gone again.

Order. Completions reach the Trio thread only through the drain, and a callback of
a connection is started only in its QUIET phase, so its callbacks never overlap:

    accepted -> on_connect -> on_data, while there are bytes it has not seen -> on_close

What comes while a callback runs (RUNNING) is not noted anywhere: when the callback ends,
the server looks at the connection again, under the lock under which the reactor adds bytes,
and either puts it back in the queue, behind the others, or arranges for the next wake. So
nothing is lost, a connection that never stops sending does not delay the others, and input
that a callback leaves unread does not call it again before more has come.

The phase (`slot.phase`). Rules:
  - Only Trio's thread reads or changes it.
  - RUNNING and ASKED cover a callback from before its call to its end, as a task's too.
  - When a connection is let go of, on_close is due, once. In QUIET, `left` puts the
    connection on a list, and the drain calls it. Otherwise the end of the callback does.

  from      event                                          to       by
  --------  ---------------------------------------------  -------  -------------------------
  (taken)   the server takes the connection in             QUIET    Core.claim, admit_conn
  QUIET     on_connect or on_data is due                   RUNNING  run_callback
  QUIET     the peer ended, and on_data has seen all       RUNNING  close, then `ended`
  QUIET     let go of by the application, by its idle      (gone)   left, then run_on_close
            timeout or with the engine
  RUNNING   a receive without waiting that knows how much  ASKED    ReceiveSized.asked
            it wants found less, and raised WouldBlock
  ASKED     bytes are taken, or a wait for some is         RUNNING  ReceiveHalf.consume,
            cancelled                                               Stream._abort_read
  RUNNING,  the callback returned, the connection is open  QUIET    callback_done
  ASKED
  RUNNING,  the callback returned, it was let go of        (gone)   callback_done, then `ended`
  ASKED
  RUNNING,  the callback raised                            (gone)   end, then `ended`
  ASKED
  RUNNING,  serving has ended, and Ctrl-C kept the end of  QUIET    _stop(running=True), which
  ASKED     the callback from being noted                           then lets go of it

Whatever closes the connection, the Stream tells the server (`left`). on_close is then
called from the drain, or at the end of the running callback, never from
inside the call that closed the connection.

Contexts. Callbacks run in a copy of serve_events' context. If one sets a variable in
it, the copy becomes its connection's own, and the next callback of any other connection
gets another copy. A context is a persistent map, and comparing one pointer shows that
nothing was set: so connections whose callbacks set nothing share one copy, and have no
context of their own. What the task of an async callback has set at its end is kept likewise.

Nothing is raised where a callback was called, which is somewhere inside Trio: a task
in the nursery raises it instead (`fail`), which ends serving. From then on only on_close
is called.
"""
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_u64_load, wk_u64_load_relaxed
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport (
    ACCEPTED, ASKED, CLOSE, DROP, ENDED, IDLE, QUIET, READABLE, RESUME, RUNNING, Slot,
)
from .core cimport Endpoint, Server, take_entry
from .idle_scopes cimport IdleWatch
from .listen cimport NativeListener
from .receive cimport has_room
from .stream cimport Stream

from collections.abc import Coroutine
from contextvars import ContextVar, copy_context

import trio


cdef extern from "Python.h":
    int PyContext_Enter(object context) except -1
    int PyContext_Exit(object context) except -1

cdef extern from *:
    """
    /* How CPython's contexts begin (pycore_context.h), which `_shows_variables` checks. */
    typedef struct {
        PyObject_HEAD
        PyObject *previous;
        PyObject *variables;
    } wk_context;

    static inline void *wk_variables(PyObject *context)
    {
        return ((wk_context *)context)->variables;
    }
    """
    void *variables_of "wk_variables"(object context)


# --- contexts ----------------------------------------------------------------------


cdef bint _shows_variables() except -1:
    """Whether the pointer to a context's variables is where it is looked for: shared by
    a copy, and changed by nothing but setting."""
    cdef object var = ContextVar("trio_wknet probe", default=None)
    cdef object one = copy_context()
    cdef object copy
    one.run(var.set, one)
    copy = one.copy()
    if variables_of(one) == NULL or variables_of(copy) != variables_of(one):
        return False
    copy.run(var.set, one)      # what it is already
    if variables_of(copy) != variables_of(one):
        return False
    copy.run(var.set, var)
    return variables_of(copy) != variables_of(one)


cdef bint SHOWS_VARIABLES = _shows_variables()


cdef bint _are_same(object context, object other):
    """Whether two contexts have the very same values, not only equal ones."""
    cdef object absent = object()
    if SHOWS_VARIABLES and variables_of(context) == variables_of(other):
        return True
    if len(context) != len(other):
        return False
    return all([other.get(var, absent) is value for var, value in context.items()])


cdef inline bint was_set(object context, object before) noexcept:
    """Whether anything may have been set in a copy of a context since."""
    return not SHOWS_VARIABLES or variables_of(context) != variables_of(before)


cdef enum:
    MAX_AT_ONCE = 64           # connections taken in by one drain


cdef class EventServer(Server):
    """One `serve_events`. Its Python subclass runs async callbacks as tasks."""

    def __init__(self, NativeListener listener, nursery, on_data, on_connect, on_close,
                 on_error, tell):
        self.core = listener.core
        self.totals = listener.totals
        self.listener = listener
        self.nursery = nursery
        self.base = copy_context()
        self.contexts = {}
        self.on_data = on_data
        self.on_connect = on_connect
        self.on_close = on_close
        self.on_error = on_error
        self.tell = tell
        self.running = {}

    # --- from the drain ------------------------------------------------------

    cdef void accepted(self) noexcept:
        """Connections wait to be accepted, or some have been let go of."""
        try:
            self.run_on_close()
            self.accept_pending()
        except BaseException as exception:
            self.fail(exception)

    cdef void closed(self) noexcept:
        """The listener gives no more connections."""
        self.accepting = False
        self.tell_waiter()

    cdef void tell_waiter(self) noexcept:
        try:
            self.tell()
        except BaseException as failure:
            self.core.fail_run(failure)

    cdef void completed(self, Slot *slot, uint32_t bits) noexcept:
        cdef Endpoint conn = self.core.owner_of(slot)
        try:
            if conn is None and bits & IDLE:
                conn = self.core.conn_of(slot)
            if conn is not None:
                # For a task that waits on the connection itself, in an async callback.
                conn.completed(bits)
                # What has come is the part of who takes the descriptor back.
                if conn.slot == NULL or (<Stream>conn).detaching:
                    return
            if slot.phase == QUIET and bits & (READABLE | ENDED) and not self.ending:
                self.pump(slot)
        except BaseException as exception:
            self.fail(exception)

    # --- serving -------------------------------------------------------------

    cdef void accept_pending(self) except *:
        """Take in accepted connections: some now, and the rest by the next drains."""
        cdef Slot *slot
        cdef Slot *following
        if not self.accepting or self.ending:
            return
        try:
            slot = self.listener.take_slots(MAX_AT_ONCE)
        except trio.ClosedResourceError:
            # Whether that is an error is for `serve_events` to say.
            self.closed()
            return
        if slot != NULL:
            self.core.requeue(self.listener.slot, ACCEPTED)
        while slot != NULL:
            following = slot.chain
            if self.ending:     # since the callback of one before it
                self.core.let_go_unseen(slot)
            else:
                self.admit_conn(slot)
            slot = following

    cdef void admit_conn(self, Slot *slot) noexcept:
        self.core.claim(slot)
        slot.server = <void *>self
        slot.phase = QUIET
        self.open += 1
        self.totals.open += 1
        if self.on_connect is not None:
            self.call(slot, self.on_connect)
        else:
            self.pump(slot)

    cdef void pump(self, Slot *slot) noexcept:
        """Go on with a connection that is QUIET."""
        cdef uint32_t arrived
        cdef int found = self.look(slot, &arrived)
        if found == UNSEEN:
            slot.seen = arrived
            self.call(slot, self.on_data)
        elif found == OVER:
            self.close(slot)

    cdef int look(self, Slot *slot, uint32_t *arrived) noexcept:
        """See what is new. If nothing is, arrange for a wake: by one more byte
        than is there, or by the end. If the reactor paused, it reads on, unless
        the bytes that callbacks left have reached the bound; then nothing more can
        come, and a broken connection is over without the bytes behind them.

        A wish that is there already is that of a callback which asked for more than
        there was (receive_sized.pyx): what comes before it is fulfilled is no news."""
        cdef int found = NOTHING
        cdef bint over, resume = False
        cdef uint32_t unread
        pthread_mutex_lock(&slot.lock)
        unread = ring_len(&slot.inbound)
        arrived[0] = slot.taken + unread
        over = slot.ended or slot.error
        if unread > 0 and arrived[0] != slot.seen and (over or not slot.rcvlowat):
            found = UNSEEN
        elif over:
            found = OVER
        else:
            if not slot.rcvlowat:
                slot.rcvlowat = unread + 1
            slot.end_wanted = True
            if slot.paused:
                resume = has_room(slot)
                slot.paused = not resume
                if slot.paused and slot.pending_error:
                    found = OVER
        pthread_mutex_unlock(&slot.lock)
        if resume:
            self.core.post(slot, RESUME)
        return found

    cdef void call(self, Slot *slot, callback) noexcept:
        """Call back about a connection, and see to what comes of it."""
        cdef Stream conn
        try:
            conn = self.borrow_conn(slot)
        except BaseException:
            self.core.let_go_blind(slot)
            return
        self.run_callback(conn, callback, conn, None)
        if self.spare is None and Py_REFCNT(conn) == 1 and not has_weakrefs(conn):
            if conn.unmarked():
                conn.forget()
                self.spare = conn

    cdef object subject(self, Stream conn):
        """What a connection's callbacks are called with."""
        return conn

    cdef void run_callback(self, Stream conn, callback, subject, list frames) noexcept:
        """Call a callback of a connection, which is open. `frames`: None, or another
        argument."""
        cdef Slot *slot = conn.slot
        cdef object context, failure = None
        cdef bint as_task = False, dealt_with = False
        slot.phase = RUNNING
        try:
            context = self.context_of(slot)
            PyContext_Enter(context)
            try:
                awaitable = callback(subject) if frames is None else callback(subject, frames)
                if awaitable is not None:
                    self.spawn(self._run, conn, awaitable)
                    as_task = True
            except BaseException as exception:
                failure = exception
                dealt_with = self.reported(conn, exception)
            finally:
                PyContext_Exit(context)
            if context is self.shared and was_set(context, self.base):
                self.keep_context(conn, context)
        except BaseException as exception:      # no memory for a context
            failure = exception
        if failure is not None:
            self.end(conn, dealt_with)
            if not dealt_with:
                self.fail(failure)
        elif not as_task:
            self.callback_done(conn)

    cdef object shared_context(self):
        """For a callback of a connection that has no context of its own."""
        if self.shared is None:
            self.shared = self.base.copy()
        return self.shared

    cdef object context_of(self, Slot *slot):
        context = None
        if self.contexts:
            context = self.contexts.get(wk_u64_load(&slot.handle))
        return self.shared_context() if context is None else context

    cdef void keep_context(self, Stream conn, context) noexcept:
        """A callback has set something: the context is its connection's from now on. Not
        if that was set back since."""
        if context is self.shared:
            self.shared = None
        try:
            if _are_same(context, self.base):
                context = None
            if conn.slot == NULL:
                conn.variables = context
            elif context is None:
                self.contexts.pop(wk_u64_load(&conn.slot.handle), None)
            else:
                self.contexts[wk_u64_load(&conn.slot.handle)] = context
        except BaseException as exception:
            self.fail(exception)

    cdef void keep_of_task(self, Stream conn) noexcept:
        """What the task of a callback, which is running, has set until its end."""
        cdef object before = conn.variables
        try:
            if conn.slot != NULL:
                before = self.contexts.get(wk_u64_load(&conn.slot.handle))
            context = copy_context()
            if was_set(context, self.base if before is None else before):
                self.keep_context(conn, context)
        except BaseException as exception:
            self.fail(exception)

    cdef Stream borrow_conn(self, Slot *slot):
        """The object of a connection, for a callback. Where there is none, that of the
        last callback will do, if nobody kept it: a plain callback thus makes no
        object for each message."""
        cdef Stream conn = self.spare
        if slot.owner != NULL or conn is None:
            return self.core.conn_of(slot)
        self.spare = None
        conn.attach(self.core, slot)
        return conn

    cdef int spawn(self, runner, Stream conn, awaitable) except -1:
        """Run the rest of an async callback as a task."""
        if not isinstance(awaitable, Coroutine):
            raise TypeError(
                f"a callback must return None or be an async function, not return {awaitable!r}"
            )
        try:
            self.nursery.start_soon(
                runner, conn, awaitable, name=getattr(awaitable, "__qualname__", None)
            )
        except BaseException:
            awaitable.close()
            raise
        return 0

    cdef void callback_done(self, Stream conn) noexcept:
        """A callback has returned. What there is to do now waits for the next drain:
        one connection shall not keep the others from theirs."""
        cdef Slot *slot = conn.slot
        cdef uint32_t arrived
        if slot == NULL or self.ending:
            conn.let_go(DROP, "closed")
            self.ended(conn)
            return
        if slot.phase == ASKED:
            # What it left it will look at again, if only to find that the end came
            # first: as good as not seen.
            slot.seen = slot.taken - 1
        slot.phase = QUIET
        if self.look(slot, &arrived) != NOTHING:
            self.core.requeue(slot, READABLE)

    def _callback_done(self, Stream conn):
        self.keep_of_task(conn)
        self.callback_done(conn)

    cdef bint reported(self, Stream conn, exception) noexcept:
        """Have on_error deal with an exception. False if that is not for it to do."""
        if self.on_error is None or not isinstance(exception, Exception):
            return False
        try:
            awaitable = self.on_error(self.subject(conn), exception)
            if isinstance(awaitable, Coroutine):
                awaitable.close()
                raise TypeError(f"on_error must be a plain function, not {self.on_error!r}")
        except BaseException as another:
            self.fail(another)
        return True

    cdef bint report(self, Stream conn, exception) noexcept:
        """The same for what no callback raised, in the connection's context."""
        cdef object context
        cdef bint dealt_with = False
        if self.on_error is None:
            return False
        try:
            context = self.context_of(conn.slot)
            PyContext_Enter(context)
            try:
                dealt_with = self.reported(conn, exception)
            finally:
                PyContext_Exit(context)
            if context is self.shared and was_set(context, self.base):
                self.keep_context(conn, context)
        except BaseException as failure:        # no memory for a context
            self.fail(failure)
        return dealt_with

    def _reported(self, Stream conn, exception):
        return self.reported(conn, exception)

    cdef void end(self, Stream conn, bint dealt_with) noexcept:
        """Of a connection whose callback raised."""
        conn.let_go(CLOSE if dealt_with else DROP, "closed")
        self.ended(conn)

    def _settled(self, Stream conn, exception):
        """A callback's task raised: end the connection. False if the exception is to end
        `serve_events`, too."""
        cdef bint dealt_with = self.reported(conn, exception)
        self.keep_of_task(conn)
        self.end(conn, dealt_with)
        return dealt_with

    # --- the end of a connection ---------------------------------------------

    cdef void close(self, Slot *slot) noexcept:
        """The peer has ended, and all it sent was seen."""
        cdef Stream conn
        try:
            conn = self.core.conn_of(slot)
        except BaseException:
            self.core.let_go_blind(slot)
            return
        slot.phase = RUNNING
        conn.let_go(CLOSE, "closed")
        self.ended(conn)

    cdef void lost(self, Slot *slot) noexcept:
        """A connection is being let go of without an object, for which there is no
        memory. So its on_close cannot be called; `serve_events` says so."""
        cdef void *context = slot.context
        slot.context = NULL
        take_entry(self.contexts, slot)
        self.totals.open -= 1
        self.totals.conn_ended(
            wk_u64_load_relaxed(&slot.received),
            wk_u64_load_relaxed(&slot.sent) + wk_u64_load_relaxed(&slot.flushed),
            slot.by_kind.scan, "closed", 0,
        )
        self.open -= 1
        try:
            raise MemoryError       # made beforehand, by Python
        except MemoryError as failure:
            self.fail(failure)
        if context != NULL:
            Py_DECREF(<object>context)

    cdef void left(self, Endpoint conn, str reason) noexcept:
        """A connection is being let go of."""
        cdef Stream stream = <Stream>conn
        stream.variables = take_entry(self.contexts, stream.slot)
        self.totals.open -= 1
        if conn.slot.phase == QUIET:
            # Without taking memory: it has to be let go of.
            if self.last_gone is None:
                self.first_gone = stream
            else:
                self.last_gone.next_gone = stream
            self.last_gone = stream
            if self.listener.slot != NULL:
                self.core.requeue(self.listener.slot, ACCEPTED)
            else:
                self.tell_waiter()
        elif (<IdleWatch>conn).timed_out and conn in self.running:
            try:
                self.running[conn].cancel()
            except BaseException as failure:
                self.fail(failure)
        # else the end of the callback sees it

    cdef void run_on_close(self) noexcept:
        """Call on_close for connections that ended between callbacks."""
        cdef Stream conn = self.first_gone
        cdef Stream following
        self.first_gone = None
        self.last_gone = None
        while conn is not None:
            following = conn.next_gone
            conn.next_gone = None
            self.ended(conn)
            conn = following

    def _run_on_close(self):
        self.run_on_close()

    cdef void ended(self, Stream conn) noexcept:
        """The last callback of a connection, which was let go of."""
        if conn.buried:
            return          # it was this callback that raised
        conn.buried = True
        try:
            if self.on_close is not None and self.call_last(conn):
                return
        except BaseException as exception:
            self.fail(exception)
        self.count_down()

    cdef object call_on_close(self, Stream conn):
        return self.on_close(self.subject(conn), conn._reason())

    cdef bint call_last(self, Stream conn) except -1:
        """Call on_close. Whether it goes on as a task."""
        cdef object context = conn.variables
        conn.variables = None
        if context is None:
            context = self.shared_context()
        PyContext_Enter(context)
        try:
            awaitable = self.call_on_close(conn)
            if awaitable is not None:
                self.spawn(self._run_last, conn, awaitable)
                return True
        except BaseException as exception:
            if not self.reported(conn, exception):
                raise
        finally:
            PyContext_Exit(context)
            if context is self.shared and was_set(context, self.base):
                self.shared = None      # it ends with the connection
        return False

    def _set_running(self, Stream conn, scope):
        """Which cancel scope an async callback runs in, for idleness to end it."""
        if scope is None:
            self.running.pop(conn, None)
        else:
            self.running[conn] = scope

    cdef void count_down(self) noexcept:
        self.open -= 1
        if self.open == 0 and not self.accepting:
            self.tell_waiter()

    def _count_down(self):
        self.count_down()

    # --- the end of it all ---------------------------------------------------

    def _start(self):
        """Take over the listener, and what waits there."""
        self.accepting = True
        self.listener.hand_to(self)

    cdef void fail(self, exception) noexcept:
        """Have `serve_events` end with this exception, and others like it."""
        self.ending = True
        try:
            self.nursery.start_soon(self._raise, exception)
        except BaseException:
            # Somebody must raise it: `serve_events`, once it is woken.
            self.failure = exception
            self.tell_waiter()

    def _stop(self, bint running):
        """Close what is still served. Connections whose callback is running as a task
        only if `running`: that task is being cancelled, and sees to it."""
        cdef uint32_t cursor = 0
        cdef Slot *slot
        cdef Stream conn
        self.ending = True
        self.accepting = False
        self.listener.hand_to(None)
        slot = self.core.next_claimed(&cursor)
        while slot != NULL:
            if slot.server == <void *>self and (running or slot.phase == QUIET):
                slot.phase = QUIET
                try:
                    conn = self.core.conn_of(slot)
                except MemoryError:
                    conn = None
                if conn is not None:
                    conn.let_go(DROP, "closed")
                else:
                    self.core.let_go_blind(slot)
            slot = self.core.next_claimed(&cursor)
        self.run_on_close()
        self._raise_failure()

    def _raise_failure(self):
        """Raise what `fail` could not have a task raise."""
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
