# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The bridge's hooks: what Trio calls around each wait. See _bridge.py for why."""
from trio_wknet._native.core cimport Core


cdef class Hooks:
    """An instrument's two hooks, without a Python frame of their own. They never
    raise: what goes wrong in a drain goes to sys.unraisablehook."""
    cdef Core core
    cdef object pump            # the task that waits for the core's descriptor

    def __init__(self, Core core):
        self.core = core

    def _set_pump(self, pump):
        self.pump = pump

    def before_io_wait(self, double timeout):
        if timeout > 0:
            self.core.before_wait()

    def after_io_wait(self, timeout):
        # Trio clears custom_sleep_data when it reschedules a task, so this tells
        # without a system call whether the descriptor was ready.
        self.core.after_wait(self.pump.custom_sleep_data is None)
