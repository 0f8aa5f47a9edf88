"""Receiving frames: all that are whole, in one visit.

The reactor wakes Trio for whole frames (framing.pxd). Small ones are taken under the lock,
as many as AT_ONCE bytes hold, each copied once, from the ring to the object that is
delivered. Larger ones are frame_parts.pyx's.

The frame that is looked at is the first that was not taken, so what a receive that is
cancelled, or fails, has found out about it is still true for the next one.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.framing cimport (
    DELIMITED, FRAME_READY, FRAME_TOO_LONG, FRAME_WAIT, FrameFound, FrameScan, frame_least,
    frame_next, frame_payload, frame_scan,
)
from ..reactor.ring cimport ring_copy, ring_len
from ..reactor.slot cimport RESUME, Slot
from ..reactor.websocket cimport decoder_of
from .framed cimport CompiledFraming, framed_link, framed_unlink
from .receive cimport AT_ONCE, Receive, positive
from .send cimport SendHalf
from .stream cimport broken

import trio

from trio_wknet._errors import FrameTooLong, IncompleteRead, MalformedFrame

cdef enum:
    FRAMES_AT_ONCE = 256        # frames that are taken in one visit


cdef class Frames(FrameParts):

    def _begin(self, SendHalf conn not None, framing, CompiledFraming compiled not None):
        """Have this connection's bytes looked at as frames, from the first unread one."""
        conn.ensure_usable()
        if conn.slot == NULL:
            raise conn.closed_error()
        conn.ensure_no_receiver()
        if conn.is_served_frames():
            raise trio.BusyResourceError(f"{conn.server_name()} receives from this connection")
        conn.ensure_not_served()
        if conn.slot.by_kind.scan != NULL:
            self._succeed(conn)
        framed_link(conn.slot, compiled)
        self.conn = conn
        self.framing = framing
        self.compiled = compiled
        self.scan = conn.slot.by_kind.scan
        self.scan.users += 1

    cdef int _succeed(self, SendHalf conn) except -1:
        """Take over from a channel that was thrown away."""
        if conn.slot.by_kind.scan.users > 1 or decoder_of(conn.slot) != NULL:
            conn.ensure_unframed()
        self.conn = conn
        self.scan = conn.slot.by_kind.scan
        self.scan.users += 1
        self._unframe()
        return 0

    def _unframe(self):
        """The connection's bytes are bytes again, those of an unfinished frame included."""
        self.conn.ensure_usable()
        self.ensure_linked()
        if self.scan.served:
            raise trio.BusyResourceError(
                "serve_frames receives from this connection: it stays framed"
            )
        self.conn.ensure_no_receiver()
        self.put_back()
        self.conn.core.unframed(self.conn.slot)
        self.conn.totals().add_messages(self.scan)
        framed_unlink(self.conn.slot)

    cdef int ensure_linked(self) except -1:
        if self.conn.slot == NULL:
            raise self.conn.closed_error()
        if not self.is_linked():
            raise trio.ClosedResourceError("this channel was ended by unframe()")
        return 0

    # --- what there is -------------------------------------------------------

    cdef bint nothing_yet(self) noexcept:
        """Whether the connection is alive, and no whole frame has come; then a wake is
        arranged."""
        cdef Slot *slot = self.conn.slot
        cdef bint resume = False
        cdef bint nothing = False
        if not self.is_linked():
            return False
        pthread_mutex_lock(&slot.lock)
        if not slot.paused and frame_scan(self.scan, &slot.inbound, 0) == FRAME_WAIT:
            nothing = frame_step(slot, True, False, &resume) == STEP_WAIT
        pthread_mutex_unlock(&slot.lock)
        return nothing

    cdef bint go_on(self, FrameFound found, Step step, bint wait, bint *direct) except -1:
        """What comes of a look that found no frame to take: True to look again."""
        if self.scan.served and not wait and (found != FRAME_WAIT or step == STEP_END):
            return False        # it is for the server to tell
        if found != FRAME_WAIT:
            raise frame_refusal(self.scan, found)
        if step == STEP_END:
            raise self.end()
        if step == STEP_MOVE:
            # In event mode a callback comes again, as a task that waits does.
            direct[0] = self.move_part(wait or self.conn.slot.phase != 0)
        return step == STEP_MOVE

    cdef object end(self):
        """What a receive behind the last whole frame raises."""
        cdef Slot *slot = self.conn.slot
        cdef int32_t error
        cdef uint32_t rest
        cdef object expected = None
        pthread_mutex_lock(&slot.lock)
        error = slot.error
        rest = self.scan.moved + ring_len(&slot.inbound)
        pthread_mutex_unlock(&slot.lock)
        if error:
            return broken(error)
        if rest == 0:
            return trio.EndOfChannel("the peer ended the stream")
        if self.scan.total or self.scan.spec.kind != DELIMITED:
            expected = self.scan.total or self.scan.needed
        return IncompleteRead(expected, rest)

    # --- taking --------------------------------------------------------------

    cdef object take_one(self, bint wait):
        """The first frame, or None: then a wake is arranged if `wait`."""
        cdef FrameScan *scan = self.scan
        cdef Slot *slot
        cdef FrameFound found
        cdef Step step = STEP_WAIT
        cdef bint resume
        cdef bint direct = True
        cdef object data = None
        while True:
            self.ensure_linked()
            slot = self.conn.slot
            resume = False
            pthread_mutex_lock(&slot.lock)
            try:
                found = frame_scan(scan, &slot.inbound, 0)
                if found == FRAME_WAIT:
                    step = frame_step(slot, wait, direct, &resume)
                elif found == FRAME_READY and _is_small(scan):
                    data = self.cut(slot, 0)
                    self.conn.consume(scan.total)
                    frame_next(scan)
                    resume = self.conn.resumes()
            finally:
                pthread_mutex_unlock(&slot.lock)
            if resume:
                self.conn.core.post(slot, RESUME)
            if data is None and found == FRAME_READY:
                data = self.take_large()
            if data is not None:
                scan.counters.receive_batches += 1
                self.count(<uint32_t>len(<bytes>data))
                return data
            if not self.go_on(found, step, wait, &direct):
                return None

    cdef list take_many(self, Py_ssize_t most, bint wait):
        """All whole frames, up to `most`; or None: then a wake is arranged if `wait`. What
        comes while they are taken is left: a fast peer must not keep this from ending."""
        cdef list frames = []
        cdef FrameScan *scan = self.scan
        cdef Slot *slot
        cdef FrameFound found = FRAME_WAIT
        cdef Step step = STEP_WAIT
        cdef bint resume
        cdef bint direct = True
        cdef uint32_t n
        cdef uint32_t budget = 0
        while True:
            self.ensure_linked()
            slot = self.conn.slot
            resume = False
            pthread_mutex_lock(&slot.lock)
            try:
                if not frames:
                    budget = ring_len(&slot.inbound)
                n = self.cut_many(frames, most, &found)
                if n:
                    self.conn.consume(n)
                    resume = self.conn.resumes()
                if not frames and found == FRAME_WAIT:
                    step = frame_step(slot, wait, direct, &resume)
            finally:
                pthread_mutex_unlock(&slot.lock)
            if resume:
                self.conn.core.post(slot, RESUME)
            budget -= min(budget, n)
            if found == FRAME_READY and len(frames) < most and (budget or not frames):
                if not _is_small(scan):
                    budget -= min(budget, scan.total - scan.moved)
                    self._add_large(frames)
                if budget and len(frames) < most:
                    continue
            if frames:
                scan.counters.receive_batches += 1
                return frames
            if not self.go_on(found, step, wait, &direct):
                return None

    cdef uint32_t cut_many(self, list frames, Py_ssize_t most, FrameFound *found) except? 1:
        """Add small frames to a list, under the lock: as many as one visit may copy. How many
        bytes they take in the ring; READY if there is another. Without memory for all of
        them, those that it was there for."""
        cdef FrameScan *scan = self.scan
        cdef Slot *slot = self.conn.slot
        cdef uint32_t base = 0
        cdef int left = FRAMES_AT_ONCE
        found[0] = frame_scan(scan, &slot.inbound, 0)
        while found[0] == FRAME_READY and _is_small(scan):
            if left == 0 or len(frames) == most or (base and base + scan.total > AT_ONCE):
                break
            try:
                frames.append(self.cut(slot, base))
            except MemoryError:
                if frames:
                    found[0] = FRAME_WAIT
                    break
                raise
            self.count(frame_payload(scan))
            base += scan.total
            left -= 1
            frame_next(scan)
            found[0] = frame_scan(scan, &slot.inbound, base)
        return base

    cdef object cut(self, Slot *slot, uint32_t base):
        """The small READY frame that begins at `base`, copied."""
        cdef uint32_t n = frame_payload(self.scan)
        data = PyBytes_FromStringAndSize(NULL, n)
        ring_copy(&slot.inbound, PyBytes_AS_STRING(data), n, base + self.scan.skip)
        return data

    cdef int _add_large(self, list frames) except -1:
        """Take a large frame, having made its place in the list."""
        frames.append(None)
        try:
            data = self.take_large()
        except MemoryError:
            frames.pop()
            if frames:
                return 0
            raise
        frames[len(frames) - 1] = data
        self.count(<uint32_t>len(<bytes>data))
        return 0

    cdef void count(self, uint32_t n) noexcept:
        self.scan.counters.received += 1
        self.scan.counters.received_bytes += n

    def _counters(self):
        return frame_counts(self.scan)

    # --- receiving -----------------------------------------------------------

    def receive(self):
        """Wait for a whole frame, and return it. A checkpoint.

        Returns:
          One frame's bytes. Cancelled, it has taken nothing.

        Raises:
          trio.EndOfChannel: the peer has finished sending, behind a whole frame.
          IncompleteRead: it has finished sending inside a frame.
          FrameTooLong: the next frame is longer than ``max_frame``. Like the error above
              it comes behind every whole frame before, again each time, and takes
              nothing: `unframe` gives all the bytes.
          MalformedFrame: the next frame cannot be one. Likewise.
          trio.ClosedResourceError: the connection was closed here, before or meanwhile,
              or this channel was ended by `unframe`.
          trio.BrokenResourceError: the connection broke, and every whole frame that came
              before has been received. Its cause is the `OSError`.
          trio.BusyResourceError: another task is receiving.
        """
        cdef ReceiveOne operation = ReceiveOne.__new__(ReceiveOne)
        operation.conn = self.conn
        operation.frames = self
        return operation

    def receive_many(self, max_frames=None):
        """Wait for a whole frame, and return all that have come. A checkpoint.

        Args:
          max_frames: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one frame. Cancelled, it has taken nothing.

        Raises:
          TypeError, ValueError: for ``max_frames``. Else as `receive` does.
        """
        cdef ReceiveMany operation = ReceiveMany.__new__(ReceiveMany)
        operation.conn = self.conn
        operation.frames = self
        operation.argument = max_frames
        return operation

    def receive_nowait(self):
        """Return a whole frame, like `receive`, without waiting. Not a checkpoint.

        Returns:
          One frame's bytes.

        Raises:
          trio.WouldBlock: no whole frame has come, and one may. Else as `receive` does.
        """
        self._ensure_turn()
        data = self.take_one(False)
        if data is None:
            raise trio.WouldBlock
        return data

    def receive_many_nowait(self, max_frames=None):
        """Return all whole frames that have come, like `receive_many`, without waiting. Not a
        checkpoint.

        Args:
          max_frames: how many at most, 1 or more; by default as many as there are.

        Returns:
          A list of at least one frame.

        Raises:
          trio.WouldBlock: no whole frame has come, and one may. Else as `receive_many`
              does.
        """
        cdef Py_ssize_t most = positive("max_frames", max_frames, MAX_FRAMES)
        self._ensure_turn()
        frames = self.take_many(most, False)
        if frames is None:
            raise trio.WouldBlock
        return frames

    cdef int _ensure_turn(self) except -1:
        self.conn.ensure_usable()
        self.conn.ensure_no_receiver()
        return self.ensure_linked()

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef ReceiveOne operation = ReceiveOne.__new__(ReceiveOne)
        operation.conn = self.conn
        operation.frames = self
        operation.iterating = True
        return operation


cdef Step frame_step(Slot *slot, bint wait, bint direct, bint *resume) noexcept:
    """The first frame is not whole. What is to be done, under the lock; for STEP_WAIT a
    wake is arranged if `wait`. `resume` if the reactor is to read on.

    While reading is paused, and the ring holds less than its bound, this side has
    received: a large frame, or the one before this. It goes on if `direct`: until it
    finds nothing."""
    cdef FrameScan *scan = slot.by_kind.scan
    cdef uint32_t least = frame_least(scan.spec, slot.limits.inbound)
    cdef uint32_t held = ring_len(&slot.inbound)
    if slot.ended or slot.error:
        return STEP_END
    if held >= least:
        return STEP_MOVE
    if slot.paused:
        if direct and scan.spec.kind != DELIMITED and not 0 < scan.total <= AT_ONCE:
            return STEP_MOVE
        slot.paused = False
        resume[0] = True
    if wait:
        slot.rcvlowat = min(scan.needed, least)
        slot.open_ended = False
    return STEP_WAIT


cdef inline bint _is_small(FrameScan *scan) noexcept nogil:
    """Whether a READY frame may be copied under the lock."""
    return scan.total <= AT_ONCE and scan.moved == 0


cdef tuple frame_counts(FrameScan *scan):
    """In the order of `FrameStatistics`."""
    return (
        scan.counters.received,
        scan.counters.received_bytes,
        scan.counters.receive_batches,
        scan.counters.sent,
        scan.counters.sent_bytes,
        scan.counters.send_batches,
    )


cdef object frame_refusal(FrameScan *scan, FrameFound found):
    """What a frame that was refused raises. The sums are Python's: any length fits."""
    announced = None
    if scan.knows_announced:
        announced = scan.announced
        announced += scan.spec.offset + scan.spec.size
        announced += scan.spec.adjustment
        announced -= scan.spec.strip
    if found == FRAME_TOO_LONG:
        return FrameTooLong(announced, scan.spec.max_frame)
    return MalformedFrame(announced)


cdef class ReceiveFrames(Receive):

    cdef int ensure_turn(self) except -1:
        self.conn.ensure_no_receiver()
        return self.frames.ensure_linked()

    cdef bint must_wait(self):
        return self.frames.nothing_yet()


@cython.final
cdef class ReceiveOne(ReceiveFrames):
    cdef bint iterating

    cdef object attempt(self):
        if not self.iterating:
            return self.frames.take_one(True)
        try:
            return self.frames.take_one(True)
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


@cython.final
cdef class ReceiveMany(ReceiveFrames):
    cdef Py_ssize_t most

    cdef object validate(self):
        self.most = positive("max_frames", self.argument, MAX_FRAMES)

    cdef object attempt(self):
        return self.frames.take_many(self.most, True)
