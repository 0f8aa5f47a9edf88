from libc.stdint cimport uint64_t

from trio_wknet._native.reactor cimport Reactor

cdef void run_trim(Reactor *reactor) noexcept nogil
