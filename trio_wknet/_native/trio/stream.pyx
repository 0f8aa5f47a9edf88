"""What both halves of a connection share: parking and waking tasks, and letting go.

A `Conn` is one object, in layers, so that a message takes no call between objects. From
the bottom:

    Undone        core.pxd            what is tried again when there was no memory
    Endpoint      core.pxd            the owner of a slot; a `Listener` is one, too
    Stream        stream.pyx          parking and waking tasks, detaching, letting go
    ReceiveHalf   receive.pyx         receive_some, receive_nowait
    ReceiveSized  receive_sized.pyx   receive_exactly, receive_until, receive_into, ...
    SendHalf      send.pyx            send_all, send_nowait, flush, send_eof
    Rated         rate.pyx            rate
    IdleWatch     idle_scopes.pyx     idle_scope, idle_timeout
    Conn          _conn.py            closing, options, addresses, statistics
"""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint8_t, uint32_t

from ..base.atomics cimport wk_u64_load, wk_u64_load_relaxed
from ..base.linux cimport ECONNRESET, pthread_mutex_lock, pthread_mutex_unlock
from ..base.memory cimport FOR_NAMES, memory_free
from ..reactor.admission cimport BUDGET, FIRST_BYTE_TIME, MIN_RATE
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport (
    ABORT, ASKED, CLOSE, CONTROL, DETACH, DETACHED, DROP, ENDED, FLUSHED, IDLE,
    QUIET, READABLE, RUNNING, WRITABLE, Slot,
)
from ..reactor.websocket cimport Decoder, decoder_of
from .addresses cimport Name, ask_local, ask_remote, keep_names
from .core cimport Core, Observer, Server, disown, make_limits, take_entry
from .framed cimport framed_drop
from .handed cimport Handed
from .operation cimport ABORT_FAILED, ABORT_SUCCEEDED, Operation, make_trap

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)

import os
import warnings

import trio


# Why we ended a connection from outside, by Reason, as close_reason says it.
cdef dict ENDED_FOR = {
    FIRST_BYTE_TIME: "no first byte", MIN_RATE: "too slow", BUDGET: "budget",
}


cdef object broken(int32_t error):
    """The exception for a broken connection, with the system's as its cause."""
    cause = OSError(error, os.strerror(error))
    exception = trio.BrokenResourceError(f"connection broken: {cause}")
    exception.__cause__ = cause
    return exception


cdef class Stream(Endpoint):
    """The layer of a `Conn` that both halves share: which tasks wait, and how they are
    woken; detaching; letting go; and what is known after that. The layers are listed above."""

    def _adopt(self, Core core, sock, int fd, int family, limits):
        """Take over a connected socket's descriptor. The reactor owns it from here on."""
        core.check()
        cdef Slot *slot = core.new_slot(fd, family, make_limits(limits))
        self.attach(core, slot)
        core.totals.connected += 1
        disown(sock)
        core.start(slot)

    cdef bint is_served_frames(self) noexcept:
        """Whether `serve_frames` receives from this connection, in whatever phase."""
        cdef FrameScan *scan = NULL if self.slot == NULL else self.slot.by_kind.scan
        return scan != NULL and scan.served

    cdef int ensure_not_served(self) except -1:
        """Refuse to wait for bytes that are to be reported to a callback of event mode: one of
        the two would wait for ever. A callback itself may wait."""
        if self.slot != NULL and self.slot.server != NULL and self.slot.phase == QUIET:
            raise trio.BusyResourceError(f"{self.server_name()} receives from this connection")
        return 0

    cdef str server_name(self):
        if not self.is_served_frames():
            return "serve_events"
        return "serve_messages" if decoder_of(self.slot) != NULL else "serve_frames"

    # --- parking -------------------------------------------------------------

    cdef object park_reader(self, Operation operation):
        if self.read_trap is None:
            self.read_trap = make_trap(self._abort_read)
        trap = operation.parked(self.read_trap)
        self.reader = operation
        return trap

    cdef object park_sender(self, Operation operation):
        if self.write_trap is None:
            self.write_trap = make_trap(self._abort_write)
        trap = operation.parked(self.write_trap)
        self.sender_parked = True
        return trap

    def _abort_read(self, raise_cancel):
        if self.core.puts_off(self):
            return ABORT_FAILED
        # A completion may be in flight; it will find no reader, or wake the next
        # one spuriously. The bytes stay in the ring.
        self.reader = None
        if self.slot == NULL:       # let go of, and not woken yet, for lack of memory
            return ABORT_SUCCEEDED
        pthread_mutex_lock(&self.slot.lock)
        self.slot.rcvlowat = 0
        pthread_mutex_unlock(&self.slot.lock)
        if self.slot.phase == ASKED:
            self.slot.phase = RUNNING
        return ABORT_SUCCEEDED

    def _abort_write(self, raise_cancel):
        if self.detaching:
            return ABORT_FAILED         # the reactor cannot take the command back
        if self.core.puts_off(self):
            return ABORT_FAILED
        self.sender_parked = False
        return ABORT_SUCCEEDED

    cdef void wake_reader(self) noexcept:
        cdef Operation operation = self.reader
        if operation is not None:
            self.reader = None
            if not self.core.wake_task(self, operation):
                self.reader = operation

    cdef void wake_sender(self) noexcept:
        if self.sender_parked:
            self.sender_parked = False
            if not self.core.wake_task(self, self.sender):
                self.sender_parked = True

    cdef void retry(self) noexcept:
        # A spurious wake does no harm.
        self.wake_reader()
        self.wake_sender()
        if self.end_due:
            self.end_due = False
            self._tell_end()

    cdef void completed(self, uint32_t bits) noexcept:
        # First, because it looks at which tasks wait.
        if bits & IDLE and self.slot != NULL:
            self.became_idle(bits)
        if bits & READABLE:
            self.wake_reader()
        if bits & (WRITABLE | FLUSHED):
            self.wake_sender()
        if bits & ENDED:
            self._tell_end()
        if bits & CONTROL:
            self.tell_observer(self.observer())
        if bits & DETACHED:
            self.detaching = DETACH_DONE
            self.wake_sender()

    cdef Observer observer(self):
        """Its WebSocket, if there is one. One that another thread is freeing, whose finalizers
        let this thread run, is gone already."""
        cdef Decoder *ws = decoder_of(self.slot) if self.slot != NULL else NULL
        if ws == NULL or ws.observer == NULL or Py_REFCNT(<PyObject *>ws.observer) == 0:
            return None
        return <Observer>ws.observer

    cdef void tell_observer(self, Observer observer) noexcept:
        if observer is not None:
            observer.on_control()

    cdef void became_idle(self, uint32_t bits) noexcept:
        """The idle rule came due. `bits` is everything that was reported with it."""

    cdef void _tell_end(self) noexcept:
        callback, self.on_end = self.on_end, None
        if callback is not None:
            try:
                callback()
            except MemoryError:
                self.on_end = callback
                self.end_due = True
                self.core.again(self)
            except BaseException as failure:
                self.core.fail_run(failure)

    # --- the end -------------------------------------------------------------

    cdef void engine_closed(self) noexcept:
        self.let_go(DROP, "engine closed")

    cdef bint is_leaving(self) noexcept:
        return self.detaching != 0

    cdef void after_fork(self) noexcept:
        # Other waits end when they are cancelled; this one cannot be.
        if self.detaching:
            self.wake_sender()

    cdef void let_go(self, uint32_t command, str reason) noexcept:
        """Hand the connection back to its reactor for good, and wake every task
        that waits on it, once. Only the wakes take memory; they come last, and are tried
        again."""
        cdef Slot *slot = self.slot
        cdef Core core = self.core
        cdef Observer observer
        if slot == NULL:
            return
        observer = self.observer()
        core.end_sending(slot, self.sender is not None and self.sender.tears())
        self.count(&self.final)
        self.keep_names()
        self.header = take_entry(core.headers, slot)
        take_entry(core.excused, slot)
        take_entry(core.searches, slot)
        self.look_at_end()
        self.reason = reason
        self.add_to_totals()
        if slot.server != NULL:
            (<Server>slot.server).left(self, reason)
            self.kept = self.context
            self._exchange_context(NULL)
        self.leave()
        core.post(slot, command)
        self.wake_reader()
        self.wake_sender()
        self._tell_end()
        self.tell_observer(observer)
        # Each holds a bound method of this object.
        self.read_trap = None
        self.write_trap = None
        self.hand_back()

    cdef void hand_to(self, Handed handed, bint out) noexcept:
        """Belong to a listener; if `out`, count among what its drain waits for."""
        self.handed = handed
        self.handed_out = out
        handed.count += out
        handed.totals.open += 1

    cdef void hand_back(self) noexcept:
        handed, self.handed = self.handed, None
        if handed is None:
            return
        (<Handed>handed).totals.open -= 1
        if self.handed_out:
            (<Handed>handed).left()

    cdef void keep_names(self) noexcept:
        """Read the names that were not read yet, while there is a descriptor."""
        cdef dict known = self._addresses
        if self.names == NULL and (known is None or len(known) < 2):
            self.names = keep_names(self.slot.fd)

    cdef void look_at_end(self) noexcept:
        """See what has ended the connection from outside, so far."""
        cdef Slot *slot = self.slot
        if slot == NULL:
            return
        pthread_mutex_lock(&slot.lock)
        self.end_error = slot.error or slot.pending_error
        self.end_seen = slot.ended or slot.hung_up
        if slot.door.place != NULL:     # until its reactor closes it, which is later
            self.ended_for = slot.door.place.ended_for
        if slot.over_budget:
            self.ended_for = BUDGET
        pthread_mutex_unlock(&slot.lock)

    cdef str _why(self):
        self.look_at_end()
        if self.end_error and not self.ended_for:
            return "reset" if self.end_error == ECONNRESET else os.strerror(self.end_error)
        return self.cause()

    cdef str cause(self):
        """Why it ended, if it was not by an error."""
        if self.ended_for:
            return ENDED_FOR[self.ended_for]
        return "eof" if self.end_seen else self.reason

    cdef Totals totals(self):
        """Those that it counts in."""
        if self.slot != NULL and self.slot.server != NULL:
            return (<Server>self.slot.server).totals
        return self.core.totals if self.handed is None else self.handed.totals

    cdef void add_to_totals(self) noexcept:
        """It is being let go of: what it has come to is known, and why it ended."""
        self.totals().conn_ended(
            self.final.received, self.final.sent, self.slot.by_kind.scan, self.cause(),
            0 if self.ended_for else self.end_error,
        )

    cdef object closed_error(self):
        """What is raised by a use of this connection that comes too late. It says why, if that
        is anything but that it was closed."""
        cdef str text = "this connection was already closed"
        if self.reason is not None and self.reason != "closed":
            text = f"{text} ({self.reason})"
        return trio.ClosedResourceError(text)

    @property
    def _ended_here(self):
        """Whether its pace, or the engine's budget, has ended it."""
        self.look_at_end()
        return self.ended_for != 0

    @property
    def _open(self):
        return self.slot != NULL

    def _close(self, str reason="closed"):
        self.ensure_thread()
        self.let_go(CLOSE, reason)

    def _drop(self):
        self.ensure_thread()
        self.let_go(DROP, "closed")

    def _abort(self):
        self.ensure_thread()
        self.let_go(ABORT, "aborted")

    cdef bint unmarked(self) noexcept:
        """Whether this object differs from a new one only by its slot."""
        return (
            self.slot != NULL and self.kept is None
            and self.reader is None and self.sender is None
            and self.read_trap is None and self.write_trap is None
            and self.on_end is None and not self.is_undone
            and self._end_watchers is None and self._facade is None and self._addresses is None
        )

    def __dealloc__(self):
        memory_free(FOR_NAMES, self.names)
        if self.scan != NULL:
            framed_drop(self.scan)

    def __del__(self):
        # In event mode the connection goes on without an object.
        if self.slot == NULL or self.slot.server != NULL:
            self.hand_back()    # if it lost its slot without being let go of (owner_of)
            return
        # The collector may run this in another thread, where no task may be woken.
        # None needs to be: a task that waits refers to this object, and is garbage, too.
        self.reader = None
        self.sender_parked = False
        self.on_end = None
        try:
            warnings.warn(f"unclosed connection {self!r}", ResourceWarning, stacklevel=1)
        finally:    # warnings may be errors
            self.let_go(DROP, "closed")

    def _reason(self):
        return self._why()

    def _when_ended(self, callback):
        """Have `callback` called once the peer has ended or the connection is let go of; at
        once if that is so already. None cancels that."""
        cdef bint over = self.slot == NULL
        self.ensure_usable()
        self.on_end = callback
        if not over:
            pthread_mutex_lock(&self.slot.lock)
            over = self.slot.hung_up or self.slot.error != 0
            # A server of events always wants to be notified.
            self.slot.end_wanted = (callback is not None or self.slot.server != NULL) and not over
            pthread_mutex_unlock(&self.slot.lock)
        if over:
            self._tell_end()

    cdef int ensure_no_reader(self) except -1:
        if self.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")
        return 0

    cdef int ensure_unpinned(self) except -1:
        """Refuse to take bytes that a view shows."""
        if self.pins:
            raise BufferError("cannot receive while a view from peek() is alive")
        return 0

    cdef void begin_to_detach(self) noexcept:
        """Ask the reactor to forget the descriptor. From here on receives and sends are refused,
        since their bytes would be lost."""
        self.detaching = DETACH_ASKED
        self.core.post(self.slot, DETACH)

    def _take_descriptor(self):
        """Take the descriptor of a forgotten connection, and let go of the connection. The
        reactor has reported DETACHED, and does not use the number again."""
        cdef int fd
        self.ensure_usable()    # since it began there may have been a fork
        if self.slot == NULL:
            raise self.closed_error()
        fd = self.slot.fd
        self.keep_names()
        self.slot.fd = -1
        self.let_go(DROP, "detached")
        return fd

    # --- facts ---------------------------------------------------------------

    @property
    def context(self):
        """The application's slot: whatever it wants to keep with the connection.
        None at first. Stays after the close."""
        # In event mode the object may go, so the slot keeps the context.
        if self.slot == NULL or self.slot.server == NULL:
            return self.kept
        return None if self.slot.context == NULL else <object>self.slot.context

    @context.setter
    def context(self, value):
        self.ensure_thread()
        if self.slot == NULL or self.slot.server == NULL:
            self.kept = value
            return
        Py_INCREF(value)
        self._exchange_context(<void *>value)

    cdef void _exchange_context(self, void *context) noexcept:
        """Put a reference, or NULL, in the slot. What is dropped is dropped last: its
        finalizer may do anything, even close this connection."""
        cdef void *previous = self.slot.context
        self.slot.context = context
        if previous != NULL:
            Py_DECREF(<object>previous)

    @property
    def proxy_header(self):
        """What the load balancer said of the connection by the PROXY protocol, a
        `ProxyHeader`; None where the listener does not speak that. Stays after the
        close."""
        if self.slot == NULL:
            return self.header
        return self.core.headers.get(wk_u64_load(&self.slot.handle))

    def _raw_address(self, bint remote):
        """The system's name of an end; empty if it is not known."""
        cdef Name name
        cdef uint8_t *kept = self.names
        if self.slot != NULL:
            if remote:
                ask_remote(self.slot.fd, &name)
            else:
                ask_local(self.slot.fd, &name)
            return name.bytes[:name.size]
        if kept == NULL:
            return b""
        if remote:
            kept += 1 + kept[0]
        return kept[1:1 + kept[0]]

    @property
    def _parked_tasks(self):
        """The tasks that wait in a receive, and in a send; None: none does."""
        return (
            None if self.reader is None else self.reader.task,
            self.sender.task if self.sender_parked else None,
        )

    @property
    def _fd(self):
        return self.slot.fd if self.slot != NULL else -1

    @property
    def _family(self):
        return self.slot.family if self.slot != NULL else None

    @property
    def _handle(self):
        return wk_u64_load(&self.slot.handle) if self.slot != NULL else None

    cdef void count(self, Counters *into) noexcept:
        cdef Slot *slot = self.slot
        cdef uint64_t active, now
        # Together, as the reactor takes bytes out of the ring and counts them as sent in one
        # visit to the lock: no byte is both unsent and sent, or neither.
        pthread_mutex_lock(&slot.lock)
        into.unread = ring_len(&slot.inbound)
        into.unsent = ring_len(&slot.outbound)
        into.sent = wk_u64_load_relaxed(&slot.sent) + wk_u64_load_relaxed(&slot.flushed)
        pthread_mutex_unlock(&slot.lock)
        active = max(
            slot.opened,
            wk_u64_load_relaxed(&slot.last_received),
            wk_u64_load_relaxed(&slot.last_sent),
            wk_u64_load_relaxed(&slot.last_flushed),
        )
        now = self.core.now()       # after what a reactor may be storing meanwhile
        into.received = wk_u64_load_relaxed(&slot.received)
        into.receive_calls = wk_u64_load_relaxed(&slot.receive_calls)
        into.send_calls = (wk_u64_load_relaxed(&slot.send_calls)
                           + wk_u64_load_relaxed(&slot.flush_calls))
        into.idle = now - active if now > active else 0
        into.age = now - slot.opened if now > slot.opened else 0

    def _counters(self):
        if self.slot != NULL:
            self.count(&self.final)
        return (
            self.final.received,
            self.final.receive_calls,
            self.final.sent,
            self.final.send_calls,
            self.final.unread,
            self.final.unsent,
            self.final.idle,
            self.final.age,
        )
