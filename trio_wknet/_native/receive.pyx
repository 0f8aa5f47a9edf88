# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The receiving half: from the inbound ring to the application.

Every receive is the same operation with another idea of when there is enough:
`attempt` takes bytes or says None, having told the reactor (`wanted`) how many
bytes to wake it for. That is said under the lock under which the reactor adds
bytes, so the wake cannot be lost.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint32_t, uint64_t

from trio_wknet._native.conn cimport RESUME, Slot
from trio_wknet._native.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from trio_wknet._native.operation cimport Operation
from trio_wknet._native.ring cimport ring_copy, ring_discard, ring_find, ring_len
from trio_wknet._native.stream cimport broken

import trio

from trio_wknet._errors import DelimiterNotFound, IncompleteRead

cdef enum:
    MOST_BYTES = 1 << 30        # what a ring may grow to

# What `look` found.
cdef enum:
    WAIT = 0
    ENOUGH = 1
    OVER = 2                    # the peer ended; what is there is all there will be


cdef class ReceiveHalf(Stream):

    cdef int look(self, uint32_t enough, uint32_t *available) except -1:
        """See what the ring holds. If that is less than `enough` and more may
        come, arrange for a wake at `enough` bytes, and for the reactor to read
        on if it paused below that."""
        cdef Slot *slot = self.slot
        cdef bint over, resume = False
        cdef int32_t error
        if slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        pthread_mutex_lock(&slot.lock)
        available[0] = ring_len(&slot.inbound)
        error = slot.error
        over = slot.ended or error != 0
        if available[0] < enough and not over:
            slot.wanted = enough
            if slot.paused:
                slot.paused = False
                resume = True
        pthread_mutex_unlock(&slot.lock)
        if resume:
            self.core.post(slot, RESUME)
        if available[0] >= enough:
            return ENOUGH
        if error != 0:
            # What came before the error may still be asked for in smaller pieces.
            raise broken(error)
        return OVER if over else WAIT

    cdef void took(self, uint32_t n) noexcept:
        """Forget `n` bytes that were copied out, and let a paused reactor read
        again once the ring is half empty."""
        cdef Slot *slot = self.slot
        cdef bint resume = False
        self.taken += n
        pthread_mutex_lock(&slot.lock)
        ring_discard(&slot.inbound, self.core.hub.pool, n)
        if slot.paused and ring_len(&slot.inbound) <= slot.limits.inbound // 2:
            slot.paused = False
            resume = True
        pthread_mutex_unlock(&slot.lock)
        if resume:
            self.core.post(slot, RESUME)

    cdef object take(self, uint32_t n, uint32_t skip):
        """The first `n` bytes, forgetting `skip` more."""
        data = PyBytes_FromStringAndSize(NULL, n)
        # Only this side takes bytes out, so they are still there.
        pthread_mutex_lock(&self.slot.lock)
        ring_copy(&self.slot.inbound, PyBytes_AS_STRING(data), n, 0)
        pthread_mutex_unlock(&self.slot.lock)
        self.took(n + skip)
        return data

    cdef object take_some(self, Py_ssize_t most, bint wait):
        """Up to `most` bytes, b"" at the end, or None if there is nothing: then
        a wake is arranged if `wait`. The fast path of all receiving, hence one
        visit to the lock. Creating a bytes object runs no Python code and no
        garbage collector, so it is allowed under the lock."""
        cdef Slot *slot = self.slot
        cdef uint32_t n
        cdef int32_t error
        cdef bint resume = False
        if slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        pthread_mutex_lock(&slot.lock)
        try:
            n = ring_len(&slot.inbound)
            if n == 0:
                error = slot.error
                if error == 0 and slot.ended:
                    return b""
                if error == 0:
                    if wait:
                        slot.wanted = 1
                    return None
            else:
                error = 0
                if n > most:
                    n = <uint32_t>most
                self.taken += n
                data = PyBytes_FromStringAndSize(NULL, n)
                ring_copy(&slot.inbound, PyBytes_AS_STRING(data), n, 0)
                ring_discard(&slot.inbound, self.core.hub.pool, n)
                if slot.paused and ring_len(&slot.inbound) <= slot.limits.inbound // 2:
                    slot.paused = False
                    resume = True
        finally:
            pthread_mutex_unlock(&slot.lock)
        if error != 0:
            raise broken(error)
        if resume:
            self.core.post(slot, RESUME)
        return data

    cdef bint nothing_yet(self) noexcept:
        """Whether the connection is alive and has no bytes; then a wake is
        arranged."""
        cdef Slot *slot = self.slot
        cdef bint nothing
        if slot == NULL:
            return False
        pthread_mutex_lock(&slot.lock)
        nothing = ring_len(&slot.inbound) == 0 and not slot.ended and slot.error == 0
        if nothing:
            slot.wanted = 1
        pthread_mutex_unlock(&slot.lock)
        return nothing

    def receive_some(self, max_bytes=None):
        """Wait for bytes, and return what is there. A checkpoint.

        Args:
          max_bytes: how many at most, 1 or more; by default all that are there.

        Returns ``b""`` when the peer has finished sending. Cancelled, it has taken
        nothing.

        Raises:
          trio.ClosedResourceError: closed here, before or meanwhile.
          trio.BrokenResourceError: the connection broke, and every byte that came
              before has been received. Its cause is the `OSError`.
          trio.BusyResourceError: another task is receiving.
          TypeError, ValueError: for ``max_bytes``.
        """
        cdef ReceiveSome operation = ReceiveSome.__new__(ReceiveSome)
        operation.conn = self
        operation.argument = max_bytes
        return operation

    def receive_into(self, buffer):
        """Like `receive_some`, but into a writable buffer (a `bytearray`, a
        `memoryview`, an array). A checkpoint.

        The buffer cannot be resized while this waits.

        Returns how many bytes were written to its start: from 1 to all it holds, or 0
        when the peer has finished sending. Cancelled, it has taken nothing.

        Raises as `receive_some` does, and:
          TypeError: ``buffer`` is not writable, contiguous and bytes-like.
          ValueError: it holds no byte.
        """
        cdef ReceiveInto operation = ReceiveInto.__new__(ReceiveInto)
        operation.conn = self
        operation.argument = buffer
        return operation

    def receive_exactly(self, n):
        """Wait until ``n`` bytes are there, and return them. A checkpoint.

        Args:
          n: how many bytes, from 1 to 2**30. More than ``limits.inbound`` are
              allowed: the bound is lifted to ``n`` while this waits.

        Cancelled, it has taken nothing.

        Raises as `receive_some` does, and:
          IncompleteRead: the peer finished sending before. The bytes that came
              stay, for `receive_some`.
        """
        cdef ReceiveExactly operation = ReceiveExactly.__new__(ReceiveExactly)
        operation.conn = self
        operation.argument = n
        return operation

    def receive_until(self, delimiter, max_bytes=None):
        """Wait for a delimiter, and return the bytes before it. A checkpoint.

        The delimiter itself is taken out too, and not returned. Bytes are searched
        once, however many pieces they come in.

        Args:
          delimiter: one byte or longer.
          max_bytes: how many bytes may stand before it, 1 or more; by default
              ``limits.inbound``.

        Cancelled, it has taken nothing.

        Raises as `receive_some` does, and:
          DelimiterNotFound: more than ``max_bytes`` bytes came without it. They
              stay, for `receive_some`.
          IncompleteRead: the peer finished sending before it. So do they.
          TypeError, ValueError: for a delimiter that is not bytes-like, or empty.
        """
        cdef ReceiveUntil operation = ReceiveUntil.__new__(ReceiveUntil)
        operation.conn = self
        operation.argument = delimiter
        operation.max_bytes = max_bytes
        return operation

    def receive_nowait(self, max_bytes=None):
        """Return what is there, like `receive_some`, without waiting. Not a
        checkpoint.

        Raises as `receive_some` does, and:
          trio.WouldBlock: nothing is there, and more may come.
        """
        cdef Py_ssize_t most = _positive("max_bytes", max_bytes, MOST_BYTES)
        self.ensure_usable()
        self._require_no_receiver()
        data = self.take_some(most, False)
        if data is None:
            raise trio.WouldBlock
        return data


    def _require_no_receiver(self):
        if self.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")

    def _take_unread(self):
        """Everything that is there, whatever became of the connection."""
        cdef uint32_t n
        pthread_mutex_lock(&self.slot.lock)
        n = ring_len(&self.slot.inbound)
        pthread_mutex_unlock(&self.slot.lock)
        return self.take(n, 0)

    def _is_readable(self):
        """Whether a receive would not wait."""
        cdef bint readable
        if self.slot == NULL:
            return True
        pthread_mutex_lock(&self.slot.lock)
        readable = (ring_len(&self.slot.inbound) > 0 or self.slot.ended
                    or self.slot.error != 0)
        pthread_mutex_unlock(&self.slot.lock)
        return readable


cdef Py_ssize_t _positive(str name, value, Py_ssize_t default) except -1:
    """A count of bytes from 1 to MOST_BYTES, or the default for None."""
    cdef Py_ssize_t n
    if value is None:
        return default
    try:
        n = value
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    except OverflowError:
        n = MOST_BYTES if value > 0 else 0
    if n < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return min(n, <Py_ssize_t>MOST_BYTES)


cdef class Receive(Operation):
    """A receive. Subclasses say what is enough."""

    cdef object validate(self):
        pass

    cdef bint must_wait(self):
        """True if it is plain that there is nothing, with a wake arranged."""
        return False

    cdef object attempt(self):
        raise NotImplementedError

    cdef object start(self):
        self.validate()
        self.conn.ensure_usable()
        if self.conn.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")
        if self.must_wait():
            # Trio delivers a pending cancellation to a task that parks, so the
            # look at the cancel status that `enter` takes can be saved.
            return self.conn.park_reader(self)
        trap = self.enter()
        if trap is not None:
            return trap
        data = self.attempt()
        if data is None:
            return self.conn.park_reader(self)
        return self.complete(data)

    cdef object proceed(self):
        # A task that came between the wake and this step may wait by now; it
        # must not be forgotten for this one.
        if self.conn.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")
        data = self.attempt()
        if data is None:
            return self.conn.park_reader(self)
        self.result = data
        return None


@cython.final

cdef class ReceiveSome(Receive):
    cdef Py_ssize_t most

    cdef object validate(self):
        self.most = _positive("max_bytes", self.argument, MOST_BYTES)

    cdef bint must_wait(self):
        return self.conn.nothing_yet()

    cdef object attempt(self):
        return self.conn.take_some(self.most, True)


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
        cdef uint32_t available
        cdef int found = self.conn.look(1, &available)
        cdef Slot *slot = self.conn.slot
        if found == WAIT:
            return None
        if found == OVER:
            return 0
        available = <uint32_t>min(<Py_ssize_t>available, self.view.len)
        pthread_mutex_lock(&slot.lock)
        ring_copy(&slot.inbound, self.view.buf, available, 0)
        pthread_mutex_unlock(&slot.lock)
        self.conn.took(available)
        return available

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
        self.count = _positive("n", self.argument, 0)
        if self.argument > MOST_BYTES:
            raise ValueError(f"n must be at most {MOST_BYTES}, not {self.argument}")

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
        self.argument = bytes(self.argument)
        if not self.argument:
            raise ValueError("delimiter must hold at least 1 byte")
        self.most = _positive("max_bytes", self.max_bytes, self.conn.slot.limits.inbound if self.conn.slot != NULL else 1)

    cdef object attempt(self):
        cdef bytes delimiter = self.argument
        cdef uint32_t length = <uint32_t>len(delimiter)
        cdef uint32_t available
        cdef long at
        cdef int found
        # What was searched stays searched, less what may begin a delimiter;
        # unless a receive_nowait came in between the wake and this step.
        if self.taken != self.conn.taken:
            self.taken = self.conn.taken
            self.scanned = 0
        found = self.conn.look(self.scanned + length, &available)
        while found == ENOUGH:
            at = self._search(delimiter, length)
            if at >= 0 and at <= self.most:
                return self.conn.take(<uint32_t>at, length)
            if available - length + 1 > self.most:
                raise DelimiterNotFound(delimiter, self.most)
            self.scanned = available - length + 1
            found = self.conn.look(self.scanned + length, &available)
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
