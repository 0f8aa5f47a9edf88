# The Trio side's handle on a hub: owned by an Engine, used from one thread.
from libc.stdint cimport uint32_t, uint64_t

from ..reactor.broadcast cimport BroadcastJob
from ..reactor.hub cimport Hub
from ..reactor.mailbox cimport Notification
from ..reactor.slot cimport Limits, Slot
from .broadcasts cimport Broadcasts
from .cork cimport Corks
from .operation cimport Operation
from .send_batch cimport SendBatch
from .spin cimport SpinPolicy
from .stall cimport StallWatch
from .totals cimport Totals


cdef class Undone:
    """The lowest layer of a `Conn`, and of other objects: what may be left undone for lack of
    memory (`Core.again`), and is tried again by the next drain."""
    cdef Undone next_undone
    cdef bint is_undone
    cdef void retry(self) noexcept


cdef class Observer(Undone):
    """What a connection tells when control frames have come, or it has ended: a WebSocket.
    The decoder points to it (websocket.pxd)."""
    cdef void on_control(self) noexcept


cdef class Endpoint(Undone):
    """The layer that a `Conn` and a `Listener` have in common: what a slot's `owner` points
    to. The slot is valid until the endpoint lets go of it."""
    cdef Core core
    cdef Slot *slot
    cdef void *previous         # Endpoints of the core's list, borrowed
    cdef void *following

    # Both run in Trio's thread and never raise; the drain calls the first.
    cdef void completed(self, uint32_t bits) noexcept
    cdef void engine_closed(self) noexcept
    # Whether its descriptor is being taken back, so that what it has received must stay.
    cdef bint is_leaving(self) noexcept
    # In a forked child: no reactor will report anything any more.
    cdef void after_fork(self) noexcept

    cdef void attach(self, Core core, Slot *slot) noexcept
    cdef void forget(self) noexcept
    cdef void leave(self) noexcept
    cdef int ensure_usable(self) except -1
    cdef int ensure_thread(self) except -1


cdef class Audience(Undone):
    """What a connection is a member of, and what is told of broadcasts: a `Group`. All run in
    Trio's thread and never raise."""
    cdef void left(self, uint64_t handle) noexcept
    cdef void unframed(self, uint64_t handle) noexcept
    cdef void done(self, BroadcastJob *job) noexcept


cdef class Server(Undone):
    """What a slot's `server` points to: what serves connections in event mode. It
    outlives the time for which its connections are claimed."""
    cdef Totals totals          # those of its listener, in which its connections count
    # All run in Trio's thread and never raise; the drain calls the first two.
    cdef void completed(self, Slot *slot, uint32_t bits) noexcept
    cdef void accepted(self) noexcept
    cdef void closed(self) noexcept
    cdef void left(self, Endpoint conn, str reason) noexcept
    # A connection is let go of without an object, because there was no memory for one.
    cdef void lost(self, Slot *slot) noexcept


cdef class Latecomer:
    """What may have something to send when a turn ends, beside what is corked: it is in
    `Core.late` then."""
    # Whether all of it was sent, or need not be any more. In Trio's thread, and never raises.
    cdef bint turn_ended(self) noexcept


cdef class Core:
    cdef Hub *hub
    cdef unsigned long thread
    cdef object __weakref__
    cdef readonly bint closed
    cdef readonly bint forked
    cdef void *endpoints        # first of the list
    cdef object on_quiet
    cdef public object on_shortage      # called when `unwatched` leaves 0 or comes back to it
    cdef object clock           # a Trio clock's current_time; None: the system's
    cdef object make_conn       # called without arguments, gives a connection's Endpoint
    cdef object alarm           # the cancel scope that shows Trio the next timeout
    cdef readonly uint32_t claimed      # connections that the application knows
    cdef readonly SendBatch send_batch
    cdef readonly Totals totals
    cdef public object engine   # whose native half this is
    cdef Corks corks
    cdef list late              # of Latecomers
    cdef Broadcasts broadcasts
    cdef dict memberships       # by handle: an Audience, or a set of them
    cdef SpinPolicy spin_policy
    cdef StallWatch stall
    cdef dict headers           # PROXY headers of open connections, by handle
    cdef dict excused           # when idle ones were given time after a stall, by handle
    cdef dict searches          # of receive_until_nowait: where they continue, by handle
    cdef Undone undone          # first of a list
    cdef object failure         # an exception with which the pump will end the run
    cdef uint32_t running       # reactor threads in `run`

    cdef void before_wait(self, double timeout) noexcept
    cdef bint catches_up(self) noexcept
    cdef bint puts_off(self, Undone waiter) noexcept
    cdef bint _wants_turn(self) noexcept
    cdef void drain(self) noexcept
    cdef void wake(self) noexcept
    cdef bint wake_task(self, Undone waiter, Operation operation) noexcept
    cdef void again(self, Undone what) noexcept
    cdef void try_undone(self) noexcept
    cdef void fail_run(self, object failure) noexcept
    cdef void let_go_blind(self, Slot *slot) noexcept
    cdef int require_hub(self) except -1
    cdef void on_beacon(self, uint32_t bits) noexcept
    cdef tuple _memory(self, list rows)
    cdef int check(self) except -1
    cdef int check_thread(self) except -1
    cdef void post(self, Slot *slot, uint32_t bits) noexcept
    cdef bint _is_far_over(self) noexcept
    cdef void relieve(self) noexcept
    cdef void uncork(self, Slot *slot) noexcept
    cdef void settle(self, Slot *slot) noexcept
    cdef void leave_groups(self, Slot *slot) noexcept
    cdef void unframed(self, Slot *slot) noexcept
    cdef void _end_broadcasts(self) noexcept
    cdef void end_sending(self, Slot *slot, bint torn) noexcept
    cdef void end_turn(self) noexcept
    cdef void _end_late(self) noexcept
    cdef void start(self, Slot *slot) noexcept
    cdef void claim(self, Slot *slot) noexcept
    cdef void unclaim(self, Slot *slot) noexcept
    cdef Endpoint owner_of(self, Slot *slot)
    cdef Endpoint conn_of(self, Slot *slot)
    cdef void start_timeout(self, Slot *slot) noexcept
    cdef void watch_idle(self, Slot *slot, uint32_t rule, uint64_t since) noexcept
    cdef void show_alarm(self) noexcept
    cdef uint64_t now(self) noexcept
    cdef void let_go_unseen(self, Slot *slot) noexcept
    cdef void requeue(self, Slot *slot, uint32_t bits) noexcept
    cdef Slot *next_claimed(self, uint32_t *cursor) noexcept
    cdef Slot *new_slot(self, int fd, int family, Limits limits) except NULL


cdef Limits make_limits(object limits) except *
cdef void disown(object sock) noexcept
cdef object take_entry(dict by_handle, Slot *slot)
cdef void woke(Core core, bint rung) noexcept
cdef void deliver(Core core, Notification *notification) noexcept
