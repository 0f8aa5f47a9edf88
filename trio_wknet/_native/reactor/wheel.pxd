# A hierarchical timing wheel (Varghese and Lauck 1987, scheme 7) of intrusive nodes.
#
# Time is counted in ticks. A level is a ring of `slots` buckets; one bucket of a
# level is as wide as the whole ring of the level below. A node is in the lowest
# level whose ring reaches as far as the node's time, and moves down a level when
# time reaches its bucket, until it is in a bucket of one tick. There are as many levels
# as 64 bits of nanoseconds need, so no delay is too long for the last.
#
# Nodes belong to the owner: the wheel knows an index, and asks `locate` where that node
# is, and `due` when it is due. It does not keep the time itself. If a time has moved
# later since then (a connection had bytes meanwhile), the wheel finds that out when it
# comes to the node, at no cost before. If it has moved earlier, the owner must call
# `wheel_add`.
#
# What is due is put in a list, and taken from there one by one: the code that takes may
# add and remove any node, also one of that list.
#
# A wheel belongs to one thread at a time.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "<stdint.h>" nogil:
    const uint64_t NEVER "UINT64_MAX"

cdef enum:
    MAX_SLOTS = 4096           # a bit of a 64-bit summary for each 64 buckets
    MAX_NODES = 0x7fffffff
    VISITS_A_TURN = 4096

# Links are numbers: 0 is none, up to MAX_NODES a node's index + 1, above that the
# head of a list. All zero is a node that is not linked.
cdef struct WheelNode:
    uint32_t prev
    uint32_t next

ctypedef WheelNode *(*WheelLocate)(void *owner, uint32_t index) noexcept nogil
ctypedef uint64_t (*WheelDue)(void *owner, uint32_t index) noexcept nogil

cdef struct Level:
    uint64_t position           # number of the current bucket, counted from time 0
    uint64_t width              # ticks in a bucket
    uint64_t summary            # a bit for each word that is not 0
    uint64_t words[64]          # a bit for each bucket that is not empty

cdef struct Wheel:
    uint64_t tick_ns
    uint64_t tick               # the current tick; everything due before it is done
    uint64_t count              # nodes linked, including those that are due and not taken
    uint64_t visits             # nodes looked at by turning, so far
    void *owner
    WheelLocate locate
    WheelDue due
    Level *levels
    WheelNode *heads            # of the list of what is due, then of the buckets
    uint32_t slots
    uint32_t level_count

cdef Wheel *wheel_new(uint64_t tick_ns, uint32_t slots, uint64_t now_ns, void *owner,
                      WheelLocate locate, WheelDue due) noexcept nogil
cdef void wheel_free(Wheel *wheel) noexcept nogil
cdef void wheel_add(Wheel *wheel, uint32_t index) noexcept nogil
cdef void wheel_remove(Wheel *wheel, uint32_t index) noexcept nogil
cdef uint64_t wheel_next(Wheel *wheel) noexcept nogil
cdef void wheel_turn(Wheel *wheel, uint64_t now_ns) noexcept nogil
cdef bint wheel_take(Wheel *wheel, uint32_t *index) noexcept nogil


cdef inline bint wheel_linked(WheelNode *node) noexcept nogil:
    return node.next != 0
