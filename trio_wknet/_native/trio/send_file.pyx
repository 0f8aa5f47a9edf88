"""Sending files: from the page cache to the socket, without their bytes passing through this
process.

Facts. sendfile(2) costs less CPU than a read and a send, but it waits for the disk if
the file is not in memory, even on a non-blocking socket. A file is in memory, or not, page by
page; a read with RWF_NOWAIT says so.

Decision. The Trio side calls sendfile, in the turn to send, as a large send_all calls send:
without the GIL, and woken by the reactor when the socket takes bytes again. A reactor would
send no cheaper, as the kernel does the work; it would need the descriptor, its end and its errors
in the slot; and a disk that it waited for would stop all its connections. So one operation
holds the sending side all the time, and what is sent behind it does not overtake it.

* Before each sendfile cachestat says whether all of it is in the page cache. If it does not, one
  byte in PROBE_EVERY is asked for with RWF_NOWAIT (kernels read ahead, and evict, in runs). What
  is not there, a worker thread reads, AHEAD bytes at a time.
  What was read is then sent without asking again: so it goes on even where memory is short.
* No more than STEP bytes are sent between two schedule points, so a fast peer does not
  hold Trio's loop.
* sendfile is never asked for more than the file holds. If it is, kernels before 6.5 keep the
  last bytes back for up to 200 ms, as if more were to come.
* What sendfile cannot send, and file systems that cannot say what is in memory, are read
  in a worker thread, piece by piece, and sent from there. So is everything that is not a plain
  file. Errors of the file are found there, too: an error of sendfile that is not surely
  the connection's makes the rest go this way, and what fails then is what is broken.

Trade-off. Without cachestat a page between two that were asked for may be missing, and its reading
from the disk is waited for. Asking for each page would be a system call for each 4 KiB.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport INT64_MAX, int64_t

from ..base.atomics cimport wk_u64_bump, wk_u64_store_relaxed
from ..base.files cimport wk_all_cached, wk_file_size, wk_in_memory, wk_read_resident, wk_sendfile
from ..base.linux cimport (
    EAGAIN, ECONNRESET, EHOSTUNREACH, EINTR, ENETUNREACH, EPIPE, ETIMEDOUT, errno, pread,
)
from ..reactor.sender cimport sender_failed
from ..reactor.slot cimport Slot
from .operation cimport PARKED, YIELDING
from .send cimport SendingData

cdef enum:
    STEP = 2 << 20              # bytes
    AHEAD = 2 << 20
    PIECE = 1 << 18
    PROBE_EVERY = 1 << 16

# What a step has come to.
cdef enum:
    ALL_SENT = 0
    KERNEL_FULL = 1
    STEP_DONE = 2
    MUST_READ = 3

# In place of a number of bytes.
cdef enum:
    COLD = -1
    UNKNOWN = -2

# The part of a file that is to be sent.
cdef struct Part:
    int fd
    int64_t at          # the next byte
    int64_t read_to     # up to here nothing is asked for: it is, or has just been, in memory


cdef bint _all_cold = False


def pretend_cold(bint cold):
    """For tests: whether all files are taken to be on their disks only. Kernels read ahead even
    for RWF_NOWAIT, and a fast disk may be done before that looks."""
    global _all_cold
    _all_cold = cold


def read_resident(int fd, out, int64_t offset):
    """Read without waiting for a disk. Returns how many bytes are in ``out``: 0 at the end, -1
    if that cannot be known without waiting."""
    cdef Py_buffer view
    cdef ssize_t got
    PyObject_GetBuffer(out, &view, PyBUF_WRITABLE)
    got = -1 if _all_cold else wk_read_resident(fd, view.buf, view.len, offset)
    if got < 0 and not _all_cold and wk_in_memory(fd):
        got = pread(fd, view.buf, view.len, offset)
    PyBuffer_Release(&view)
    return got


cdef int64_t part_ready(Part *part, int64_t most) noexcept nogil:
    """How many bytes can be sent now, of `most`, which is 1 or more; 0 at the end; COLD if a
    disk has to be waited for, UNKNOWN if it cannot be known."""
    cdef int64_t end = part.at + min(most, wk_file_size(part.fd) - part.at)
    cdef int64_t at = min(max(part.at, part.read_to), end)
    cdef ssize_t got
    cdef char byte
    cdef bint all_cached
    if end <= part.at:      # a file of /proc has no size
        return 0 if wk_read_resident(part.fd, &byte, 1, part.at) == 0 else UNKNOWN
    # Then the first and the last page are enough: what is on its way arrives in order.
    all_cached = end - at > PROBE_EVERY and wk_all_cached(part.fd, at, end - at)
    while at < end:
        if _all_cold:
            break
        got = wk_read_resident(part.fd, &byte, 1, at)
        if got < 0 and errno != EAGAIN:
            return UNKNOWN
        if got <= 0:
            break
        at = end if at == end - 1 else end - 1 if all_cached else min(at + PROBE_EVERY, end - 1)
    return at - part.at if at > part.at else COLD


cdef class FileHalf(VectorHalf):

    def _send_file(self, source):
        """Send what a source of _files.py has."""
        cdef SendFile operation = SendFile.__new__(SendFile)
        operation.conn = self
        operation.source = source
        return operation


@cython.final
cdef class SendFile(SendingData):
    cdef object source
    cdef Part part
    cdef bint by_reading        # not by sendfile, from here on
    cdef object reading         # the coroutine that reads in a worker thread
    cdef bytes piece            # what it has read
    cdef Py_ssize_t piece_sent
    cdef int64_t total

    cdef object validate(self):
        self.part.fd = self.source.fd
        self.part.at = self.source.offset
        self.left = self.source.count
        self.by_reading = self.part.fd < 0
        if not self.by_reading and not _all_cold and wk_in_memory(self.part.fd):
            self.part.read_to = INT64_MAX

    cdef bint may_defer(self) noexcept:
        return False

    # --- going on ----------------------------------------------------------------

    cdef object begin(self):
        trap = self.enter()
        if trap is None:
            trap = self.go_on()
            if trap is None:
                trap = self.complete(self.result)
        return trap

    cdef object proceed(self):
        if self.state == YIELDING:
            trap = self.enter()     # or a fast peer's file could not be cancelled
            if trap is not None:
                return trap
        return self.go_on()

    cdef object go_on(self):
        """Send until something has to be waited for: returns what to yield, or None at the
        end."""
        cdef int step
        while True:
            step = self.push() if self.take_sending_side() else KERNEL_FULL
            if step == ALL_SENT:
                self.release()
                self.result = self.total
                return None
            if step == KERNEL_FULL:
                return self.park()
            if step == STEP_DONE:
                return self.yielding()
            trap = self.read()
            if trap is not None:
                return trap

    # --- sending -----------------------------------------------------------------

    cdef int push(self) except -1:
        if self.piece is not None:
            return self.push_piece()
        if self.left == 0:
            return ALL_SENT
        return MUST_READ if self.by_reading else self.push_file()

    cdef int push_file(self) except -1:
        cdef Slot *slot = self.conn.slot
        cdef Py_ssize_t budget = STEP
        cdef int64_t ready, sent = 0
        cdef int error = 0
        cdef bint armed = False
        if slot.mark.rated:
            budget = self.conn.allowed(min(self.left, <size_t>STEP))
            if budget == 0 and self.left:
                self.conn.wait_for_rate()
                return KERNEL_FULL
        while budget > 0 and self.left:
            with nogil:
                ready = part_ready(&self.part, min(budget, <int64_t>self.left))
                if ready > 0:
                    sent = wk_sendfile(slot.fd, self.part.fd, self.part.at, ready)
                    error = errno
            if ready == COLD:
                return MUST_READ
            if ready == 0:
                self.left = 0
                break
            if ready == UNKNOWN or sent == 0:
                self.by_reading = True
                return MUST_READ
            if sent > 0:
                self.count_sent(sent)
                budget -= sent
            elif error == EAGAIN and armed:
                return KERNEL_FULL
            elif error != EAGAIN and error != EINTR:
                self.failed(error)
                return MUST_READ
            if sent < ready and not armed:
                self.conn.arm()     # before the last try: `SendHalf.push`
                armed = True
        return STEP_DONE if self.left else ALL_SENT

    cdef void count_sent(self, int64_t sent) noexcept:
        cdef Slot *slot = self.conn.slot
        wk_u64_bump(&slot.sent, sent)
        wk_u64_bump(&slot.send_calls, 1)
        wk_u64_store_relaxed(&slot.last_sent, self.conn.core.now())
        if slot.mark.rated:
            self.conn.spent(sent)
        self.part.at += sent
        self.advance(sent)

    cdef void advance(self, int64_t sent) noexcept:
        self.total += sent
        self.left -= sent
        self.begun = True

    cdef int failed(self, int error) except -1:
        if error in (EPIPE, ECONNRESET, ETIMEDOUT, EHOSTUNREACH, ENETUNREACH):
            sender_failed(self.conn.slot, self.conn.core.hub.pool, error)
            self.conn.ensure_unbroken()
        self.by_reading = True
        return 0

    cdef int push_piece(self) except -1:
        cdef Py_ssize_t sent = self.conn.push(
            PyBytes_AS_STRING(self.piece) + self.piece_sent,
            PyBytes_GET_SIZE(self.piece) - self.piece_sent, True,
        )
        self.advance(sent)
        self.piece_sent += sent
        if self.piece_sent < PyBytes_GET_SIZE(self.piece):
            return KERNEL_FULL
        self.piece = None
        return MUST_READ if self.left else ALL_SENT

    # --- reading in a worker thread ------------------------------------------------

    cdef object read(self):
        """Returns what to yield; None if it is done."""
        cdef int64_t most
        if self.by_reading:
            self.reading = self.source.read(self.part.at, min(self.left, <size_t>PIECE))
        else:
            most = min(self.left, <size_t>AHEAD)
            self.reading = self.source.read_ahead(self.part.at, most)
            self.part.read_to = self.part.at + most
        self.state = PARKED
        return self.read_on(None)

    cdef object read_on(self, sent):
        try:
            return self.reading.send(sent)
        except StopIteration as done:
            self.reading = None
            if self.by_reading:
                self.take_piece(done.value)
        return None

    cdef void take_piece(self, bytes piece):
        if not piece:
            self.left = 0
            return
        self.piece = piece
        self.piece_sent = 0
        self.part.at += PyBytes_GET_SIZE(piece)

    cdef object _step(self, sent):
        if self.reading is None:
            return SendingData._step(self, sent)
        trap = self.read_on(sent)
        if trap is None:
            trap = self.go_on()
        if trap is None:
            self._end()
        return trap

    cdef void let_go_of_data(self) noexcept:
        reading, self.reading = self.reading, None
        if reading is not None:
            reading.close()
        self.piece = None
        self.source = None
