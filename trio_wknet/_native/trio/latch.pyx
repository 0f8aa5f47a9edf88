"""Latch: a `trio.Event` whose `set` does not fail.

If Trio's own `set` runs out of memory, the event is set, but only some of its waiters were
woken, or none; setting it again does nothing. Here an end is reported only once, and every
task that waits for it must be woken. So waking a task is tried again if there is no memory
for it (`Core.again`).
"""
cimport cython

from .operation cimport ABORT_FAILED, ABORT_SUCCEEDED, Operation, make_trap


@cython.final
cdef class WaitLatch(Operation):
    cdef Latch latch
    cdef bint shielded

    cdef object start(self):
        trap = None if self.shielded else self.enter()
        if trap is not None:
            return trap
        if self.latch.is_set:
            return self.complete(None)
        trap = self.parked(make_trap(self._abort))
        self.latch.waiters.append(self)
        return trap

    cdef object proceed(self):
        return None

    def _abort(self, raise_cancel):
        if self.shielded:
            return ABORT_FAILED
        if self in self.latch.waiters:
            self.latch.waiters.remove(self)
        return ABORT_SUCCEEDED


@cython.final
cdef class Latch(Undone):
    def __cinit__(self, Core core not None):
        self.core = core
        self.waiters = []

    def set(self):
        """Wake all tasks that wait, or will wait. Idempotent."""
        self.is_set = True
        self.retry()

    cdef void retry(self) noexcept:
        cdef list waiters = self.waiters
        cdef Operation operation
        # Counted, because list.pop may take memory.
        while self.woken < len(waiters):
            operation = <Operation>waiters[self.woken]
            if not self.core.wake_task(self, operation):
                return
            self.woken += 1
        self.woken = 0
        waiters.clear()

    def wait(self, bint shielded=False):
        """Wait until it is set. A checkpoint. If `shielded`, only a schedule point, without a
        cancel scope, because Trio needs memory to leave one."""
        cdef WaitLatch operation = WaitLatch.__new__(WaitLatch)
        operation.latch = self
        operation.shielded = shielded
        return operation
