
from .hub cimport Reactor

cdef void run_trim(Reactor *reactor) noexcept nogil
