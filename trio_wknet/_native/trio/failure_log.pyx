"""The log lines about what peers do wrong, at a bounded rate: whoever can connect can cause them.

LINES failures are logged at once, and then one per second. The next line, or the last one when
there will be no more failures, says how many were not logged.

A failure takes its line first, and is logged last, since handlers of logging may do anything. In
between its reasons may be found out, which most failures of a flood need not be.
"""
cimport cython
from libc.stdint cimport int64_t, uint64_t

from ..base.linux cimport monotonic_ns

cdef enum:
    LINES = 10


@cython.final
cdef class FailureLog:
    """The lines of one listener.

    Args:
      logger: where they go.
      rest: the last line, with ``%d`` for the number of failures that got none.
      rest_level: its level.
    """

    def __cinit__(self, logger not None, str rest not None, int rest_level):
        self.logger = logger
        self.rest = rest
        self.rest_level = rest_level
        self.lines = LINES

    cpdef int64_t take_line(self, int level) noexcept:
        """How many failures before this one got no line, for `write`. -1 if this one gets none,
        and is counted, or if nobody listens for its level."""
        return self.take_line_at(level, monotonic_ns())

    cdef int64_t take_line_at(self, int level, uint64_t now) noexcept:
        cdef uint64_t before
        if not self.logger.isEnabledFor(level):
            return -1
        self.lines = min(<double>LINES, self.lines + (now - self.lines_at) / 1e9)
        self.lines_at = now
        if self.lines < 1:
            self.unsaid += 1
            return -1
        self.lines -= 1
        before, self.unsaid = self.unsaid, 0
        return <int64_t>before

    def write(self, int level, int64_t before, str message not None, *args):
        """Log a failure that has taken a line."""
        more = f" (and {before} others, unlogged)" if before else ""
        self.logger.log(level, message + "%s", *args, more)

    def write_rest(self):
        """There will be no more failures: log how many got no line."""
        unsaid, self.unsaid = self.unsaid, 0
        if unsaid:
            self.logger.log(self.rest_level, self.rest, unsaid)
