/* C11 atomics under fixed names, because Cython has none of its own.
 *
 * Every operation names its memory order. Unless a caller argues otherwise the
 * order is acquire for loads, release for stores and acq_rel for read-modify-
 * write; `_relaxed` is for counters that only statistics read, and `wk_fence`
 * is the one sequentially consistent fence, for the two places where each side
 * stores its own flag and then loads the other's (Dekker's pattern).
 */
#ifndef TRIO_WKNET_ATOMICS_H
#define TRIO_WKNET_ATOMICS_H

/* Said here because nearly every module includes this file: elsewhere epoll is missing,
 * or the layout of a slot (slot.pxd) is another. */
#if !defined(__linux__) || !defined(__LP64__)
#error "trio_wknet needs a 64-bit Linux"
#endif

#include <stdatomic.h>
#include <stdint.h>

typedef _Atomic(uint32_t) wk_u32;
typedef _Atomic(uint64_t) wk_u64;
typedef _Atomic(void *) wk_ptr;

#define WK_ATOMIC(type, raw, name)                                            \
    static inline raw name##_load(type *p)                                    \
    {                                                                         \
        return atomic_load_explicit(p, memory_order_acquire);                 \
    }                                                                         \
    static inline raw name##_load_relaxed(type *p)                            \
    {                                                                         \
        return atomic_load_explicit(p, memory_order_relaxed);                 \
    }                                                                         \
    static inline void name##_store(type *p, raw v)                           \
    {                                                                         \
        atomic_store_explicit(p, v, memory_order_release);                    \
    }                                                                         \
    static inline void name##_store_relaxed(type *p, raw v)                   \
    {                                                                         \
        atomic_store_explicit(p, v, memory_order_relaxed);                    \
    }                                                                         \
    static inline raw name##_exchange(type *p, raw v)                         \
    {                                                                         \
        return atomic_exchange_explicit(p, v, memory_order_acq_rel);          \
    }                                                                         \
    static inline int name##_cas(type *p, raw *expected, raw v)               \
    {                                                                         \
        return atomic_compare_exchange_weak_explicit(                         \
            p, expected, v, memory_order_acq_rel, memory_order_acquire);      \
    }

#define WK_ARITHMETIC(type, raw, name)                                        \
    static inline raw name##_or(type *p, raw v)                               \
    {                                                                         \
        return atomic_fetch_or_explicit(p, v, memory_order_acq_rel);          \
    }                                                                         \
    static inline raw name##_add(type *p, raw v)                              \
    {                                                                         \
        return atomic_fetch_add_explicit(p, v, memory_order_acq_rel);         \
    }                                                                         \
    static inline raw name##_sub(type *p, raw v)                              \
    {                                                                         \
        return atomic_fetch_sub_explicit(p, v, memory_order_acq_rel);         \
    }                                                                         \
    /* A counter with one writer needs no locked instruction. */              \
    static inline void name##_bump(type *p, raw v)                            \
    {                                                                         \
        atomic_store_explicit(                                                \
            p, atomic_load_explicit(p, memory_order_relaxed) + v,             \
            memory_order_relaxed);                                            \
    }

WK_ATOMIC(wk_u32, uint32_t, wk_u32)
WK_ATOMIC(wk_u64, uint64_t, wk_u64)
WK_ATOMIC(wk_ptr, void *, wk_ptr)
WK_ARITHMETIC(wk_u32, uint32_t, wk_u32)
WK_ARITHMETIC(wk_u64, uint64_t, wk_u64)

#if defined(__SANITIZE_THREAD__)
/* ThreadSanitizer does not model fences; a read-modify-write of one shared
 * word orders its callers the same way. */
static wk_u32 wk_fence_word;
static inline void wk_fence(void)
{
    atomic_fetch_add_explicit(&wk_fence_word, 1, memory_order_seq_cst);
}
#else
static inline void wk_fence(void)
{
    atomic_thread_fence(memory_order_seq_cst);
}
#endif

#endif
