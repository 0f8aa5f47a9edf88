# What `Listener.drain` waits for if connections are served by `accept`.
from libc.stdint cimport uint32_t


cdef class Handed:
    cdef readonly uint32_t count    # open connections that `accept` returned
    cdef public object on_none      # called when the last of them is closed

    cdef void left(self) noexcept
