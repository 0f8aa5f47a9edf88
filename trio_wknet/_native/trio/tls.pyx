"""TLS over a connection, by the standard library's `ssl` alone.

Facts. `ssl.SSLObject` encrypts from memory to memory, by two `ssl.MemoryBIO`; what it costs is
OpenSSL's cost. `trio.SSLStream` does the rest in Python: some ten coroutines, locks and context
managers for a message, and an exception for each read that comes too early. That is most of
what a small message costs.

Decision. Once the handshake is done, a receive or send over a `Conn` is one operation
(operation.pxd), which calls `SSLObject` and the connection's own halves. What is rare is written
as coroutines: the handshake, the end, a read that has to send and a write that has to receive
(renegotiation, key updates), and any other transport. They follow the rules of
`trio.SSLStream`, whose comments explain the reasons.

Turns. Any task may call `SSLObject` between awaits. Receiving from the transport and sending on
it each take a turn, since a reader may have to send while another task does. So records keep
their order:

* What is to be sent is taken out of `outgoing` only in the turn to send. So records are sent in
  the order in which they were encrypted, whichever task sends them.
* A task that has waited for the turn to receive first checks whether something was received
  meanwhile (`refills`): another task may have received what both wait for.

Cancellation. A receive that is cancelled has at most moved bytes from the connection to
`incoming`, where the next one finds them. A send that is cancelled may have sent a part of
a record, so the stream is broken: nothing that follows could be decrypted.

No early reads. The exception that says that a read found nothing costs as much as a record. It
can be known beforehand: OpenSSL decrypts no further than it was asked to, so there is nothing
if `incoming` is empty, and the last read did not fill its buffer.
"""
cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint32_t, uint64_t

from ..base.linux cimport monotonic_ns
from .operation cimport PARKED, RAISING, Operation
from .receive cimport SOME_BYTES, ReceiveHalf, positive
from .send cimport SendHalf
from .totals cimport Totals

import ssl

import trio
from trio.lowlevel import (
    ParkingLot,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
)


cdef extern from "Python.h":
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n) except NULL
    int resize_bytes "_PyBytes_Resize"(PyObject **data, Py_ssize_t n) except -1


# Looked up once. The object's own refuses (_tls_conn.py).
cdef object send_wire = SendHalf.send_all
cdef object WantRead = ssl.SSLWantReadError
cdef tuple FAILURES = (ssl.SSLError, ssl.CertificateError)
cdef tuple NOT_SENT = (*FAILURES, trio.BrokenResourceError)


cdef bint is_eof(failure):
    """Whether the peer ended without saying goodbye. Up to Python 3.10 only the text may say
    so."""
    return isinstance(failure, ssl.SSLEOFError) or (
        "UNEXPECTED_EOF_WHILE_READING" in (getattr(failure, "strerror", None) or ())
    )


def ensure_unused(SendHalf conn not None):
    """Refuse a connection that is closed, that a task or a callback uses, or that cannot send."""
    conn.ensure_free()
    conn.may_send()


def leave_groups(SendHalf conn not None):
    """Take a connection out of its groups: what is sent to them is not encrypted."""
    conn.core.leave_groups(conn.slot)


cdef class Turn:
    cdef bint take(self) noexcept:
        """Take it, if it is free."""
        if self.taken:
            return False
        self.taken = True
        return True

    cdef void give(self) noexcept:
        """Give it up: hand it to the task that has waited longest, if there is one."""
        if self.lot is not None and self.lot:
            self.lot.unpark(count=1)
        else:
            self.taken = False

    async def wait(self):
        """Take it; a checkpoint if it is not free."""
        if self.take():
            return
        if self.lot is None:
            self.lot = ParkingLot()
        await self.lot.park()


cdef class Target:
    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.at, self.size, False, flags)


cdef class TLSBase:
    def _begin(self, transport_stream, context, server_hostname, server_side, https_compatible):
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl_object = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.transport = transport_stream
        self.conn = transport_stream if isinstance(transport_stream, SendHalf) else None
        self._https_compatible = https_compatible
        self.target = Target.__new__(Target)
        self.receive_turn = Turn.__new__(Turn)
        self.send_turn = Turn.__new__(Turn)
        self.may_hold = True

    @property
    def transport_stream(self):
        """What the stream was made of, a `Conn` or another transport; None after
        `unwrap`."""
        return self.transport

    # --- what state it is in -----------------------------------------------------

    @property
    def _handshaken(self):
        return self.handshaken

    cdef int ensure_thread(self) except -1:
        return 0 if self.conn is None else self.conn.ensure_thread()

    cdef bint holds_bytes(self) except -1:
        """Whether there are bytes of the peer's that it has and that were not received."""
        if self.unread is not None or self.incoming.pending > 0:
            return True
        return self._ssl_object.pending() > 0

    cdef int check_status(self) except -1:
        if self._ssl_object is None:
            raise RuntimeError("TLSStream.__init__ was not called")
        if self.state == BROKEN:
            raise trio.BrokenResourceError("this TLS stream is broken")
        if self.state == CLOSED:
            raise trio.ClosedResourceError("this TLS stream was already closed")
        return 0

    cdef int ensure_handshaken(self, str call) except -1:
        if not self.handshaken:
            raise trio.NeedHandshakeError(f"call do_handshake() before calling {call!r}")
        return 0

    cdef int ensure_receiving(self, bint framed) except -1:
        """Refuse to receive where that is another's turn, or not possible any more. What was
        decrypted before is received from a broken stream, too."""
        cdef bint is_there = framed or self.unread is not None
        if self.receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this TLS stream")
        if self.framed and not framed:
            raise trio.BusyResourceError(
                "this TLS stream's frames are received by the channel that framed() gave; "
                "its unframe() gives the stream back"
            )
        if not is_there or self.state != BROKEN:
            self.check_status()
        if is_there and self.conn is not None and self.conn.slot == NULL:
            raise self.conn.closed_error()
        return 0

    cdef int begin_receiving(self, who, bint framed=False) except -1:
        self.ensure_receiving(framed)
        self.receiver = who
        return 0

    cdef int begin_sending(self, who) except -1:
        if self.sender is not None:
            raise trio.BusyResourceError("another task is sending on this TLS stream")
        self.check_status()
        self.sender = who
        return 0

    cdef void broke(self) noexcept:
        if self.state == OK:
            self.state = BROKEN

    cdef object breaking(self, failure):
        """What to raise for a failure of OpenSSL's."""
        self.broke()
        exception = trio.BrokenResourceError(f"TLS failed: {failure}")
        exception.__cause__ = failure
        return exception

    # --- from and to OpenSSL -----------------------------------------------------

    cdef object take_outgoing(self):
        """What is to be sent. In the turn to send only."""
        wire = self.outgoing.read()
        if self.withheld is not None:
            wire = self.withheld + wire
            self.withheld = None
        return wire

    cdef bint has_to_send(self):
        """Whether a read left something to be sent: not the alert of one that failed."""
        return self.outgoing.pending > 0 and self.state == OK

    cdef int feed(self, wire) except -1:
        """Take in what was received from the transport; nothing is its end."""
        self.refills += 1
        try:
            if wire:
                self.incoming.write(wire)
            else:
                self.incoming.write_eof()
                self.may_hold = True
        except BaseException:
            self.broke()        # bytes are missing
            raise
        return 0

    cdef object encrypt(self, data):
        """What to send for `data`; None if OpenSSL has to receive first, and must be given the
        same data again after that. In the turn to send only."""
        try:
            self._ssl_object.write(data)
        except WantRead:
            return None
        except FAILURES as failure:
            raise self.breaking(failure)
        return self.take_outgoing()

    cdef object read_some(self, Py_ssize_t most):
        """Decrypted bytes; b"" at the end; None if more has to be received first."""
        cdef Py_ssize_t filled
        cdef Py_ssize_t size = self.incoming.pending
        cdef PyObject *data
        if self.read_failure is not None:
            failure, self.read_failure = self.read_failure, None
            raise self.breaking(failure)
        if size == 0 and not self.may_hold:
            return None
        if self.may_hold or self.holds_part:
            size += RECORD
        size = min(size, most)
        data = new_bytes(NULL, size)
        try:
            filled = self.read_into(PyBytes_AS_STRING(<object>data), size)
        except BaseException:
            Py_DECREF(<object>data)
            raise
        if filled < 0:
            Py_DECREF(<object>data)
            return None
        if filled < size:
            try:
                resize_bytes(&data, filled)
            except BaseException:
                self.broke()    # they are lost
                raise
        taken = <object>data
        Py_DECREF(taken)
        return taken

    cdef Py_ssize_t read_into(self, char *out, Py_ssize_t size) except -2:
        """Decrypt the records that are there. Returns the number of bytes; 0 at the end; -1 if
        more has to be received first."""
        cdef Target target = self.target
        cdef Py_ssize_t count
        cdef Py_ssize_t filled = 0
        while True:
            target.at = out + filled
            target.size = size - filled
            try:
                count = self._ssl_object.read(target.size, target)
            except WantRead:
                self.may_hold = False
                self.holds_part = True
                return filled if filled > 0 else -1
            except FAILURES as failure:
                if filled > 0:
                    self.read_failure = failure
                    self.may_hold = True
                    return filled
                exception = self.breaking(failure)
                if self._https_compatible and is_eof(failure):
                    return 0
                raise exception
            except BaseException:
                self.broke()    # it is not known what was decrypted
                raise
            filled += count
            self.has_read = True
            # After the peer's goodbye each read returns 0.
            self.may_hold = count == 0 or filled == size
            self.holds_part = False
            if self.may_hold or self.incoming.pending == 0:
                return filled

    # --- what is kept unencrypted ------------------------------------------------

    cdef bytes take_unread(self, Py_ssize_t most):
        """The first bytes that are unread."""
        cdef Py_ssize_t n = min(most, len(self.unread))
        data = PyBytes_FromStringAndSize(PyByteArray_AS_STRING(self.unread), n)
        if n == len(self.unread):
            self.unread = None
        else:
            del self.unread[:n]
        self.searched_for = None
        return data

    cdef int add_unread(self, data) except -1:
        try:
            if self.unread is None:
                self.unread = bytearray(data)
            else:
                self.unread += data
        except BaseException:
            self.broke()        # they are lost
            raise
        return 0

    cdef object with_held(self, data):
        """Behind what `send_nowait` left."""
        data = b"".join((self.held, data))
        self.held = None
        return data

    cdef int send_held(self) except -1:
        """Send what `send_nowait` left, if nobody else is sending."""
        return 0

    # --- the coroutines ----------------------------------------------------------

    async def _flush(self):
        """Send what OpenSSL wants to have sent."""
        await self.send_turn.wait()
        try:
            self.check_status()         # the task that had the turn before may have failed
            wire = self.take_outgoing()
            if wire:
                try:
                    if self.conn is not None:
                        await send_wire(self.conn, wire)
                    else:
                        await self.transport.send_all(wire)
                except BaseException:
                    self.broke()        # perhaps in the middle of a record
                    raise
        finally:
            self.send_turn.give()

    async def _refill(self):
        """Receive, or wait until another task has."""
        cdef uint32_t refills = self.refills
        await self.receive_turn.wait()
        try:
            if refills == self.refills:
                if self.conn is not None:
                    wire = await ReceiveHalf.receive_some(self.conn, WIRE_PIECE)
                else:
                    wire = await self.transport.receive_some()
                self.feed(wire)
        finally:
            self.receive_turn.give()

    async def _until_done(self, call, args=(), bint withhold=False):
        """Repeat a call until OpenSSL has received and sent what it needs. One at a time: while
        this sends, another task may receive what this would wait for. With `withhold`, what is
        to be sent at the end is kept back if it is session tickets."""
        cdef bint done = False
        cdef bint slept = False
        await checkpoint_if_cancelled()
        while not done:
            result = None
            try:
                result = call(*args)
                done = True
            except WantRead:
                pass
            except FAILURES as failure:
                raise self.breaking(failure)
            self.may_hold = True        # it may have read what a receive is to return
            if self.outgoing.pending:
                if done and withhold and self._sends_tickets():
                    self.withheld = self.outgoing.read()
                    break
                slept = True
                await self._flush()
            elif not done:
                slept = True
                await self._refill()
        if not slept:
            await cancel_shielded_checkpoint()
        return result

    def _sends_tickets(self):
        """Whether a server has session tickets to send, in TLS 1.3: along with its first
        record. A client that only sends may never read them, and lose what it sent."""
        return self._ssl_object.server_side and self._ssl_object.version() == "TLSv1.3"

    async def _handshake(self):
        self.ensure_thread()
        self.check_status()
        if self.handshaken:
            await checkpoint()
        else:
            await self._ensure_handshake()

    async def _ensure_handshake(self):
        if self.handshaken:
            return
        if self.handshaking is not None:
            await self.handshaking.wait()
            self.check_status()
            return
        cdef Totals totals = self.conn.totals() if self.conn is not None else None
        cdef uint64_t began = monotonic_ns()
        self.handshaking = trio.Event()
        try:
            await self._until_done(self._ssl_object.do_handshake, withhold=True)
            self.handshaken = True
            if totals is not None:
                totals.handshake_done((monotonic_ns() - began) / 1e9)
        except BaseException:
            if totals is not None:
                totals.handshake_failed()
            self.broke()
            raise
        finally:
            self.handshaking.set()

    async def _receive(self, max_bytes, bint more=False, bint framed=False):
        """receive_some before the handshake, or over any transport."""
        self.begin_receiving(True, framed)
        try:
            try:
                await self._ensure_handshake()
            except trio.BrokenResourceError as exc:
                cause = exc.__cause__
                # OpenSSL may report an end before the handshake as either.
                if self._https_compatible and (
                    isinstance(cause, ssl.SSLSyscallError) or is_eof(cause)
                ):
                    await checkpoint()
                    return b""
                raise
            most = positive("max_bytes", max_bytes, SOME_BYTES)
            await checkpoint_if_cancelled()
            if self.unread is not None and not more:
                data = self.take_unread(most)
                await cancel_shielded_checkpoint()
                return data
            self.check_status()
            return await self._receive_rest(most, self.read_some(most))
        finally:
            self.receiver = None

    async def _receive_rest(self, Py_ssize_t most, data):
        """Send what a read has left to be sent, and read until there is something."""
        cdef bint slept = False
        while True:
            if self.has_to_send():
                slept = True
                await self._flush()
            elif data is None:
                slept = True
                await self._refill()
            if data is not None:
                break
            data = self.read_some(most)
        if not slept:
            await cancel_shielded_checkpoint()
        return data

    async def _send(self, data):
        """send_all before the handshake, or over any transport."""
        self.begin_sending(True)
        try:
            await self._ensure_handshake()
            await self._write(data)
        finally:
            self.sender = None

    async def _write(self, data):
        # SSLObject would take no bytes for the end.
        if memoryview(data).nbytes == 0:
            await checkpoint()
        else:
            await self._until_done(self._ssl_object.write, (data,))

    async def _write_rest(self, piece, rest):
        """A piece that OpenSSL was given already, and what comes behind it."""
        await self._write(piece)
        if rest is not None:
            await self._write(rest)

    async def _send_file(self, source):
        """Send what a source of _files.py has, piece by piece."""
        cdef Py_ssize_t at
        total = 0
        if self.conn is not None:
            self.conn.ensure_usable()
        self.begin_sending(True)
        try:
            await self._ensure_handshake()
            if self.held is not None:       # by send_nowait, which from here on comes behind
                await self._write(self.with_held(b""))
            while True:
                piece = memoryview(await source.next_piece())
                if not piece:
                    break
                for at in range(0, len(piece), PIECE):
                    await self._write(piece[at:at + PIECE])
                total += len(piece)
            if not total:
                await checkpoint()
            return total
        finally:
            self.sender = None

    async def _shut_down(self):
        """Say goodbye, and wait for the peer's. Returns the transport, and what came behind the
        goodbye."""
        self.ensure_thread()
        self.begin_receiving(True)
        try:
            self.begin_sending(True)
            try:
                if self.unread is not None:
                    raise self.breaking(ssl.SSLError(f"{len(self.unread)} bytes are not received"))
                self.ending = True
                await self._ensure_handshake()
                if self.held is not None:
                    await self._write(self.with_held(b""))
                await self._until_done(self._ssl_object.unwrap)
                transport_stream = self.transport
                self.state = CLOSED
                self.transport = self.conn = None
                return transport_stream, self.incoming.read()
            finally:
                self.ending = False
                self.sender = None
        finally:
            self.receiver = None

    async def _wait_writable(self):
        self.ensure_thread()
        self.begin_sending(True)
        try:
            await self.send_turn.wait()
            try:
                if self.conn is not None:
                    await SendHalf.wait_send_all_might_not_block(self.conn)
                else:
                    await self.transport.wait_send_all_might_not_block()
            finally:
                self.send_turn.give()
        finally:
            self.sender = None

    async def _close(self):
        self.ensure_thread()
        if self.state == CLOSED:
            await checkpoint()
            return
        if self.state == BROKEN or self._https_compatible:
            self.state = CLOSED
            await self.transport.aclose()
            return
        try:
            await self._ensure_handshake()
            # If it is closed by force, it ends without goodbye: more may have been meant to
            # follow.
            await checkpoint_if_cancelled()
            await self._say_goodbye()
        except BaseException:
            await trio.aclose_forcefully(self.transport)
            raise
        else:
            await self.transport.aclose()
        finally:
            self.state = CLOSED

    async def _say_goodbye(self):
        """Say goodbye without waiting for the peer, which may never read. While another task
        sends, or if the connection is broken, there is no goodbye."""
        try:
            self.send_held()
            self._ssl_object.unwrap()
        except NOT_SENT:
            pass        # it wants to receive, or has, and did not expect that
        if not self.outgoing.pending:
            return
        if self.conn is None:
            try:
                await self._flush()
            except (trio.BrokenResourceError, trio.BusyResourceError):
                pass
        else:
            self._leave_to_reactor()

    def _send_last(self, data):
        """Send a last message over a `Conn` without waiting, if that is possible."""
        if self.state != OK or not self.handshaken or self.sender is not None:
            return
        try:
            self.send_held()
            self._ssl_object.write(data)
        except NOT_SENT:
            return      # it would have to receive first, or is broken
        self._leave_to_reactor()

    def _leave_to_reactor(self):
        """Send what OpenSSL wants to have sent before a `Conn` is closed, if possible."""
        if not self.send_turn.take():
            return
        try:
            # What the kernel does not take, the reactor sends before it ends the stream.
            SendHalf.send_nowait(self.conn, self.take_outgoing())
        except (trio.BrokenResourceError, trio.BusyResourceError, trio.ClosedResourceError,
                trio.WouldBlock, ValueError):
            pass        # broken, in use by another task, or over the limit of unsent bytes
        finally:
            self.send_turn.give()

    # --- the operations ----------------------------------------------------------

    def receive_some(self, max_bytes=None):
        """Wait for bytes, and return those that are there, decrypted. A checkpoint.

        Performs the handshake, if nobody has. Cancellation is atomic once the handshake is
        done: no data is consumed. (If the peer renegotiates, a reply may be cut off, and
        the stream is broken.)

        Args:
          max_bytes: the most bytes to return, 1 or more; by default 131072.

        Returns:
          The bytes; ``b""`` when the peer has said goodbye, or with ``https_compatible``
          when it has finished sending.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed, as by an end
              without goodbye. Its cause is the `OSError`, which an `ssl.SSLError` is.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if ``max_bytes`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveTLS operation
        if self.conn is None or not self.handshaken:
            return self._receive(max_bytes)
        operation = ReceiveTLS.__new__(ReceiveTLS)
        operation.stream = self
        operation.conn = self.conn
        operation.argument = max_bytes
        return operation

    cdef object receive_more(self, max_bytes, bint framed):
        """receive_some, of what is not decrypted yet."""
        cdef ReceiveTLS operation
        if self.conn is None or not self.handshaken:
            return self._receive(max_bytes, True, framed)
        operation = <ReceiveTLS>self.receive_some(max_bytes)
        operation.more = True
        operation.framed = framed
        return operation

    def send_all(self, data):
        """Encrypt ``data`` and send all of it; returns once the kernel owns every byte. A
        checkpoint.

        Performs the handshake, if nobody has. If the call is cancelled, or the connection
        breaks, the stream is broken: a part of a record may have been sent.

        Args:
          data: any contiguous bytes-like object. It must not change until this returns. It
              may be empty.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`, which an `ssl.SSLError` is.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``data`` is not bytes-like.
          RuntimeError: if called from another thread.
        """
        cdef SendTLS operation
        if self.conn is None or not self.handshaken:
            return self._send(data)
        operation = SendTLS.__new__(SendTLS)
        operation.stream = self
        operation.conn = self.conn
        operation.data = data
        return operation


cdef class TLSOperation(Operation):

    cdef bint take_turn(self, Turn turn) noexcept:
        """Take a turn, if it is free."""
        if turn.take():
            self.turn = turn
            return True
        return False

    cdef void give_turn(self) noexcept:
        turn, self.turn = self.turn, None
        if turn is not None:
            (<Turn>turn).give()

    cdef object pass_on(self, coroutine):
        """Leave the rest to a coroutine: what it returns is the result."""
        self.give_turn()
        self.inner = coroutine
        self.state = RAISING
        return coroutine.send(None)


@cython.final
cdef class ReceiveTLS(TLSOperation):

    cdef object start(self):
        cdef TLSBase stream = self.stream
        self.most = positive("max_bytes", self.argument, SOME_BYTES)
        self.conn.ensure_usable()
        stream.begin_receiving(self, self.framed)
        if stream.unread is not None and not self.more:
            trap = self.enter()
            return self.complete(stream.take_unread(self.most)) if trap is None else trap
        if self.more:
            stream.check_status()
        if (not stream.may_hold and stream.incoming.pending == 0 and self.may_take_turn()
                and self.conn.nothing_yet()):
            # Trio delivers a pending cancellation to a task that parks.
            return self.conn.park_reader(self)
        trap = self.enter()
        if trap is None:
            trap = self.advance()
            if trap is None:
                return self.complete(self.result)
        return trap

    cdef object proceed(self):
        # As in receive.pyx: a task may be receiving from the connection itself by now.
        if self.conn.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")
        return self.advance()

    cdef bint may_take_turn(self):
        """Take the turn to receive; False if another task of this stream has it."""
        if self.turn is not None:
            return True
        if not self.take_turn(self.stream.receive_turn):
            return False
        self.conn.ensure_no_receiver()
        self.conn.ensure_not_served()
        return True

    cdef object advance(self):
        """What to yield next, or None with a result."""
        cdef TLSBase stream = self.stream
        while True:
            data = stream.read_some(self.most)
            if stream.has_to_send():
                return self.pass_on(stream._receive_rest(self.most, data))
            if data is not None:
                self.result = data
                return None
            if not self.may_take_turn():
                return self.pass_on(stream._receive_rest(self.most, None))
            wire = self.conn.take_some(WIRE_PIECE, True)
            if wire is None:
                return self.conn.park_reader(self)
            stream.feed(wire)
            # Another task may be waiting for these bytes.
            self.give_turn()

    cdef void lost(self) noexcept:
        self.stream.broke()

    cdef void finish(self) noexcept:
        self.give_turn()
        if self.stream.receiver is self:
            self.stream.receiver = None


@cython.final
cdef class SendTLS(TLSOperation):

    cdef object start(self):
        cdef Py_ssize_t size
        if PyBytes_CheckExact(self.data):
            size = PyBytes_GET_SIZE(self.data)
        else:
            self.data = contiguous(self.data)
            size = self.data.nbytes
        self.conn.ensure_usable()
        self.stream.begin_sending(self)
        trap = self.enter()
        if trap is not None:
            return trap
        if self.stream.held is not None:
            self.data = self.stream.with_held(self.data)
            size = PyBytes_GET_SIZE(self.data)
        if size == 0:
            return self.complete(None)
        if not self.take_turn(self.stream.send_turn):
            return self.pass_on(self.stream._write(self.data))
        self.state = PARKED
        return self.advance(None)

    cdef object take_piece(self):
        """What to encrypt next."""
        data = self.data
        self.data = None
        if PyBytes_CheckExact(data):
            if PyBytes_GET_SIZE(data) <= PIECE:
                return data
            data = memoryview(data)
        if data.nbytes <= PIECE:
            return data
        self.data = data[PIECE:]
        return data[:PIECE]

    cdef object advance(self, sent):
        """Encrypt and send piece by piece."""
        while True:
            if self.sending is None:
                if self.data is None:
                    return None
                piece = self.take_piece()
                wire = self.stream.encrypt(piece)
                if wire is None:
                    return self.pass_on(self.stream._write_rest(piece, self.data))
                self.sending = send_wire(self.conn, wire)
            trap = self.sending.resume(sent)
            if trap is not None:
                return trap
            self.sending = None
            sent = None

    cdef object _step(self, sent):
        if self.sending is None:
            return Operation._step(self, sent)
        trap = self.advance(sent)
        if trap is None:
            self._end()
        return trap

    cdef void finish(self) noexcept:
        self.data = None
        if self.sending is not None:
            # Perhaps in the middle of a record.
            self.stream.broke()
            self.sending._end()
            self.sending = None
        self.give_turn()
        if self.stream.sender is self:
            self.stream.sender = None


cdef object contiguous(data):
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise TypeError(
            f"data must be contiguous and bytes-like, not {type(data).__name__}"
        ) from None
