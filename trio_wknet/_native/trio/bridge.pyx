"""The bridge's hooks: what Trio calls around each wait. See _bridge.py for why."""
from .core cimport Core, woke
from .stall cimport stall_called


cdef class Hooks:
    """An instrument's hooks, without a Python frame of their own. Before each wait they send
    what is corked, and before a sleep they may spin for a moment; after each wait they turn
    the reactor, if it is in-loop and needs it, and drain. They never raise: errors go to
    sys.unraisablehook. Trio may still call a hook that was removed while it called others."""

    def __init__(self, Core core, pump):
        self.core = core
        self.pump = pump

    def before_io_wait(self, double timeout):
        cdef Core core = self.core
        if core.hub == NULL:
            return
        core.end_turn()
        core.corks.open = False
        if timeout > 0:
            core.before_wait(timeout)

    def after_io_wait(self, timeout):
        # Trio clears custom_sleep_data when it reschedules a task, so this shows
        # without a system call whether the descriptor was ready.
        cdef Core core = self.core
        cdef bint rung, late
        if core.hub == NULL or core.forked:
            return
        rung = self.pump.custom_sleep_data is None
        late = stall_called(&core.stall, core.hub)
        core.corks.open = True
        woke(core, rung or late)
        self.drain()
        while core.catches_up():
            self.drain()
        if core.corks.count:    # by callbacks; their replies shall not wait for tasks
            core.end_turn()

    cdef void drain(self) noexcept:
        self.core.drain()
