# What an engine measures while somebody wants to know (`Engine.measure`): how late Trio's
# loop is, how long it runs tasks, and how much a reactor works.
#
# The switch is `Measures.on`, one word that a reactor reads once a turn and Trio's side once
# a drain. While it is 0, no clock is read for this, and nothing is written.
#
# Who writes. `on` and everything below `running_since` have one writer, Trio's thread; a
# reactor's `busy` has its own thread. All are relaxed atomics, so any thread may read them at
# any time: each is right by itself, and a snapshot of several may be a turn apart.
# `posted_at` is written by all reactors, and taken by Trio's thread; measure_posted argues why
# that is enough.
from libc.stdint cimport uint32_t, uint64_t

from ..base.atomics cimport wk_u32, wk_u64
from ..base.bits cimport count_leading_zeros

cdef enum:
    # Times: below 2**10 ns, then four equal buckets for each power of two up to 2**36 ns
    # (69 s), and one for what is longer.
    FIRST_BITS = 10
    LAST_BITS = 36
    TIME_BUCKETS = 4 * (LAST_BITS - FIRST_BITS) + 2
    # Sizes: 1, 2, up to 4, up to 8, and so on; the last is for more than 2**15.
    SIZE_BUCKETS = 17

# Bits of `on`: by whom it was switched on.
cdef enum:
    BY_PROGRAM = 1      # Engine.measure
    BY_PAGE = 2         # the page of `trio-wknet top` is written

cdef struct Measures:
    wk_u32 on
    wk_u64 posted_at        # ns: when the oldest completion that waits was posted, about;
                            # 0: none waits. With reactor threads only
    wk_u64 running_since    # ns: since when Trio's loop runs callbacks and tasks; 0: it waits
    wk_u64 busy             # ns that it has done so, up to its last wait
    wk_u64 batches          # drains that found something
    wk_u64 completions      # what they found
    wk_u64 largest_batch
    wk_u64 lag              # ns: the last one
    wk_u64 longest_lag
    wk_u64 total_lag
    wk_u64 lags[TIME_BUCKETS]
    wk_u64 sizes[SIZE_BUCKETS]
    # Trio's thread alone.
    uint64_t run            # ns: how long the loop ran before its last wait
    uint64_t waited_at      # ns: when that began
    uint64_t on_since       # ns: when it was switched on; 0: it is off
    uint64_t earlier        # ns for which it was on before


cdef inline int time_bucket(uint64_t ns) noexcept nogil:
    cdef int octave
    if ns >> FIRST_BITS == 0:
        return 0
    if ns >> LAST_BITS:
        return TIME_BUCKETS - 1
    octave = 63 - count_leading_zeros(ns)
    return 1 + 4 * (octave - FIRST_BITS) + <int>(ns >> (octave - 2) & 3)


cdef inline int size_bucket(uint64_t n) noexcept nogil:
    if n <= 1:
        return 0
    return min(64 - count_leading_zeros(n - 1), SIZE_BUCKETS - 1)


cdef void measure_switch(Measures *m, uint32_t whom, bint wanted) noexcept nogil
cdef uint64_t measured_time(Measures *m) noexcept nogil
cdef void measure_posted(Measures *m) noexcept nogil
cdef void measure_run_ends(Measures *m, uint64_t now, bint waits) noexcept nogil
cdef void measure_run_begins(Measures *m, uint64_t now) noexcept nogil
cdef void measure_drain(Measures *m, bint in_loop) noexcept nogil
cdef void measure_batch(Measures *m, uint64_t size) noexcept nogil
