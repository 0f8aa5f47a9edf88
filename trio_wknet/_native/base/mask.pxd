# mask.h says what it does.


cdef extern from "base/mask.h" nogil:
    void wk_mask(unsigned char *out, const unsigned char *data, size_t n,
                 const unsigned char *key, unsigned phase) noexcept
