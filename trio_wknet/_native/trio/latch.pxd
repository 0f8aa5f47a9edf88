# What tasks wait for that happens once.
from .core cimport Core, Undone


cdef class Latch(Undone):
    cdef Core core
    cdef list waiters           # operations that are parked
    cdef Py_ssize_t woken       # how many of them have been woken
    cdef readonly bint is_set
