"""Sending on a TLS stream without waiting, in few records.

Facts. A record costs OpenSSL some microseconds, and 22 bytes and more on the wire, however few
bytes it holds; a send costs the kernel as much.

Decision. As with `Conn.send_nowait` (cork.pyx), the first bytes of a turn are encrypted and sent
at once. What follows in the same turn is kept as it is (`held`), and is encrypted when the turn
ends, or as soon as it fills a record: small messages become one record and one send. So are bytes
that come while another task is in `send_all`: that one's are not all encrypted yet, and the records
must not change their order. `Core.late` has the streams that hold some.

Whatever encrypts other bytes (`send_all`, `unwrap`, the goodbye) takes those that are held first.

What was encrypted cannot be taken back. So the limit on unsent bytes is checked before, for as
much as they can come to; if it fails nevertheless, the stream is broken.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.ring cimport ring_len
from ..reactor.sender cimport sender_acquire
from .send cimport Sending, SendHalf
from .send_vector cimport as_tuple
from .tls cimport OK, PIECE, RECORD, contiguous

import trio

cdef enum:
    OVERHEAD = 128      # the most bytes that a record takes besides what it holds


cdef Py_ssize_t on_the_wire(Py_ssize_t n) noexcept:
    """How many bytes are sent for `n`, at most."""
    return n + (n // RECORD + 1) * OVERHEAD


cdef class TLSSend(TLSReceive):
    """The uppermost native layer of a TLS stream: what sends without waiting."""

    cdef SendHalf over_conn(self, str call):
        """The connection; there is none over another transport, or after `unwrap`."""
        if self.conn is None:
            self.check_status()
            raise TypeError(
                f"{call} works over a Conn, not over a {type(self.transport).__name__}"
            )
        return self.conn

    def send_nowait(self, data):
        """Encrypt and send without waiting, like `Conn.send_nowait`: what the kernel does not
        take at once is copied, and sent by the reactor. Not a checkpoint.

        It is atomic: all of ``data`` is accepted or, if this raises, none of it, unless the
        connection broke. `flush` waits for what is unsent, and `aclose` sends it before it says
        goodbye.

        The first call in a turn of Trio's loop sends at once. What follows in the same turn is
        copied, and leaves in as few records as possible, by one call to the kernel at the turn's
        end, or as soon as it fills a record, 16 KiB; if that fails, the next call raises.
        While another task is in `send_all`, ``data`` goes behind what that sends.

        Args:
          data: any contiguous bytes-like object. It may be changed once this has returned.

        Raises:
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent with ``data``
              (encrypted, for which 128 bytes for each record are reckoned); or if the peer is
              renegotiating.
          trio.NeedHandshakeError: if the handshake is not done.
          trio.ClosedResourceError: if the stream is closed.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`.
          trio.BusyResourceError: if a task is in `unwrap`.
          ValueError: if ``data`` can never be within that limit.
          TypeError: if ``data`` is not bytes-like; or if the stream is over another transport
              than a `Conn`.
          RuntimeError: if called from another thread.
        """
        cdef SendHalf conn = self.over_conn("send_nowait")
        cdef Py_ssize_t n
        conn.ensure_usable()
        self.check_status()
        self.ensure_handshaken("send_nowait")
        if self.ending:
            raise trio.BusyResourceError("another task is ending this TLS stream")
        conn.may_send()
        if not PyBytes_CheckExact(data):
            data = contiguous(data)
        n = len(data)
        if n == 0:
            return
        if self.may_send_now(n):
            self.send_data(data)
            return
        if self.held is None:
            if not self.is_late:
                conn.core.late.append(self)
                self.is_late = True
            self.held = bytearray()
        self.held += data
        if len(self.held) >= RECORD:
            self.send_held()

    cdef bint may_send_now(self, Py_ssize_t n) except -1:
        """Whether bytes are to be sent at once; else they are to be held. Raises if they are too
        many."""
        cdef uint32_t limit = self.conn.slot.limits.outbound
        cdef Py_ssize_t held = 0 if self.held is None else len(self.held)
        cdef Py_ssize_t tickets = 0 if self.withheld is None else len(self.withheld)
        if on_the_wire(n) > limit:
            raise ValueError(
                f"data is {n} bytes, with what TLS adds more than limits.outbound ({limit}) "
                f"can hold"
            )
        if on_the_wire(held + n) + tickets + self.unsent() > limit:
            raise trio.WouldBlock
        return (self.held is None and self.sender is None and not self.send_turn.taken
                and not self.conn.is_corking(self.conn.slot, n))

    cdef uint32_t unsent(self) noexcept:
        cdef uint32_t n
        pthread_mutex_lock(&self.conn.slot.lock)
        n = ring_len(&self.conn.slot.outbound)
        pthread_mutex_unlock(&self.conn.slot.lock)
        return n

    cdef int send_data(self, data) except -1:
        """Encrypt and send. Nobody else is sending."""
        self.send_turn.take()
        try:
            self.send_in_turn(data)
        finally:
            self.send_turn.give()
        return 0

    cdef int send_in_turn(self, data) except -1:
        cdef Py_ssize_t at = 0
        while at < len(data):
            wire = self.encrypt(data if len(data) <= PIECE else data[at:at + PIECE])
            if wire is None:
                raise trio.WouldBlock       # OpenSSL has taken nothing
            self.send_now(wire)
            at += PIECE
        return 0

    cdef int send_now(self, wire) except -1:
        """Send what was encrypted, whatever else was sent in this turn."""
        cdef SendHalf conn = self.conn
        cdef const char *at = PyBytes_AS_STRING(wire)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(wire)
        try:
            if conn.sender is not None:
                (<Sending>conn.sender).make_way()
            conn.may_send()
            conn.core.settle(conn.slot)
            while not sender_acquire(conn.slot):
                if conn.queue_behind(at, <uint32_t>n):
                    return 0
            conn.send_at_once(at, n)
        except BaseException as failure:
            self.broke()
            if isinstance(failure, trio.WouldBlock):
                raise self.breaking(failure)
            raise
        return 0

    cdef int send_held(self) except -1:
        if self.held and self.sender is None and self.send_turn.take():
            try:
                self.send_held_in_turn()
            finally:
                self.send_turn.give()
        return 0

    cdef int send_held_in_turn(self) except -1:
        data = self.with_held(b"")
        try:
            self.send_in_turn(data)
        except trio.WouldBlock as failure:
            raise self.breaking(failure)
        return 0

    cdef bint turn_ended(self) noexcept:
        if self.state == OK and self.conn is not None and self.conn.slot != NULL and self.held:
            if self.sender is not None or self.send_turn.taken:
                return False
            try:
                self.send_held()
            except BaseException:
                self.broke()    # the next call raises
        self.held = None
        self.is_late = False
        return True

    async def flush(self):
        """Wait until the kernel owns every byte that `send_nowait` left. A checkpoint. If it
        is cancelled, the reactor goes on sending.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`.
          trio.BusyResourceError: if another task is sending.
          TypeError: if the stream is over another transport than a `Conn`.
          RuntimeError: if called from another thread.
        """
        cdef SendHalf conn = self.over_conn("flush")
        conn.ensure_usable()
        self.begin_sending(True)
        try:
            await self.send_turn.wait()
            try:
                if self.held is not None:
                    self.send_held_in_turn()
                await SendHalf.flush(conn)
            finally:
                self.send_turn.give()
        finally:
            self.sender = None

    async def send_vectored(self, buffers):
        """Encrypt several buffers and send all of them, as if they were one; returns once the
        kernel owns every byte. A checkpoint. In all else like `send_all`.

        Args:
          buffers: an iterable of contiguous bytes-like objects.

        Raises:
          trio.ClosedResourceError, trio.BrokenResourceError, trio.BusyResourceError,
              RuntimeError: as `send_all` does.
          TypeError: if one of them is not bytes-like; the message says which.
        """
        parts = []
        for which, buffer in enumerate(as_tuple(buffers, "buffers", "bytes-like objects")):
            try:
                parts.append(memoryview(buffer).cast("B"))
            except TypeError:
                raise TypeError(
                    f"buffers[{which}] must be contiguous and bytes-like, "
                    f"not {type(buffer).__name__}"
                ) from None
        await self.send_all(b"".join(parts))
