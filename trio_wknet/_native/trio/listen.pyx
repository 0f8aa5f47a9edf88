"""A listener, as the Trio side holds it: a queue that ports feed.

A port is a listening socket watched by a reactor. One listener may have several
(a name with several addresses, or one for each reactor with reuse_port); they
all accept into the listener's queue, which belongs to the listener's slot and
lives until the last port is closed.
"""
cimport cython
from libc.stdint cimport int32_t, uint32_t

from ..base.atomics cimport wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u64_load_relaxed
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..base.shared cimport wk_byte_store, wk_place_store
from ..reactor.admission cimport PROXY_HEADER, REASONS, admission_ref
from ..reactor.lists cimport queue_take
from ..reactor.slot cimport ACCEPTED, CLOSE, DROP, LISTENER, PORT, RESUME, SHORTAGE, Limits, Slot
from ..reactor.slot_map cimport slot_map_return
from .admission cimport NativeAdmission
from .core cimport Core, Server, disown, make_limits
from .handed cimport Handed
from .operation cimport ABORT_FAILED, ABORT_SUCCEEDED, Operation, make_trap
from .proxy_gate cimport ProxyGate
from .stream cimport Stream
from .totals cimport Totals

import os

import trio


cdef class NativeListener(Endpoint):

    def _listen(
        self, Core core, list descriptors, limits, bint spread, tuple timeout, ProxyGate gate,
        NativeAdmission admission=None,
    ):
        """Take over the descriptors of listening sockets: (socket, descriptor, family). With
        `spread` each goes to a reactor of its own, which keeps what it accepts.
        `timeout` is the connections' idle timeout, as `timeout_rules` returns it.
        If there is a `gate`, all connections must pass it. `admission` says which may come
        in."""
        cdef Slot *listener
        cdef Slot *port = NULL
        cdef Limits native = make_limits(limits)
        cdef uint32_t i
        native.idle, native.idle_write = timeout
        core.check()
        self.totals = Totals(core.totals)
        self.handed = Handed(self.totals)
        listener = core.new_slot(-1, 0, native)
        self.ports = []
        # First everything that takes memory. If it fails, the caller keeps the descriptors.
        try:
            for _, fd, family in descriptors:
                port = core.new_slot(fd, family, native)
                self.ports.append(<size_t>port)
                port = NULL
        except BaseException:
            if port != NULL:
                slot_map_return(core.hub.slot_map, port)
            for address in self.ports:
                slot_map_return(core.hub.slot_map, <Slot *><size_t>address)
            self.ports = []
            slot_map_return(core.hub.slot_map, listener)
            raise
        wk_byte_store(&listener.kind, LISTENER)
        listener.waiting_for.accept_queue = limits.accept_queue
        self.attach(core, listener)
        if gate is not None:
            gate.open(core, listener, admission)
        self.gate = gate
        self.admission = admission
        wk_u32_add(&listener.mail.listener.users, 1)
        for i, address in enumerate(self.ports):
            port = <Slot *><size_t>address
            wk_byte_store(&port.kind, PORT)
            port.waiting_for.accept_queue = limits.accept_queue
            port.beyond.listener = listener
            if admission is not None:
                admission_ref(admission.table)
                port.door.admission = admission.table
            port.mark.pinned = spread
            if spread:
                wk_place_store(&port.reactor, core.hub.reactors[i % core.hub.count])
            else:
                wk_place_store(&port.reactor, core.hub.reactors[0])
            wk_u32_add(&listener.mail.listener.users, 1)
            wk_u32_add(&listener.mail.listener.ports, 1)
        for sock, _, _ in descriptors:
            disown(sock)
        for address in self.ports:
            core.start(<Slot *><size_t>address)

    # --- accepting -----------------------------------------------------------

    def accept(self):
        """Wait for a connection, and return it. A checkpoint.

        Cancellation is atomic: the next accept gets the connection.

        After `drain` was called, it returns the connections that are left, waits until
        every one that it ever returned is closed, and then raises. So a loop around it,
        such as `trio.serve_listeners`, may take that for the end of all handlers' work.

        Returns:
          A `Conn`.

        Raises:
          trio.ClosedResourceError: if the listener is closed, before or during the call;
              or `drain` was called, and every connection that this returned is closed.
          trio.BusyResourceError: if another task is accepting.
          RuntimeError: if called from another thread, or if the engine is closed.
          OSError: if the listening socket failed for good. Running out of descriptors does
              not count: accepting resumes once there are some (see
              ``statistics().starved``).
        """
        cdef Accept operation = Accept.__new__(Accept)
        operation.listener = self
        operation.most = 1
        return operation

    def _accept_batch(self, Py_ssize_t most):
        """Like accept, but returns a list of up to `most` connections."""
        cdef Accept operation = Accept.__new__(Accept)
        operation.listener = self
        operation.most = most
        operation.batch = True
        return operation

    cdef int ensure_free(self) except -1:
        """Refuse a second acceptor: it would be chance which of them gets a connection."""
        if self.acceptor is not None or self.server is not None:
            raise trio.BusyResourceError("another task is accepting on this listener")
        return 0

    cdef void hand_to(self, Server server):
        """Hand connections to a server from now on, beginning with those that wait.
        None ends that."""
        if server is not None and self.slot == NULL:
            raise trio.ClosedResourceError("this listener was already closed")
        self.server = server
        if server is not None:
            self.core.requeue(self.slot, ACCEPTED)

    cdef object take_one(self):
        """A waiting connection, for which a drain waits from here on. If there is none, arrange
        for a wake and return None."""
        cdef Slot *slot = self.take_slots(1, True)
        if slot == NULL:
            return None
        try:
            conn = self.core.conn_of(slot)
        except MemoryError:
            self.core.let_go_unseen(slot)
            raise
        (<Stream>conn).hand_to(self.handed, True)
        return conn

    cdef list take(self, Py_ssize_t most):
        """Up to `most` waiting connections, as objects. If there are none, arrange for a wake
        and return an empty list."""
        cdef list conns = []
        cdef Slot *slot = self.take_slots(most)
        cdef Slot *following
        cdef Endpoint conn = None
        try:
            while slot != NULL:
                following = slot.chain
                conn = self.core.conn_of(slot)
                slot = following        # the object owns it now
                (<Stream>conn).hand_to(self.handed, False)
                conns.append(conn)
        except MemoryError:
            # Otherwise they would be lost, but open.
            if conn is not None:
                conn.engine_closed()
            for conn in conns:
                conn.engine_closed()
            while slot != NULL:
                following = slot.chain
                self.core.let_go_unseen(slot)
                slot = following
            raise
        return conns

    cdef Slot *take_slots(self, Py_ssize_t most, bint hold=False) except? NULL:
        """Up to `most` waiting connections, as a chain. If there are none, arrange for a wake,
        under the lock under which ports add, and return NULL. With `hold` the end is reported
        only after the connections that `accept` returned are closed."""
        cdef Slot *listener = self.slot
        cdef Slot *first
        cdef uint32_t n
        cdef int32_t error = 0
        cdef bint room, ended
        if listener == NULL or self.closing:
            raise trio.ClosedResourceError("this listener was already closed")
        pthread_mutex_lock(&listener.lock)
        if self.gate is None:
            first = queue_take(&listener.by_kind.oldest, &listener.door.newest, <uint32_t>most, &n)
        else:
            first = queue_take(&self.gate.oldest, &self.gate.newest, <uint32_t>most, &n)
        listener.waiting -= n
        room = listener.waiting <= self.resume_mark()
        if n == 0:
            error = listener.error
            listener.accept_wanted = error == 0 and not listener.ended
        ended = listener.ended and listener.waiting == 0
        pthread_mutex_unlock(&listener.lock)
        if error:
            raise OSError(error, os.strerror(error))
        if n == 0 and ended and not (hold and self.handed.count):
            raise trio.ClosedResourceError("this listener stopped accepting")
        if n and room:
            self.resume_ports()
        return first

    cdef uint32_t resume_mark(self) noexcept:
        """The number of waiting connections at which stopped ports resume. Connections
        that wait for a header make room one by one, so with a gate it is higher."""
        cdef uint32_t most = self.slot.waiting_for.accept_queue
        return most // 2 if self.gate is None else most - max(1, most // 8)

    cdef void resume_ports(self) noexcept:
        cdef Slot *listener = self.slot
        cdef Slot *port
        cdef bint paused
        for address in self.ports:
            port = <Slot *><size_t>address
            pthread_mutex_lock(&listener.lock)
            paused = port.paused
            port.paused = False
            pthread_mutex_unlock(&listener.lock)
            if paused:
                self.core.post(port, RESUME)
                # A finalizer, or a clock, may have run there, and have closed this.
                if self.slot == NULL or self.closing:
                    return

    def _abort_accept(self, raise_cancel):
        if self.core.puts_off(self):
            return ABORT_FAILED
        self.acceptor = None
        return ABORT_SUCCEEDED

    cdef void wake_acceptor(self) noexcept:
        cdef Operation operation = self.acceptor
        if operation is not None:
            self.acceptor = None
            if not self.core.wake_task(self, operation):
                self.acceptor = operation

    cdef void retry(self) noexcept:
        self.wake_acceptor()

    cdef void completed(self, uint32_t bits) noexcept:
        if bits & ACCEPTED:
            if self.gate is not None and not self.closing:
                self.gate.take_in()
                self.on_gate()
            if self.server is not None:
                self.server.accepted()
            self.wake_acceptor()
            self.tell_if_ended()
        if bits & SHORTAGE and self.slot != NULL:
            self._update_shortage()       # last: handlers of logging may do anything

    cdef void on_gate(self) noexcept:
        """Make room in the gate if ports have stopped, and let them resume if there is room."""
        cdef uint32_t many = self.too_many()
        cdef bint room
        if many:
            self.gate.make_room(many)
        if self.slot == NULL or self.closing or self.gate.refused == self.refused:
            return
        self.refused = self.gate.refused
        pthread_mutex_lock(&self.slot.lock)
        room = self.slot.waiting <= self.resume_mark()
        pthread_mutex_unlock(&self.slot.lock)
        if room:
            self.resume_ports()

    cdef uint32_t too_many(self) noexcept:
        """How many waiting connections must go before stopped ports resume; 0 if none has
        stopped."""
        cdef uint32_t many = 0
        cdef bint stopped = False
        if self.slot == NULL or self.closing:
            return 0
        pthread_mutex_lock(&self.slot.lock)
        if self.slot.waiting > self.resume_mark():
            many = self.slot.waiting - self.resume_mark()
        pthread_mutex_unlock(&self.slot.lock)
        if many == 0:
            return 0
        for address in self.ports:
            pthread_mutex_lock(&self.slot.lock)
            stopped = stopped or (<Slot *><size_t>address).paused
            pthread_mutex_unlock(&self.slot.lock)
        return many if stopped else 0

    cdef void tell_if_ended(self) noexcept:
        cdef bint ended
        if self.on_ended is None or self.slot == NULL:
            return
        pthread_mutex_lock(&self.slot.lock)
        ended = self.slot.ended or self.core.forked
        self.slot.accept_wanted = not ended
        pthread_mutex_unlock(&self.slot.lock)
        if ended:
            self.tell_ended()

    cdef void tell_ended(self) noexcept:
        callback, self.on_ended = self.on_ended, None
        if callback is None:
            return
        try:
            callback()
        except BaseException as failure:
            self.core.fail_run(failure)

    def _require_free(self):
        """Raise the error of serving a closed listener, or a busy one."""
        self.ensure_usable()
        if self.slot == NULL or self.closing:
            raise trio.ClosedResourceError("this listener was already closed")
        self.ensure_free()

    # --- the end -------------------------------------------------------------

    def _wake_nobody(self):
        """For a finalizer, which the collector may run in another thread, where no task may be
        woken. No task needs to be: one that waits refers to this object, and is garbage, too."""
        self.acceptor = None
        self.server = None
        self.on_ended = None

    cdef void engine_closed(self) noexcept:
        self._close_all()

    cdef void after_fork(self) noexcept:
        self.tell_if_ended()

    def _stop(self):
        """Close the ports, once they have accepted what the kernel had queued.
        Accepting goes on until the queue is empty, and then raises ClosedResourceError."""
        if self.slot == NULL or self.closing:
            return
        self.remove_file()
        for address in self.ports:
            self.core.post(<Slot *><size_t>address, CLOSE)
        self.ports.clear()

    def _close_all(self):
        """End the listener; the subclass also wakes a drain."""
        self._close()

    cdef void remove_file(self) noexcept:
        """Remove a unix socket's file, before the ports are asked to close. While our socket is
        open it keeps its inode, so a file with that inode number on the same device is ours.
        Later the number may be that of any other file, even of a successor's socket; and the
        kernel could queue a client that found the file after accepting has ended. For some
        microseconds, a successor may still come between the check and the removal: the kernel
        has no call that does both."""
        try:
            self._remove_file()
        except MemoryError:
            pass        # it stays, and the ports close all the same

    def _remove_file(self):
        """The subclass removes the file."""

    def _close_ports(self, callback):
        """Close every port, and every connection that was not accepted. `callback` is called
        once the reactors have done it and the addresses are free again."""
        cdef Slot *listener = self.slot
        cdef Slot *slot
        cdef Slot *following
        if listener == NULL or self.closing:
            return
        self.remove_file()
        if self.slot == NULL or self.closing:       # by a finalizer meanwhile
            return
        self.count()
        self.core.totals.accepted += self.accepted
        self.closing = True
        pthread_mutex_lock(&listener.lock)
        listener.refusing = True
        slot = listener.by_kind.oldest
        listener.by_kind.oldest = NULL
        listener.door.newest = NULL
        listener.waiting = 0
        pthread_mutex_unlock(&listener.lock)
        if self.gate is not None:
            self.gate.close()
        while slot != NULL:
            following = slot.chain
            self.core.let_go_unseen(slot)
            slot = following
        for address in self.ports:
            self.core.post(<Slot *><size_t>address, DROP)
        self.ports.clear()
        self.on_ended = callback
        if self.server is not None:
            self.server.closed()
        self.wake_acceptor()
        self.tell_if_ended()

    def _close(self):
        """Let go of the listener, in any state."""
        cdef Slot *listener = self.slot
        cdef bint was_short
        if listener == NULL:
            return
        if not self.closing:
            self._close_ports(None)
        was_short = wk_u32_load_relaxed(&listener.shortages) > 0
        self.leave()
        self.core.post(listener, DROP)
        self.tell_ended()
        self.trap = None
        if self.gate is not None:
            self.gate.say_rest()
        if was_short:
            self.end_shortage()         # last: handlers of logging may do anything

    cdef void end_shortage(self) noexcept:
        self._end_shortage()

    # --- draining ------------------------------------------------------------

    def _is_accepted_from(self):
        """Whether connections are served by `accept`: a task is in it, or connections that it
        returned are open. A task that calls it in a loop is either in it when others run, or
        busy with such connections."""
        return self.accepts > 0 or self.handed.count > 0

    def _begin_draining(self, none_left):
        """What every drain begins with: handlers do not wait for a next request any more
        (idle_point.pyx). `none_left` is called whenever the last connection that `accept`
        returned is closed."""
        self.handed.drain(none_left)

    def _drain_by_accept(self, callback):
        """Stop as `_stop` does. `callback` is called once every port has closed."""
        self._stop()
        self.on_ended = callback
        self.tell_if_ended()

    def _gave_all_back(self):
        """Whether `accept` has no more connections to return, and those it returned are
        closed."""
        cdef bint over = self.handed.count == 0
        if not over or self.slot == NULL or self.closing:
            return over
        pthread_mutex_lock(&self.slot.lock)
        over = self.slot.ended and self.slot.waiting == 0
        pthread_mutex_unlock(&self.slot.lock)
        return over

    def _wake_acceptor(self):
        self.wake_acceptor()

    def _gave(self, Stream conn):
        """Whether a drain waits for a connection because `accept` returned it."""
        return conn.handed is self.handed and conn.handed_out

    def _handed_out(self):
        """How many open connections `accept` has returned."""
        return self.handed.count

    def _drop_handed_out(self):
        """Close them at once."""
        cdef uint32_t cursor = 0
        cdef Slot *slot
        cdef Endpoint conn
        if self.handed.count == 0:
            return
        slot = self.core.next_claimed(&cursor)
        while slot != NULL:
            conn = self.core.owner_of(slot)
            if isinstance(conn, Stream) and self._gave(conn):
                (<Stream>conn).let_go(DROP, "closed")
            slot = self.core.next_claimed(&cursor)

    # --- facts ---------------------------------------------------------------

    @property
    def _open(self):
        return self.slot != NULL and not self.closing

    @property
    def _totals(self):
        return self.totals

    @property
    def _fds(self):
        """The ports' descriptors."""
        return [(<Slot *><size_t>address).fd for address in self.ports]

    cdef void count(self) noexcept:
        """Read the counters, unless the listener is closed: then they stay as they were."""
        if self.slot == NULL or self.closing:
            return
        pthread_mutex_lock(&self.slot.lock)
        self.waiting = self.slot.waiting
        pthread_mutex_unlock(&self.slot.lock)
        self.accepted = wk_u64_load_relaxed(&self.slot.tally.accepted)
        self.starved = wk_u32_load_relaxed(&self.slot.scarce.listener.starved)
        self.shortages = wk_u32_load_relaxed(&self.slot.shortages)

    def _counters(self):
        """(accepted, waiting, ports that are out of descriptors, refused, how often ports ran
        out of descriptors)"""
        self.count()
        refused = 0 if self.gate is None else self.gate.refused
        return self.accepted, self.waiting, self.starved, refused, self.shortages

    def _refused(self):
        """How many connections were refused, by Reason."""
        cdef list counts = [0] * REASONS if self.admission is None else self.admission.refused()
        if self.gate is not None:
            counts[<int>PROXY_HEADER] = self.gate.refused - self.gate.unwelcome
        return counts

    def _shortage(self):
        """The errno of the last shortage."""
        return wk_u32_load(&self.slot.scarce.listener.error) if self.slot != NULL else 0


@cython.final
cdef class Accept(Operation):
    cdef NativeListener listener
    cdef Py_ssize_t most
    cdef bint batch
    cdef bint counted

    cdef object start(self):
        self.listener.ensure_usable()
        trap = self.enter()
        if trap is not None:
            return trap
        self.listener.ensure_free()
        self.listener.accepts += 1
        self.counted = True
        try:
            taken = self.take()
        except (trio.ClosedResourceError, OSError) as failure:
            return self.fail(failure)       # a checkpoint, as with Trio's listener
        if taken:
            return self.complete(taken)
        return self.park()

    cdef object take(self):
        return self.listener.take(self.most) if self.batch else self.listener.take_one()

    cdef object proceed(self):
        # As in Receive.proceed.
        self.listener.ensure_free()
        taken = self.take()
        if not taken:
            return self.park()
        self.result = taken
        return None

    cdef void finish(self) noexcept:
        if self.counted:
            self.counted = False
            self.listener.accepts -= 1

    cdef object park(self):
        if self.listener.trap is None:
            self.listener.trap = make_trap(self.listener._abort_accept)
        trap = self.parked(self.listener.trap)
        self.listener.acceptor = self
        return trap
