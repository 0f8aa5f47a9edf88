# A log-linear histogram of durations, in the manner of HdrHistogram.
#
# Each power of two is cut into SUB equal buckets, so a bucket is at most 1/128
# (0.8 %) as wide as the durations in it are long, from 1 ns to 137 s. Below
# 256 ns every value has a bucket of its own. Recording is a shift, an add and
# three stores; nothing is ever allocated or sorted.
from libc.stdint cimport uint64_t

from ..base.bits cimport count_leading_zeros


cdef enum:
    SUB_BITS = 7
    SUB = 1 << SUB_BITS
    TOP_BITS = 37
    BUCKETS = (TOP_BITS - SUB_BITS + 1) * SUB


cdef struct histogram_t:
    uint64_t count
    uint64_t total
    uint64_t least
    uint64_t most
    uint64_t buckets[BUCKETS]


cdef inline int bucket_of(uint64_t ns) noexcept nogil:
    """The bucket that counts `ns`; what is too long goes into the last one."""
    cdef int shift
    if ns < 2 * SUB:
        return <int>ns
    if ns >= (<uint64_t>1 << TOP_BITS):
        return BUCKETS - 1
    shift = 63 - count_leading_zeros(ns) - SUB_BITS
    return (shift << SUB_BITS) + <int>(ns >> shift)


cdef inline uint64_t bucket_top(int bucket) noexcept nogil:
    """The longest duration that falls into `bucket`."""
    cdef int shift
    if bucket < 2 * SUB:
        return bucket
    shift = (bucket >> SUB_BITS) - 1
    return ((<uint64_t>(bucket - (shift << SUB_BITS)) + 1) << shift) - 1


cdef inline void histogram_clear(histogram_t *h) noexcept nogil:
    cdef int bucket
    h.count = h.total = h.most = 0
    h.least = <uint64_t>-1
    for bucket in range(BUCKETS):
        h.buckets[bucket] = 0


cdef inline void histogram_record(histogram_t *h, uint64_t ns) noexcept nogil:
    h.count += 1
    h.total += ns
    h.buckets[bucket_of(ns)] += 1
    if ns < h.least:
        h.least = ns
    if ns > h.most:
        h.most = ns


cdef class Histogram:
    cdef histogram_t data
