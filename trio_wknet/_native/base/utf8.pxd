# utf8.h says what each function does.
from libc.stdint cimport uint16_t, uint32_t


cdef extern from "base/utf8.h" nogil:
    ctypedef struct wk_utf8:
        unsigned char missing

    bint wk_utf8_check(wk_utf8 *state, const unsigned char *data, size_t n) noexcept
    size_t wk_utf8_measure(const unsigned char *data, size_t n, unsigned char *greatest) noexcept
    void wk_utf8_decode1(const unsigned char *data, size_t n, unsigned char *out) noexcept
    void wk_utf8_decode2(const unsigned char *data, size_t n, uint16_t *out) noexcept
    void wk_utf8_decode4(const unsigned char *data, size_t n, uint32_t *out) noexcept
