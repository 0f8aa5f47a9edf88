"""Sending frames: header and payload by one call to the kernel, many frames by one.

Small payloads are copied behind their headers, which costs less than a span of their own;
large ones are sent from where they are. A frame is sent whole or not at all: the rest of one
that was begun is left to the reactor, ahead of all that is queued.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.list cimport PyList_CheckExact, PyList_GET_SIZE
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ..base.linux cimport iovec
from ..base.memory cimport FOR_SPANS, memory_free, memory_take
from ..reactor.framing cimport (
    DELIMITED, FIXED_LENGTH, LENGTH_PREFIXED, MAX_VARINT, VARINT_PREFIXED, FramingSpec,
)
from .operation cimport DONE
from .send cimport Sending
from .send_vector cimport SendWhole, as_tuple

cdef extern from "Python.h":
    PyObject **list_items "PySequence_Fast_ITEMS"(object items)

cdef extern from "<string.h>" nogil:
    void *memmem(const void *data, size_t n, const void *needle, size_t length)

cdef enum:
    COPY_UP_TO = 2048       # bytes of a payload
    SMALL_SEND = 8192       # bytes on the wire, of what is written on the stack


# --- encoding ----------------------------------------------------------------------------


cdef str frame_objection(const FramingSpec *spec, const char *data, size_t n):
    """Why a frame would not be delivered to the peer as it is; None if it would."""
    if spec.kind == FIXED_LENGTH:
        if n != spec.max_frame:
            return f"is {n} bytes, and every frame has {spec.max_frame}"
        return None
    if n > spec.max_frame:
        return f"is {n} bytes, more than max_frame ({spec.max_frame})"
    if spec.kind == LENGTH_PREFIXED:
        return _objection_to_length(spec, <const unsigned char *>data, n)
    if spec.kind == DELIMITED:
        return _objection_to_delimiter(spec, data, n)
    return None


cdef inline int64_t _length_of(const FramingSpec *spec, size_t n) noexcept nogil:
    """What the length field of a frame of `n` delivered bytes says."""
    return <int64_t>n + spec.strip - spec.offset - spec.size - spec.adjustment


cdef inline unsigned char _length_byte(const FramingSpec *spec, int64_t length,
                                       uint32_t i) noexcept nogil:
    cdef uint32_t place = i if spec.little_endian else spec.size - 1 - i
    return <unsigned char>(<uint64_t>length >> (8 * place))


cdef str _objection_to_length(const FramingSpec *spec, const unsigned char *data, size_t n):
    """What is stripped must follow from the frame: it may be bytes of the length field, and
    nothing else. The other bytes of the header are the frame's own."""
    cdef uint32_t header = spec.offset + spec.size
    cdef uint32_t first = min(spec.strip, <uint32_t>spec.size)
    cdef int64_t length = _length_of(spec, n)
    cdef uint32_t i
    if spec.strip > (0 if spec.offset else spec.size):
        return "cannot be sent: its framing strips bytes that no frame tells"
    if n + spec.strip < header:
        return f"is {n} bytes, and its header alone has {header - spec.strip}"
    if length < 0 or (spec.size < 8 and length >> (8 * spec.size)):
        return f"is {n} bytes: its length, {length}, does not fit the field of {spec.size}"
    for i in range(first, spec.size):
        if data[spec.offset + i - spec.strip] != _length_byte(spec, length, i):
            return f"is {n} bytes, so its length field must say {length}, and does not"
    return None


cdef str _objection_to_delimiter(const FramingSpec *spec, const char *data, size_t n):
    """The first delimiter on the wire must be the one at the frame's end: one that begins in
    the frame, and ends in the delimiter behind it, would end it too early, too."""
    cdef size_t length = spec.delimiter_length
    cdef size_t i, part
    cdef const char *found = <const char *>memmem(data, n, spec.delimiter, length)
    if spec.keep:
        if n < length or found != data + n - length:
            return "must end with the delimiter, and hold no other one"
        return None
    if found != NULL:
        return "holds the delimiter"
    for i in range(n - min(n, length - 1), n):
        part = n - i
        if (memcmp(data + i, spec.delimiter, part) == 0
                and memcmp(spec.delimiter, spec.delimiter + part, length - part) == 0):
            return "ends in what, with the delimiter, is one too early"
    return None


cdef unsigned char *_put_header(const FramingSpec *spec, unsigned char *out, size_t n) noexcept:
    """Write what goes before the delivered bytes; where it ends."""
    cdef uint64_t length = n
    cdef uint32_t i
    if spec.kind == LENGTH_PREFIXED:
        for i in range(spec.strip):
            out[i] = _length_byte(spec, _length_of(spec, n), i)
        return out + spec.strip
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


cdef unsigned char *put_frame(
    const FramingSpec *spec, unsigned char *out, const void *data, size_t n
) noexcept:
    """Write a frame; where it ends. It takes at most MAX_VARINT bytes, and the delimiter, more
    than what is delivered."""
    out = _put_header(spec, out, n)
    memcpy(out, data, n)
    return _put_delimiter(spec, out + n)


@cython.final
cdef class SendFrames(SendWhole):
    """Behind the frames' ends on the wire `ends` has those of what is delivered."""
    cdef FrameSend channel
    cdef tuple frames           # kept while their bytes are used

    cdef str name_of(self, Py_ssize_t which):
        return "value" if self.single else f"frames[{which}]"

    cdef object validate(self):
        self.channel.ensure_linked()
        self.encode(COPY_UP_TO)

    cdef int encode(self, size_t copy_up_to) except -1:
        """Check all frames, then write what is not sent from where it is."""
        cdef const FramingSpec *spec = &self.channel.compiled.spec
        cdef Py_ssize_t count, i
        cdef size_t room = 1, delivered = 0, n
        cdef iovec *payloads
        cdef unsigned char *out
        cdef unsigned char *run
        self.frames = (self.argument,) if self.single else _tuple_of(self.argument)
        count = len(self.frames)
        self.reserve(2 * count + 1)
        self.ends = <size_t *>memory_take(FOR_SPANS, (2 * count + 1) * sizeof(size_t))
        payloads = <iovec *>memory_take(FOR_SPANS, (count + 1) * sizeof(iovec))
        try:
            if self.ends == NULL or payloads == NULL:
                raise MemoryError
            for i in range(count):
                self.look_at(self.frames[i], i, &payloads[i])
                n = payloads[i].iov_len
                why = frame_objection(spec, <const char *>payloads[i].iov_base, n)
                if why is not None:
                    raise ValueError(f"{self.name_of(i)} {why}")
                delivered += n
                self.ends[count + i] = delivered
                room += MAX_VARINT + spec.delimiter_length + (n if n <= copy_up_to else 0)
            self.scratch = <unsigned char *>memory_take(FOR_SPANS, room)
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
            memory_free(FOR_SPANS, payloads)
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
        if not SendWhole.attempt(self):
            return False
        self.count_first(len(self.frames))
        return True

    cdef void count_first(self, Py_ssize_t n) noexcept:
        """The first `n` frames are accepted for sending."""
        self.channel.count_sent(n, self.ends[len(self.frames) + n - 1] if n else 0)


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
        cdef SendFrames operation
        self.conn.ensure_usable()
        self.ensure_linked()
        if self.conn.sender is not None:
            (<Sending>self.conn.sender).make_way()
        self.conn.may_send()
        if self.send_bytes(frames, single):
            return 0
        operation = self.sending(frames, single)
        operation.state = DONE      # nobody awaits it
        operation.encode(<size_t>-1)
        if operation.left:
            self.conn._send_or_queue(<const char *>operation.scratch, operation.left)
        operation.let_go_of_data()
        operation.count_first(len(operation.frames))
        return 0

    cdef bint send_bytes(self, frames, bint single) except -1:
        """`send_now` where all is bytes, and small: without an object. False if it is not, or
        cannot be sent. Nothing here runs Python code, so a list stays as it is."""
        cdef const FramingSpec *spec = &self.compiled.spec
        cdef unsigned char wire[SMALL_SEND]
        cdef unsigned char *out = wire
        cdef PyObject *alone = <PyObject *>frames
        cdef PyObject **items = &alone
        cdef Py_ssize_t count = 1, i
        cdef size_t n, delivered = 0, room = 0
        if not single:
            if not PyList_CheckExact(frames):
                return False
            items = list_items(frames)
            count = PyList_GET_SIZE(frames)
        for i in range(count):
            if not PyBytes_CheckExact(<object>items[i]):
                return False
            n = PyBytes_GET_SIZE(<object>items[i])
            room += n + MAX_VARINT + spec.delimiter_length
            if room > SMALL_SEND or frame_objection(
                spec, PyBytes_AS_STRING(<object>items[i]), n
            ) is not None:
                return False
        for i in range(count):
            n = PyBytes_GET_SIZE(<object>items[i])
            out = put_frame(spec, out, PyBytes_AS_STRING(<object>items[i]), n)
            delivered += n
        if out != wire:
            self.conn._send_or_queue(<const char *>wire, out - wire)
        self.count_sent(count, delivered)
        return True

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
              one length that frames have; or it holds its length field (`LengthPrefixed` with
              ``strip=0``), which says another length; or its framing strips more than the
              length. Nothing was sent.
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
