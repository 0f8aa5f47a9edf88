# payload.h says what each function does.


cdef extern from "base/payload.h" nogil:
    ctypedef struct wk_utf8:
        unsigned char missing

    void wk_mask(unsigned char *out, const unsigned char *data, size_t n,
                 const unsigned char *key, unsigned phase) noexcept
    bint wk_utf8_check(wk_utf8 *state, const unsigned char *data, size_t n) noexcept
