# Relays: what one connection receives is sent on another one, both ways, by their reactors.
#
# A relay has two sides, one for each connection. What a side reads is on its way to the other
# side. Small pieces are copied: received into the reactor's buffer, and sent. Large ones stay in
# the kernel: they are spliced into the reading side's pipe, and out of it to the other side's
# socket. A side receives in its own reactor, and sends in its own reactor. These may be two, even
# of two engines; then the pipe, or the other side's outbound ring, is what lies between them, and
# DIVERT is posted to the side that has something to do. With one reactor both steps are one.
#
# 1. Order. While a pipe holds bytes nothing is copied past it: the side goes on splicing. And a
#    pipe is emptied only while the other side's outbound ring is empty. So what was queued there
#    before, and what was copied, goes first. What was received before the relay began, the
#    inbound ring, goes before all that is read.
# 2. Turns. To send, a relay takes the turn as any message of a reactor's does (sender.pxd).
# 3. Bounds. At most `buffer` bytes of a direction are in its pipe and the other side's outbound
#    ring, beside what was queued there by others. A side that has no room is `stalled`: it does
#    not read, and so its peer is slowed down. The other side, once it has sent, clears that.
# 4. Splice's EAGAIN. When it reads, it means that the socket is empty or that the pipe is full,
#    which may be the case with few bytes in it. So the socket is known to be empty only if the pipe
#    is. Otherwise the side is stalled until its pipe has been emptied, and then tries again.
#    When it sends, the pipe is not empty (`held`), so it is the socket that is full.
# 5. The end. A direction is over when the end of what it reads has been sent, as FIN, or when one
#    of its sides is broken. The relay is `done` when both are. Its reactors only report it.
# 6. `over` is the Trio side's, by `relay_stop`: when the relay is done, or cancelled, or one of its
#    connections is let go of, before that is done. What the pipes hold is put in the outbound
#    rings first. So no byte that was taken is lost, and both connections go on as if it had
#    been sent by send_nowait.
#
# Access: all under `gate`, which the steps hold for as long as they take, system calls included:
# they are bounded, do not block, and only another reactor's step of the same relay, or
# relay_stop, waits for one. Inside it slots' locks are taken, never the other way round. Until
# `over` is set the Trio side has let go of neither connection, so that both slots and
# descriptors are valid; from then on none is touched. Exceptions:
#   const                       diversion, index, relay, slot, handle, reactor, buffer
#   start, stop                 each given once, by the Trio side
#   acting, again               of its slot's reactor, for calls that come back to it
#   users                       an atomic count: the Trio side, jobs that are given, and each
#                               slot that points here
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from ..base.atomics cimport wk_u32
from ..base.linux cimport pthread_mutex_t
from .hub cimport Job, Reactor
from .pool cimport Pool
from .slot cimport Diversion, Slot

cdef struct Relay

cdef struct Side:
    Diversion diversion     # its first field: what its slot points to
    Job start
    Job stop
    Relay *relay
    Slot *slot
    Reactor *reactor
    uint64_t handle
    int pipe[2]             # what it reads in bulk, for the other side; -1: none
    uint32_t held           # bytes in it
    uint32_t index
    uint64_t moved          # bytes that it has read and the other side has, sent or queued
    int32_t error           # errno that broke it
    uint8_t fresh           # its inbound ring may hold bytes from before, or its end be known
    uint8_t readable        # its socket may have bytes
    uint8_t to_the_end      # a short receive has not emptied it
    uint8_t bulk            # it is spliced
    uint8_t cannot_splice
    uint8_t stalled
    uint8_t ended           # its peer's FIN was read
    uint8_t over            # its direction is over
    uint8_t full            # its socket takes no more
    uint8_t acting
    uint8_t again

cdef struct Relay:
    pthread_mutex_t gate
    wk_u32 users
    uint32_t buffer         # bytes, for a direction
    uint8_t done
    uint8_t over
    uint8_t broken          # a side is
    uint8_t culprit         # the first side that was
    Side sides[2]

cdef Relay *relay_new(Slot *a, Slot *b, uint32_t buffer) noexcept nogil
cdef void relay_start(Relay *relay) noexcept nogil
cdef bint relay_done(Relay *relay) noexcept nogil
cdef void relay_stop(Relay *relay, Pool *pool_a, Pool *pool_b) noexcept nogil
cdef void relay_drop(Relay *relay) noexcept nogil
