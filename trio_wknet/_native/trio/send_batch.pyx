"""Sends that wait until the tasks of a turn have run, and are then done in one go.

Facts. A send takes the kernel some microseconds, in which its code and data push the
interpreter's out of the core's caches. And who receives on another core, and is faster than
a handler, falls asleep after each message, and has to be woken for the next one, which
costs the sender.

Consequence. A hundred handlers that each send in between cost more than the same sends
one after the other. (64 B, 100 connections, pinned: 0.87 of the CPU for each message.)

Decision. Where many tasks run in one turn of Trio's loop, a small send (of `send_all`,
`send_vectored`, or a channel's frames) is noted here, and done by the bridge's hook when they have run. Its task goes on in the next
turn, as behind any schedule point, when the kernel owns the bytes. Where few tasks run,
it is sent at once: there is nothing to gain, and a reply would wait for Trio's next turn.

Trade-off. A reply may wait for as long as the other tasks of its turn take, or AT_MOST
sends.

No deferred send is forgotten while Trio sleeps. The first one of a turn comes to a
schedule point, so Trio has a task to run, and turns without waiting; the hook comes
before the tasks of that turn. The others park, which costs less than a schedule point,
and are woken by what sends for them. If that is cancelled before, nothing was sent. It is
`SendingData` in send.pyx that keeps to this.
"""
from libc.stdint cimport uint32_t

from .operation cimport Operation

cdef enum:
    THRESHOLD = 16
    AT_MOST = 128       # what the kernel keeps for so many stays in the core's cache


cdef class SendBatch:
    def __cinit__(self):
        self.due = []
        self.other = []
        self.threshold = THRESHOLD

    cdef bint is_worthwhile(self) noexcept:
        """Whether so many tasks run in this turn that sends are better deferred."""
        return self.woken >= self.threshold

    cdef int make_room(self) except -1:
        """Not for more than AT_MOST at a time. Whoever is to be the next one does not
        stand among them yet: it runs, and cannot be woken."""
        if len(self.due) >= AT_MOST:
            self.carry_out()
        return 0

    cdef void carry_out(self) noexcept:
        """Do all that is due. It wakes tasks, and defers nothing."""
        cdef Operation operation
        cdef list due = self.due
        # Without taking memory: those who wait are not woken otherwise.
        self.due = [] if self.other is None else self.other
        self.other = None
        self.woken += <uint32_t>len(due)
        for operation in due:
            operation.carry_out()
        due.clear()
        self.other = due
