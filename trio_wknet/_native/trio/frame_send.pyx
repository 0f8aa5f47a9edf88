"""Sending frames: header and payload by one call to the kernel, many frames by one.

Small payloads are copied behind their headers, which costs less than a span of their own;
large ones are sent from where they are. A frame is sent whole or not at all: the rest of one
that was begun is left to the reactor, ahead of all that is queued.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from ..base.linux cimport iovec
from ..reactor.framing cimport (
    DELIMITED, FIXED_LENGTH, LENGTH_PREFIXED, MAX_VARINT, VARINT_PREFIXED, FramingSpec,
)
from .operation cimport DONE
from .send cimport Sending
from .send_vector cimport SendSpans, as_tuple

cdef extern from "<string.h>" nogil:
    void *memmem(const void *data, size_t n, const void *needle, size_t length)

cdef enum:
    COPY_UP_TO = 2048       # bytes of a payload


# --- encoding ----------------------------------------------------------------------------


cdef int _check(const FramingSpec *spec, str name, const char *data, size_t n) except -1:
    """Refuse what the peer would not have delivered as it is."""
    if spec.kind == FIXED_LENGTH:
        if n != spec.max_frame:
            raise ValueError(f"{name} is {n} bytes, and every frame has {spec.max_frame}")
        return 0
    if n > spec.max_frame:
        raise ValueError(f"{name} is {n} bytes, more than max_frame ({spec.max_frame})")
    if spec.kind == LENGTH_PREFIXED:
        return _check_length(spec, name, n)
    if spec.kind == DELIMITED:
        return _check_delimiter(spec, name, data, n)
    return 0


cdef int _check_length(const FramingSpec *spec, str name, size_t n) except -1:
    cdef int64_t length = <int64_t>n - spec.adjustment
    if spec.offset or spec.strip != spec.size:
        raise ValueError("a frame can be sent only where its length is all that is stripped")
    if length < 0 or (spec.size < 8 and length >> (8 * spec.size)):
        raise ValueError(
            f"{name} is {n} bytes: its length, {length}, does not fit the field of {spec.size}"
        )
    return 0


cdef int _check_delimiter(const FramingSpec *spec, str name, const char *data, size_t n) except -1:
    """The first delimiter on the wire must be the one at the frame's end: one that begins in
    the frame, and ends in the delimiter behind it, would end it too early, too."""
    cdef size_t length = spec.delimiter_length
    cdef size_t i, part
    cdef const char *found = <const char *>memmem(data, n, spec.delimiter, length)
    if spec.keep:
        if n < length or found != data + n - length:
            raise ValueError(f"{name} must end with the delimiter, and hold no other one")
        return 0
    if found != NULL:
        raise ValueError(f"{name} holds the delimiter")
    for i in range(n - min(n, length - 1), n):
        part = n - i
        if (memcmp(data + i, spec.delimiter, part) == 0
                and memcmp(spec.delimiter, spec.delimiter + part, length - part) == 0):
            raise ValueError(f"{name} ends in what, with the delimiter, is one too early")
    return 0


cdef unsigned char *_put_header(const FramingSpec *spec, unsigned char *out, size_t n) noexcept:
    """Write what goes before a payload; where it ends."""
    cdef uint64_t length = n
    cdef int i
    if spec.kind == LENGTH_PREFIXED:
        length = <uint64_t>(<int64_t>n - spec.adjustment)
        for i in range(spec.size):
            out[i if spec.little_endian else spec.size - 1 - i] = <unsigned char>length
            length >>= 8
        return out + spec.size
    if spec.kind == VARINT_PREFIXED:
        while length > 0x7F:
            out[0] = <unsigned char>(length & 0x7F | 0x80)
            length >>= 7
            out += 1
        out[0] = <unsigned char>length
        return out + 1
    return out


cdef unsigned char *_put_delimiter(const FramingSpec *spec, unsigned char *out) noexcept:
    if spec.kind != DELIMITED or spec.keep:
        return out
    memcpy(out, spec.delimiter, spec.delimiter_length)
    return out + spec.delimiter_length


@cython.final
cdef class SendFrames(SendSpans):
    cdef FrameSend channel
    cdef tuple frames           # kept while their bytes are used
    cdef bint single
    cdef unsigned char *scratch
    cdef size_t *ends           # on the wire, of each frame
    cdef size_t total

    cdef str name_of(self, Py_ssize_t which):
        return "value" if self.single else f"frames[{which}]"

    cdef object validate(self):
        self.channel.ensure_linked()
        self.encode(COPY_UP_TO)

    cdef int encode(self, size_t copy_up_to) except -1:
        """Check all frames, then write what is not sent from where it is."""
        cdef const FramingSpec *spec = &self.channel.compiled.spec
        cdef Py_ssize_t count, i
        cdef size_t room = 1, n
        cdef iovec *payloads
        cdef unsigned char *out
        cdef unsigned char *run
        self.frames = (self.argument,) if self.single else _tuple_of(self.argument)
        count = len(self.frames)
        self.reserve(2 * count + 1)
        self.ends = <size_t *>malloc((count + 1) * sizeof(size_t))
        payloads = <iovec *>malloc((count + 1) * sizeof(iovec))
        try:
            if self.ends == NULL or payloads == NULL:
                raise MemoryError
            for i in range(count):
                self.look_at(self.frames[i], i, &payloads[i])
                n = payloads[i].iov_len
                _check(spec, self.name_of(i), <const char *>payloads[i].iov_base, n)
                room += MAX_VARINT + spec.delimiter_length + (n if n <= copy_up_to else 0)
            self.scratch = <unsigned char *>malloc(room)
            if self.scratch == NULL:
                raise MemoryError
            out = run = self.scratch
            for i in range(count):
                n = payloads[i].iov_len
                out = _put_header(spec, out, n)
                if n <= copy_up_to:
                    memcpy(out, payloads[i].iov_base, n)
                    out += n
                else:
                    self.add(run, out - run)
                    self.add(payloads[i].iov_base, n)
                    run = out
                out = _put_delimiter(spec, out)
                self.ends[i] = self.left + (out - run)
            self.add(run, out - run)
            self.total = self.left
        finally:
            free(payloads)
        return 0

    cdef int look_at(self, frame, Py_ssize_t which, iovec *payload) except -1:
        if PyBytes_CheckExact(frame):
            payload.iov_base = PyBytes_AS_STRING(frame)
            payload.iov_len = PyBytes_GET_SIZE(frame)
            return 0
        self.hold(frame, which)
        payload.iov_base = self.views[self.held - 1].buf
        payload.iov_len = self.views[self.held - 1].len
        return 0

    cdef bint attempt(self) except -1:
        if not SendSpans.attempt(self):
            return False
        self.channel.count_sent(len(self.frames), self.total)
        return True

    cdef bint tears(self) noexcept:
        self.leave_begun()
        return False

    cdef void leave_begun(self) noexcept:
        """Leave the rest of the frame that was begun to the reactor; what comes behind it
        is not sent."""
        cdef size_t sent = self.total - self.left
        cdef size_t rest, kept = 0
        cdef Py_ssize_t i = 0, last = self.at
        if not self.begun or not self.left or not self.holding:
            return
        while self.ends[i] < sent:
            i += 1
        rest = self.ends[i] - sent
        self.channel.count_sent(i + 1, sent + rest)
        self.left = 0
        if rest == 0:
            return
        while kept + self.spans[last].iov_len < rest:
            kept += self.spans[last].iov_len
            last += 1
        self.spans[last].iov_len = rest - kept
        self.holding = False
        try:
            self.conn.leave_rest(self.spans + self.at, <int>(last + 1 - self.at), <uint32_t>rest)
        except BaseException:
            pass        # no memory: the connection is broken (SendHalf.leave_rest)

    cdef void finish(self) noexcept:
        if self.conn.slot != NULL and not self.conn.slot.send_error:
            self.leave_begun()
        SendSpans.finish(self)

    def __dealloc__(self):
        free(self.scratch)
        free(self.ends)


# --- the channel's methods ------------------------------------------------------------------


cdef class FrameSend(Frames):

    cdef object sending(self, frames, bint single):
        cdef SendFrames operation = SendFrames.__new__(SendFrames)
        operation.conn = self.conn
        operation.channel = self
        operation.single = single
        operation.argument = frames
        return operation

    cdef void count_sent(self, Py_ssize_t n, size_t size) noexcept:
        self.scan.counters.sent += n
        self.scan.counters.sent_bytes += size
        self.scan.counters.send_batches += 1

    cdef int send_now(self, frames, bint single) except -1:
        cdef SendFrames operation = self.sending(frames, single)
        operation.state = DONE      # nobody awaits it
        self.conn.ensure_usable()
        self.ensure_linked()
        if self.conn.sender is not None:
            (<Sending>self.conn.sender).make_way()
        self.conn.may_send()
        operation.encode(<size_t>-1)
        if operation.left:
            self.conn._send_or_queue(<const char *>operation.scratch, operation.left)
        operation.let_go_of_data()
        self.count_sent(len(operation.frames), operation.left)
        return 0

    def send(self, value):
        """Send a frame, and return once the kernel owns every byte. A checkpoint.

        Whole or not at all: cancelled before any of it was sent, nothing is; once it has
        begun, the reactor sends the rest.

        Args:
          value: a contiguous bytes-like object, the frame as the peer is to have it
              delivered. It must not change meanwhile.

        Raises:
          ValueError: the peer could not have it delivered: it is longer than ``max_frame``,
              or than the length field can tell, or contains the delimiter, or is not of the
              one length that frames have. Nothing was sent.
          trio.ClosedResourceError: closed here, before or meanwhile.
          trio.BrokenResourceError: the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: another task is sending.
          TypeError: ``value`` is not bytes-like.
        """
        return self.sending(value, True)

    def send_many(self, frames):
        """Send many frames by one call to the kernel, or a few, and return once it owns every
        byte. A checkpoint.

        If it is cancelled, the frames up to the one that was begun are sent, and no others.

        Args:
          frames: an iterable of contiguous bytes-like objects. If one of them cannot be sent
              none is.

        Raises:
          ValueError, TypeError: if one of them cannot be sent; the message says which.
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as
              `send` does.
        """
        return self.sending(frames, False)

    def send_nowait(self, value):
        """Send a frame without waiting, as `Conn.send_nowait` does: what the kernel does not
        take at once is copied, and sent by the reactor. Not a checkpoint.

        Args:
          value: the frame, of at most ``limits.outbound`` bytes with its header. It may be
              changed once this has returned.

        Raises:
          trio.WouldBlock: more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          trio.BusyResourceError: a task sends EOF.
          trio.ClosedResourceError, trio.BrokenResourceError, ValueError, TypeError: as `send`
              does.
        """
        self.send_now(value, True)

    def send_many_nowait(self, frames):
        """Send many frames like `send_nowait`: all of them, or, where this raises, none. Not
        a checkpoint.

        Args:
          frames: an iterable of frames, with their headers at most ``limits.outbound`` bytes.

        Raises:
          trio.WouldBlock: more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          ValueError, TypeError: if one of them cannot be sent; the message says which.
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError: as
              `send_nowait` does.
        """
        self.send_now(frames, False)


cdef tuple _tuple_of(frames):
    if isinstance(frames, (bytes, bytearray, memoryview)):
        raise TypeError(f"frames must be an iterable of frames, not {type(frames).__name__}")
    return as_tuple(frames, "frames", "frames")
