# What `Listener.drain` waits for where connections are served by `accept`.
from libc.stdint cimport uint32_t


cdef class Handed:
    cdef readonly uint32_t count    # connections that `accept` gave out, and are open
    cdef public object on_none      # called when the last of them is closed

    cdef void left(self) noexcept
