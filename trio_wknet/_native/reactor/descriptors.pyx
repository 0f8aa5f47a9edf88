"""The process's table of descriptors. descriptors.pxd says why it is grown."""
from libc.stdint cimport uint32_t, uint64_t, uintptr_t

from ..base.atomics cimport wk_u32, wk_u32_cas, wk_u32_load_relaxed
from ..base.linux cimport (
    EFD_CLOEXEC, F_DUPFD_CLOEXEC, PTHREAD_CREATE_DETACHED, RLIMIT_NOFILE, SIG_SETMASK, close,
    eventfd, fcntl, getrlimit, pthread_attr_destroy, pthread_attr_init,
    pthread_attr_setdetachstate, pthread_attr_t, pthread_create, pthread_sigmask, pthread_t,
    rlimit, sigfillset, sigset_t,
)

cdef enum:
    FIRST = 16384       # takes 128 KiB of the kernel's memory
    TIMES = 4

cdef wk_u32 _size       # that the table has, or is about to have


cdef void descriptors_begin() noexcept nogil:
    """When an engine is opened; only a process's first one finds something to do."""
    cdef uint32_t size = wk_u32_load_relaxed(&_size)
    cdef uint32_t wanted = _allowed(FIRST)
    if size < wanted and wk_u32_cas(&_size, &size, wanted):
        _grow(<void *><uintptr_t>wanted)


cdef void descriptors_note(int fd) noexcept nogil:
    """Once for each connection, by any thread."""
    cdef uint32_t size = wk_u32_load_relaxed(&_size)
    cdef uint32_t wanted
    if <uint32_t>fd < size // 2:
        return
    wanted = _allowed(<uint64_t>size * TIMES)
    if size < wanted and wk_u32_cas(&_size, &size, wanted):
        _grow_meanwhile(wanted)


cdef uint32_t _allowed(uint64_t size) noexcept nogil:
    """As many descriptors, or the soft limit, which may be raised at any time."""
    cdef rlimit limit
    if getrlimit(RLIMIT_NOFILE, &limit) != 0:
        return 0
    return <uint32_t>min(size, <uint64_t>limit.rlim_cur)


cdef void *_grow(void *size) noexcept nogil:
    """Use the last number that the table is to hold, for a moment. If that fails, the table grows
    when it is full."""
    cdef int spare = eventfd(0, EFD_CLOEXEC)
    cdef int last
    if spare >= 0:
        last = fcntl(spare, F_DUPFD_CLOEXEC, <int><uintptr_t>size - 1)
        if last >= 0:
            close(last)
        close(spare)
    return NULL


cdef void _grow_meanwhile(uint32_t size) noexcept nogil:
    """In a thread of its own, which runs no signal handler, and touches nothing of an engine: so
    it may outlive all of them."""
    cdef pthread_t thread
    cdef pthread_attr_t detached
    cdef sigset_t every, before
    if pthread_attr_init(&detached) != 0:
        return
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED)
    sigfillset(&every)
    pthread_sigmask(SIG_SETMASK, &every, &before)
    pthread_create(&thread, &detached, _grow, <void *><uintptr_t>size)
    pthread_sigmask(SIG_SETMASK, &before, NULL)
    pthread_attr_destroy(&detached)
