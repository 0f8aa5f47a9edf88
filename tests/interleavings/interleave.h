/* Put before every native module by `-include`: what threads share goes through the
 * checker (interleave.c), the modules' own source is compiled as it is. */
#ifndef INTERLEAVE_H
#define INTERLEAVE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum { IL_EXCHANGE, IL_OR, IL_ADD, IL_SUB };

uint64_t il_load(void *p, size_t size);
void il_store(void *p, uint64_t value, size_t size, int relaxed);
uint64_t il_change(void *p, int how, uint64_t value, size_t size);
int il_compare(void *p, void *expected, uint64_t value, size_t size);
void il_fence(void);
int il_lock(pthread_mutex_t *mutex);
int il_unlock(pthread_mutex_t *mutex);

#undef atomic_load_explicit
#undef atomic_store_explicit
#undef atomic_exchange_explicit
#undef atomic_compare_exchange_weak_explicit
#undef atomic_fetch_or_explicit
#undef atomic_fetch_add_explicit
#undef atomic_fetch_sub_explicit
#undef atomic_thread_fence

#define IL_TYPE(p) __typeof__((void)0, *(p))
#define IL_WORD(v) ((uint64_t)(uintptr_t)(v))
#define IL_CHANGE(p, how, v) \
    ((IL_TYPE(p))(uintptr_t)il_change((void *)(p), how, IL_WORD(v), sizeof(*(p))))

#define atomic_load_explicit(p, order) \
    ((IL_TYPE(p))(uintptr_t)il_load((void *)(p), sizeof(*(p))))
#define atomic_store_explicit(p, v, order) \
    il_store((void *)(p), IL_WORD(v), sizeof(*(p)), (order) == memory_order_relaxed)
#define atomic_exchange_explicit(p, v, order) IL_CHANGE(p, IL_EXCHANGE, v)
#define atomic_fetch_or_explicit(p, v, order) IL_CHANGE(p, IL_OR, v)
#define atomic_fetch_add_explicit(p, v, order) IL_CHANGE(p, IL_ADD, v)
#define atomic_fetch_sub_explicit(p, v, order) IL_CHANGE(p, IL_SUB, v)
#define atomic_compare_exchange_weak_explicit(p, expected, v, order, failure) \
    il_compare((void *)(p), (expected), IL_WORD(v), sizeof(*(p)))
#define atomic_thread_fence(order) il_fence()
#define pthread_mutex_lock il_lock
#define pthread_mutex_unlock il_unlock

#endif
