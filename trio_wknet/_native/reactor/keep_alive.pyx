"""Keep-alive of WebSockets: a peer that is silent is sent a ping, and one that stays silent
has gone.

It rides on the wheel like idleness, without anything to do for a message: the wheel asks for
the time that `keep_alive_due` computes from when bytes came last, and puts the connection back
for the rest. Any byte shows that the peer is there, not only the pong. A ping and its pong are
no news for Trio.

Bytes are counted and not timed to see whether any came since the ping, as they may come in the
same turn, or under a clock that does not move meanwhile. While reading is paused, because
messages wait for the application, a pong could not be seen: so then the peer is not judged.
Nor is it while the connection waits for its own rate, behind which ping or pong may be.

A peer that has gone ends the WebSocket as one that breaks the protocol: with a close frame of
ours, of code 1011, which may be the last that it hears. Then the connection is broken, and
so that whoever sends sees that, too, the socket is shut down in both directions.
"""
from libc.stdint cimport uint64_t

from ..base.atomics cimport wk_u64_load_relaxed
from ..base.linux cimport (
    ETIMEDOUT, SHUT_RDWR, pthread_mutex_lock, pthread_mutex_unlock, shutdown,
)
from .answer cimport answer
from .bucket cimport rate_waited
from .hub cimport Reactor
from .slot cimport Slot
from .transfer cimport end_of_input
from .websocket cimport (
    INTERNAL_ERROR, KEEP_ALIVE_DUE, Decoder, decoder_fail, decoder_of, keep_alive_due,
)
from .wheel cimport NEVER

cdef enum Found:
    NOTHING = 0
    SILENT = 1                  # it was sent no ping yet
    GONE = 2                    # it was


cdef void note_keep_alive(Slot *slot) noexcept nogil:
    """By its reactor: whether the wheel has to ask."""
    cdef Decoder *ws
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    slot.keeps_alive = ws != NULL and ws.ping_ms > 0
    pthread_mutex_unlock(&slot.lock)


cdef uint64_t keep_alive_look(Reactor *reactor, Slot *slot) noexcept nogil:
    """When to look next (ns). Where the peer has longer to answer than to be silent, a look in
    between sees that it has, and when it is to be sent the next ping."""
    cdef Decoder *ws
    cdef uint64_t due = NEVER
    cdef uint64_t between
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    if ws != NULL and not (slot.ended or slot.error):
        due = keep_alive_due(ws, wk_u64_load_relaxed(&slot.received),
                             wk_u64_load_relaxed(&slot.last_received))
        between = ws.pinged + <uint64_t>ws.ping_ms * 1000000
        if ws.pinged and reactor.now < between:
            due = min(due, between)
    pthread_mutex_unlock(&slot.lock)
    return due


cdef void keep_alive(Reactor *reactor, Slot *slot) noexcept nogil:
    """The wheel came to it, and what had arrived was received."""
    cdef Found found = _judge(reactor, slot)
    if found != NOTHING:
        answer(reactor, slot)
    if found == GONE:
        end_of_input(reactor, slot, ETIMEDOUT)
        shutdown(slot.fd, SHUT_RDWR)


cdef Found _judge(Reactor *reactor, Slot *slot) noexcept nogil:
    cdef Decoder *ws
    cdef Found found = NOTHING
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    if ws == NULL or slot.ended or slot.error:
        pass
    elif slot.paused or rate_waited(slot, reactor.now):
        ws.silent_since = reactor.now
        ws.pinged = 0
    elif keep_alive_due(ws, wk_u64_load_relaxed(&slot.received),
                        wk_u64_load_relaxed(&slot.last_received)) > reactor.now:
        pass
    elif ws.pinged and ws.received == wk_u64_load_relaxed(&slot.received):
        decoder_fail(ws, &slot.inbound, reactor.pool, INTERNAL_ERROR, "ping timeout")
        found = GONE
    else:
        ws.pinged = reactor.now
        ws.received = wk_u64_load_relaxed(&slot.received)
        ws.scan.answer_due |= KEEP_ALIVE_DUE
        found = SILENT
    pthread_mutex_unlock(&slot.lock)
    return found
