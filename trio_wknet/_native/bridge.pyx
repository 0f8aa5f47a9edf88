# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The bridge's hooks: what Trio calls around each wait. See _bridge.py for why."""
from trio_wknet._native.core cimport Core


cdef class InLoopHooks:
    """An instrument's hook, without a Python frame of its own: after each wait it
    turns the reactor if need be, and drains. It never raises: what goes wrong in a
    drain goes to sys.unraisablehook."""

    def __init__(self, Core core, pump):
        self.core = core
        self.pump = pump

    def after_io_wait(self, timeout):
        # Trio clears custom_sleep_data when it reschedules a task, so this tells
        # without a system call whether the descriptor was ready.
        self.core.after_wait(self.pump.custom_sleep_data is None)


cdef class ThreadedHooks(InLoopHooks):
    """The same with reactor threads, which have to know whether Trio sleeps."""

    def before_io_wait(self, double timeout):
        if timeout > 0:
            self.core.before_wait()
