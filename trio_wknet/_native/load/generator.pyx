"""The load generator's Python face: takes the plan, owns the memory, hands out results.

trio_wknet/_load/run.py checks the arguments and gives the documentation. The run itself
is in loop.pyx, what happens to one connection in conn.pyx.
"""
from cpython.exc cimport PyErr_SetFromErrno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ..base.atomics cimport wk_u32_load, wk_u32_store, wk_u64_load_relaxed
from ..base.linux cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EFD_NONBLOCK, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLET, EPOLLIN,
    close, epoll_create1, epoll_ctl, epoll_event, eventfd, monotonic_ns, sockaddr_storage,
    write,
)
from ..base.memory cimport FOR_LOAD, memory_free, memory_zeroed
from .conn cimport CLOSED_LOOP, FAULTS, WINDOW, Conn, Load, Stream
from .histogram cimport Histogram
from .loop cimport run_loop


cdef extern from "<sys/timerfd.h>" nogil:
    enum:
        TFD_CLOEXEC
        TFD_NONBLOCK
    int timerfd_create(int clock, int flags)


# Each in the order of its enum.
cdef tuple MODES = ("closed", "open", "churn")
cdef tuple PHASES = ("ramp", "warmup", "measure", "drain", "done")
cdef tuple ERRORS = (
    "connect_refused", "connect_other", "timeout", "reset", "eof", "mismatch", "upgrade_refused")
cdef tuple ENDINGS = ("duration", "count", "stopped", "unreachable", "server_gone")

# In epoll's data, where a connection has its slot and generation.
cdef enum:
    WAKE_HANDLE = 0xFFFFFFFF
    TIMER_HANDLE = 0xFFFFFFFE


cdef class LoadGenerator:
    """One run of load against one address.

    `target` and `sources` are raw `struct sockaddr` bytes. `outbound` is what connections
    send and `inbound` what is expected back, each as a pattern, the bytes from where one
    connection begins in it to where the next one does, and the bytes of a message.
    `request` is sent before messages, if it is not empty, and `accept` has to be in the
    head of the answer. Times are seconds; `rate` is in messages a second and only used by
    mode "open", `scheduled` is how many messages that makes in warmup and duration.
    Raises `ValueError` for invalid values, `OSError` when descriptors run out.
    """

    cdef Load load
    cdef int wake
    cdef int timer
    cdef bint used
    cdef bint finished
    cdef Histogram histogram
    cdef list kept  # what the plan's pointers point into

    def __cinit__(self):
        self.wake = self.timer = self.load.epoll = -1
        self.kept = []
        self.histogram = Histogram()
        self.load.latency = &self.histogram.data

    def __init__(
        self, bytes target not None, *, str mode not None, uint32_t connections,
        tuple outbound not None, tuple inbound not None, bytes request not None,
        bytes accept not None, uint32_t depth, double rate, uint64_t scheduled, uint64_t count,
        bint verify, double warmup, double duration, double grace, double connect_timeout,
        double ramp_timeout, uint32_t connecting, tuple sources not None,
    ):
        if self.load.conns != NULL:
            raise RuntimeError("a LoadGenerator is set up only once")
        if min(connections, depth, connecting) < 1 or connections >= TIMER_HANDLE:
            raise ValueError("connections, depth and connecting must be at least 1")
        self.load.plan.mode = MODES.index(mode)
        if mode == "open" and not rate > 0:
            raise ValueError(f"rate must be positive, not {rate!r}")
        self.load.plan.connections = connections
        self.load.plan.connecting = connecting
        self.load.plan.depth = depth
        self.load.plan.period = 1e9 / rate if rate > 0 else 0
        self.load.plan.scheduled = min(scheduled, count) if count else scheduled
        self.load.plan.count = self.load.plan.scheduled if mode == "open" and count else count
        self.load.plan.verify = verify
        self.load.plan.warmup = nanoseconds(warmup)
        self.load.plan.duration = nanoseconds(duration)
        self.load.plan.grace = nanoseconds(grace)
        self.load.plan.connect_timeout = nanoseconds(connect_timeout)
        self.load.plan.ramp_timeout = nanoseconds(ramp_timeout)
        self._set_stream(&self.load.plan.outbound, outbound)
        self._set_stream(&self.load.plan.inbound, inbound)
        self._set_request(request, accept)
        self._set_addresses(target, sources)
        self._allocate()
        self._open()

    cdef _set_stream(self, Stream *stream, tuple described):
        cdef bytes pattern, longer
        pattern, stream.stride, stream.message = described
        if not pattern or stream.message < 1:
            raise ValueError("a pattern and its messages must have at least 1 byte")
        longer = (pattern * (WINDOW // len(pattern) + 2))[:len(pattern) + WINDOW]
        self.kept.append(longer)
        stream.pattern = <const uint8_t *><const char *>longer
        stream.period = <uint64_t>len(pattern)

    cdef _set_request(self, bytes request, bytes accept):
        self.kept += [request, accept]
        self.load.plan.request = request
        self.load.plan.request_length = <uint64_t>len(request)
        self.load.plan.accept = accept
        self.load.plan.accept_length = <uint64_t>len(accept)

    cdef _set_addresses(self, bytes target, tuple sources):
        cdef uint32_t i
        self.load.plan.target_length = copy_address(&self.load.plan.target, target)
        if not sources:
            return
        self.load.plan.sources = <sockaddr_storage *>memory_zeroed(
            FOR_LOAD, len(sources), sizeof(sockaddr_storage))
        if self.load.plan.sources == NULL:
            raise MemoryError
        for i in range(len(sources)):
            self.load.plan.source_length = copy_address(
                &self.load.plan.sources[i], sources[i])
        self.load.plan.source_count = <uint32_t>len(sources)

    cdef _allocate(self):
        cdef uint32_t connections = self.load.plan.connections
        cdef uint32_t slot
        self.load.conns = <Conn *>memory_zeroed(FOR_LOAD, connections, sizeof(Conn))
        self.load.idle = <uint32_t *>memory_zeroed(FOR_LOAD, connections, sizeof(uint32_t))
        self.load.inbox = <uint8_t *>memory_zeroed(FOR_LOAD, WINDOW, 1)
        if self.load.plan.mode == CLOSED_LOOP:
            self.load.starts = <uint64_t *>memory_zeroed(
                FOR_LOAD, connections, sizeof(uint64_t) * self.load.plan.depth)
            if self.load.starts == NULL:
                raise MemoryError
        if self.load.conns == NULL or self.load.idle == NULL or self.load.inbox == NULL:
            raise MemoryError
        for slot in range(connections):
            self.load.conns[slot].fd = -1
            self.load.idle[slot] = connections - 1 - slot  # a stack: slot 0 comes first
        self.load.idle_count = connections

    cdef _open(self):
        self.load.epoll = epoll_create1(EPOLL_CLOEXEC)
        self.wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
        if min(self.load.epoll, self.wake, self.timer) < 0:
            PyErr_SetFromErrno(OSError)
        watch(self.load.epoll, self.wake, WAKE_HANDLE)
        watch(self.load.epoll, self.timer, TIMER_HANDLE)

    def __dealloc__(self):
        cdef int fd
        for fd in (self.load.epoll, self.wake, self.timer):
            if fd >= 0:
                close(fd)
        memory_free(FOR_LOAD, self.load.plan.sources)
        memory_free(FOR_LOAD, self.load.conns)
        memory_free(FOR_LOAD, self.load.idle)
        memory_free(FOR_LOAD, self.load.starts)
        memory_free(FOR_LOAD, self.load.inbox)

    def run(self) -> dict:
        """Run to the end, without the GIL, and return the figures.

        It takes at most `ramp_timeout + warmup + duration + grace` seconds. Raises
        `RuntimeError` the second time.
        """
        cdef int ending
        if self.used or self.load.conns == NULL:
            raise RuntimeError("a LoadGenerator runs only once, and only if it was set up")
        self.used = True
        with nogil:
            ending = run_loop(&self.load, self.timer)
        self.finished = True
        return self._result(ENDINGS[ending])

    def stop(self) -> None:
        """End the run early, or a later one at once. From any thread; may be repeated."""
        cdef uint64_t one = 1
        cdef ssize_t ignored
        wk_u32_store(&self.load.stopping, 1)
        # Fails only when the counter is full, and then the eventfd is readable anyway.
        ignored = write(self.wake, &one, sizeof(one))

    @property
    def latency(self) -> Histogram:
        """The latencies in ns. Raises `RuntimeError` while the run writes to it."""
        if self.used and not self.finished:
            raise RuntimeError("latencies can be read when the run has ended")
        return self.histogram

    def snapshot(self) -> dict:
        """The counters as they are now, all messages of the run counted. From any thread."""
        cdef uint64_t began = wk_u64_load_relaxed(&self.load.began)
        return {
            "phase": PHASES[wk_u32_load(&self.load.phase)],
            "elapsed": (monotonic_ns() - began) / 1e9 if began else 0.0,
            "connections": wk_u64_load_relaxed(&self.load.connected),
            "messages": wk_u64_load_relaxed(&self.load.answered),
            "bytes": wk_u64_load_relaxed(&self.load.bytes),
            "rate": wk_u64_load_relaxed(&self.load.rate),
            "errors": self._errors(),
        }

    cdef dict _errors(self):
        cdef int fault
        return {
            ERRORS[fault]: wk_u64_load_relaxed(&self.load.faults[fault])
            for fault in range(<int>FAULTS)
        }

    cdef dict _result(self, str ended):
        answered = wk_u64_load_relaxed(&self.load.answered)
        return {
            "ended": ended,
            "opened": wk_u64_load_relaxed(&self.load.opened),
            "started": self.load.started,
            "answered": answered,
            "unfinished": self.load.started - answered,
            "messages": self.load.measured,
            "seconds": self.load.window / 1e9,
            "errors": self._errors(),
            "connect_errno": self.load.connect_errno,
        }


cdef uint64_t nanoseconds(double seconds) except? 0:
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"a time must be from 0 to 1e9 seconds, not {seconds!r}")
    return <uint64_t>(seconds * 1e9)


cdef unsigned int copy_address(sockaddr_storage *to, bytes raw) except 0:
    if not 2 <= len(raw) <= <Py_ssize_t>sizeof(sockaddr_storage):
        raise ValueError(f"not a socket address: {raw!r}")
    memset(to, 0, sizeof(sockaddr_storage))
    memcpy(to, <const char *>raw, len(raw))
    return <unsigned int>len(raw)


cdef int watch(int epoll, int fd, uint64_t handle) except -1:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLET
    event.data.u64 = handle
    if epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0:
        PyErr_SetFromErrno(OSError)
    return 0
