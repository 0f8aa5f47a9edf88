# The one door for memory that is not Python's. Everything native takes it here, and gives it
# back here (tests/test_layout.py looks for other ways); what Python objects are made of comes
# from Python's own allocator.
#
# Each call says what the memory is for, its site: docs/design.md has what is done where there is
# none. So a test can have any request of any site refused, the first or the thousandth, in
# whichever thread it is made (`refuse_memory` in testing.pyx), and see that done.
#
# What that costs while nobody tests: a call by pointer and two relaxed loads, 17 instructions for
# a request and 8 for giving back, beside the hundred and more of an allocation. A reactor makes
# none for a message: blocks come from its pool, which asks here only to grow. On the Trio side a
# call that sends several spans, or a message that is written for the wire, makes one to three.
from libc.stdint cimport uint32_t, uint64_t

cdef enum Site:
    FOR_BLOCKS = 0          # of pools: what rings hold
    FOR_SLOTS = 1           # slabs of the slot map
    FOR_SETUP = 2           # what an engine, a listener or an admission is made of
    FOR_PLACES = 3          # at an admission: of each connection, and the table of addresses
    FOR_HANDLES = 4         # the members of a group
    FOR_BROADCASTS = 5      # a message in one form, and its jobs
    FOR_RELAYS = 6          # a relay, and what it gives back at its end
    FOR_PIPES = 7           # a relay's: descriptors, in truth, and the kernel's memory
    FOR_PAGE = 8            # of `top`
    FOR_SCANS = 9           # where frames end, or a WebSocket's decoder
    FOR_PINGS = 10
    FOR_CORKS = 11
    FOR_SPANS = 12          # what one call sends
    FOR_NAMES = 13          # addresses of a connection that is over
    FOR_TIMERS = 14
    FOR_MESSAGES = 15       # a text that wraps in its ring
    FOR_LOAD = 16           # the load generator's
    FOR_RATES = 17          # a connection's
    SITES = 18

# Refuse, of the requests of these sites (bits; 0: none), those with the numbers from `first` to
# `last`, and of these one in `one_in` (1: all). They are numbered from 1, from here on, over all
# threads.
cdef void memory_refuse(
    uint64_t sites, uint32_t first, uint32_t last, uint32_t one_in
) noexcept nogil
cdef void memory_watch(bint watched) noexcept nogil
cdef uint32_t memory_asked() noexcept nogil
cdef uint32_t memory_refused() noexcept nogil
cdef uint32_t memory_live(Site site) noexcept nogil

# As malloc, calloc, realloc and free. NULL, with errno ENOMEM: there is none.
cdef void *memory_take(Site site, size_t size) noexcept nogil
cdef void *memory_zeroed(Site site, size_t count, size_t size) noexcept nogil
cdef void *memory_resize(Site site, void *memory, size_t size) noexcept nogil
cdef void memory_free(Site site, void *memory) noexcept nogil
# Whole pages, zeroed, and committed as they are first touched.
cdef void *memory_map(Site site, size_t size) noexcept nogil
cdef void memory_unmap(Site site, void *memory, size_t size) noexcept nogil
# As pipe2.
cdef int memory_pipe(Site site, int *ends, int flags) noexcept nogil
