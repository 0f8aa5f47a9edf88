"""Frames of a stream whose bytes Trio's side receives and sends, as of a TLS stream.

The scanners are the reactor's (reactor/framing.pxd), over a ring and a pool of its own, as the
decoder of a WebSocket over a stream has them (websocket_stream.pyx). All of it belongs to Trio's
thread, and is called under the GIL. So there is no lock, and no frame leaves the ring in parts: it
grows with the bytes that have come, up to the longest frame.
"""
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport uint32_t

from ..reactor.framing cimport (
    DELIMITED, FRAME_READY, FRAME_WAIT, MAX_VARINT, FrameFound, frame_next, frame_payload,
    frame_scan,
)
from ..reactor.pool cimport pool_free, pool_new
from ..reactor.ring cimport ring_clear, ring_copy, ring_discard, ring_len, ring_write
from .frame_send cimport frame_objection, put_frame
from .frames cimport MAX_FRAMES, frame_counts, frame_refusal
from .receive cimport positive
from .send_vector cimport as_tuple

import trio

from trio_wknet._errors import IncompleteRead


cdef class StreamFrames:
    """What has come of a stream's frames, and how they are written.

    Args:
      compiled: the framing.
    """

    def __cinit__(self, CompiledFraming compiled not None):
        self.compiled = compiled
        self.scan.spec = &compiled.spec
        self.pool = pool_new(0)
        if self.pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.pool != NULL:
            ring_clear(&self.ring, self.pool)
            pool_free(self.pool)

    # --- what has come -------------------------------------------------------

    def feed(self, bytes data not None):
        """Bytes were received. Raises `MemoryError` if there was none for them: then they are
        lost."""
        if not ring_write(&self.ring, self.pool, PyBytes_AS_STRING(data),
                          <uint32_t>PyBytes_GET_SIZE(data)):
            raise MemoryError

    def take(self):
        """The first frame; None if it is not whole. Raises for one that is refused."""
        cdef FrameFound found = frame_scan(&self.scan, &self.ring, 0)
        if found == FRAME_READY:
            data = self.cut()
            self.scan.counters.receive_batches += 1
            return data
        if found != FRAME_WAIT:
            raise frame_refusal(&self.scan, found)
        return None

    def take_many(self, max_frames):
        """All whole frames, up to a number; None if there is none. Raises if the first one is
        refused."""
        cdef Py_ssize_t most = positive("max_frames", max_frames, MAX_FRAMES)
        cdef list frames = []
        first = self.take()
        if first is None:
            return None
        frames.append(first)
        while len(frames) < most and frame_scan(&self.scan, &self.ring, 0) == FRAME_READY:
            try:
                frames.append(self.cut())
            except MemoryError:
                break           # it stays
        return frames

    cdef bytes cut(self):
        """The frame that is READY, copied."""
        cdef uint32_t n = frame_payload(&self.scan)
        data = PyBytes_FromStringAndSize(NULL, n)
        ring_copy(&self.ring, PyBytes_AS_STRING(data), n, self.scan.skip)
        ring_discard(&self.ring, self.pool, self.scan.total)
        frame_next(&self.scan)
        self.scan.counters.received += 1
        self.scan.counters.received_bytes += n
        return data

    def holds_bytes(self):
        return ring_len(&self.ring) > 0

    def end(self):
        """What a receive behind the last whole frame raises, once the stream has ended."""
        cdef uint32_t rest = ring_len(&self.ring)
        cdef object expected = None
        if rest == 0:
            return trio.EndOfChannel("the peer ended the stream")
        if self.scan.total or self.scan.spec.kind != DELIMITED:
            expected = self.scan.total or self.scan.needed
        return IncompleteRead(expected, rest)

    def take_rest(self):
        """Every byte that was not taken."""
        cdef uint32_t n = ring_len(&self.ring)
        data = PyBytes_FromStringAndSize(NULL, n)
        if n:
            ring_copy(&self.ring, PyBytes_AS_STRING(data), n, 0)
            ring_clear(&self.ring, self.pool)
        return data

    # --- what is to be sent --------------------------------------------------

    def written(self, frames, bint single):
        """What to send for a frame, or for an iterable of frames; and their number and bytes, for
        `sent`. Raises if one of them cannot be sent."""
        cdef list found = []
        cdef size_t room = 0, delivered = 0
        cdef unsigned char *begin
        cdef unsigned char *out
        cdef bytes frame
        for frame in (self.checked(frames, "value"),) if single else self.each(frames):
            found.append(frame)
            delivered += len(frame)
            room += len(frame) + MAX_VARINT + self.scan.spec.delimiter_length
        if len(found) == 0:
            return b"", 0, 0
        wire = PyBytes_FromStringAndSize(NULL, room)
        begin = out = <unsigned char *>PyBytes_AS_STRING(wire)
        for frame in found:
            out = put_frame(self.scan.spec, out, PyBytes_AS_STRING(frame), len(frame))
        return wire[:out - begin], len(found), delivered

    cdef list each(self, frames):
        if isinstance(frames, (bytes, bytearray, memoryview)):
            raise TypeError(f"frames must be an iterable of frames, not {type(frames).__name__}")
        return [
            self.checked(frame, f"frames[{i}]")
            for i, frame in enumerate(as_tuple(frames, "frames", "frames"))
        ]

    cdef bytes checked(self, frame, str name):
        """A frame that can be sent, as it is now."""
        if not PyBytes_CheckExact(frame):
            try:
                frame = bytes(memoryview(frame).cast("B"))
            except TypeError:
                raise TypeError(
                    f"{name} must be contiguous and bytes-like, not {type(frame).__name__}"
                ) from None
        why = frame_objection(self.scan.spec, PyBytes_AS_STRING(frame), len(frame))
        if why is not None:
            raise ValueError(f"{name} {why}")
        return frame

    def sent(self, Py_ssize_t count, size_t size):
        """Frames were accepted for sending, by one call."""
        self.scan.counters.sent += count
        self.scan.counters.sent_bytes += size
        self.scan.counters.send_batches += 1

    def counters(self):
        return frame_counts(&self.scan)
