"""Sends that wait until the tasks of a turn have run, and are then done in one go.

Facts. A send takes the kernel some microseconds, in which its code and data push the
interpreter's out of the core's caches. And a receiver on another core that is faster than a
handler falls asleep after each message, and has to be woken for the next one, which costs
the sender.

Consequence. A hundred handlers that each send in between cost more than the same sends
one after the other. (64 B, 100 connections, pinned: 0.87 of the CPU for each message.)

Decision. If many tasks run in one turn of Trio's loop, a small send (of `send_all`,
`send_vectored`, or a channel's frames) is only noted here, and the bridge's hook does it when
they have run. Its task continues in the next turn, as after any schedule point, when the kernel
owns the bytes. If few tasks run, it is sent at once: there is nothing to gain, and a reply
would wait for Trio's next turn.

Trade-off. A reply may wait for the other tasks of its turn, and for AT_MOST sends.

Who decides what. A batch decides whether a send is deferred (`batch_wants`), how many are
(`make_room`), which of their tasks must not park (`batch_keeps_awake`), and when they are
sent (`begin_turn`). The drain counts the tasks that it wakes (`deliver` in core.pyx).
`SendingData` in send.pyx checks that nothing else is sending on its connection, and is what
is noted here.

No deferred send is forgotten while Trio sleeps: the first one of a turn comes to a schedule
point, so Trio has a task to run, and does not wait; the hook runs before the tasks of the
next turn. The others park, which costs less than a schedule point, and are woken when their
bytes are sent. If one is cancelled before that, nothing of it was sent.
"""
from libc.stdint cimport uint32_t

from .operation cimport Operation

cdef enum:
    THRESHOLD = 16
    AT_MOST = 128       # what the kernel keeps for these sends stays in the core's cache


cdef class SendBatch:
    def __cinit__(self):
        self.due = []
        self.other = []
        self.threshold = THRESHOLD


    cdef int make_room(self) except -1:
        """Before another one is added: send those that are due if they are AT_MOST. The new
        one is not among them yet, because its task is running and cannot be woken."""
        if len(self.due) >= AT_MOST:
            self.carry_out()
        return 0


    cdef void begin_turn(self) noexcept:
        """Send what the tasks of the last turn deferred, and count anew."""
        self.woken = 0
        if self.due:
            self.carry_out()

    cdef void carry_out(self) noexcept:
        """Send all that is due. This wakes tasks, and defers nothing."""
        cdef Operation operation
        cdef list due = self.due
        # Without taking memory, or the tasks that wait would not be woken.
        self.due = [] if self.other is None else self.other
        self.other = None
        self.woken += <uint32_t>len(due)
        for operation in due:
            operation.carry_out()
        due.clear()
        self.other = due
