"""Receives that know how much they want: into a buffer, a number of bytes, up to a
delimiter. The bytes wait in the ring until there are enough, so a receive that is
cancelled, or comes up short, has taken nothing.

The forms that do not wait take the same step, and ask the reactor for the same number of
bytes (`rcvlowat`), so it reads on beyond its mark for them, too. If no task waits, the
completion wakes none; in event mode it calls the callback that asked (ASKED) again. A
search continues where the last one ended. That place is kept in the core, because the object
of the connection may be another one by then.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t

from ..base.atomics cimport wk_u64_load
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.ring cimport MAX_RING_BYTES, ring_find
from ..reactor.slot cimport ASKED, QUIET, Slot
from .core cimport take_entry
from .receive cimport ENOUGH, OVER, WAIT, Receive, positive

import trio

from trio_wknet._errors import DelimiterNotFound, IncompleteRead

cdef enum:
    MAX_DELIMITER = 65536


cdef class ReceiveSized(Views):
    """The layer of a `Conn` with the receives that know how much they want."""

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

    def receive_exactly_nowait(self, n):
        """Return the first ``n`` bytes if they are there, like `receive_exactly`,
        without waiting. Not a checkpoint.

        While fewer are there, nothing is consumed. A callback of `Listener.serve_events`
        need do nothing more then: it is called again once they are there, not for each
        byte that comes meanwhile, or when the peer finishes sending before.

        Args:
          n: the number of bytes, from 1 to 2**30. It may exceed ``limits.inbound``: the
              limit is raised to ``n`` until they are there, or another receive.

        Returns:
          Exactly ``n`` bytes.

        Raises:
          trio.WouldBlock: if fewer bytes are there, and more may come. In a callback of
              `Listener.serve_events` also if none are there and none will come: the
              connection is closed once the callback returns.
          IncompleteRead: if the peer finished sending before. The bytes that came
              stay, for `receive_nowait`.
          trio.ClosedResourceError: if the connection is closed.
          trio.BrokenResourceError: if the connection broke before there were enough bytes.
              Those that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if ``n`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef uint32_t count = exact_count(n)
        self.ensure_usable()
        self.ensure_no_receiver()
        self.ensure_unframed()
        try:
            data = self.take_exactly(count, self.may_ask())
        except (IncompleteRead, trio.BrokenResourceError):
            self.end_in_callback()
            raise
        if data is None:
            self.asked()
            raise trio.WouldBlock
        return data

    def receive_until_nowait(self, delimiter, max_bytes=None):
        """Return the bytes before a delimiter if it is there, like `receive_until`,
        without waiting. Not a checkpoint.

        While it is not there, nothing is consumed. A callback of `Listener.serve_events`
        need do nothing more then: it is called again once more bytes have come, or when
        the peer finishes sending before. Bytes are searched once, however many calls it
        takes, as long as they are for the same delimiter.

        Args:
          delimiter: from 1 to 65536 bytes.
          max_bytes: the most bytes that may precede it, 1 or more; by default
              ``limits.inbound``. It may exceed that: the limit is raised, by 64 KiB at a
              time, until the delimiter is there, or another receive.

        Returns:
          The bytes before the delimiter, which is consumed too; ``b""`` if it comes first.

        Raises:
          trio.WouldBlock: if the delimiter is not there, and may come. In a callback of
              `Listener.serve_events` also if nothing is there and nothing will come: the
              connection is closed once the callback returns.
          DelimiterNotFound: if more than ``max_bytes`` bytes came without it. They
              stay, for `receive_nowait`.
          IncompleteRead: if the peer finished sending before it. The bytes that came
              stay, for `receive_nowait`.
          trio.ClosedResourceError: if the connection is closed.
          trio.BrokenResourceError: if the connection broke before the delimiter came. The
              bytes that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if called from another thread.
        """
        cdef bytes sought = as_delimiter(delimiter)
        cdef Py_ssize_t most = self.most_before(sought, max_bytes)
        cdef Search search
        self.ensure_usable()
        self.ensure_no_receiver()
        self.ensure_unframed()
        search = self.search_for(sought)
        try:
            data = self.take_until(sought, most, &search.scan, self.may_ask())
        except (IncompleteRead, trio.BrokenResourceError):
            self.end_in_callback()
            raise
        if data is None:
            self.core.searches[wk_u64_load(&self.slot.handle)] = search
            self.asked()
            raise trio.WouldBlock
        take_entry(self.core.searches, self.slot)
        return data

    cdef bint may_ask(self) noexcept:
        """Whether the caller may ask the reactor for bytes that are not there yet. Not between
        the callbacks of event mode: there the reactor reports what comes to them."""
        cdef Slot *slot = self.slot
        return slot == NULL or slot.server == NULL or slot.phase != QUIET

    cdef int end_in_callback(self) except -1:
        """Raise WouldBlock in a callback of event mode if the end is all there is: once
        it returns, the connection is closed, as if the end had come after it."""
        if self.slot.server != NULL and self.slot.phase != QUIET and self.unread() == 0:
            raise trio.WouldBlock
        return 0

    cdef void asked(self) noexcept:
        """Note that a callback asked for more than is there."""
        if self.slot.phase != QUIET:
            self.slot.phase = ASKED

    cdef Search search_for(self, bytes delimiter):
        """Where a search of this connection goes on, or begins."""
        cdef Search search = None
        if self.slot != NULL and self.core.searches:
            search = self.core.searches.get(wk_u64_load(&self.slot.handle))
        if search is None or search.delimiter != delimiter:
            search = Search.__new__(Search)
            search.delimiter = delimiter
        return search

    cdef Py_ssize_t most_before(self, bytes delimiter, max_bytes) except -1:
        """How many bytes may come before a delimiter. Together with it they fit into a ring of
        MAX_RING_BYTES."""
        cdef Py_ssize_t mark = 1 if self.slot == NULL else self.slot.limits.inbound
        return min(positive("max_bytes", max_bytes, mark), MAX_RING_BYTES - len(delimiter))

    cdef object take_exactly(self, uint32_t count, bint wait):
        """The first `count` bytes, or None if there are fewer: then a wake is arranged if
        `wait`."""
        cdef uint32_t available
        cdef int found = self.look(count, &available, False, wait)
        if found == WAIT:
            return None
        if found == OVER:
            raise IncompleteRead(count, available)
        return self.take(count, 0)

    cdef object take_until(self, bytes delimiter, Py_ssize_t most, Scan *scan, bint wait):
        """The bytes before a delimiter, or None if it is not there: then a wake is arranged if
        `wait`."""
        cdef uint32_t length = <uint32_t>len(delimiter)
        cdef uint32_t available
        cdef long at
        cdef int found
        # What was searched need not be searched again, except bytes at its end that may begin
        # a delimiter; unless bytes were taken since, which shows in their count.
        if self.slot != NULL and scan.taken != self.slot.taken:
            scan.taken = self.slot.taken
            scan.done = 0
        found = self.look(scan.done + length, &available, True, wait)
        while found == ENOUGH:
            at = self.find(delimiter, scan.done)
            if at >= 0 and at <= most:
                return self.take(<uint32_t>at, length)
            if available - length + 1 > most:
                raise DelimiterNotFound(delimiter, most)
            scan.done = available - length + 1
            found = self.look(scan.done + length, &available, True, wait)
        if found == OVER:
            raise IncompleteRead(None, available)
        return None

    cdef long find(self, bytes delimiter, uint32_t start) noexcept:
        """Where a delimiter is, at or behind `start`; -1 if it is not there."""
        cdef Slot *slot = self.slot
        cdef uint32_t length = <uint32_t>len(delimiter)
        cdef long at
        pthread_mutex_lock(&slot.lock)
        at = ring_find(&slot.inbound, <const unsigned char *>PyBytes_AS_STRING(delimiter),
                       length, start)
        pthread_mutex_unlock(&slot.lock)
        return at


cdef uint32_t exact_count(n) except 0:
    cdef Py_ssize_t count
    if n is None:
        raise TypeError("n must be an integer, not None")
    count = positive("n", n, 0)
    if n > MAX_RING_BYTES:
        raise ValueError(f"n must be at most {MAX_RING_BYTES}, not {n}")
    return <uint32_t>count


cdef bytes as_delimiter(delimiter):
    if not isinstance(delimiter, (bytes, bytearray, memoryview)):
        raise TypeError(f"delimiter must be bytes, not {delimiter!r}")
    length = memoryview(delimiter).nbytes     # before it is copied
    if not 1 <= length <= MAX_DELIMITER:
        raise ValueError(f"delimiter must hold 1 to {MAX_DELIMITER} bytes, not {length}")
    return bytes(delimiter)


@cython.final
@cython.freelist(8)
cdef class Search:
    """A search that the next call continues."""


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
    cdef uint32_t count

    cdef object validate(self):
        self.count = exact_count(self.argument)

    cdef object attempt(self):
        return (<ReceiveSized>self.conn).take_exactly(self.count, True)


@cython.final
cdef class ReceiveUntil(Receive):
    cdef object max_bytes
    cdef Py_ssize_t most
    cdef Scan scan

    cdef object validate(self):
        self.argument = as_delimiter(self.argument)
        self.most = (<ReceiveSized>self.conn).most_before(self.argument, self.max_bytes)

    cdef object attempt(self):
        return (<ReceiveSized>self.conn).take_until(self.argument, self.most, &self.scan, True)
