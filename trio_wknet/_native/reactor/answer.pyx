"""What the reactor sends on a WebSocket by itself: pongs, pings and close frames.

They go between two messages of whoever sends (send.pyx). What is due stays so until it is
queued. If too much is unsent for that, it waits in the decoder, and whoever makes room sees
that it is due: the reactor where a flush ends (transfer.pyx), or the Trio side as it lets go of
the sending side, which it finds QUEUED (sender.pyx). So a pong is never dropped, and at most one
waits.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ..base.linux cimport getrandom, iovec, monotonic_ns, pthread_mutex_lock, pthread_mutex_unlock
from .hub cimport Reactor, notify
from .send cimport ACCEPTED, FULL, Sent, send_message
from .slot cimport CONTROL, Slot
from .websocket cimport (
    CLOSE_DUE, MAX_ANSWER, PONG_DUE, Decoder, Due, decoder_answer, decoder_answered, decoder_of,
)


cdef void answer(Reactor *reactor, Slot *slot) noexcept nogil:
    """Send everything that is due. By the slot's reactor, as a command of its own or of the
    Trio side's. Where the connection has ended nothing is due any more."""
    cdef unsigned char frame[MAX_ANSWER]
    cdef unsigned char key[4]
    cdef bint masks = _masks(slot)
    cdef iovec span
    cdef Due what = PONG_DUE
    cdef uint64_t number = 0
    cdef Sent outcome = ACCEPTED
    span.iov_base = frame
    while outcome == ACCEPTED:
        if masks:
            draw_key(key)              # without the lock, as it calls the kernel
        span.iov_len = _next(slot, frame, key, &what, &number)
        if span.iov_len == 0:
            return
        outcome = send_message(reactor, slot, &span, 1, slot.limits.outbound + MAX_ANSWER)
        if _note(slot, what, number, outcome) and what == CLOSE_DUE:
            notify(reactor, slot, CONTROL)


cdef void draw_key(unsigned char *key) noexcept nogil:
    """A mask that cannot be foreseen."""
    cdef uint64_t now
    if getrandom(key, 4, 0) != 4:
        now = monotonic_ns()        # a kernel without randomness
        memcpy(key, &now, 4)


cdef bint _masks(Slot *slot) noexcept nogil:
    cdef Decoder *ws
    cdef bint client
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    client = ws != NULL and ws.client
    pthread_mutex_unlock(&slot.lock)
    return client


cdef uint32_t _next(Slot *slot, unsigned char *frame, const unsigned char *key, Due *what,
                    uint64_t *number) noexcept nogil:
    cdef Decoder *ws
    cdef uint32_t size = 0
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    if ws != NULL:
        size = decoder_answer(ws, frame, key, what, number)
        ws.answering = size > 0
    pthread_mutex_unlock(&slot.lock)
    return size


cdef bint _note(Slot *slot, Due what, uint64_t number, Sent outcome) noexcept nogil:
    """Whether it is due no more."""
    cdef Decoder *ws
    pthread_mutex_lock(&slot.lock)
    ws = decoder_of(slot)
    if ws != NULL:
        ws.answering = False
        if outcome != FULL:
            decoder_answered(ws, what, number)
    pthread_mutex_unlock(&slot.lock)
    return ws != NULL and outcome != FULL
