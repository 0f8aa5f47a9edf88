# The bridge's hooks.
from .core cimport Core


cdef class Hooks:
    cdef Core core
    cdef object pump            # the task that waits for the core's descriptor

    cdef void drain(self) noexcept
