"""Whether a connection is too slow. What it costs is a look now and then, when the wheel comes
to it: the counters of bytes that there are anyway are compared with those of the last look.

*First byte.* It is looked for once, when its time is up.

*Pace.* A look comes after each half of the window, and judges that half. One half may be
unlucky: a request that has come just before a look was not answered yet. So only two in a row
end a connection.

Who sends is too slow if something has come in the half, but less than the rate; nothing was sent
to it meanwhile; and somebody waits for more. One that gets answers is in a dialogue, whose messages
may be small. A half in which nothing moved at all counts neither way, or a byte in every second
one would be enough to stay for ever; a peer that sends nothing is for idle timeouts.

Who must read is too slow if what was owed to it at the last look, in our queue and in the
kernel's, has not all been acknowledged since, and less than the rate has. So neither small
messages on their way nor pauses of the sender count.

A direction that had to wait for the connection's own rate (bucket.pxd) in the half is not judged.

A look that comes much too late judges nothing: this thread, or in-loop an application that did
not let Trio turn, was to blame.
"""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32_load, wk_u64_add, wk_u64_load, wk_u64_load_relaxed
from ..base.linux cimport (
    AF_UNIX, ETIMEDOUT, SHUT_RDWR, SIOCOUTQ, SOL_SOCKET, SO_LINGER, ioctl, linger_t,
    pthread_mutex_lock, pthread_mutex_unlock, setsockopt, shutdown,
)
from .admission cimport FIRST_BYTE_TIME, MIN_RATE, Admission, Place, Reason
from .bucket cimport Rate, bucket_was_held, rate_of
from .hub cimport Reactor
from .ring cimport ring_len
from .slot cimport Slot
from .transfer cimport end_of_input, resume_reading
from .wheel cimport NEVER

cdef extern from *:
    """
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/socket.h>

    /* The bytes that a TCP peer has acknowledged (tcpi_bytes_acked, which not every libc's
       struct has), or 0. */
    static inline uint64_t wk_bytes_acked(int fd)
    {
        char info[256];
        socklen_t size = sizeof(info);
        uint64_t acked;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, info, &size) != 0 || size < 128)
            return 0;
        memcpy(&acked, info + 120, sizeof(acked));
        return acked;
    }
    """
    uint64_t bytes_acked "wk_bytes_acked"(int fd) noexcept nogil

cdef enum:
    SLOW_HALVES = 2


cdef bint pace_begin(Reactor *reactor, Slot *slot) noexcept nogil:
    """It is watched, or its header has come: whether the wheel has to look at it."""
    cdef Place *place = slot.door.place
    cdef Admission *admission
    cdef uint64_t since
    if place == NULL or place.look_at != NEVER or place.ended_for:
        return False
    admission = place.admission
    since = wk_u64_load(&place.since)
    if since == 0 or not (admission.first_byte_ns or admission.min_rate):
        return False
    place.judged_at = since
    place.received = wk_u64_load_relaxed(&slot.received)
    _look_next(slot, place)
    return True


cdef uint64_t _first_byte_due(Slot *slot, Place *place) noexcept nogil:
    """When the first byte must have come; NEVER if it has."""
    cdef uint64_t ns = place.admission.first_byte_ns
    if ns == 0 or wk_u64_load_relaxed(&slot.received) > place.before:
        return NEVER
    return wk_u64_load_relaxed(&place.since) + ns


cdef void _look_next(Slot *slot, Place *place) noexcept nogil:
    place.look_at = _first_byte_due(slot, place)
    if place.admission.min_rate:
        place.look_at = min(place.look_at, place.judged_at + place.admission.half_window)


cdef void pace_look(Reactor *reactor, Slot *slot) noexcept nogil:
    """The wheel came to it, and a look is due. What has arrived is received first: it came in
    time."""
    cdef Place *place = slot.door.place
    cdef Admission *admission = place.admission
    cdef bint ended, broken
    resume_reading(reactor, slot)
    pthread_mutex_lock(&slot.lock)
    ended = slot.ended
    broken = slot.error != 0
    pthread_mutex_unlock(&slot.lock)
    if broken or (ended and not admission.min_rate):
        place.look_at = NEVER
        return
    if not ended and _first_byte_due(slot, place) <= reactor.now:
        _end(reactor, slot, FIRST_BYTE_TIME)
        return
    if admission.min_rate and place.judged_at + admission.half_window <= reactor.now:
        if _is_too_slow(reactor, slot, place):
            _end(reactor, slot, MIN_RATE)
            return
    _look_next(slot, place)
    if ended:                       # there will be no first byte
        place.look_at = place.judged_at + admission.half_window


cdef bint _is_too_slow(Reactor *reactor, Slot *slot, Place *place) noexcept nogil:
    """Judge the half of the window that has passed, and note what the next is compared with."""
    cdef uint64_t elapsed = reactor.now - place.judged_at
    cdef uint64_t received = wk_u64_load_relaxed(&slot.received)
    cdef uint64_t sent = wk_u64_load_relaxed(&slot.sent) + wk_u64_load_relaxed(&slot.flushed)
    cdef double least = place.admission.min_rate * (elapsed * 1e-9)
    cdef Rate *rate = rate_of(slot)
    cdef uint64_t unsent
    cdef bint waited_for, slow_in, slow_out
    cdef bint silent = received == place.received and sent == place.sent
    pthread_mutex_lock(&slot.lock)
    # Or whoever waited was woken a moment ago, and has taken the rest of it.
    waited_for = slot.rcvlowat != 0 or ring_len(&slot.inbound) < received - place.received
    unsent = ring_len(&slot.outbound)
    pthread_mutex_unlock(&slot.lock)
    slow_in = (waited_for and received > place.received and received - place.received < least
               and sent == place.sent)
    slow_out = _reads_slowly(slot, place, sent, unsent, least)
    if rate != NULL:
        if bucket_was_held(&rate.read):
            slow_in = False
        if bucket_was_held(&rate.write):
            slow_out = False
    place.judged_at = reactor.now
    place.received = received
    place.sent = sent
    if elapsed > 2 * place.admission.half_window:
        silent = slow_in = slow_out = False
    if not silent:
        place.slow_in = place.slow_in + 1 if slow_in else 0
    place.slow_out = place.slow_out + 1 if slow_out else 0
    return place.slow_in >= SLOW_HALVES or place.slow_out >= SLOW_HALVES


cdef bint _reads_slowly(
    Slot *slot, Place *place, uint64_t sent, uint64_t unsent, double least
) noexcept nogil:
    """Whether too little was acknowledged of what was owed at the last look. The kernel is asked
    only if something was sent since, or was or is owed."""
    cdef uint64_t acked, owed = unsent
    cdef int in_kernel = 0
    cdef bint slow
    if slot.family == AF_UNIX:
        acked = sent
        owed += wk_u32_load(&slot.writable_wanted)
    elif place.owed or unsent or sent != place.sent:
        acked = bytes_acked(slot.fd)
        if ioctl(slot.fd, SIOCOUTQ, &in_kernel) == 0:
            owed += <uint64_t>in_kernel
    else:
        return False
    slow = place.owed > acked and acked - place.acked < least
    place.acked = acked
    place.owed = acked + owed if owed else 0
    return slow


cdef void _end(Reactor *reactor, Slot *slot, Reason reason) noexcept nogil:
    """End a connection that is too slow, as one that broke: tasks that wait on it see that. When
    it is closed, that is by reset, so that the kernel keeps nothing for a peer that does not
    read."""
    cdef Place *place = slot.door.place
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    place.look_at = NEVER
    pthread_mutex_lock(&slot.lock)
    place.ended_for = reason
    pthread_mutex_unlock(&slot.lock)
    wk_u64_add(&place.admission.refused[<int>reason], 1)
    wk_u64_add(&reactor.hub.refused[<int>reason], 1)
    end_of_input(reactor, slot, ETIMEDOUT)
    setsockopt(slot.fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))
    shutdown(slot.fd, SHUT_RDWR)
