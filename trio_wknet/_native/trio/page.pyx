"""An engine's page for `trio-wknet top`, and the thread that keeps it up to date.

The thread does not need the GIL, so it goes on while Trio's loop is stuck. While somebody
watches it writes the loop's record, and gives each reactor a job that writes its own, unless the
one before is not done. In-loop that is done when Trio's loop comes round: then the reactor's
record is as old as the loop is late. While nobody watches, the thread reads one word ten times
a second.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ..base.atomics cimport (
    wk_fence, wk_u32_exchange, wk_u32_load_relaxed, wk_u64_load, wk_u64_load_relaxed,
    wk_u64_store, wk_u64_store_relaxed,
)
from ..base.linux cimport POLLIN, monotonic_ns, poll, pollfd
from ..base.memory cimport FOR_PAGE, memory_free, memory_zeroed
from ..reactor.hub cimport Hub
from ..reactor.measure cimport BY_PAGE, TIME_BUCKETS, Measures
from ..reactor.page cimport (
    LOOP_AT, PAGE_MAGIC, PAGE_NAME, PAGE_VERSION, SECTION, SECTIONS_AT, TEXT_AT, TEXT_SIZE,
    LoopRecord, PageHeader, PageWriter, ReactorRecord, page_write_reactor,
)
from ..reactor.wake cimport reactor_give
from .core cimport Core

import os

cdef enum:
    PERIOD_MS = 100         # between two looks whether somebody watches
    WRITES_NS = 190000000   # between two writes: every second time
    WATCHED_NS = 3000000000     # for how long after a reader's last beat


def page_size(int reactors):
    """Of an engine with so many reactors (0: in-loop)."""
    return SECTIONS_AT + max(reactors, 1) * SECTION


cdef class Page:
    """The writing end. `run` is the thread's; the others belong to Trio's thread.

    Args:
      core: the engine's. It must not be closed before `run` has returned.
      memory: the shared memory, of `page_size` bytes, all 0.
      name: what the engine can be found by, in up to 63 bytes; may be empty.
      bell: an eventfd, written to end `run`.
    """
    cdef Core core
    cdef Hub *hub
    cdef unsigned char[::1] memory
    cdef PageHeader *header
    cdef PageWriter *writers
    cdef uint32_t count
    cdef int bell
    cdef uint64_t beat
    cdef uint64_t asked
    cdef uint64_t watched_at
    cdef uint64_t written_at

    def __init__(self, Core core, unsigned char[::1] memory, bytes name, int bell):
        cdef uint32_t i
        core.ensure_usable()
        if len(name) >= PAGE_NAME:
            raise ValueError(f"name must have at most {PAGE_NAME - 1} bytes, not {len(name)}")
        self.core = core
        self.hub = core.hub
        self.memory = memory
        self.bell = bell
        self.header = <PageHeader *>&memory[0]
        self.writers = <PageWriter *>memory_zeroed(FOR_PAGE, self.hub.count, sizeof(PageWriter))
        if self.writers == NULL:
            raise MemoryError
        self.count = self.hub.count
        for i in range(self.hub.count):
            self.writers[i].job.run = page_write_reactor
            self.writers[i].record = <ReactorRecord *>&memory[SECTIONS_AT + i * SECTION]
        self._introduce(name)
        core.measure(BY_PAGE, True)

    def __dealloc__(self):
        # The engine is closed: jobs that were given are done.
        cdef uint32_t i
        if self.writers == NULL:
            return
        for i in range(self.count):
            memory_free(FOR_PAGE, self.writers[i].seen)
        memory_free(FOR_PAGE, self.writers)

    cdef void _introduce(self, bytes name) noexcept:
        cdef PageHeader *header = self.header
        memcpy(header.name, <const char *>name, len(name))
        header.version = PAGE_VERSION
        header.size = self.memory.shape[0]
        header.pid = os.getpid()
        header.reactors = 0 if self.hub.in_loop else self.hub.count
        header.opened = monotonic_ns()
        wk_fence()
        header.magic = PAGE_MAGIC

    def run(self):
        """Write while somebody watches. Returns True if a reader asks for the tasks, and False
        at the end."""
        cdef bint asked
        with nogil:
            asked = self._run()
        return asked

    cdef bint _run(self) noexcept nogil:
        cdef pollfd bell
        cdef uint64_t asked
        bell.fd = self.bell
        bell.events = POLLIN
        while poll(&bell, 1, PERIOD_MS) <= 0:
            self._tick(monotonic_ns())
            asked = wk_u64_load(&self.header.asked)
            if asked != self.asked:
                self.asked = asked
                return True
        return False

    cdef void _tick(self, uint64_t now) noexcept nogil:
        cdef uint64_t beat = wk_u64_load_relaxed(&self.header.beat)
        cdef uint32_t i
        if beat != self.beat:
            self.beat = beat
            self.watched_at = now
        if self.watched_at == 0 or now > self.watched_at + WATCHED_NS:
            return
        if now < self.written_at + WRITES_NS:
            return
        self.written_at = now
        self._write_loop(now)
        for i in range(self.hub.count):
            if wk_u32_exchange(&self.writers[i].pending, 1) == 0:
                reactor_give(self.hub.reactors[i], &self.writers[i].job)

    cdef void _write_loop(self, uint64_t now) noexcept nogil:
        cdef LoopRecord *record = <LoopRecord *>(<char *>self.header + LOOP_AT)
        cdef Measures *m = &self.hub.measures
        cdef int i
        wk_u64_store_relaxed(&record.sequence, wk_u64_load_relaxed(&record.sequence) + 1)
        wk_fence()
        record.written_at = now
        record.asleep = wk_u32_load_relaxed(&self.hub.asleep)
        record.running_since = wk_u64_load_relaxed(&m.running_since)
        record.posted_at = wk_u64_load_relaxed(&m.posted_at)
        record.busy = wk_u64_load_relaxed(&m.busy)
        record.batches = wk_u64_load_relaxed(&m.batches)
        record.completions = wk_u64_load_relaxed(&m.completions)
        record.lag = wk_u64_load_relaxed(&m.lag)
        record.longest_lag = wk_u64_load_relaxed(&m.longest_lag)
        record.total_lag = wk_u64_load_relaxed(&m.total_lag)
        record.wakes = wk_u64_load_relaxed(&self.hub.wakes)
        record.unwatched = wk_u32_load_relaxed(&self.hub.unwatched)
        for i in range(<int>TIME_BUCKETS):
            record.lags[i] = wk_u64_load_relaxed(&m.lags[i])
        wk_u64_store(&record.sequence, wk_u64_load_relaxed(&record.sequence) + 1)

    def answer(self, bytes text):
        """Answer the reader that asked for the tasks; `text` is cut off if it is too long."""
        cdef size_t size = min(<size_t>len(text), <size_t>TEXT_SIZE)
        cdef uint64_t asked = wk_u64_load(&self.header.asked)
        memcpy(<char *>self.header + TEXT_AT, <const char *>text, size)
        wk_u64_store(&self.header.text_size, size)
        wk_u64_store(&self.header.answered, asked)

    def close(self):
        """Say that the engine is closed, when it is, and let go of the memory. The last call."""
        wk_u64_store(&self.header.closed, 1)
        self.header = NULL
        self.hub = NULL
        self.memory = None
