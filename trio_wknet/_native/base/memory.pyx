"""The one door for memory. memory.pxd says what for.

A test can have requests refused (`memory_refuse`), and what is taken and given back counted by
site (`memory_watch`), so that it sees what leaks. Else neither is done.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)

from .atomics cimport (
    wk_u32, wk_u32_add, wk_u32_load, wk_u32_load_relaxed, wk_u32_store,
    wk_u32_sub, wk_u64, wk_u64_load, wk_u64_store,
)
from .linux cimport pipe2

cdef extern from *:
    """
    #include <errno.h>

    static inline void wk_out_of_memory(void)
    {
        errno = ENOMEM;
    }
    """
    void out_of_memory "wk_out_of_memory"() noexcept nogil

cdef enum:
    REFUSING = 1
    COUNTING = 2

# Of a test, who holds the GIL. Other threads ask meanwhile: while a plan changes, `_sites` is
# empty. A request in that moment may be numbered by either plan.
cdef wk_u32 _mode           # REFUSING, COUNTING; nearly always 0
cdef wk_u64 _sites
cdef wk_u32 _first
cdef wk_u32 _last
cdef wk_u32 _one_in
cdef wk_u32 _asked
cdef wk_u32 _refused
cdef wk_u32 _live[<int>SITES]


cdef void memory_refuse(
    uint64_t sites, uint32_t first, uint32_t last, uint32_t one_in
) noexcept nogil:
    wk_u64_store(&_sites, 0)
    wk_u32_store(&_first, first)
    wk_u32_store(&_last, last)
    wk_u32_store(&_one_in, one_in)
    wk_u32_store(&_asked, 0)
    wk_u32_store(&_refused, 0)
    wk_u64_store(&_sites, sites)
    _set(REFUSING, sites != 0)


cdef void memory_watch(bint watched) noexcept nogil:
    """Count from here on, from 0; or no more."""
    cdef int site
    _set(COUNTING, False)
    for site in range(<int>SITES):
        wk_u32_store(&_live[site], 0)
    _set(COUNTING, watched)


cdef void _set(uint32_t bit, bint on) noexcept nogil:
    cdef uint32_t mode = wk_u32_load(&_mode)
    wk_u32_store(&_mode, mode | bit if on else mode & ~bit)


cdef uint32_t memory_asked() noexcept nogil:
    """Requests of the plan's sites, since it was made."""
    return wk_u32_load(&_asked)


cdef uint32_t memory_refused() noexcept nogil:
    """Those of them that were refused."""
    return wk_u32_load(&_refused)


cdef uint32_t memory_live(Site site) noexcept nogil:
    """What was taken and not given back since the watch began, modulo 2**32."""
    return wk_u32_load(&_live[<int>site])


cdef bint _is_refused(Site site) noexcept nogil:
    cdef uint32_t number
    if not wk_u64_load(&_sites) >> <int>site & 1:
        return False
    number = wk_u32_add(&_asked, 1) + 1
    if number < wk_u32_load(&_first) or number > wk_u32_load(&_last):
        return False
    # The same in each run: a hash of the number.
    if (number * <uint32_t>2654435761 >> 16) % max(wk_u32_load(&_one_in), <uint32_t>1):
        return False
    wk_u32_add(&_refused, 1)
    out_of_memory()
    return True


cdef inline bint _refuses(Site site) noexcept nogil:
    return wk_u32_load_relaxed(&_mode) & REFUSING and _is_refused(site)


cdef inline void *_counted(Site site, void *memory) noexcept nogil:
    if memory != NULL and wk_u32_load_relaxed(&_mode) & COUNTING:
        wk_u32_add(&_live[<int>site], 1)
    return memory


cdef void *memory_take(Site site, size_t size) noexcept nogil:
    return NULL if _refuses(site) else _counted(site, malloc(size))


cdef void *memory_zeroed(Site site, size_t count, size_t size) noexcept nogil:
    return NULL if _refuses(site) else _counted(site, calloc(count, size))


cdef void *memory_resize(Site site, void *memory, size_t size) noexcept nogil:
    if _refuses(site):
        return NULL
    if memory == NULL:
        return _counted(site, malloc(size))
    return realloc(memory, size)


cdef void memory_free(Site site, void *memory) noexcept nogil:
    if memory != NULL and wk_u32_load_relaxed(&_mode) & COUNTING:
        wk_u32_sub(&_live[<int>site], 1)
    free(memory)


cdef void *memory_map(Site site, size_t size) noexcept nogil:
    cdef void *memory
    if _refuses(site):
        return NULL
    memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    return NULL if memory == MAP_FAILED else _counted(site, memory)


cdef void memory_unmap(Site site, void *memory, size_t size) noexcept nogil:
    if wk_u32_load_relaxed(&_mode) & COUNTING:
        wk_u32_sub(&_live[<int>site], 1)
    munmap(memory, size)


cdef int memory_pipe(Site site, int *ends, int flags) noexcept nogil:
    return -1 if _refuses(site) else pipe2(ends, flags)
