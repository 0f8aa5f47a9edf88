# Bit scans, and sets of numbers as words of bits.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    # Both are undefined for 0.
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long word) noexcept nogil
    int count_leading_zeros "__builtin_clzll"(unsigned long long word) noexcept nogil


cdef inline void bits_set(uint64_t *words, uint32_t number) noexcept nogil:
    words[number >> 6] |= <uint64_t>1 << (number & 63)


cdef inline void bits_clear(uint64_t *words, uint32_t number) noexcept nogil:
    words[number >> 6] &= ~(<uint64_t>1 << (number & 63))


cdef inline uint32_t bits_lowest(uint64_t *words, uint32_t word) noexcept nogil:
    """The lowest number that is set, from that word on. There must be one."""
    while words[word] == 0:
        word += 1
    return (word << 6) + count_trailing_zeros(words[word])


cdef inline uint32_t bits_highest(uint64_t *words, uint32_t word) noexcept nogil:
    """The highest number that is set, down from that word. There must be one."""
    while words[word] == 0:
        word -= 1
    return (word << 6) + 63 - count_leading_zeros(words[word])
