# atomics.h says what each function does, and with which memory order.
from libc.stdint cimport uint32_t, uint64_t


cdef extern from "base/atomics.h" nogil:
    # Opaque on purpose: an atomic is touched only through the functions below.
    ctypedef struct wk_u32:
        pass
    ctypedef struct wk_u64:
        pass
    ctypedef struct wk_ptr:
        pass

    uint32_t wk_u32_load(wk_u32 *p) noexcept
    uint32_t wk_u32_load_relaxed(wk_u32 *p) noexcept
    void wk_u32_store(wk_u32 *p, uint32_t v) noexcept
    void wk_u32_store_relaxed(wk_u32 *p, uint32_t v) noexcept
    uint32_t wk_u32_exchange(wk_u32 *p, uint32_t v) noexcept
    int wk_u32_cas(wk_u32 *p, uint32_t *expected, uint32_t v) noexcept
    uint32_t wk_u32_or(wk_u32 *p, uint32_t v) noexcept
    uint32_t wk_u32_add(wk_u32 *p, uint32_t v) noexcept
    uint32_t wk_u32_sub(wk_u32 *p, uint32_t v) noexcept
    void wk_u32_bump(wk_u32 *p, uint32_t v) noexcept

    uint64_t wk_u64_load(wk_u64 *p) noexcept
    uint64_t wk_u64_load_relaxed(wk_u64 *p) noexcept
    void wk_u64_store(wk_u64 *p, uint64_t v) noexcept
    void wk_u64_store_relaxed(wk_u64 *p, uint64_t v) noexcept
    uint64_t wk_u64_exchange(wk_u64 *p, uint64_t v) noexcept
    uint64_t wk_u64_add(wk_u64 *p, uint64_t v) noexcept
    uint64_t wk_u64_sub(wk_u64 *p, uint64_t v) noexcept
    void wk_u64_bump(wk_u64 *p, uint64_t v) noexcept

    void *wk_ptr_load(wk_ptr *p) noexcept
    void *wk_ptr_load_relaxed(wk_ptr *p) noexcept
    void wk_ptr_store(wk_ptr *p, void *v) noexcept
    void *wk_ptr_exchange(wk_ptr *p, void *v) noexcept
    int wk_ptr_cas(wk_ptr *p, void **expected, void *v) noexcept

    void wk_fence() noexcept
