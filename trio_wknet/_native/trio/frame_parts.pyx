"""Frames larger than what is copied in one visit to the lock.

One that is whole in the ring is copied in pieces, outside of it. One that will never be,
because the connection's bound is lower, leaves the ring in parts, for the very object that
it will be delivered in; `scan` says how far that is (`moved`), and keeps it, so that a
receive that is cancelled has taken nothing. While reading is paused this side receives from
the socket itself, straight into that object, as `fill` in receive.pyx does.

Memory is taken for what has come, not for what was announced: at most 16 times as much, up
to 1 MiB, and twice as much beyond.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.budget cimport budget_collect
from ..reactor.framing cimport (
    DELIMITED, FrameScan, frame_moved, frame_next, frame_payload,
)
from ..reactor.pool cimport Block, Pool, block_data, pool_drop, pool_take
from ..reactor.ring cimport ring_adopt, ring_copy, ring_len, ring_pin_large, ring_write
from ..reactor.slot cimport RESUME, Slot
from .framed cimport framed_drop, framed_forget_part

cdef enum:
    AHEAD = 16                  # times what has come, up to
    MAX_AHEAD = 1 << 20         # bytes
    PULLED = 64                 # bytes of a header that are received at a time


# A channel that the collector frees in another thread may be handed out meanwhile, in
# event mode, and needs its connection then.
@cython.no_gc_clear
cdef class FrameParts:

    def __dealloc__(self):
        if self.scan != NULL:
            self.leave_scan()

    cdef void leave_scan(self) noexcept:
        """Let go of the reference to the scan."""
        cdef FrameScan *scan = self.scan
        self.scan = NULL
        if scan.channel == <void *>self:
            scan.channel = NULL
        framed_drop(scan)

    cdef bint is_linked(self) noexcept:
        """Whether the connection is open, and framed for this object."""
        return self.conn.slot != NULL and self.conn.slot.by_kind.scan == self.scan

    cdef object take_large(self):
        """Take a frame that is READY, in pieces."""
        cdef FrameScan *scan = self.scan
        cdef uint32_t n = frame_payload(scan)
        cdef uint32_t filled = scan.filled
        if filled and filled == n and PyBytes_GET_SIZE(<object>scan.partial) == n:
            data = <object>scan.partial
        else:
            data = PyBytes_FromStringAndSize(NULL, n)
            if filled:
                memcpy(PyBytes_AS_STRING(data), PyBytes_AS_STRING(<object>scan.partial), filled)
            # What is skipped leaves the ring first, and whole.
            self.conn.copy_out(PyBytes_AS_STRING(data) + filled, n - filled,
                               0 if scan.moved else scan.skip)
        self.take_out(scan.total - scan.moved, False)
        framed_forget_part(scan)
        return data

    cdef void take_out(self, uint32_t n, bint moved) noexcept:
        """Forget `n` bytes that were copied out: a part of the frame, or all that was left
        of it. If that was nothing, whether the reactor is to read again was settled when
        the last of them came."""
        cdef Slot *slot = self.conn.slot
        cdef Block *block
        cdef bint resume = False
        pthread_mutex_lock(&slot.lock)
        block = ring_pin_large(&slot.inbound)
        if n > 0:
            self.conn.consume(n)
        if moved:
            frame_moved(self.scan, n)
        else:
            frame_next(self.scan)
            resume = n > 0 and self.conn.resumes()
        pthread_mutex_unlock(&slot.lock)
        if block != NULL:
            pool_drop(block, self.conn.core.hub.pool)
        if resume:
            self.conn.core.post(slot, RESUME)

    cdef bint move_part(self, bint stay) except -1:
        """Move what there is of an unfinished frame out of the ring. While reading is paused
        go on to the socket, see `fill`. Whether anything was there."""
        cdef FrameScan *scan = self.scan
        cdef uint32_t n, more, room
        cdef uint32_t filled = 0
        if scan.spec.kind == DELIMITED:
            room = self.reserve(scan.filled + scan.looked)
            n = min(scan.looked, room)
            more = 0
            stay = False
        else:
            if scan.total == 0:
                return self.pull(scan.needed - self.conn.at_hand(scan.needed, &more))
            if scan.moved == 0 and scan.skip > 0:
                n = self.conn.at_hand(scan.skip, &more)
                if n < scan.skip:
                    return self.pull(scan.skip - n)
                self.move_head()
            n = self.conn.at_hand(frame_payload(scan) - scan.filled, &more)
            room = self.reserve(scan.filled + n)
            n = min(n, room)
            more = min(more, room - n)
        filled = self.conn.fill(
            PyBytes_AS_STRING(<object>scan.partial) + scan.filled, n, more, stay
        )
        scan.filled += filled
        return filled > 0

    cdef int move_head(self) except -1:
        """Move what is not delivered out of the ring, which has it. It is kept for
        `put_back`."""
        cdef FrameScan *scan = self.scan
        cdef uint32_t n = scan.skip
        head = PyBytes_FromStringAndSize(NULL, n)
        self.conn.copy_out(PyBytes_AS_STRING(head), n)
        Py_INCREF(head)
        scan.head = <void *>head
        self.take_out(n, True)
        return 0

    cdef uint32_t reserve(self, uint32_t there) except 0:
        """Have memory for the frame, of which `there` bytes to deliver have come. How many
        more than those that were moved it has room for, 1 or more."""
        cdef FrameScan *scan = self.scan
        cdef uint32_t most = scan.spec.max_frame if scan.total == 0 else frame_payload(scan)
        cdef uint32_t capacity = 0
        if scan.partial != NULL:
            capacity = <uint32_t>PyBytes_GET_SIZE(<object>scan.partial)
        if capacity < most and capacity <= there:
            capacity = min(most, max(2 * there, min(AHEAD * there, <uint32_t>MAX_AHEAD)))
            capacity = max(capacity, min(most, <uint32_t>PULLED))
            data = PyBytes_FromStringAndSize(NULL, capacity)
            if scan.filled:
                memcpy(PyBytes_AS_STRING(data), PyBytes_AS_STRING(<object>scan.partial),
                       scan.filled)
            self._exchange_partial(data)
        return capacity - scan.filled

    cdef void _exchange_partial(self, data) noexcept:
        """Keep this object for what is moved. The one before goes."""
        cdef uint32_t filled = self.scan.filled
        cdef void *head = self.scan.head
        self.scan.head = NULL
        framed_forget_part(self.scan)
        Py_INCREF(data)
        self.scan.partial = <void *>data
        budget_collect(self.conn.core.hub, PyBytes_GET_SIZE(data))
        self.scan.filled = filled
        self.scan.head = head

    cdef bint pull(self, uint32_t n) except -1:
        """Reading is paused, and the ring nearly empty: the last large frame was received
        here, and more may follow. Receive of the next one's header. Whether anything was
        there."""
        cdef Slot *slot = self.conn.slot
        cdef char header[PULLED]
        cdef ssize_t received = self.conn.receive_now(header, min(n, <uint32_t>PULLED))
        cdef bint stored
        if received == 0:
            return False
        pthread_mutex_lock(&slot.lock)
        stored = ring_write(&slot.inbound, self.conn.core.hub.pool, header, <uint32_t>received)
        pthread_mutex_unlock(&slot.lock)
        if not stored:
            self.conn.end_at_hole()
            raise MemoryError
        return True

    cdef int put_back(self) except -1:
        """Put what was moved back in front of the ring, whatever its bound: those bytes
        had come. The reactor may add to the ring meanwhile, so that is looked at last."""
        cdef FrameScan *scan = self.scan
        cdef Slot *slot = self.conn.slot
        cdef Pool *pool = self.conn.core.hub.pool
        cdef Block *block = NULL
        cdef Block *old = NULL
        cdef uint32_t more, held
        cdef bint done = scan.moved == 0
        while not done:
            block = pool_take(pool, scan.moved + self.conn.at_hand(1 << 30, &more))
            if block == NULL:
                raise MemoryError
            self._copy_moved(block_data(block))
            pthread_mutex_lock(&slot.lock)
            held = ring_len(&slot.inbound)
            if scan.moved + held <= block.capacity:
                ring_copy(&slot.inbound, block_data(block) + scan.moved, held, 0)
                old = slot.inbound.block
                ring_adopt(&slot.inbound, block, scan.moved + held)
                slot.taken -= scan.moved
                frame_next(scan)
                block = old
                done = True
            pthread_mutex_unlock(&slot.lock)
            if block != NULL:
                pool_drop(block, pool)
        framed_forget_part(scan)
        return 0

    cdef void _copy_moved(self, unsigned char *out) noexcept:
        cdef FrameScan *scan = self.scan
        if scan.head != NULL:
            memcpy(out, PyBytes_AS_STRING(<object>scan.head), scan.skip)
            out += scan.skip
        if scan.partial != NULL:
            memcpy(out, PyBytes_AS_STRING(<object>scan.partial), scan.filled)
