# The bridge's hooks.
from trio_wknet._native.core cimport Core


cdef class InLoopHooks:
    cdef Core core
    cdef object pump            # the task that waits for the core's descriptor


cdef class ThreadedHooks(InLoopHooks):
    pass
