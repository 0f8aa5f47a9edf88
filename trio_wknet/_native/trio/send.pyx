"""The sending half: straight to the socket, else wait, or queue.

Who may write to the socket is in sender.pxd, and what waits for a turn's end in cork.pyx.

send_all goes to the socket from Trio's own thread, and returns once the kernel
owns every byte: a handler may send, return, and have its connection closed under
it. send_nowait does the same and leaves what the kernel does not take in the
outbound ring, which the reactor flushes. While that ring holds bytes nothing is
sent past it.
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint32_t

from ..base.atomics cimport (
    wk_fence, wk_u32_load, wk_u32_or, wk_u32_store, wk_u64_bump, wk_u64_load, wk_u64_store_relaxed,
)
from ..base.linux cimport (
    EAGAIN, EFAULT, EINTR, ENOMEM, MSG_DONTWAIT, MSG_NOSIGNAL, POLLOUT, SHUT_WR, errno, iovec,
    poll, pollfd, pthread_mutex_lock, pthread_mutex_unlock, send, shutdown,
)
from ..reactor.bucket cimport bucket_allows, bucket_spend, bucket_wait, rate_of
from ..reactor.ring cimport ring_len, ring_write
from ..reactor.sender cimport (
    HAND_OVER, QUEUED, SHUT, TELL, sender_acquire, sender_failed, sender_leave, sender_push,
    sender_release, sender_reopen, sender_shut, sender_state, sender_wait, sender_waits,
    sender_withdraw, sender_yield,
)
from ..reactor.slot cimport FLUSH, WATCH, Slot
from ..reactor.websocket cimport Decoder, decoder_of
from .cork cimport CORK_BYTES, Corks, corks_add
from .operation cimport PARKED, Operation
from .send_batch cimport SendBatch, batch_keeps_awake, batch_wants
from .stream cimport DETACH_DONE, broken

import trio


cdef class SendHalf(ReceiveSized):
    """The layer of a `Conn` that sends: to the socket, or into the outbound ring. It derives
    from the receiving layers only because a class has one native base."""

    cdef int ensure_no_sender(self) except -1:
        if self.sender is not None:
            what = "detaching" if isinstance(self.sender, Detach) else "sending on"
            raise trio.BusyResourceError(f"another task is {what} this connection")
        return 0

    cdef int ensure_free(self) except -1:
        """Refuse a connection that is closed, or that a task or a callback uses."""
        self.ensure_usable()
        if self.slot == NULL:
            raise self.closed_error()
        if self.slot.server != NULL:
            raise trio.BusyResourceError(f"{self.server_name()} receives from this connection")
        self.ensure_no_receiver()
        self.ensure_unframed()
        return self.ensure_no_sender()

    cdef int may_send(self) except -1:
        if self.slot == NULL:
            raise self.closed_error()
        if sender_state(self.slot) & SHUT:
            raise trio.ClosedResourceError("can't send data after sending EOF")
        return self.ensure_unbroken()

    cdef int ensure_unbroken(self) except -1:
        if self.slot.send_error:
            raise broken(self.slot.send_error)
        return 0

    cdef Py_ssize_t push(self, const char *data, Py_ssize_t n, bint wait) except -1:
        """Hand bytes to the kernel; returns how many it took. Fewer than `n` means that it is
        full, or that the connection's rate allows no more for now, and, with `wait`, that the
        reactor will wake the sender when that is over.

        The kernel alone reads them. Memory that it cannot read (EFAULT), as that of a file that
        was mapped and then truncated, is no fault of the connection's.

        No such wake is lost: here the flag is set before the last try; on_writable has the
        reactor's half of the argument."""
        cdef Slot *slot = self.slot
        cdef Py_ssize_t sent
        cdef Py_ssize_t total = 0
        cdef Py_ssize_t most = n
        cdef bint armed = not wait
        if slot.mark.rated:
            most = self.allowed(n)
        while total < most:
            if most - total > HOLD_GIL_UP_TO:
                with nogil:
                    sent = send(slot.fd, data + total, most - total, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                sent = send(slot.fd, data + total, most - total, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                total += sent
                wk_u64_bump(&slot.sent, sent)
                wk_u64_bump(&slot.send_calls, 1)
            elif errno == EAGAIN:
                if armed:
                    break
                self.arm()
                armed = True
            elif errno == EFAULT and (wait or total == 0):
                raise unreadable()
            elif errno != EINTR:
                sender_failed(slot, self.core.hub.pool, errno)
                raise broken(slot.send_error)
        if total:
            wk_u64_store_relaxed(&slot.last_sent, self.core.now())
        if slot.mark.rated:
            self.spent(total)
            if total == most < n and wait:
                self.wait_for_rate()
        return total

    cdef Py_ssize_t push_behind(self, const char *data, Py_ssize_t n) except -2:
        """The same behind what is corked, in one call with it if possible; -1 if the kernel
        does not take all of what is corked."""
        cdef iovec span
        cdef Py_ssize_t sent
        span.iov_base = <void *>data
        span.iov_len = n
        sent = sender_push(self.slot, self.core.hub.pool, &span, self.core.now())
        self.ensure_unbroken()
        return sent

    cdef void arm(self) noexcept:
        """Ask the reactor for a wake when the socket takes bytes. The fence keeps the try
        that follows behind the store."""
        wk_u32_store(&self.slot.writable_wanted, 1)
        wk_fence()

    cdef size_t allowed(self, size_t n) noexcept:
        """How many of `n` bytes the rate of the connection, which has one, allows now."""
        return bucket_allows(&rate_of(self.slot).write, n, self.core.now())

    cdef void spent(self, size_t n) noexcept:
        bucket_spend(&rate_of(self.slot).write, n, self.core.now())

    cdef void wait_for_rate(self) noexcept:
        """Ask the reactor for a wake when the rate allows more. The order of the three steps is
        in bucket.pxd."""
        self.arm()
        bucket_wait(&rate_of(self.slot).write, self.core.now())
        self.core.post(self.slot, WATCH)

    cdef void release(self) noexcept:
        """Let go of the sending side; what was queued behind is sent."""
        if not sender_release(self.slot):
            self.core.uncork(self.slot)

    cdef int leave_rest(self, const iovec *rest, int count, uint32_t n) except -1:
        """Let go of the sending side, and leave the rest of a message that was begun to the
        reactor. Without memory the stream would have a hole, so the connection is broken."""
        if n == 0:
            self.release()
            return 0
        if not sender_leave(self.slot, self.core.hub.pool, rest, count, n):
            sender_failed(self.slot, self.core.hub.pool, ENOMEM)
            self.release()
            raise MemoryError
        self.core.post(self.slot, FLUSH)
        return 0

    def send_all(self, data):
        """Send all of ``data``, and return once the kernel owns every byte. A
        checkpoint.

        What `send_nowait` left is sent before it. If the call is cancelled, or the
        connection breaks, a part may have been sent; ``statistics().bytes_sent`` says how
        much.

        Args:
          data: any contiguous bytes-like object. It is not copied, and must not change
              until this returns. It may be empty.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call,
              or `send_eof` was called.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is sending.
          OSError: with ``errno.EFAULT``, if ``data`` cannot be read, as when it was mapped from a
              file (`mmap.mmap`) that was truncated. The connection can still be used.
          TypeError: if ``data`` is not bytes-like.
          RuntimeError: if called from another thread.
        """
        cdef SendAll operation = SendAll.__new__(SendAll)
        operation.conn = self
        operation.argument = data
        return operation

    def wait_send_all_might_not_block(self):
        """Wait until the kernel takes bytes again, and the connection's `rate` allows some; or
        until the connection is broken. A checkpoint.

        It is a hint: `send_all` may still wait. It also returns if `send_all` would raise
        `trio.BrokenResourceError`.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BusyResourceError: if another task is sending.
          RuntimeError: if called from another thread.
        """
        cdef WaitWritable operation = WaitWritable.__new__(WaitWritable)
        operation.conn = self
        return operation

    def flush(self):
        """Wait until the kernel owns every byte that `send_nowait` left. A
        checkpoint. If it is cancelled, the reactor goes on sending.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is sending.
          RuntimeError: if called from another thread.
        """
        cdef Flush operation = Flush.__new__(Flush)
        operation.conn = self
        return operation

    def send_nowait(self, data):
        """Send without waiting: what the kernel does not take at once is copied,
        and sent by the reactor. Not a checkpoint.

        It is atomic: all of ``data`` is accepted or, if this raises, none of it, unless the
        connection broke. `flush` waits for what is unsent, and `Conn.aclose` sends it
        before it ends the stream.

        The first call in a turn of Trio's loop sends at once. What follows in the same turn
        is copied, and leaves in one call to the kernel at the turn's end, or as soon as there
        are 32 KiB; if that fails, the next call raises. While another task is in `send_all`,
        ``data`` goes behind what that sends.

        Args:
          data: any contiguous bytes-like object, of at most ``limits.outbound``
              bytes. It may be changed once this has returned.

        Raises:
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent with
              ``data``.
          trio.ClosedResourceError: if the connection is closed, or `send_eof` was called.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if a task is in `send_eof`, or detaching.
          ValueError: if ``data`` is longer than ``limits.outbound``.
          TypeError: if ``data`` is not bytes-like.
          RuntimeError: if called from another thread.
        """
        cdef Py_buffer view
        self.ensure_usable()
        if self.sender is not None:
            (<Sending>self.sender).make_way()
        self.may_send()
        if PyBytes_CheckExact(data):
            self._send_or_queue(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return
        _get_buffer(data, &view)
        try:
            self._send_or_queue(<const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int _send_or_queue(self, const char *data, Py_ssize_t n) except -1:
        cdef Slot *slot = self.slot
        if n > slot.limits.outbound:
            raise ValueError(
                f"data is {n} bytes, more than limits.outbound ({slot.limits.outbound}) can hold"
            )
        if n == 0:
            return 0
        self.core.settle(slot)
        self.ensure_unbroken()
        while not sender_acquire(slot):
            if self.queue_behind(data, <uint32_t>n):
                return 0
        if self.is_corking(slot, n):
            return self.cork_message(data, <uint32_t>n)
        return self.send_at_once(data, n)

    cdef bint is_corking(self, Slot *slot, Py_ssize_t n) noexcept:
        """Whether bytes are to wait for the end of this turn: not the first ones."""
        cdef Corks *corks = &self.core.corks
        if slot.sent_in == corks.turn and corks.open and n < CORK_BYTES:
            return True
        slot.sent_in = corks.turn
        return False

    cdef int send_at_once(self, const char *data, Py_ssize_t n) except -1:
        """The caller holds the sending side; this lets go of it."""
        cdef Py_ssize_t sent
        cdef iovec rest
        try:
            sent = self.push(data, n, False)
        except BaseException:
            self.release()
            raise
        rest.iov_base = <void *>(data + sent)
        rest.iov_len = n - sent
        return self.leave_rest(&rest, 1, <uint32_t>(n - sent))

    cdef int cork_message(self, const char *data, uint32_t n) except -1:
        """The caller holds the sending side; this keeps it until the turn ends."""
        cdef Slot *slot = self.slot
        try:
            self.add_message(data, n)
        except BaseException:
            self.release()
            raise
        slot.corked = corks_add(&self.core.corks, wk_u64_load(&slot.handle))
        if not slot.corked:
            self.release()
        return 0

    cdef bint queue_behind(self, const char *data, uint32_t n) except -1:
        """Send behind what is queued, or behind another task's message. False if it is
        nobody's turn any more, so that the caller may take it."""
        cdef Slot *slot = self.slot
        cdef uint32_t queued
        if not slot.corked:
            queued = self.add_message(data, n)
            if queued > slot.limits.outbound:
                raise trio.WouldBlock
            return queued > 0
        queued = self.add_message(data, n)
        if queued > slot.limits.outbound or queued >= CORK_BYTES:
            self.core.uncork(slot)
        return queued <= slot.limits.outbound

    cdef uint32_t add_message(self, const char *data, uint32_t n) except? 0:
        """Put a message, of 1 byte or more, at the end of the outbound ring, unless the ring
        would then hold more than its mark. Returns how much it holds then, or would; 0 if it
        is nobody's turn to send, and nothing was added.

        The check that somebody will send it is made under the same lock: an earlier check
        proves nothing, as the reactor may empty the ring in between (sender.pxd, rule 4).
        A reactor that has given the connection up would never send it."""
        cdef Slot *slot = self.slot
        cdef uint32_t queued = 0
        cdef bint stored = True
        cdef int32_t error
        cdef Decoder *ws
        cdef bint over          # no message may follow a WebSocket's close frame
        pthread_mutex_lock(&slot.lock)
        error = slot.error or slot.pending_error
        ws = decoder_of(slot)
        over = ws != NULL and wk_u32_load(&ws.goodbye)
        if sender_state(slot) and not error and not over:
            queued = ring_len(&slot.outbound) + n
            if queued <= slot.limits.outbound:
                stored = ring_write(&slot.outbound, self.core.hub.pool, data, n)
                if stored:
                    wk_u32_or(&slot.mail.sending.owner, QUEUED)
        pthread_mutex_unlock(&slot.lock)
        if error:
            slot.send_error = error
            raise broken(error)
        if over:
            raise trio.ClosedResourceError("can't send data after a close frame")
        if not stored:
            raise MemoryError
        return queued

    def send_eof(self):
        """Send what ``send_nowait`` left, then FIN; receiving goes on. A checkpoint.
        Idempotent.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is sending.
          RuntimeError: if called from another thread.
        """
        cdef SendEof operation = SendEof.__new__(SendEof)
        operation.conn = self
        return operation

    def _detach(self):
        """Send what `send_nowait` left, and have the reactor forget the descriptor, so that
        only the caller uses it from then on."""
        cdef Detach operation = Detach.__new__(Detach)
        operation.conn = self
        return operation


cdef object unreadable():
    return OSError(EFAULT, "cannot read data: was it mapped from a file that was truncated?")


cdef int _get_buffer(data, Py_buffer *view) except -1:
    try:
        return PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise TypeError(
            f"data must be contiguous and bytes-like, not {type(data).__name__}"
        ) from None


cdef class Sending(Operation):
    """An operation that takes the turn to send among tasks. Subclasses define what it does."""

    cdef object validate(self):
        pass

    cdef bint attempt(self) except -1:
        """True when done; False to park, with a wake arranged."""
        raise NotImplementedError

    cdef object start(self):
        self.take_turn()
        return self.begin()

    cdef int take_turn(self) except -1:
        self.validate()
        self.conn.ensure_usable()
        self.conn.ensure_no_sender()
        if self.conn.slot != NULL:
            self.conn.core.settle(self.conn.slot)
        self.conn.sender = self
        return 0

    cdef object begin(self):
        trap = self.enter()
        if trap is not None:
            return trap
        if self.attempt():
            return self.complete(None)
        return self.park()

    cdef object proceed(self):
        if self.attempt():
            return None
        return self.park()

    cdef object park(self):
        return self.conn.park_sender(self)

    cdef int make_way(self) except -1:
        """Prepare for a send_nowait, whose bytes go behind this operation's."""
        return 0

    # --- between the two sides (sender.pxd) ----------------------------------------

    cdef bint acquire(self) except -1:
        """Take the connection's sending side; False to wait until it is handed over."""
        cdef Slot *slot = self.conn.slot
        if self.waiting:
            if sender_waits(slot):
                return False
            self.waiting = 0
            self.holding = True
        while not self.holding:
            if sender_acquire(slot):
                self.holding = True
            elif slot.corked:
                slot.corked = False
                self.holding = True
                self.behind = True
            elif sender_wait(slot, HAND_OVER):
                self.waiting = HAND_OVER
                return False
        return self.conn.ensure_unbroken() == 0

    cdef void wait_behind(self) noexcept:
        """The kernel is full, and not all that is ahead was sent: the reactor sends that."""
        if sender_yield(self.conn.slot):
            self.holding = False
            self.waiting = HAND_OVER
            self.conn.core.post(self.conn.slot, FLUSH)

    cdef void release(self) noexcept:
        if self.holding:
            self.holding = False
            self.conn.release()

    cdef void finish(self) noexcept:
        if self.conn.sender is self:
            self.conn.sender = None
        if self.conn.slot == NULL:
            return
        # What was asked for may have come meanwhile, and not been reported yet.
        if self.waiting and not sender_withdraw(self.conn.slot):
            self.holding = self.waiting == HAND_OVER
        self.waiting = 0
        self.release()


cdef class SendingData(Sending):
    """An operation that sends bytes, and holds them until they are sent. Subclasses define
    where they come from."""

    cdef object start(self):
        self.take_turn()
        if self.may_defer():
            return self.defer()
        return self.begin()

    cdef bint may_defer(self) noexcept:
        cdef Slot *slot = self.conn.slot
        return (
            slot != NULL and not sender_state(slot) and not slot.send_error
            and batch_wants(self.conn.core.send_batch, self.left)
        )

    cdef object defer(self):
        """Send when the tasks of this turn have run (send_batch.pyx)."""
        cdef SendBatch batch = self.conn.core.send_batch
        batch.make_room()
        self.deferred = True
        if batch_keeps_awake(batch):
            batch.due.append(self)
            return self.conn.park_sender(self)
        trap = self.enter()
        if trap is None:
            batch.due.append(self)
            trap = self.yielding()
        return trap

    cdef void carry_out(self) noexcept:
        cdef bint done = True
        # A task that was woken or cancelled meanwhile does not wait for this any more; and a
        # send_nowait may have carried it out before.
        if (not self.deferred or self.conn.sender is not self
                or (self.state == PARKED and not self.conn.sender_parked)):
            return
        self.deferred = False
        try:
            done = self.attempt()
        except BaseException:
            pass            # `proceed` will raise the same
        if done:
            self.conn.wake_sender()

    cdef int make_way(self) except -1:
        self.carry_out()
        return 0

    cdef object proceed(self):
        self.deferred = False
        return None if self.sent else Sending.proceed(self)

    cdef bint attempt(self) except -1:
        if not self.take_sending_side():
            return False
        self.push()
        if self.left:
            return False
        # The caller may resize its bytearray as soon as the bytes are gone.
        self.let_go_of_data()
        self.release()
        self.sent = True
        return True

    cdef bint take_sending_side(self) except -1:
        """False to wait until it is handed over."""
        self.conn.ensure_usable()       # since it began there may have been a fork
        self.conn.may_send()
        if not self.acquire():
            return False
        if self.behind:
            self.behind = False
            if not self.push_behind():
                self.wait_behind()
        return self.holding

    cdef bint push_behind(self) except -1:
        """Send what is queued, and perhaps some bytes with it. False if the kernel does not
        take all that is queued."""
        if sender_push(self.conn.slot, self.conn.core.hub.pool, NULL, self.conn.core.now()) < 0:
            self.conn.ensure_unbroken()
            return False
        return True

    cdef int push(self) except -1:
        """Hand bytes to the kernel until it takes no more. Then a wake is arranged for when
        it does again (`SendHalf.push`)."""
        raise NotImplementedError

    cdef void let_go_of_data(self) noexcept:
        pass

    cdef object park(self):
        # Without memory to wait for the rest, there would be a hole in the stream behind the
        # part that was sent. So the connection is broken.
        try:
            return self.conn.park_sender(self)
        except MemoryError:
            if self.begun and self.conn.slot != NULL:
                sender_failed(self.conn.slot, self.conn.core.hub.pool, ENOMEM)
            raise

    cdef bint tears(self) noexcept:
        return self.begun and self.left > 0

    cdef void finish(self) noexcept:
        self.let_go_of_data()
        Sending.finish(self)


@cython.final
cdef class SendAll(SendingData):
    cdef Py_buffer view
    cdef bint held
    cdef const char *at

    cdef object validate(self):
        if PyBytes_CheckExact(self.argument):
            self.at = PyBytes_AS_STRING(self.argument)
            self.left = PyBytes_GET_SIZE(self.argument)
        else:
            _get_buffer(self.argument, &self.view)
            self.held = True
            self.at = <const char *>self.view.buf
            self.left = self.view.len

    cdef bint push_behind(self) except -1:
        cdef Py_ssize_t sent = self.conn.push_behind(self.at, self.left)
        if sent < 0:
            return False
        self.advance(sent)
        return True

    cdef int push(self) except -1:
        self.advance(self.conn.push(self.at, self.left, True))
        return 0

    cdef void advance(self, size_t sent) noexcept:
        self.at += sent
        self.left -= sent
        self.begun = self.begun or sent > 0

    cdef void let_go_of_data(self) noexcept:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)


cdef class Flushing(Sending):

    cdef bint flushed(self) except -1:
        """Whether the kernel owns every byte that was queued; if not, a wake is arranged."""
        cdef Slot *slot = self.conn.slot
        self.conn.ensure_usable()       # since it began there may have been a fork
        if slot == NULL:
            raise self.conn.closed_error()
        if not self.waiting:
            if slot.corked:
                self.conn.core.uncork(slot)
            if sender_state(slot) & QUEUED and sender_wait(slot, TELL):
                self.waiting = TELL
        if sender_waits(slot):
            return False
        self.waiting = 0
        return self.conn.ensure_unbroken() == 0


@cython.final
cdef class Flush(Flushing):

    cdef bint attempt(self) except -1:
        return self.flushed()


@cython.final
cdef class WaitWritable(Flushing):

    cdef object start(self):
        if self.conn.slot == NULL:
            return self.fail(self.conn.closed_error())
        return Sending.start(self)

    cdef bint attempt(self) except -1:
        try:
            if not self.flushed():
                return False
        except trio.BrokenResourceError:
            return True         # `send_all` will raise it
        if self.conn.slot.mark.rated and not self.conn.allowed(1):
            self.conn.wait_for_rate()
            return False
        if self.writable():
            return True
        self.conn.arm()
        return self.writable()

    cdef bint writable(self) noexcept:
        # Polling marks the socket, so that the kernel raises an edge once it is
        # writable again.
        cdef pollfd one
        one.fd = self.conn.slot.fd
        one.events = POLLOUT
        return poll(&one, 1, 0) != 0


cdef class Ending(Sending):
    """An operation that comes behind the last byte. Its schedule point comes first, and what
    it does comes last, while it holds the turn to send: so nobody adds bytes in between."""

    cdef object begin(self):
        trap = self.enter()
        return self.yielding() if trap is None else trap

    cdef int make_way(self) except -1:
        self.conn.ensure_no_sender()
        return 0

    cdef bint comes_last(self) except -1:
        """Whether the kernel owns every byte, and no more can be added; if not, a wake is
        arranged."""
        cdef Slot *slot = self.conn.slot
        self.conn.ensure_usable()       # since it began there may have been a fork
        if slot == NULL:
            raise self.conn.closed_error()
        while self.acquire():
            if sender_shut(slot):
                return True
            if sender_push(slot, self.conn.core.hub.pool, NULL, self.conn.core.now()) < 0:
                self.conn.ensure_unbroken()
                self.wait_behind()
        return False


@cython.final
cdef class SendEof(Ending):

    cdef bint attempt(self) except -1:
        if self.conn.slot != NULL and sender_state(self.conn.slot) & SHUT:
            return True
        if not self.comes_last():
            return False
        if shutdown(self.conn.slot.fd, SHUT_WR) < 0:
            sender_failed(self.conn.slot, self.conn.core.hub.pool, errno)
            sender_reopen(self.conn.slot)
            self.conn.ensure_unbroken()
        return True


@cython.final
cdef class Detach(Ending):
    """Once the reactor was asked to forget the descriptor, this cannot be cancelled, and no
    receive may begin: what arrives is handed over with the socket."""
    cdef bint asked

    cdef bint attempt(self) except -1:
        if not self.asked:
            self.conn.ensure_usable()
            self.conn.ensure_no_reader()
            self.conn.ensure_unpinned()
            self.conn.ensure_unframed()
            if not self.comes_last():
                return False
            self.conn.begin_to_detach()
            self.asked = True
        if self.conn.slot == NULL:
            raise trio.ClosedResourceError("another task closed this connection")
        self.conn.ensure_usable()       # after a fork the reactor reports nothing
        return self.conn.detaching == DETACH_DONE

    cdef void finish(self) noexcept:
        if self.asked:
            self.conn.detaching = 0
        Sending.finish(self)
