# How fast bytes may move on a connection: what `conn.rate(read=, write=)` of the Python side asks
# for. A bucket for each direction, and with each the time at which that direction goes on.
#
# A bucket is a time, `paid`: moving n bytes adds n / rate seconds to it. A time that has passed is
# lost, so it is now at least; and it may be BURST ahead of now. So that much may move at once
# after a pause. This is the generic cell rate algorithm in the form of virtual scheduling (ITU-T
# I.371, annex A), and allows the same as a bucket of tokens that is filled all the time, and holds
# those of BURST. Nothing has to be filled, and the rate can change at any time by one store.
#
# A direction that has used up its bucket waits until there is enough for QUANTUM, or for one byte
# if that takes longer. So a wait ends at most every QUANTUM, and moves as much as the rate allows
# in that time. The reactor's wheel ends it (`rate_due`, rate.pyx), or a change of the rate does.
# Until then nothing moves in that direction, though a part of it could: otherwise each edge of
# epoll's would move a few bytes.
#
# Who waits. Reading is the reactor's: of a connection that has a Rate the Trio side receives
# nothing from the socket itself (`receive_now` in trio/receive.pyx). Writing is of whoever has the
# turn to send (sender.pxd). The Trio side sets `writable_wanted`, then `at`, then posts WATCH. The
# reactor takes `at` by an exchange, and then looks at `writable_wanted`: so it either leaves an
# `at` that WATCH has it watch, or sees that somebody waits.
#
# It ends where the Trio side lets go: what was left to the reactor is then sent as fast as
# the peer takes it, in the time that lingering has.
#
# Access:
#   rate        mail: Trio's to write
#   at          mail: of whoever moves bytes, and cleared by the reactor
#   paid        read: the reactor's; write: of whoever has the turn to send, and read by
#               a task that only waits until it may send
#   held        mail: set by whoever moves bytes, cleared by the reactor (pace.pyx)
#   waited      the reactor's
# A Rate is made by the Trio side, when it is first asked for, and stays until the connection is
# closed (`close_now`). `rated` in the slot says that there is one to whoever holds the lock, and to
# the Trio side; the pointer does to the reactor.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport (
    wk_ptr_load, wk_u32, wk_u32_exchange, wk_u32_store, wk_u64, wk_u64_exchange, wk_u64_load,
    wk_u64_load_relaxed, wk_u64_store, wk_u64_store_relaxed,
)
from ..base.linux cimport iovec
from .slot cimport Slot
from .wheel cimport NEVER

cdef enum:
    BURST_NS = 1000000000       # the same as what the docstring of `rate` says
    QUANTUM_NS = 50000000
    RATED_AT_ONCE = 1 << 30     # bytes: all that one call is given

cdef struct Bucket:
    wk_u64 rate             # bytes a second; 0: no bound
    wk_u64 at               # ns: when it goes on; NEVER: it does not wait
    wk_u64 paid             # ns: see above
    wk_u32 held             # it has waited, since the pace was last judged

cdef struct Rate:
    Bucket read
    Bucket write
    uint64_t waited         # ns: when the wheel last found that a direction waited


cdef inline Rate *rate_of(Slot *slot) noexcept nogil:
    """Of a CONNECTION; NULL: it has none."""
    return <Rate *>wk_ptr_load(&slot.scarce.rate)


cdef inline uint64_t rate_due(Slot *slot) noexcept nogil:
    """When the wheel is to let a direction go on (ns); NEVER if none waits."""
    cdef Rate *rate = rate_of(slot)
    if rate == NULL:
        return NEVER
    return min(wk_u64_load(&rate.read.at), wk_u64_load(&rate.write.at))


cdef inline bint rate_waited(Slot *slot, uint64_t now) noexcept nogil:
    """By the reactor, where the wheel came to it: whether a direction waits, or has just begun to
    go on."""
    cdef Rate *rate = rate_of(slot)
    return rate != NULL and rate.waited == now


cdef inline size_t bucket_allows(Bucket *bucket, size_t n, uint64_t now) noexcept nogil:
    """How many of `n` bytes may move now."""
    cdef uint64_t rate = wk_u64_load_relaxed(&bucket.rate)
    cdef uint64_t at = wk_u64_load_relaxed(&bucket.at)
    cdef uint64_t paid = max(wk_u64_load_relaxed(&bucket.paid), now)
    if rate == 0:
        return n
    if paid >= now + BURST_NS or (at != NEVER and now < at):
        return 0
    return <size_t>min(<double>n, <double>(now + BURST_NS - paid) * <double>rate / 1e9)


cdef inline void bucket_spend(Bucket *bucket, size_t n, uint64_t now) noexcept nogil:
    """They have moved. If that is more than was allowed, as the rate was set meanwhile, it is
    waited for BURST at most."""
    cdef uint64_t rate = wk_u64_load_relaxed(&bucket.rate)
    cdef uint64_t paid = max(wk_u64_load_relaxed(&bucket.paid), now)
    if rate != 0 and n != 0:
        paid += <uint64_t>(<double>n * 1e9 / <double>rate) + 1
        wk_u64_store_relaxed(&bucket.paid, min(paid, now + 2 * BURST_NS))


cdef inline void bucket_wait(Bucket *bucket, uint64_t now) noexcept nogil:
    """More is to move than is allowed: wait, unless it waits already."""
    cdef uint64_t rate = wk_u64_load_relaxed(&bucket.rate)
    cdef uint64_t at = wk_u64_load_relaxed(&bucket.at)
    if rate == 0:               # from now on
        wk_u64_store(&bucket.at, now)
    elif at == NEVER or at <= now:
        at = (max(wk_u64_load_relaxed(&bucket.paid), now)
              + max(<uint64_t>QUANTUM_NS, 1000000000 // rate + 1))
        wk_u64_store(&bucket.at, at - min(at, <uint64_t>BURST_NS))
    wk_u32_store(&bucket.held, 1)


cdef inline bint bucket_waits(Bucket *bucket) noexcept nogil:
    return wk_u64_load(&bucket.at) != NEVER


cdef inline bint bucket_goes_on(Bucket *bucket) noexcept nogil:
    """By the reactor: wait no more. Whether it did."""
    return wk_u64_exchange(&bucket.at, NEVER) != NEVER


cdef inline bint bucket_was_held(Bucket *bucket) noexcept nogil:
    """By the reactor: whether it has waited since the last call."""
    return wk_u32_exchange(&bucket.held, 0) != 0 or bucket_waits(bucket)


cdef inline int spans_cut(iovec *spans, int count, size_t n, size_t *whole) noexcept nogil:
    """Keep the first `n` bytes, 1 or more, of what is more than that. Returns the number of
    spans; `whole` is what the last one's length was."""
    cdef int last = 0
    while last < count - 1 and spans[last].iov_len < n:
        n -= spans[last].iov_len
        last += 1
    whole[0] = spans[last].iov_len
    spans[last].iov_len = min(spans[last].iov_len, n)
    return last + 1


cdef inline int bucket_cut(Bucket *bucket, iovec *spans, int count, uint64_t now) noexcept nogil:
    """Leave of the spans what may move now. Returns their number; 0: nothing may."""
    cdef size_t whole
    cdef size_t allowed = bucket_allows(bucket, RATED_AT_ONCE, now)
    return 0 if allowed == 0 else spans_cut(spans, count, allowed, &whole)
