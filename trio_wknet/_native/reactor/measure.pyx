"""Measuring how late Trio's loop is. measure.pxd says who writes what."""
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport (
    wk_u32_load_relaxed, wk_u32_store_relaxed, wk_u64_bump, wk_u64_exchange, wk_u64_load_relaxed, wk_u64_store_relaxed,
)
from ..base.linux cimport monotonic_ns

cdef enum:
    # In-loop: a wait that ended earlier found what had come before it began.
    AT_ONCE_NS = 1000000


cdef void measure_switch(Measures *m, uint32_t whom, bint wanted) noexcept nogil:
    """Switch it on or off for one of those who may want it; in Trio's thread."""
    cdef uint32_t before = wk_u32_load_relaxed(&m.on)
    cdef uint32_t after = before | whom if wanted else before & ~whom
    cdef uint64_t now = monotonic_ns()
    if after and not before:
        # What was noted when it was on before is out of date.
        wk_u64_store_relaxed(&m.posted_at, 0)
        wk_u64_store_relaxed(&m.running_since, now)
        m.run = 0
        m.waited_at = 0
        m.on_since = now
    elif before and not after:
        m.earlier += now - m.on_since
        m.on_since = 0
    wk_u32_store_relaxed(&m.on, after)


cdef uint64_t measured_time(Measures *m) noexcept nogil:
    """ns for which it has been on, in Trio's thread."""
    return m.earlier + (monotonic_ns() - m.on_since if m.on_since else 0)


cdef void measure_posted(Measures *m) noexcept nogil:
    """A reactor is about to post completions, and to wake Trio.

    The first one to post after a drain notes the time, before it pushes. Two that do so at
    the same time note about the same time, so either may win. A drain takes the mailbox and
    then this time (measure_drain). If it comes between this note and the push, it takes the
    time of a batch that the next drain will find: that batch is not counted. The other order
    would leave the time behind, and count a delay that never was."""
    if wk_u64_load_relaxed(&m.posted_at) == 0:
        wk_u64_store_relaxed(&m.posted_at, monotonic_ns())


cdef void measure_run_ends(Measures *m, uint64_t now, bint waits) noexcept nogil:
    """Trio's loop is about to wait, or looks for events without waiting. Before a wait it may
    be called again by the hook after it, which then finds nothing."""
    cdef uint64_t since = wk_u64_load_relaxed(&m.running_since)
    if since == 0:
        return
    m.run = now - since
    m.waited_at = now
    wk_u64_bump(&m.busy, m.run)
    if waits:
        wk_u64_store_relaxed(&m.running_since, 0)


cdef void measure_run_begins(Measures *m, uint64_t now) noexcept nogil:
    """The hook after a wait is called."""
    measure_run_ends(m, now, False)
    wk_u64_store_relaxed(&m.running_since, now)


cdef void measure_drain(Measures *m, bint in_loop) noexcept nogil:
    """A drain has taken the mailbox.

    With threads the lag is the time from a reactor's post, and with it the wake, until here.
    The tasks that wait are woken here, and run next. In-loop the reactor turns right before
    a drain. Bytes that came while tasks ran have waited for that, at most as long as they
    ran; bytes that ended Trio's wait have not waited."""
    cdef uint64_t posted, lag
    cdef uint64_t now = monotonic_ns()
    if in_loop:
        lag = m.run if now - m.waited_at < AT_ONCE_NS else 0
    else:
        posted = wk_u64_exchange(&m.posted_at, 0)
        if posted == 0:
            return
        lag = now - min(posted, now)
    wk_u64_store_relaxed(&m.lag, lag)
    if lag > wk_u64_load_relaxed(&m.longest_lag):
        wk_u64_store_relaxed(&m.longest_lag, lag)
    wk_u64_bump(&m.total_lag, lag)
    wk_u64_bump(&m.lags[time_bucket(lag)], 1)


cdef void measure_batch(Measures *m, uint64_t size) noexcept nogil:
    """A drain is done; it found so many completions."""
    wk_u64_bump(&m.batches, 1)
    wk_u64_bump(&m.completions, size)
    if size > wk_u64_load_relaxed(&m.largest_batch):
        wk_u64_store_relaxed(&m.largest_batch, size)
    wk_u64_bump(&m.sizes[size_bucket(size)], 1)
