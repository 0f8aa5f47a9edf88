# Fields of plain types that one thread writes while another may read them, in a place that it
# may have no part in any more. As atomics of C11 they would need another type; the
# compiler's functions take them as they are.
cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>

    typedef uint64_t __attribute__((may_alias)) wk_word;

    static inline uint8_t wk_byte_load(const uint8_t *from)
    {
        return __atomic_load_n(from, __ATOMIC_ACQUIRE);
    }

    static inline void wk_byte_store(uint8_t *to, uint8_t value)
    {
        __atomic_store_n(to, value, __ATOMIC_RELEASE);
    }

    static inline void *wk_place_load(void *const *from)
    {
        return __atomic_load_n(from, __ATOMIC_ACQUIRE);
    }

    static inline void wk_place_store(void **to, void *value)
    {
        __atomic_store_n(to, value, __ATOMIC_RELEASE);
    }

    /* memset(from, 0, to - from), by whole words: both are multiples of 8. */
    static inline void wk_zero_words(void *from, void *to)
    {
        for (wk_word *at = (wk_word *)from; at < (wk_word *)to; at++)
            __atomic_store_n(at, 0, __ATOMIC_RELAXED);
    }
    """
    # Acquire, and release.
    unsigned char wk_byte_load(const unsigned char *at) noexcept nogil
    void wk_byte_store(unsigned char *at, unsigned char value) noexcept nogil
    void *wk_place_load(void **at) noexcept nogil
    void wk_place_store(void **at, void *value) noexcept nogil
    # Relaxed.
    void wk_zero_words(void *begin, void *end) noexcept nogil
