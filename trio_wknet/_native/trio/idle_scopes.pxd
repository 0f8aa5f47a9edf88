# Idle scopes and the idle timeout of a connection.
cimport cython
from libc.stdint cimport uint32_t, uint64_t

from .rate cimport Rated


@cython.final
@cython.no_gc           # a weak reference without a callback is in no cycle
cdef class IdleScope:
    """A cancel scope, and how long a direction may be idle before it is cancelled."""
    cdef object scope           # a weak reference
    cdef uint64_t since         # ns: counts from here, or from the last byte
    cdef uint64_t limit         # ns
    cdef uint32_t direction     # as in idle.pxd, and never EACH
    cdef bint is_over           # it is due, or its scope is gone


cdef class IdleWatch(Rated):
    cdef list idle_scopes            # each an IdleScope; None before the first
    cdef object handler_scope   # what `serve` runs a handler in, with an idle timeout
    cdef str idle_reason        # which limit of the idle timeout has passed, as close_reason
                                # says it, once it has; else None
    cdef bint timed_out         # closed by the idle timeout, while in use

    cdef int require_open(self) except -1
    cdef void add(self, object scope, uint64_t since, uint64_t limit, uint32_t direction)
    cdef bint expire_due(self, uint64_t now) noexcept
    cdef void count_from(self, uint64_t now, uint32_t directions) noexcept
    cdef str which_passed(self, uint64_t now)
    cdef void forget_over(self) noexcept
    cdef uint32_t moved(self, uint32_t bits) noexcept
    cdef void restart(self, uint64_t now, uint32_t directions) noexcept
    cdef uint32_t due_directions(self, uint64_t now) noexcept
    cdef bint excuse(self, uint64_t now) noexcept
    cdef bint has_unread(self) noexcept
    cdef void check_by(self, uint64_t now, uint64_t limit, uint32_t direction) noexcept
    cdef void check_again(self, uint64_t now) noexcept
    cdef void watch(self, uint64_t now, uint64_t due, uint32_t ms, uint32_t direction) noexcept
