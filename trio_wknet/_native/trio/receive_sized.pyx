"""Receives that know how much they want: into a buffer, so many bytes, up to a
delimiter. The bytes wait in the ring until there are enough, so that one that is
cancelled, or comes up short, has taken nothing."""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t, uint64_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.ring cimport MAX_RING_BYTES, ring_find
from ..reactor.slot cimport Slot
from .receive cimport ENOUGH, OVER, WAIT, Receive, positive

from trio_wknet._errors import DelimiterNotFound, IncompleteRead

cdef enum:
    MAX_DELIMITER = 65536


cdef class ReceiveSized(ReceiveHalf):

    def receive_into(self, buffer):
        """Like `receive_some`, but into a writable buffer. A checkpoint.

        Cancellation is atomic: no data is consumed.

        Args:
          buffer: a `bytearray`, a `memoryview`, an array. It cannot be resized while this
              waits.

        Returns:
          The number of bytes that were written to its start, 1 or more; 0 when the peer has
          finished sending.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, and every byte that came
              before has been received. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError: if ``buffer`` is not writable, contiguous and bytes-like.
          ValueError: if ``buffer`` is empty.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveInto operation = ReceiveInto.__new__(ReceiveInto)
        operation.conn = self
        operation.argument = buffer
        return operation

    def receive_exactly(self, n):
        """Wait until ``n`` bytes are there, and return them. A checkpoint.

        Cancellation is atomic: no data is consumed.

        Args:
          n: the number of bytes, from 1 to 2**30. It may exceed ``limits.inbound``: the
              limit is raised to ``n`` while this waits.

        Returns:
          Exactly ``n`` bytes.

        Raises:
          IncompleteRead: if the peer finished sending before. The bytes that came
              stay, for `receive_some`.
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke before there were enough bytes.
              Those that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if ``n`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveExactly operation = ReceiveExactly.__new__(ReceiveExactly)
        operation.conn = self
        operation.argument = n
        return operation

    def receive_until(self, delimiter, max_bytes=None):
        """Wait for a delimiter, and return the bytes before it. A checkpoint.

        The delimiter itself is consumed too, and not returned. Bytes are searched
        once, however many pieces they come in. Cancellation is atomic: no data is
        consumed.

        Args:
          delimiter: from 1 to 65536 bytes.
          max_bytes: the most bytes that may precede it, 1 or more; by default
              ``limits.inbound``. It may exceed that: the limit is raised while this
              waits, by 64 KiB at a time.

        Returns:
          The bytes before the delimiter; ``b""`` if it comes first.

        Raises:
          DelimiterNotFound: if more than ``max_bytes`` bytes came without it. They
              stay, for `receive_some`.
          IncompleteRead: if the peer finished sending before it. The bytes that came
              stay, for `receive_some`.
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke before the delimiter came. The
              bytes that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveUntil operation = ReceiveUntil.__new__(ReceiveUntil)
        operation.conn = self
        operation.argument = delimiter
        operation.max_bytes = max_bytes
        return operation


@cython.final
cdef class ReceiveInto(Receive):
    cdef Py_buffer view
    cdef bint held

    cdef object validate(self):
        try:
            PyObject_GetBuffer(self.argument, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        except (TypeError, BufferError):
            raise TypeError(
                f"buffer must be writable, contiguous and bytes-like, not {self.argument!r}"
            ) from None
        self.held = True
        if self.view.len == 0:
            raise ValueError("buffer must hold at least 1 byte")

    cdef object attempt(self):
        cdef uint32_t n, more
        cdef int found = ENOUGH
        while found == ENOUGH:
            if self.conn.slot != NULL:
                n = self.conn.at_hand(self.view.len, &more)
                n = self.conn.fill(<char *>self.view.buf, n, more, True)
                if n > 0:
                    return self.number(n)
            found = self.conn.look(1, &n)
        return 0 if found == OVER else None

    cdef object number(self, uint32_t n):
        """As an object, for which there may be no memory. The bytes are taken already."""
        try:
            return n
        except MemoryError:
            self.lost()
            raise

    cdef void finish(self) noexcept:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)


@cython.final
cdef class ReceiveExactly(Receive):
    cdef Py_ssize_t count

    cdef object validate(self):
        if self.argument is None:
            raise TypeError("n must be an integer, not None")
        self.count = positive("n", self.argument, 0)
        if self.argument > MAX_RING_BYTES:
            raise ValueError(f"n must be at most {MAX_RING_BYTES}, not {self.argument}")

    cdef object attempt(self):
        cdef uint32_t available
        cdef int found = self.conn.look(<uint32_t>self.count, &available)
        if found == WAIT:
            return None
        if found == OVER:
            raise IncompleteRead(self.count, available)
        return self.conn.take(<uint32_t>self.count, 0)


@cython.final
cdef class ReceiveUntil(Receive):
    cdef object max_bytes
    cdef Py_ssize_t most
    cdef uint32_t scanned
    cdef uint64_t taken

    cdef object validate(self):
        if not isinstance(self.argument, (bytes, bytearray, memoryview)):
            raise TypeError(f"delimiter must be bytes, not {self.argument!r}")
        # Before it is copied. With it the ring may grow to MAX_RING_BYTES and no further.
        length = memoryview(self.argument).nbytes
        if not 1 <= length <= MAX_DELIMITER:
            raise ValueError(f"delimiter must hold 1 to {MAX_DELIMITER} bytes, not {length}")
        self.argument = bytes(self.argument)
        mark = 1 if self.conn.slot == NULL else self.conn.slot.limits.inbound
        most = positive("max_bytes", self.max_bytes, mark)
        self.most = min(most, MAX_RING_BYTES - <Py_ssize_t>length)

    cdef object attempt(self):
        cdef bytes delimiter = self.argument
        cdef uint32_t length = <uint32_t>len(delimiter)
        cdef uint32_t available
        cdef long at
        cdef int found
        # What was searched stays searched, less what may begin a delimiter;
        # unless a receive_nowait came in between the wake and this step.
        if self.conn.slot != NULL and self.taken != self.conn.slot.taken:
            self.taken = self.conn.slot.taken
            self.scanned = 0
        found = self.conn.look(self.scanned + length, &available, True)
        while found == ENOUGH:
            at = self._search(delimiter, length)
            if at >= 0 and at <= self.most:
                return self.conn.take(<uint32_t>at, length)
            if available - length + 1 > self.most:
                raise DelimiterNotFound(delimiter, self.most)
            self.scanned = available - length + 1
            found = self.conn.look(self.scanned + length, &available, True)
        if found == OVER:
            raise IncompleteRead(None, available)
        return None

    cdef long _search(self, bytes delimiter, uint32_t length):
        cdef Slot *slot = self.conn.slot
        cdef long at
        pthread_mutex_lock(&slot.lock)
        at = ring_find(&slot.inbound, <const unsigned char *>PyBytes_AS_STRING(delimiter),
                       length, self.scanned)
        pthread_mutex_unlock(&slot.lock)
        return at
