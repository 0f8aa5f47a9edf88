"""Totals: what the connections of a listener, or of an engine, have come to.

A message costs nothing here. A connection counts for itself, as it always has; when the Trio
side lets go of it, its counters are added to its listener's totals and to its engine's, along
with why it ended. What open connections have come to is summed when somebody asks (tally.pyx).
So these totals are, at any time, the sum of what the connections' own statistics say or last
said: what a reactor still sends for a connection that was closed gracefully is in neither.

All of it is the Trio side's, under the GIL: a finalizer may let go of a connection in any
thread. Nothing takes memory when a connection ends: counters of reasons are in arrays. Whoever
adds a reason for `let_go` adds it to REASONS.
"""
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from ..base.linux cimport ECONNRESET
from ..reactor.framing cimport FrameScan

import os

REASONS = (
    "closed", "eof", "reset", "aborted", "detached", "idle", "read idle", "write idle", "slow",
    "no first byte", "too slow", "budget", "frame too long", "malformed frame", "engine closed",
    "other",
)
assert len(REASONS) == REASON_COUNT
cdef tuple BROADCAST_RESULTS = ("sent", "queued", "skipped", "closed")

cdef dict INDEX_OF = {reason: index for index, reason in enumerate(REASONS)}
cdef int OTHER = REASON_COUNT - 1       # which no connection has, unless it is missing above


cdef class Totals:
    """Args:
      engine: those of the engine, of a listener's; None: these are the engine's.
    """

    def __cinit__(self, Totals engine=None):
        self.engine = engine

    cdef void conn_ended(self, uint64_t received, uint64_t sent, FrameScan *scan, str reason,
                         int32_t error) noexcept:
        """A connection is let go of. `scan`: its frames, if it has some. `error`: the errno that
        has ended it; if it is 0, `reason` says what has."""
        self.ended.received += received
        self.ended.sent += sent
        if scan != NULL:
            sums_add_messages(&self.ended, scan)
        if error > 0 and error != ECONNRESET:
            self.by_errno[min(error, ERRNO_COUNT - 1)] += 1
        else:
            self.by_reason[<int>INDEX_OF.get("reset" if error else reason, OTHER)] += 1
        if self.engine is not None:
            self.engine.conn_ended(received, sent, scan, reason, error)

    cdef void add_messages(self, FrameScan *scan) noexcept:
        """An open connection is framed no more."""
        sums_add_messages(&self.ended, scan)
        if self.engine is not None:
            self.engine.add_messages(scan)

    cdef void handshake_done(self, double seconds) noexcept:
        self.handshakes += 1
        self.handshake_seconds += seconds
        if self.engine is not None:
            self.engine.handshake_done(seconds)

    cdef void handshake_failed(self) noexcept:
        self.failed_handshakes += 1
        if self.engine is not None:
            self.engine.handshake_failed()

    cdef void broadcast_done(self, uint64_t sent, uint64_t queued, uint64_t skipped,
                             uint64_t closed) noexcept:
        self.broadcasts += 1
        self.broadcast_to[0] += sent
        self.broadcast_to[1] += queued
        self.broadcast_to[2] += skipped
        self.broadcast_to[3] += closed

    def broadcast_results(self):
        """How many members each of the broadcasts that are done was sent to, and so on."""
        return {name: self.broadcast_to[i] for i, name in enumerate(BROADCAST_RESULTS)}

    def handshake_given_up(self):
        """One was not even begun."""
        self.handshake_failed()

    def closed_by(self):
        """How many connections have ended, by `Conn.close_reason`: the texts of errnos only
        where there were any."""
        cdef int i
        counts = {REASONS[i]: self.by_reason[i] for i in range(OTHER)}
        if self.by_reason[OTHER]:
            counts[REASONS[OTHER]] = self.by_reason[OTHER]
        for i in range(ERRNO_COUNT):
            if self.by_errno[i]:
                counts[os.strerror(i)] = self.by_errno[i]
        return counts

    def sums(self, bint with_open):
        """(bytes received, bytes sent, messages received, messages sent, bytes received and not
        taken, bytes to be sent): of connections that have ended, and of those that were open at
        the last tally, which must have been just now."""
        if not with_open:
            memset(&self.live, 0, sizeof(Sums))
        return (
            self.ended.received + self.live.received,
            self.ended.sent + self.live.sent,
            self.ended.messages_received + self.live.messages_received,
            self.ended.messages_sent + self.live.messages_sent,
            self.live.unread,
            self.live.unsent,
        )


cdef void sums_add_messages(Sums *sums, FrameScan *scan) noexcept:
    sums.messages_received += scan.counters.received
    sums.messages_sent += scan.counters.sent
