"""The latency histogram's Python face; the recording itself is in histogram.pxd."""
from libc.stdint cimport uint64_t


cdef uint64_t value_at(histogram_t *h, uint64_t rank) noexcept nogil:
    """The duration of the `rank`-th shortest record, counted from 1."""
    cdef int bucket
    cdef uint64_t seen = 0
    for bucket in range(BUCKETS - 1):
        seen += h.buckets[bucket]
        if seen >= rank:
            return min(bucket_top(bucket), h.most)
    return h.most  # the last bucket also holds what is longer than any bucket


cdef class Histogram:
    """Durations in nanoseconds, each kept to within 1 %.

    Values from 1 ns to 137 s are distinguished; longer ones are counted, and show
    exactly in `max` and `mean`. Not safe to change from two threads at once.
    """

    def __cinit__(self):
        histogram_clear(&self.data)

    def record(self, uint64_t ns) -> None:
        """Count one duration. Raises `OverflowError` when it is negative."""
        histogram_record(&self.data, ns)

    def merge(self, Histogram other not None) -> None:
        """Add everything that `other` has counted."""
        cdef int bucket
        self.data.count += other.data.count
        self.data.total += other.data.total
        self.data.least = min(self.data.least, other.data.least)
        self.data.most = max(self.data.most, other.data.most)
        for bucket in range(BUCKETS):
            self.data.buckets[bucket] += other.data.buckets[bucket]

    def percentile(self, double percent) -> int:
        """The duration that `percent` of all records do not exceed; 0 without records.

        It is never below the true value and at most 1 % above it. Raises
        `ValueError` unless 0 <= percent <= 100.
        """
        cdef double rank
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent!r}")
        if self.data.count == 0:
            return 0
        # Rounded up, but not for the last digit's sake: 99.9 % of 1000 is 999.
        rank = percent * <double>self.data.count / 100 + 1 - 1e-9
        return value_at(&self.data, max(<uint64_t>rank, <uint64_t>1))

    def buckets(self) -> list:
        """Pairs of (longest duration in the bucket, records), without the empty ones."""
        return [
            (bucket_top(bucket), self.data.buckets[bucket])
            for bucket in range(BUCKETS)
            if self.data.buckets[bucket]
        ]

    def __len__(self) -> int:
        return self.data.count

    @property
    def min(self) -> int:
        """The shortest duration, exactly; 0 without records."""
        return self.data.least if self.data.count else 0

    @property
    def max(self) -> int:
        """The longest duration, exactly; 0 without records."""
        return self.data.most

    @property
    def mean(self) -> float:
        """The mean duration, exactly; 0.0 without records."""
        if self.data.count == 0:
            return 0.0
        return <double>self.data.total / <double>self.data.count
