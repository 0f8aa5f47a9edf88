"""The Trio side's handle on a hub: the bridge's native half.

Everything here runs in the thread of the Trio run that opened the engine, apart
from `run`, which is a reactor thread's body.
"""
cimport cython
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint32_t, uint64_t
from posix.unistd cimport usleep

from ..base.atomics cimport (
    wk_fence, wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u32_store, wk_u32_store_relaxed, wk_u64_load,
    wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.linux cimport errno, monotonic_ns, pthread_mutex_lock, pthread_mutex_unlock
from ..base.shared cimport wk_byte_store, wk_place_store
from ..reactor.admission cimport REASONS
from ..reactor.answer cimport draw_key
from ..reactor.broadcast cimport BroadcastJob
from ..reactor.budget cimport (
    budget_doom, budget_end, budget_freed, budget_is_over, budget_relieved, budget_total,
)
from ..reactor.closing cimport close_now
from ..reactor.hub cimport Reactor, has_more, least_loaded
from ..reactor.idle cimport strictest
from ..reactor.lists cimport list_empty
from ..reactor.mailbox cimport (
    Notification, notification_mark, notification_take, mailbox_push, mailbox_take,
    mailbox_waiting,
)
from ..reactor.measure cimport (
    SIZE_BUCKETS, TIME_BUCKETS, Measures, measure_batch, measure_drain, measure_switch,
    measured_time,
)
from ..reactor.pool cimport pool_trim_idle
from ..reactor.reactor cimport command, publish, reactor_run, reactor_turn, set_alarm
from ..reactor.ring cimport ring_write
from ..reactor.sender cimport (
    HELD, QUEUED, SHUT, sender_acquire, sender_end, sender_flush, sender_set, sender_state,
)
from ..reactor.setup cimport hub_free, hub_new
from ..reactor.slot cimport (
    ADD, BROADCAST, CONNECTION, DROP, ENDED, FLUSH, GONE, LISTENER, QUIET, RELEASED, RELIEVE, SHED,
    SHORTAGE, TRIM, WATCH, Limits, Slot, slot_of_completion,
)
from ..reactor.slot_map cimport (
    SLAB_SLOTS, SlotMap, slot_map_after_fork, slot_map_each, slot_map_get, slot_map_return,
    slot_map_step, slot_map_take,
)
from ..reactor.wake cimport hub_wake, reactor_post, reactor_stop, eventfd_signal, eventfd_clear
from ..reactor.websocket cimport (
    CLOSE_DUE, MAX_ANSWER, Decoder, Due, decoder_answer, decoder_of,
)
from ..reactor.wheel cimport NEVER, wheel_next
from .broadcasts cimport broadcasts_remove, broadcasts_settle
from .cork cimport corks_free
from .framed cimport framed_unlink
from .operation cimport HALF_DONE, UNDONE, WOKEN_UP, Operation, Wake
from .relief cimport Relief, relief_begin, relief_end, relief_next
from .send_batch cimport SendBatch
from .spin cimport (
    spin_policy_hear, spin_until, spin_policy_wants, spin_policy_new, spin_policy_note,
)
from .stall cimport (
    stall_turned, stall_begins, stall_is_behind, stall_sleep, stall_wait_for_reactors,
    stall_watch_new,
)

import _socket
import math
import os

import trio

cdef object current_statistics = trio.lowlevel.current_statistics
cdef object in_trio_task = trio.lowlevel.in_trio_task


cdef enum:
    MAX_TRIES = 100     # to report the end without memory
    SPIN_NS = 50000     # the longest spin of Trio's thread before it sleeps
    GIL_NS = 1000000    # more than it takes to get the GIL back if no other thread has it


cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)


cdef bint deadline_passed() noexcept:
    """Whether Trio is about to expire a deadline. Costs some microseconds."""
    try:
        return current_statistics().seconds_to_next_deadline <= 0
    except Exception:       # no run, or no statistics: then Trio expires deadlines as always
        return False


cdef object _detach = _socket.socket.detach


cdef void disown(object sock) noexcept:
    """Take the descriptor from a Python socket object; otherwise both owners would close it.
    It uses the C method, which first lets go of it, and then needs memory for the number."""
    try:
        _detach(sock)
    except MemoryError:
        pass


cdef Limits make_limits(object limits) except *:
    cdef Limits native
    native.inbound = limits.inbound
    native.outbound = limits.outbound
    native.linger_bytes = limits.linger_bytes
    native.linger_ms = <uint32_t>(limits.linger_time * 1000)
    native.idle = 0
    native.idle_write = 0
    return native


cdef object take_entry(dict by_handle, Slot *slot):
    """Take what is kept by handle for a connection that is let go of; None if there is
    nothing. Without memory the entry stays, which does no harm: the handle will never refer to
    another connection."""
    if not by_handle:
        return None
    try:
        return by_handle.pop(wk_u64_load(&slot.handle), None)
    except MemoryError:
        return None


cdef class Undone:
    cdef void retry(self) noexcept:
        pass


cdef class Observer(Undone):
    cdef void on_control(self) noexcept:
        pass


# Without `core` an endpoint cannot leave the list, so the collector lets it be.
@cython.no_gc_clear
cdef class Endpoint:
    def __dealloc__(self):
        # The slot and the list borrow. A finalizer would be too early: the collector may
        # run it in another thread, while the drain hands the object out.
        if self.slot != NULL:
            self.forget()

    cdef void completed(self, uint32_t bits) noexcept:
        pass

    cdef void engine_closed(self) noexcept:
        pass

    cdef bint is_leaving(self) noexcept:
        return False

    cdef void after_fork(self) noexcept:
        pass

    cdef void attach(self, Core core, Slot *slot) noexcept:
        """Become the owner of a slot. The list holds borrowed references, like
        the slot does: an endpoint that is freed leaves first."""
        self.core = core
        self.slot = slot
        if not slot.claimed:
            core.claim(slot)
        slot.owner = <void *>self
        self.following = core.endpoints
        if self.following != NULL:
            (<Endpoint>self.following).previous = <void *>self
        core.endpoints = <void *>self

    cdef void leave(self) noexcept:
        """The last touch of the slot, before the command that lets go of it."""
        cdef Slot *slot = self.slot
        self.forget()
        self.core.unclaim(slot)

    cdef void forget(self) noexcept:
        """Separate from the slot, which stays as it is."""
        self.slot.owner = NULL
        self.slot = NULL
        if self.previous != NULL:
            (<Endpoint>self.previous).following = self.following
        else:
            self.core.endpoints = self.following
        if self.following != NULL:
            (<Endpoint>self.following).previous = self.previous
        self.previous = NULL
        self.following = NULL

    @property
    def _core(self):
        return self.core

    cdef int ensure_usable(self) except -1:
        """Refuse the use of an open endpoint if its engine may not be used. A closed one
        raises its own error."""
        return self.core.check() if self.slot != NULL else 0

    cdef int ensure_thread(self) except -1:
        """Refuse the use of an open endpoint in another thread than the run's. Letting go
        checks no more than this, because it is allowed in a forked child, too."""
        return self.core.check_thread() if self.slot != NULL else 0

    def _ensure_usable(self):
        self.ensure_usable()

    def _ensure_thread(self):
        self.ensure_thread()


cdef class Audience:
    cdef void left(self, uint64_t handle) noexcept:
        pass

    cdef void unframed(self, uint64_t handle) noexcept:
        pass

    cdef void done(self, BroadcastJob *job) noexcept:
        pass


cdef class Latecomer:
    cdef bint turn_ended(self) noexcept:
        return True


cdef class Server:
    cdef void completed(self, Slot *slot, uint32_t bits) noexcept:
        pass

    cdef void accepted(self) noexcept:
        pass

    cdef void closed(self) noexcept:
        pass

    cdef void left(self, Endpoint conn, str reason) noexcept:
        pass

    cdef void lost(self, Slot *slot) noexcept:
        pass


cdef class Core:
    """The native half of an engine.

    Args:
      reactors: their number; 0 means in-loop, one that Trio's own thread turns.
      round_robin: distribute connections in turn, not to the least loaded.
      make_conn: called without arguments, returns a new `Conn`.
      clock: returns the time in seconds, if it is not the system's (in-loop only).
      max_buffered: bytes that it may hold for its connections; 0 means no bound.
    """

    def __cinit__(self, uint32_t reactors, bint round_robin, make_conn, clock=None,
                  uint64_t max_buffered=0):
        cdef uint64_t now = 0
        if clock is not None and reactors != 0:
            raise ValueError("only an engine without reactor threads can follow another clock")
        if clock is not None:
            now = <uint64_t>(<double>clock() * 1e9)
        self.make_conn = make_conn
        self.clock = clock
        self.headers = {}
        self.excused = {}
        self.searches = {}
        self.memberships = {}
        self.send_batch = SendBatch()
        self.totals = Totals()
        self.late = []
        spin_policy_new(&self.spin_policy)
        stall_watch_new(&self.stall)
        self.thread = PyThread_get_thread_ident()
        # Last: it would not be freed if one of the others raised.
        self.hub = hub_new(max(reactors, 1), reactors == 0, round_robin, max_buffered)
        if self.hub == NULL:
            raise OSError(errno, os.strerror(errno))
        self.hub.virtual = clock is not None
        self.hub.virtual_now = now

    def __dealloc__(self):
        corks_free(&self.corks)

    cdef int check(self) except -1:
        """Refuse use after close, after fork, and from another thread."""
        if self.closed:
            raise RuntimeError("this engine is closed")
        if self.forked:
            raise RuntimeError(
                "this engine was opened before a fork; its reactors run in the parent process"
            )
        return self.check_thread()

    cdef int check_thread(self) except -1:
        if self.thread != PyThread_get_thread_ident():
            raise RuntimeError(
                "this engine belongs to the Trio run of another thread: "
                "use trio.from_thread.run_sync to call it from here"
            )
        return 0

    def ensure_usable(self):
        self.check()

    cdef int require_hub(self) except -1:
        if self.hub == NULL:
            raise RuntimeError("this engine is closed")
        return 0

    def mark_shared(self):
        """A child is about to be forked, which may hold our descriptors from now on."""
        if self.hub != NULL:
            wk_u32_store(&self.hub.shared, 1)

    def mark_forked(self):
        """In a child process: refuse everything, and touch nothing that is shared. Every
        descriptor is shared: an epoll of the child is also the parent's, and so is the state
        of an eventfd. The memory is the child's own.

        Returns whether the Trio run goes on in the child: the thread that forked is
        its thread, the only one that the child has."""
        cdef Endpoint endpoint
        cdef void *at
        if self.closed or self.forked:
            return False
        self.forked = True
        slot_map_after_fork(self.hub.slot_map)
        if self.thread != PyThread_get_thread_ident():
            return False
        at = self.endpoints
        while at != NULL:
            endpoint = <Endpoint>at
            endpoint.after_fork()
            at = endpoint.following
        return True

    @property
    def in_loop(self):
        self.check()
        return self.hub.in_loop

    @property
    def virtual(self):
        """Whether timeouts follow a Trio clock that is not the system's."""
        return self.clock is not None

    # --- the thread's side -------------------------------------------------

    def run(self, uint32_t index):
        """A reactor thread's body: turns until `stop`."""
        cdef Reactor *reactor
        self.require_hub()
        reactor = self.hub.reactors[index]
        # If both threads share a core, every packet would otherwise preempt
        # Trio for the sake of one completion. A batch thread waits its turn, and
        # finds more to do when it comes; with a core to itself nothing changes.
        # (Pinned to one core, 100 connections: 0.7 of the CPU per message.)
        try:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        except (OSError, MemoryError):
            pass
        # Under the GIL, as `close` looks at it.
        self.running += 1
        with nogil:
            reactor_run(reactor)
        self.running -= 1

    def stop(self):
        cdef uint32_t i
        if self.hub == NULL:
            return
        for i in range(self.hub.count):
            reactor_stop(self.hub.reactors[i])

    # --- the bridge's side -------------------------------------------------

    def fileno(self):
        """What Trio waits on: the reactor's epoll itself when in-loop, else an
        eventfd that reactors write."""
        self.require_hub()
        return self.hub.reactors[0].epfd if self.hub.in_loop else self.hub.wakefd

    cdef void before_wait(self, double timeout) noexcept:
        """Trio is about to sleep for `timeout` seconds. hub_wake has the argument for the
        flag. In-loop, too, something may have to wake it: in guest mode the host
        runs while Trio waits; and a finalizer may run between here and the wait."""
        cdef uint64_t until
        cdef bint found
        if self.forked:
            return
        stall_sleep(&self.stall, self.hub, timeout)
        if spin_policy_wants(&self.spin_policy) and not self.hub.virtual:
            until = monotonic_ns() + <uint64_t>(min(timeout * 1e9, <double>SPIN_NS))
            with nogil:
                found = spin_until(self.hub, until)
            # If other threads want the GIL, giving it up costs more than is gained.
            spin_policy_note(&self.spin_policy, found and monotonic_ns() < until + GIL_NS)
        wk_u32_store(&self.hub.asleep, 1)
        wk_fence()
        if mailbox_waiting(&self.hub.completions) or self.undone is not None:
            hub_wake(self.hub)

    cdef bint catches_up(self) noexcept:
        """After a drain: if a deadline of Trio's has passed, and something may have arrived
        before it that was not read, have it read. Returns whether there may be more to
        drain. stall.pyx has the argument."""
        if self.hub == NULL or self.forked:
            return False
        if not stall_is_behind(&self.stall, self.hub):
            self.stall.put_off = False
            return False
        if not (self.stall.put_off or deadline_passed()):
            return False
        if self.hub.in_loop:
            _turn_in_loop(self)
        else:
            with nogil:
                stall_wait_for_reactors(&self.stall, self.hub)
        return True

    cdef bint puts_off(self, Undone waiter) noexcept:
        """Trio is about to abort a wait. Returns whether the next drain wakes its task instead,
        after reading what has arrived. That is so if a deadline of Trio's has passed, and the
        last hook was too long ago to know that nothing had arrived by then. No task runs while
        Trio expires deadlines, so this does not delay a cancellation by a task, nor that of a
        task that waits again."""
        if self.hub == NULL or self.forked or not stall_begins(&self.stall, self.hub):
            return False
        if in_trio_task():
            return False
        self.stall.put_off = True
        self.again(waiter)
        return True

    def running_since(self):
        """(since when Trio's loop runs tasks and callbacks, without having come round; now), in
        seconds on the system's monotonic clock. None instead of the first: it waits, or the
        engine is closed. For any thread: what it reads is written under the GIL."""
        cdef uint64_t now = monotonic_ns()
        cdef uint64_t since = self.stall.begun
        if self.hub == NULL or self.forked or since == 0 or wk_u32_load(&self.hub.asleep):
            return None, now / 1e9
        return since / 1e9, now / 1e9

    def still(self):
        """Clear the eventfd that woke Trio, so that it can wake Trio again. Raises the exception
        that must end the run, if there is one."""
        self.require_hub()
        if not self.hub.in_loop and not self.forked:
            eventfd_clear(self.hub.wakefd)
        if self.failure is not None:
            raise self.failure

    def wait_with(self, scope):
        """In virtual time: keep this cancel scope's deadline at the next timeout. The system's
        timer cannot follow such a clock, and a clock that jumps asks Trio how far."""
        self.alarm = scope
        self.show_alarm()

    def unfinished(self):
        """Whether the in-loop reactor needs another turn without waiting."""
        self.require_hub()
        return self.hub.in_loop and has_more(self.hub.reactors[0])

    cdef void drain(self) noexcept:
        """Hand the completions that are there now to their endpoints, which reschedule tasks
        or post commands."""
        cdef Notification *notification
        cdef Notification *following
        cdef uint32_t size = 0
        if not mailbox_waiting(&self.hub.completions):
            return
        notification = mailbox_take(&self.hub.completions)
        if wk_u32_load_relaxed(&self.hub.measures.on):
            measure_drain(&self.hub.measures, self.hub.in_loop)
        while notification != NULL:
            following = notification.next
            deliver(self, notification)
            notification = following
            size += 1
        if self.hub != NULL and wk_u32_load_relaxed(&self.hub.measures.on):
            measure_batch(&self.hub.measures, size)

    cdef void on_beacon(self, uint32_t bits) noexcept:
        if bits & TRIM:
            pool_trim_idle(self.hub.pool)
        if bits & BROADCAST:
            self._end_broadcasts()
        if bits & RELIEVE:
            self.relieve()
        if bits & ENDED and self.on_quiet is not None:
            callback, self.on_quiet = self.on_quiet, None
            try:
                callback()
            except BaseException as failure:
                self.fail_run(failure)
        if bits & SHORTAGE and self.on_shortage is not None:
            self.on_shortage()      # last: handlers of logging may do anything

    # --- without memory ----------------------------------------------------

    cdef void wake(self) noexcept:
        """Wake Trio, if it sleeps: for a finalizer, or the host of guest mode."""
        if self.hub != NULL and not self.forked:
            hub_wake(self.hub)

    cdef bint wake_task(self, Undone waiter, Operation operation) noexcept:
        """Wake a parked task. False if there is no memory for that: then the waiter
        puts the operation back, and its `retry` will be called."""
        cdef Wake outcome = UNDONE
        cdef int tries = MAX_TRIES if self.closed else 1       # no drain will come
        while outcome == UNDONE and tries > 0:
            outcome = operation.wake()
            tries -= 1
        if outcome == WOKEN_UP:
            return True
        if outcome == HALF_DONE:
            self.fail_run(operation.failure)
            return True
        self.again(waiter)
        return False

    cdef void again(self, Undone what) noexcept:
        """Let the next drain retry what could not be done, and keep Trio from sleeping
        before. Takes no memory."""
        if not what.is_undone:
            what.is_undone = True
            what.next_undone = self.undone
            self.undone = what
        self.wake()

    cdef void try_undone(self) noexcept:
        cdef Undone what = self.undone
        cdef Undone following
        self.undone = None
        while what is not None:
            following = what.next_undone
            what.next_undone = None
            what.is_undone = False
            what.retry()
            what = following

    cdef void fail_run(self, object failure) noexcept:
        """A waiting task could not be woken, and will not be: let the pump end the
        run with an internal error, as Trio's own loop does if it runs out of
        memory. That is better than a task that waits forever."""
        if self.failure is None:
            self.failure = failure
        if self.hub != NULL and not self.forked:
            eventfd_signal(self.hub.wakefd)

    cdef void let_go_blind(self, Slot *slot) noexcept:
        """Close a connection of event mode for whose object there is no memory."""
        (<Server>slot.server).lost(slot)
        self.end_sending(slot, False)
        self.unclaim(slot)
        self.post(slot, DROP)

    # --- for endpoints -----------------------------------------------------

    cdef void post(self, Slot *slot, uint32_t bits) noexcept:
        """Send a command down. In-loop it is carried out here and now: this is
        the reactor's thread, and no turn is in progress. In a forked child nothing is
        posted: the reactor and the descriptor are the parent's."""
        cdef Reactor *reactor = <Reactor *>slot.reactor
        if self.forked:
            return
        # A finalizer may let go in any thread that collects garbage.
        if not self.hub.in_loop or self.thread != PyThread_get_thread_ident():
            reactor_post(slot, bits)
            return
        reactor.now = self.now()
        command(reactor, slot, bits)
        publish(reactor)
        set_alarm(reactor)
        self.show_alarm()
        if self._wants_turn():
            eventfd_signal(reactor.wakefd)   # or Trio might sleep on it

    cdef bint _is_far_over(self) noexcept:
        cdef uint64_t most = self.hub.budget.most
        return budget_total(self.hub.budget) > most + most // 32

    cdef void relieve(self) noexcept:
        """Over the budget: end the connections that hold most. While reactors still have to free
        what some of these held, nobody asks for more."""
        cdef Relief relief
        cdef Slot *slot
        cdef Endpoint endpoint
        if wk_u32_load(&self.hub.budget.dooming):
            return
        budget_doom(self.hub)       # for as long as this goes on
        relief_begin(&relief, self.hub)
        slot = relief_next(&relief)
        while slot != NULL:
            endpoint = self.owner_of(slot)
            if endpoint is None or not endpoint.is_leaving():
                relief_end(slot, self.hub)
                relief.ended += 1
                budget_doom(self.hub)
                self.post(slot, SHED)
            slot = relief_next(&relief)
        if not relief.ended:
            budget_relieved(self.hub)
        budget_freed(self.hub)

    cdef void uncork(self, Slot *slot) noexcept:
        """Send what is queued on a connection whose sending side is held, and let go of
        that; what the kernel does not take is left to the reactor."""
        slot.corked = False
        if not self.forked and sender_flush(slot, self.hub.pool, self.now()):
            self.post(slot, FLUSH)

    cdef void settle(self, Slot *slot) noexcept:
        """Before this side sends on a connection, or lets go of it: queue the broadcasts that
        have not come to it yet, so that they are not overtaken.

        Far over the budget, room is made first: a task may send to thousands before it lets
        others run, and the drain cannot make it meanwhile."""
        if budget_is_over(self.hub.budget) and not self.forked and self._is_far_over():
            self.relieve()
        if (self.broadcasts.first != NULL and not self.forked
                and broadcasts_settle(&self.broadcasts, slot, self.hub.pool)):
            self.post(slot, FLUSH)

    cdef void _end_broadcasts(self) noexcept:
        """Take the jobs that reactors have done."""
        cdef Notification *link = mailbox_take(&self.hub.finished)
        cdef BroadcastJob *job
        cdef Audience audience
        while link != NULL:
            job = <BroadcastJob *>link      # its first field's first field
            link = link.next
            broadcasts_remove(&self.broadcasts, job)
            audience = <Audience>job.audience
            audience.done(job)

    cdef void leave_groups(self, Slot *slot) noexcept:
        """A connection is let go of, and with that leaves its groups."""
        cdef uint64_t handle = wk_u64_load(&slot.handle)
        where = take_entry(self.memberships, slot)
        if isinstance(where, Audience):
            (<Audience>where).left(handle)
        elif where is not None:
            for audience in <set>where:
                (<Audience>audience).left(handle)

    cdef void unframed(self, Slot *slot) noexcept:
        """It leaves the groups that send frames to it."""
        cdef uint64_t handle = wk_u64_load(&slot.handle)
        where = self.memberships.get(handle) if self.memberships else None
        if isinstance(where, Audience):
            (<Audience>where).unframed(handle)
        elif where is not None:
            for audience in list(where):
                (<Audience>audience).unframed(handle)

    cdef void end_turn(self) noexcept:
        """Send what this turn's tasks, or callbacks, have corked."""
        cdef Slot *slot
        cdef uint32_t i
        if self.late:
            self._end_late()
        self.corks.turn += 1
        if self.hub == NULL:
            return
        for i in range(self.corks.count):
            slot = slot_map_get(self.hub.slot_map, self.corks.handles[i])
            if slot != NULL and slot.corked:
                self.uncork(slot)
        self.corks.count = 0

    cdef void _end_late(self) noexcept:
        """Ask the latecomers. One that is asked may add others, at the end of the list."""
        cdef list late = self.late
        cdef Py_ssize_t i = 0
        cdef Latecomer one
        while i < len(late):
            one = <Latecomer>late[i]
            if one.turn_ended():
                late[i] = late[len(late) - 1]
                late.pop()
            else:
                i += 1

    cdef void end_sending(self, Slot *slot, bint torn) noexcept:
        """Before a connection is let go of. `torn`: a part of a message was sent, and its
        rest will not be."""
        if self.forked:
            return
        self.settle(slot)
        if slot.corked:
            self.uncork(slot)
        sender_end(slot, self.hub.pool, torn)

    cdef void requeue(self, Slot *slot, uint32_t bits) noexcept:
        """Let the next drain, not the current one, find a completion."""
        if self.forked:
            return
        if notification_mark(&slot.completion, bits):
            mailbox_push(&self.hub.completions, &slot.completion, &slot.completion)
            self.wake()

    cdef Slot *next_claimed(self, uint32_t *cursor) noexcept:
        """The next connection that the Trio side holds, moving the cursor (0 at
        first); NULL at the end. Other threads may take and return slots meanwhile, which is
        harmless: only the Trio side writes the fields that are read here."""
        cdef Slot *slot
        if self.closed:
            return NULL
        slot = slot_map_step(self.hub.slot_map, cursor)
        while slot != NULL and not (slot.claimed and slot.kind == CONNECTION):
            slot = slot_map_step(self.hub.slot_map, cursor)
        return slot

    cdef void let_go_unseen(self, Slot *slot) noexcept:
        """Close a connection that was not accepted."""
        take_entry(self.headers, slot)
        self.post(slot, DROP)

    cdef bint _wants_turn(self) noexcept:
        """Whether a command that was carried out in-loop left something to do:
        completions, bytes to read, a descriptor that a port may use."""
        cdef Reactor *reactor = self.hub.reactors[0]
        return (
            mailbox_waiting(&self.hub.completions)
            or has_more(reactor)
            or (reactor.descriptor_freed and not list_empty(&reactor.starved))
        )

    cdef uint64_t now(self) noexcept:
        """The time on this engine's clock (ns)."""
        if self.clock is None:
            return monotonic_ns()
        return <uint64_t>(<double>self.clock() * 1e9)

    cdef void show_alarm(self) noexcept:
        """Under a clock of Trio's that may jump: show it the next timeout, as the deadline with
        which the pump waits. The deadline is a microsecond late, because a clock that counts
        seconds in floating point must not stop just before the timeout, where nothing is due
        and no more time would pass."""
        cdef uint64_t at
        if self.clock is None or self.alarm is None:
            return
        at = wheel_next(self.hub.reactors[0].wheel)
        deadline = math.inf if at == NEVER else (at + 1000) / 1e9
        if self.alarm.deadline != deadline:
            self.alarm.deadline = deadline

    cdef void claim(self, Slot *slot) noexcept:
        """Claim a slot for the Trio side: reset the fields that it writes."""
        slot.owner = NULL
        slot.server = NULL
        slot.context = NULL
        wk_u64_store_relaxed(&slot.sent, 0)
        wk_u64_store_relaxed(&slot.send_calls, 0)
        wk_u64_store_relaxed(&slot.last_sent, 0)
        slot.taken = 0
        slot.seen = 0
        slot.send_error = 0
        slot.corked = False
        slot.sent_in = 0
        slot.phase = QUIET
        wk_byte_store(&slot.claimed, True)
        if slot.kind == CONNECTION:
            self.claimed += 1
            if slot.limits.idle or slot.limits.idle_write:
                self.start_timeout(slot)

    cdef void start_timeout(self, Slot *slot) noexcept:
        """Let a connection's idle timeout count from now. If it came due before,
        while the connection waited to be accepted, that was dropped."""
        cdef uint64_t now = self.now()
        slot.waiting_for.timeout_since = now
        slot.tally.write_since = now
        if wk_u32_load(&slot.idle) == 0:
            self.watch_idle(slot, strictest(slot.limits.idle, slot.limits.idle_write), now)

    cdef void unclaim(self, Slot *slot) noexcept:
        wk_byte_store(&slot.claimed, False)
        slot.server = NULL
        if slot.kind == CONNECTION:
            self.leave_groups(slot)
            if slot.by_kind.scan != NULL:
                if decoder_of(slot) != NULL:
                    _say_last(self, slot)
                framed_unlink(slot)
            self.claimed -= 1

    cdef Endpoint owner_of(self, Slot *slot):
        """The object that a slot belongs to, or None. An object that another thread
        is freeing, whose finalizers let this thread run, counts as gone: a
        reference to it would come too late."""
        if slot.owner == NULL:
            return None
        if Py_REFCNT(<PyObject *>slot.owner) == 0:
            (<Endpoint>slot.owner).forget()
            return None
        return <Endpoint>slot.owner

    cdef Endpoint conn_of(self, Slot *slot):
        """The application's object of a connection; it is made on first access."""
        cdef Endpoint conn = self.owner_of(slot)
        if conn is None:
            conn = self.make_conn()
            conn.attach(self, slot)
        return conn

    cdef void start(self, Slot *slot) noexcept:
        """Let the reactor watch a slot's descriptor."""
        if slot.kind == CONNECTION:
            wk_u32_add(&(<Reactor *>slot.reactor).connections, 1)
        self.post(slot, ADD)

    cdef void watch_idle(self, Slot *slot, uint32_t rule, uint64_t since) noexcept:
        """Give the reactor another idle rule for a connection, counted from
        `since` (ns) if nothing moves."""
        wk_u64_store_relaxed(&slot.idle_since, since)
        wk_u32_store_relaxed(&slot.idle, rule)
        self.post(slot, WATCH)

    cdef Slot *new_slot(self, int fd, int family, Limits limits) except NULL:
        """A slot for a descriptor that the caller owns, on the least loaded reactor."""
        cdef Slot *slot = slot_map_take(self.hub.slot_map)
        if slot == NULL:
            raise MemoryError
        slot.fd = fd
        slot.family = family
        slot.limits = limits
        wk_place_store(&slot.reactor, least_loaded(self.hub, self.hub.reactors[0]))
        slot.opened = self.now()
        return slot

    # --- the end -----------------------------------------------------------

    def let_go_of_all(self):
        """Close every connection and listener, and wake the tasks that wait on them."""
        cdef Endpoint endpoint
        cdef uint32_t cursor = 0
        cdef Slot *slot = self.next_claimed(&cursor)
        while slot != NULL:     # in event mode it need not have an object
            try:
                endpoint = self.conn_of(slot)
            except MemoryError:
                endpoint = None
            if endpoint is not None:
                endpoint.engine_closed()
            else:
                self.let_go_blind(slot)
            slot = self.next_claimed(&cursor)
        while self.endpoints != NULL:
            endpoint = self.owner_of((<Endpoint>self.endpoints).slot)
            if endpoint is not None:
                endpoint.engine_closed()

    def close(self):
        """Close what is left, after `stop`: no reactor thread runs any more, so this
        thread may do every reactor's work."""
        cdef uint32_t i
        cdef uint32_t cursor = 0
        cdef Reactor *reactor
        cdef Slot *slot
        if self.closed:
            return
        # They have been joined, unless that has failed.
        while self.running:
            with nogil:
                usleep(1000)
        self.let_go_of_all()
        budget_end(self.hub.budget)
        for i in range(self.hub.count):
            reactor = self.hub.reactors[i]
            reactor_turn(reactor, 0)
            while reactor.broadcasts != NULL:
                reactor_turn(reactor, 0)
            if reactor.spare != NULL:
                slot_map_return(self.hub.slot_map, reactor.spare)
                reactor.spare = NULL
        slot = slot_map_each(self.hub.slot_map, &cursor)
        while slot != NULL:
            if slot.kind != LISTENER and slot.state != GONE:
                close_now(<Reactor *>slot.reactor, slot)
            slot = slot_map_each(self.hub.slot_map, &cursor)
        for i in range(self.hub.count):
            publish(self.hub.reactors[i])
        self.drain()
        for i in range(<uint32_t>MAX_TRIES):   # there will be no other drain
            if self.undone is None:
                break
            self.try_undone()
        self.closed = True
        self.late.clear()
        corks_free(&self.corks)
        hub_free(self.hub)
        self.hub = NULL

    def quiet(self, on_quiet):
        """Whether no connection is left, not even one that lingers. If there is one,
        `on_quiet()` is called once, when a reactor has closed its last one; then call this
        again."""
        cdef uint32_t i
        self.require_hub()
        self.on_quiet = on_quiet
        wk_u32_store(&self.hub.quiet_wanted, 1)
        wk_fence()
        for i in range(self.hub.count):
            if wk_u32_load(&self.hub.reactors[i].connections):
                return False
        self.on_quiet = None
        return True

    # --- statistics --------------------------------------------------------

    def shortage(self):
        """(connections that epoll cannot watch for now, the number of such shortages, the
        errno of the last one)"""
        self.check()
        return (
            wk_u32_load(&self.hub.unwatched),
            wk_u32_load(&self.hub.shortages),
            wk_u32_load(&self.hub.shortage),
        )

    def held_ports(self):
        """Ports that wait for room by their admission."""
        cdef uint32_t i
        self.check()
        return sum([wk_u32_load(&self.hub.reactors[i].holding) for i in range(self.hub.count)])

    def refused(self):
        """How many connections listeners have refused, by Reason."""
        cdef int i
        self.check()
        return [wk_u64_load_relaxed(&self.hub.refused[i]) for i in range(<int>REASONS)]

    def budget(self):
        """(bytes that are held, how often reading has paused)"""
        self.check()
        return budget_total(self.hub.budget), wk_u64_load_relaxed(&self.hub.budget.pauses)

    def statistics(self):
        """(wakes, (slots in use, slots ready, bytes of slabs, bytes kept, bytes in use),
        [(connections, turns, events, bytes kept, bytes in use, ns busy)])"""
        cdef uint32_t i
        cdef Reactor *reactor
        self.check()
        rows = []
        for i in range(self.hub.count):
            reactor = self.hub.reactors[i]
            rows.append((
                wk_u32_load(&reactor.connections),
                wk_u64_load_relaxed(&reactor.turns),
                wk_u64_load_relaxed(&reactor.events_seen),
                wk_u64_load_relaxed(&reactor.pool.kept),
                wk_u64_load_relaxed(&reactor.pool.live),
                wk_u64_load_relaxed(&reactor.busy),
            ))
        return wk_u64_load_relaxed(&self.hub.wakes), self._memory(rows), rows

    def measure(self, uint32_t whom, bint wanted):
        """Switch the measuring on or off for one of those who may want it: a bit."""
        self.check()
        measure_switch(&self.hub.measures, whom, wanted)

    def measures(self):
        """(ns measured, ns Trio's loop was busy, (batches, completions, the largest batch),
        (the last lag, the longest, all together), lags by bucket, batches by bucket of size)"""
        cdef Measures *m
        cdef int i
        self.check()
        m = &self.hub.measures
        return (
            measured_time(m),
            wk_u64_load_relaxed(&m.busy),
            (
                wk_u64_load_relaxed(&m.batches),
                wk_u64_load_relaxed(&m.completions),
                wk_u64_load_relaxed(&m.largest_batch),
            ),
            (
                wk_u64_load_relaxed(&m.lag),
                wk_u64_load_relaxed(&m.longest_lag),
                wk_u64_load_relaxed(&m.total_lag),
            ),
            [wk_u64_load_relaxed(&m.lags[i]) for i in range(<int>TIME_BUCKETS)],
            [wk_u64_load_relaxed(&m.sizes[i]) for i in range(<int>SIZE_BUCKETS)],
        )

    cdef tuple _memory(self, list rows):
        cdef SlotMap *slot_map = self.hub.slot_map
        cdef uint32_t used = wk_u32_load(&slot_map.count)
        cdef uint32_t warm = wk_u32_load(&slot_map.warm_count) * SLAB_SLOTS
        kept = sum([row[3] for row in rows])
        live = sum([row[4] for row in rows])
        if not self.hub.in_loop:
            kept += wk_u64_load_relaxed(&self.hub.pool.kept)
            live += wk_u64_load_relaxed(&self.hub.pool.live)
        # Threads may take and return slots between the two counts.
        return used, max(warm, used) - used, warm * sizeof(Slot), kept, live


# --- the end of a WebSocket -----------------------------------------------------------


cdef uint32_t _take_goodbye(Slot *slot, unsigned char *frame) noexcept:
    """Take the close frame that is due from the reactor, unless that is sending it: of what is
    due it is the last. Its size; 0 if there is none to send."""
    cdef Decoder *ws
    cdef Due what = CLOSE_DUE
    cdef uint64_t number = 0
    cdef uint32_t n = 0
    cdef unsigned char key[4]
    draw_key(key)
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    if (ws.scan.answer_due & CLOSE_DUE and not slot.error and not slot.pending_error
            and not (ws.answering and ws.scan.answer_due == CLOSE_DUE)):
        ws.scan.answer_due = CLOSE_DUE
        n = decoder_answer(ws, frame, key, &what, &number)
        ws.scan.answer_due = 0
    pthread_mutex_unlock(&slot.lock)
    return n


cdef void _say_last(Core core, Slot *slot) noexcept:
    """A WebSocket is let go of, and with it the decoder, which may know of a close frame that
    the reactor has not sent yet. It goes to the kernel here, or behind what is queued."""
    cdef unsigned char frame[MAX_ANSWER]
    cdef uint32_t n = 0 if core.forked else _take_goodbye(slot, frame)
    cdef uint32_t state = 0
    while n and state == 0:
        if sender_acquire(slot):
            pthread_mutex_lock(&slot.lock)
            ring_write(&slot.outbound, core.hub.pool, frame, n)
            sender_set(slot, HELD | QUEUED)
            pthread_mutex_unlock(&slot.lock)
            sender_flush(slot, core.hub.pool, core.now())
            return
        pthread_mutex_lock(&slot.lock)
        state = sender_state(slot)
        if state & QUEUED and not state & SHUT:
            ring_write(&slot.outbound, core.hub.pool, frame, n)
        pthread_mutex_unlock(&slot.lock)


# --- a drain, in parts ---------------------------------------------------------------


cdef void woke(Core core, bint rung) noexcept:
    """What comes before each drain: do the sends that the last turn's tasks deferred; and
    in-loop, turn the reactor if its epoll was ready, or may be, or something is unfinished."""
    wk_u32_store(&core.hub.asleep, 0)
    if core.undone is not None:
        core.try_undone()
    core.send_batch.begin_turn()
    if core.hub.in_loop:
        if rung or has_more(core.hub.reactors[0]) or core.hub.virtual:
            _turn_in_loop(core)
        else:
            stall_turned(&core.stall, core.hub, False)


cdef void _turn_in_loop(Core core) noexcept:
    cdef Reactor *reactor = core.hub.reactors[0]
    core.hub.virtual_now = core.now()
    with nogil:
        reactor_turn(reactor, 0)
        # The pump may be parked, under a virtual clock, or gone, at a run's end; and the
        # edges of what is left to read were consumed. So signal that there is more.
        if has_more(reactor):
            eventfd_signal(reactor.wakefd)
    stall_turned(&core.stall, core.hub, reactor.full)
    core.show_alarm()


cdef void deliver(Core core, Notification *notification) noexcept:
    """Hand a slot's completions to its server or its endpoint."""
    cdef Slot *slot = slot_of_completion(notification)
    cdef uint32_t bits = notification_take(notification)
    cdef Endpoint endpoint
    if core.forked:
        return      # a callback before this one has forked: the child does nothing more
    spin_policy_hear(&core.spin_policy, slot)
    if slot == core.hub.beacon:
        core.on_beacon(bits)
    elif bits & RELEASED:
        slot_map_return(core.hub.slot_map, slot)
    elif slot.server != NULL:
        (<Server>slot.server).completed(slot, bits)
    else:
        # A reference of our own: a finalizer may run while tasks are
        # rescheduled, and drop the last other one.
        endpoint = core.owner_of(slot)
        if endpoint is not None:
            core.send_batch.woken += 1
            endpoint.completed(bits)
