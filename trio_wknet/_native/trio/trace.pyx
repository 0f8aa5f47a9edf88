"""What a trace sees: when each message passed from stage to stage.

The times are those that a connection keeps anyway, and three that are taken here:
when the drain began, when the handler ran, when it waited again. So nothing checks
whether there is a trace: while there is one, the bridge has other hooks, whose drain
calls the tracer, and Trio calls the tracer around each step of a task.

What a connection keeps is exact only if it is asked to be (`idle_since` in
slot.pxd). The first message that a trace sees of a connection has no such time.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_load, wk_u32_load_relaxed, wk_u64_load, wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.framing cimport FrameScan
from ..reactor.mailbox cimport Notification, mailbox_take, mailbox_waiting
from ..reactor.measure cimport measure_batch, measure_drain
from ..reactor.ring cimport ring_len
from ..reactor.slot cimport CONNECTION, EXACT, QUIET, READABLE, RELEASED, Slot, slot_of_completion
from .bridge cimport Hooks
from .core cimport Core, deliver
from .operation cimport Operation
from .stream cimport Stream


cdef class Message:
    """Bytes for which a task was woken, or a callback called."""
    cdef Core core
    cdef Stream conn            # None in event mode
    cdef Slot *slot             # for as long as the connection has it
    cdef uint64_t handle
    cdef uint32_t size
    cdef uint64_t noticed       # ns, here and below
    cdef uint64_t stored
    cdef uint64_t drained
    cdef uint64_t started
    cdef bint running           # it has started
    cdef uint64_t sends         # of the connection, when it started
    cdef FrameScan *scan        # that of a framed connection, and what had been taken
    cdef uint64_t frames        # before
    cdef uint64_t frame_bytes

    cdef void start(self) noexcept:
        self.running = True
        self.started = self.core.now()
        if self.is_held():
            self.sends = wk_u64_load_relaxed(&self.slot.send_calls)

    cdef bint is_held(self) noexcept:
        """Whether the connection still has the slot. A task may outlive its engine,
        and then there are no slots any more."""
        return (
            not self.core.closed and self.slot.claimed
            and wk_u64_load(&self.slot.handle) == self.handle
        )

    cdef void look_at_frames(self) noexcept:
        """Before anything is taken."""
        self.scan = self.slot.by_kind.scan
        if self.scan != NULL:
            self.frames = self.scan.counters.received
            self.frame_bytes = self.scan.counters.received_bytes

    cdef bint is_framed(self) noexcept:
        """Whether the counters are still there: not once it is closed or unframed."""
        return self.scan != NULL and self.is_held() and self.slot.by_kind.scan == self.scan

    cdef bint is_answered(self) noexcept:
        return self.is_held() and wk_u64_load_relaxed(&self.slot.send_calls) != self.sends

    cdef bint is_over(self) noexcept:
        """Whether no answer is to be expected: the task waits for the next message, or
        the connection is closed."""
        return not self.is_held() or self.conn.reader is not None

    cdef tuple times(self, uint64_t ended, bint answered):
        frames = frame_bytes = None
        if self.is_framed():
            frames = self.scan.counters.received - self.frames
            frame_bytes = self.scan.counters.received_bytes - self.frame_bytes
        return (
            self.handle, self.size, self.noticed, self.stored, self.drained, self.started,
            ended, answered, frames, frame_bytes,
        )


cdef class Tracer:
    """The native half of `Trace`: `keep` is called with a message's `times`,
    once it was answered, or its handler waits again."""
    cdef object keep
    cdef dict waiting           # messages, by the task that was woken

    def __init__(self, keep):
        self.keep = keep
        self.waiting = {}

    cdef Message meet(self, Core core, Slot *slot, uint32_t bits, uint64_t drained):
        """The message that is about to be delivered, if a notification reports one."""
        cdef Message message
        cdef uint32_t size
        if bits & RELEASED or not bits & READABLE or slot.kind != CONNECTION:
            return None
        pthread_mutex_lock(&slot.lock)
        size = ring_len(&slot.inbound)
        pthread_mutex_unlock(&slot.lock)
        if size == 0:
            return None         # the end
        message = Message.__new__(Message)
        message.core = core
        message.slot = slot
        message.handle = wk_u64_load(&slot.handle)
        message.size = size
        message.drained = drained
        # The reactor may be storing the next ones by now.
        message.stored = min(wk_u64_load(&slot.last_received), drained)
        message.noticed = wk_u64_load(&slot.noticed)
        if message.noticed == 0 or message.noticed > message.stored:
            message.noticed = message.stored
        message.look_at_frames()
        set_exact(slot)
        return message

    cdef bint expect(self, Message message):
        """Whether a task will handle it."""
        cdef Stream conn = message.core.owner_of(message.slot)
        cdef Operation reader = None if conn is None else conn.reader
        if reader is None or reader.task is None:
            return False
        message.conn = conn
        self.finish(reader.task)
        self.waiting[reader.task] = message
        return True

    cdef void deliver(self, Core core, Notification *notification, uint64_t drained) noexcept:
        cdef Slot *slot = slot_of_completion(notification)
        cdef Message message = None
        cdef bint expected = False
        try:
            message = self.meet(core, slot, wk_u32_load(&notification.bits), drained)
            expected = message is None or self.expect(message)
        except MemoryError:
            expected = True     # it is not traced, but delivered
        # In phase QUIET a callback may be called.
        if expected or slot.server == NULL or slot.phase != QUIET:
            deliver(core, notification)
            return
        message.start()
        deliver(core, notification)
        self.conclude(message)

    cdef void conclude(self, Message message):
        """Keep what was answered by now, or not."""
        if message.is_answered():
            self.keep(message.times(wk_u64_load_relaxed(&message.slot.last_sent), True))
        else:
            self.keep(message.times(message.core.now(), False))

    cdef void settle(self, task, Message message):
        del self.waiting[task]
        self.conclude(message)

    cdef void finish(self, task):
        """Keep what a task has, until now not answered."""
        cdef Message message = self.waiting.pop(task, None)
        if message is not None and message.running:
            self.keep(message.times(message.core.now(), False))

    def _forget(self):
        """Drop the messages in progress."""
        self.waiting.clear()

    # --- as an instrument ------------------------------------------------------------

    def before_task_step(self, task):
        cdef Message message = self.waiting.get(task)
        if message is None:
            return
        if not message.running:
            message.start()
        elif message.is_answered():
            # A deferred send is done between two steps, and its connection's counters may be
            # gone after the next.
            self.settle(task, message)

    def after_task_step(self, task):
        cdef Message message = self.waiting.get(task)
        if message is not None and message.running and (
            message.is_answered() or message.is_over()
        ):
            self.settle(task, message)

    def task_exited(self, task):
        self.finish(task)


cdef inline void set_exact(Slot *slot) noexcept:
    if wk_u64_load_relaxed(&slot.idle_since) == 0:
        wk_u64_store_relaxed(&slot.idle_since, EXACT)


cdef inline void unset_exact(Slot *slot) noexcept:
    if wk_u64_load_relaxed(&slot.idle_since) == EXACT:
        wk_u64_store_relaxed(&slot.idle_since, 0)


def keep_exact_times(Core core, bint wanted):
    """Let the existing connections keep exact times, or stop that."""
    cdef uint32_t cursor = 0
    cdef Slot *slot = core.next_claimed(&cursor)
    while slot != NULL:
        if wanted:
            set_exact(slot)
        else:
            unset_exact(slot)
        slot = core.next_claimed(&cursor)


# --- the bridge's hooks, while there is a trace --------------------------------------

cdef void drain(Core core, Tracer tracer) noexcept:
    cdef Notification *notification
    cdef Notification *following
    cdef uint64_t now
    cdef uint32_t size = 0
    if not mailbox_waiting(&core.hub.completions):
        return
    now = core.now()
    notification = mailbox_take(&core.hub.completions)
    if wk_u32_load_relaxed(&core.hub.measures.on):
        measure_drain(&core.hub.measures, core.hub.in_loop)
    while notification != NULL:
        following = notification.next
        tracer.deliver(core, notification, now)
        notification = following
        size += 1
    if core.hub != NULL and wk_u32_load_relaxed(&core.hub.measures.on):
        measure_batch(&core.hub.measures, size)


cdef class TracedHooks(Hooks):
    cdef Tracer tracer

    def __init__(self, Core core, pump, Tracer tracer):
        Hooks.__init__(self, core, pump)
        self.tracer = tracer

    cdef void drain(self) noexcept:
        drain(self.core, self.tracer)
