# What the connections of a listener, or of an engine, have come to: totals.pyx.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from ..reactor.framing cimport FrameScan

cdef enum:
    REASON_COUNT = 16
    ERRNO_COUNT = 134           # Linux's; the last stands for those that are unknown, too

cdef struct Sums:
    uint64_t received           # bytes, as the sockets took and gave them
    uint64_t sent
    uint64_t messages_received  # frames, or messages of WebSockets
    uint64_t messages_sent
    uint64_t unread             # bytes in the rings
    uint64_t unsent


cdef class Totals:
    cdef Totals engine          # of the listener's engine; None: these are the engine's
    cdef readonly uint32_t open # of a listener: connections that it has handed out
    cdef readonly uint64_t accepted     # of an engine: by listeners that are closed
    cdef readonly uint64_t connected    # of an engine: connections without a listener
    cdef readonly uint64_t handshakes   # of TLS, that are done
    cdef readonly uint64_t failed_handshakes
    cdef readonly double handshake_seconds      # that those which are done took together
    cdef readonly uint64_t broadcasts   # of an engine: those that are done, and what became of
    cdef uint64_t broadcast_to[4]       # their members: sent, queued, skipped, closed
    cdef Sums ended
    cdef Sums live              # of open connections, at the last tally
    cdef uint64_t by_reason[REASON_COUNT]
    cdef uint64_t by_errno[ERRNO_COUNT]

    cdef void conn_ended(self, uint64_t received, uint64_t sent, FrameScan *scan, str reason,
                         int32_t error) noexcept
    cdef void add_messages(self, FrameScan *scan) noexcept
    cdef void handshake_done(self, double seconds) noexcept
    cdef void handshake_failed(self) noexcept
    cdef void broadcast_done(self, uint64_t sent, uint64_t queued, uint64_t skipped,
                             uint64_t closed) noexcept


cdef void sums_add_messages(Sums *sums, FrameScan *scan) noexcept
