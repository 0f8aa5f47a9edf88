# Broadcasts: one message to many connections of a reactor, which sends it to one after the other.
#
# The Trio side makes a job for each reactor and each form of the message: the message as it goes
# on the wire, which all jobs share, and a copy of the set of members, which is not changed
# afterwards. A reactor takes its jobs in the order in which they were given, and sends to
# BROADCAST_STEP members a turn, so that its other connections, and in-loop Trio's tasks, have
# their turns. When a job is done it goes back by `hub.finished`.
#
# What a member gets is in order. Broadcasts of one reactor do not overtake each other, because
# one job is done after the other. And what the Trio side sends later does not overtake a
# broadcast that has not come to this member yet, because the Trio side, before it sends,
# queues what is PENDING for that connection itself (trio/broadcasts.pyx). Whoever is first
# writes the outcome, under the connection's lock, in the same visit in which the message gets
# its place (`admit`): so it is sent once, by one side.
#
# Access: all is const once the job is given, but for
#   outcomes            each under the lock of its connection; of a handle that refers to
#                       nothing any more, the reactor's: the Trio side has let go of that
#                       connection
#   at, sent, broken    the reactor's, until the job is done
#   following           the Trio side's
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from .handles cimport HandleSet
from .hub cimport Job, Reactor
from .slot cimport Slot

cdef enum:
    BROADCAST_STEP = 256    # members in one turn, a few milliseconds

cdef enum Outcome:
    PENDING = 0
    TAKEN = 1               # sent, or queued
    SLOW = 2                # too much was unsent for it
    OVER = 3                # nothing can be sent there any more

# A message as it goes on the wire. The Trio side counts the jobs that use it.
cdef struct Payload:
    uint32_t users
    uint32_t size
    unsigned char data[1]

cdef struct BroadcastJob:
    Job job
    Reactor *reactor
    Payload *payload
    HandleSet members
    uint8_t *outcomes       # an Outcome for each of their places
    uint8_t closes_slow     # who is SLOW will be closed, so nothing may follow the gap
    uint8_t is_message      # of a WebSocket: nothing goes behind its close frame
    uint32_t at             # the place that is next
    uint32_t sent           # TAKEN, and the kernel took all at once
    uint32_t broken         # TAKEN, and then the connection was found to be broken
    BroadcastJob *following
    void *audience          # the Trio side's objects: what the job is done for,
    void *broadcast         # and what it is a part of, references

cdef void broadcast_give(BroadcastJob *job) noexcept nogil
cdef void run_broadcasts(Reactor *reactor) noexcept nogil
cdef bint is_barred(const BroadcastJob *job, Slot *slot) noexcept nogil
cdef void note_slow(BroadcastJob *job, uint32_t at, Slot *slot) noexcept nogil
