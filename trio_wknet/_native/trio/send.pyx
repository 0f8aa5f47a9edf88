"""The sending half: straight to the socket, else wait, or queue.

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

from ..base.atomics cimport wk_fence, wk_u32_store, wk_u64_bump, wk_u64_store_relaxed
from ..base.linux cimport (
    EAGAIN, EINTR, ENOMEM, EPIPE, MSG_DONTWAIT, MSG_NOSIGNAL, POLLOUT, SHUT_WR, errno, poll,
    pollfd, pthread_mutex_lock, pthread_mutex_unlock, send, shutdown,
)
from ..reactor.ring cimport ring_len, ring_write
from ..reactor.slot cimport FLUSH, Slot
from .operation cimport PARKED, YIELDING, Operation
from .send_batch cimport SendBatch
from .stream cimport DETACH_DONE, broken

import trio

cdef enum:
    # Above this a send copies for longer than handing the GIL over takes.
    HOLD_GIL_UP_TO = 16384
    # Above this a send is its own batch.
    DEFER_UP_TO = 16384


cdef class SendHalf(ReceiveSized):
    """The layer of a `Conn` that sends: to the socket, or into the outbound ring. It stands
    on the receiving layers only because a class has one native base."""

    cdef int ensure_no_sender(self) except -1:
        if self.sender is not None:
            what = "detaching" if isinstance(self.sender, Detach) else "sending on"
            raise trio.BusyResourceError(f"another task is {what} this connection")
        return 0

    cdef int may_send(self) except -1:
        if self.slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        if self.slot.eof_sent:
            raise trio.ClosedResourceError("can't send data after sending EOF")
        if self.slot.send_error:
            raise broken(self.slot.send_error)
        return 0

    cdef bint queue_empty(self, bint wait) noexcept:
        """Whether the outbound ring is empty; if not, arrange for a wake."""
        cdef Slot *slot = self.slot
        if not self.slot.queued:
            return True
        pthread_mutex_lock(&slot.lock)
        self.slot.queued = ring_len(&slot.outbound) > 0
        if self.slot.queued and wait:
            slot.flush_wanted = True
        # A connection that broke loses its ring; sending will find the error,
        # but the error itself says more than the EPIPE that sending would give.
        if not self.slot.send_error:
            self.slot.send_error = slot.error or slot.pending_error
        pthread_mutex_unlock(&slot.lock)
        return not self.slot.queued

    cdef Py_ssize_t push(self, const char *data, Py_ssize_t n) except -1:
        """Hand bytes to the kernel; how many it took. Fewer than `n` means that
        it is full, and that the reactor will tell when it is not.

        The reactor's half of the argument that no such wake is lost stands at
        on_writable: here the flag is set before the last try."""
        cdef Slot *slot = self.slot
        cdef Py_ssize_t sent
        cdef Py_ssize_t total = 0
        cdef bint armed = False
        while total < n:
            if n - total > HOLD_GIL_UP_TO:
                with nogil:
                    sent = send(slot.fd, data + total, n - total, MSG_DONTWAIT | MSG_NOSIGNAL)
            else:
                sent = send(slot.fd, data + total, n - total, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent >= 0:
                total += sent
                wk_u64_bump(&slot.sent, sent)
                wk_u64_bump(&slot.send_calls, 1)
            elif errno == EAGAIN:
                if armed:
                    break
                self.arm()
                armed = True
            elif errno != EINTR:
                self.failed(errno)
                raise broken(self.slot.send_error)
        if total:
            wk_u64_store_relaxed(&slot.last_sent, self.core.now())
        return total

    cdef void failed(self, int32_t error) noexcept:
        """Sending failed for good. Receiving goes on to the end of what came before.

        A socket tells of an error once, to whoever calls it first. If that was the
        call here, reading ends in what looks like a FIN, but the peer sent none, and
        bytes may be missing. So the reactor is told, under the lock under which it
        marks the end; and where it read to the end between the call and this, the
        mark is mended. Nobody can have seen that: who receives is in this thread.
        EPIPE is no news. It is told where the error itself was told before, or where
        the peer's FIN had come, and then the end is one."""
        cdef Slot *slot = self.slot
        slot.send_error = error
        if error == EPIPE:
            return
        pthread_mutex_lock(&slot.lock)
        if slot.pending_error == 0:
            slot.pending_error = error
        if slot.ended and slot.error == 0:
            slot.error = error
        pthread_mutex_unlock(&slot.lock)

    cdef void arm(self) noexcept:
        """Ask to be told when the socket takes bytes. The fence keeps the try
        that follows behind the store."""
        wk_u32_store(&self.slot.writable_wanted, 1)
        wk_fence()

    cdef bint queue_rest(self, const char *data, uint32_t n) except -1:
        """Put bytes into the outbound ring, if its mark allows, and have the reactor
        send them; False if not. A reactor that has given the connection up would
        never send them.

        Whether to tell it is decided in the very visit to the lock that adds them:
        an earlier look proves nothing, as the reactor may empty the ring in between.
        If the ring was empty, it has to be told. If not, it comes anyway: it takes
        bytes out by itself alone, and does not leave the ring before it has found it
        empty under this lock (flush in transfer.pyx), unless the kernel was full, which
        it will hear of. And it has begun, or has been told to by the FLUSH for the first
        of these bytes, which was posted before this call."""
        cdef Slot *slot = self.slot
        cdef bint fits, first, stored = False
        cdef int32_t error
        pthread_mutex_lock(&slot.lock)
        error = slot.error or slot.pending_error
        first = ring_len(&slot.outbound) == 0
        fits = ring_len(&slot.outbound) + n <= slot.limits.outbound
        if fits and not error:
            stored = ring_write(&slot.outbound, self.core.hub.pool, data, n)
        pthread_mutex_unlock(&slot.lock)
        if error:
            self.slot.send_error = error
            raise broken(error)
        if not fits:
            return False
        if not stored:
            raise MemoryError
        self.slot.queued = True
        if first:
            self.core.post(slot, FLUSH)
        return True

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
          TypeError: if ``data`` is not bytes-like.
          RuntimeError: if called from another thread.
        """
        cdef SendAll operation = SendAll.__new__(SendAll)
        operation.conn = self
        operation.argument = data
        return operation

    def wait_send_all_might_not_block(self):
        """Wait until the kernel takes bytes again, or the connection is broken. A
        checkpoint.

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

        Args:
          data: any contiguous bytes-like object, of at most ``limits.outbound``
              bytes. It may be changed once this has returned.

        Raises:
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent with
              ``data``.
          trio.ClosedResourceError: if the connection is closed, or `send_eof` was called.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if a task is sending, or detaching.
          ValueError: if ``data`` is longer than ``limits.outbound``.
          TypeError: if ``data`` is not bytes-like.
          RuntimeError: if called from another thread.
        """
        cdef Py_buffer view
        self.ensure_usable()
        self.ensure_no_sender()
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
        cdef Py_ssize_t sent = 0
        if n > slot.limits.outbound:
            raise ValueError(
                f"data is {n} bytes, more than limits.outbound ({slot.limits.outbound}) can hold"
            )
        if not self.queue_empty(False):
            if not self.queue_rest(data, <uint32_t>n):
                raise trio.WouldBlock
            return 0
        if self.slot.send_error:
            raise broken(self.slot.send_error)
        sent = self.push(data, n)
        if sent == n:
            return 0
        # The ring was empty, and nobody else adds to it, so the rest fits. Without
        # memory the stream has a hole in it, and must not go on.
        try:
            self.queue_rest(data + sent, <uint32_t>(n - sent))
        except MemoryError:
            self.slot.send_error = ENOMEM
            raise
        return 0

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
        """Send what `send_nowait` left, and have the reactor forget the descriptor,
        which nobody else may use from here on."""
        cdef Detach operation = Detach.__new__(Detach)
        operation.conn = self
        return operation

    cdef int shut_down_sending(self) except -1:
        """Send FIN. The outbound ring is empty."""
        if shutdown(self.slot.fd, SHUT_WR) < 0:
            self.slot.send_error = errno
            raise broken(self.slot.send_error)
        self.slot.eof_sent = True
        return 0


cdef int _get_buffer(data, Py_buffer *view) except -1:
    try:
        return PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except (TypeError, BufferError):
        raise TypeError(
            f"data must be contiguous and bytes-like, not {type(data).__name__}"
        ) from None


cdef class Sending(Operation):
    """What takes the turn to send. Subclasses say what is to be done."""

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

    cdef void finish(self) noexcept:
        if self.conn.sender is self:
            self.conn.sender = None


@cython.final

cdef class SendAll(Sending):
    cdef Py_buffer view
    cdef bint held
    cdef const char *at
    cdef Py_ssize_t left
    cdef bint begun             # a part was sent
    cdef bint sent

    cdef object validate(self):
        if PyBytes_CheckExact(self.argument):
            self.at = PyBytes_AS_STRING(self.argument)
            self.left = PyBytes_GET_SIZE(self.argument)
        else:
            _get_buffer(self.argument, &self.view)
            self.held = True
            self.at = <const char *>self.view.buf
            self.left = self.view.len

    cdef object start(self):
        self.take_turn()
        if self.may_defer():
            return self.defer()
        return self.begin()

    cdef bint may_defer(self) noexcept:
        cdef Slot *slot = self.conn.slot
        return (
            slot != NULL and not slot.eof_sent and not slot.queued and not slot.send_error
            and self.left <= DEFER_UP_TO and self.conn.core.send_batch.is_worthwhile()
        )

    cdef object defer(self):
        """Send when the tasks of this turn have run (send_batch.pyx). The first to wait for
        that keeps Trio awake until then, unless somebody has thrown it away."""
        cdef SendBatch deferred = self.conn.core.send_batch
        deferred.make_room()
        if deferred.due and (<Operation>deferred.due[0]).state == YIELDING:
            deferred.due.append(self)
            return self.conn.park_sender(self)
        trap = self.enter()
        if trap is None:
            deferred.due.append(self)
            trap = self.yielding()
        return trap

    cdef void carry_out(self) noexcept:
        cdef bint done = True
        # Whoever was woken meanwhile, or cancelled, does not wait for this any more.
        if self.conn.sender is not self or (self.state == PARKED and not self.conn.sender_parked):
            return
        try:
            done = self.attempt()
        except BaseException:
            pass            # `proceed` comes to the same
        if done:
            self.conn.wake_sender()

    cdef object proceed(self):
        return None if self.sent else Sending.proceed(self)

    cdef bint attempt(self) except -1:
        cdef Py_ssize_t sent
        self.conn.ensure_usable()       # since it began there may have been a fork
        self.conn.may_send()
        if not self.conn.queue_empty(True):
            return False
        if self.conn.slot.send_error:
            raise broken(self.conn.slot.send_error)
        sent = self.conn.push(self.at, self.left)
        self.at += sent
        self.left -= sent
        self.begun = self.begun or sent > 0
        if self.left:
            return False
        self.sent = True
        # The caller may resize its bytearray as soon as the bytes are gone.
        self.release()
        return True

    cdef object park(self):
        # Without memory to wait for the rest there would be a hole behind the part that
        # was sent, if the stream went on.
        try:
            return self.conn.park_sender(self)
        except MemoryError:
            if self.begun and self.conn.slot != NULL:
                self.conn.slot.send_error = ENOMEM
            raise

    cdef void release(self) noexcept:
        if self.held:
            self.held = False
            PyBuffer_Release(&self.view)

    cdef void finish(self) noexcept:
        self.release()
        Sending.finish(self)


@cython.final
cdef class WaitWritable(Sending):

    cdef object start(self):
        if self.conn.slot == NULL:
            return self.fail(trio.ClosedResourceError("this connection was already closed"))
        return Sending.start(self)

    cdef bint attempt(self) except -1:
        if self.conn.slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        if not self.conn.queue_empty(True):
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


cdef class Flushing(Sending):

    cdef bint flushed(self) except -1:
        """Whether the kernel owns every byte; if not, a wake is arranged."""
        self.conn.ensure_usable()       # since it began there may have been a fork
        if self.conn.slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
        if not self.conn.queue_empty(True):
            return False
        if self.conn.slot.send_error:
            raise broken(self.conn.slot.send_error)
        return True


@cython.final
cdef class Flush(Flushing):

    cdef bint attempt(self) except -1:
        return self.flushed()


cdef class Ending(Flushing):
    """What comes behind the last byte. Its schedule point comes first: what it does it
    does at its end, in the turn to send, so that nobody adds bytes in between."""

    cdef object begin(self):
        trap = self.enter()
        return self.yielding() if trap is None else trap


@cython.final
cdef class SendEof(Ending):

    cdef bint attempt(self) except -1:
        if not self.flushed():
            return False
        if not self.conn.slot.eof_sent:
            self.conn.shut_down_sending()
        return True


@cython.final
cdef class Detach(Ending):
    """From when the reactor was told to forget the descriptor this cannot be cancelled,
    and nobody begins to receive: what comes is handed over with the socket."""
    cdef bint asked

    cdef bint attempt(self) except -1:
        if not self.asked:
            if not self.flushed():
                return False
            self.conn.begin_to_detach()
            self.asked = True
        if self.conn.slot == NULL:
            raise trio.ClosedResourceError("another task closed this connection")
        self.conn.ensure_usable()       # after a fork nobody will tell
        return self.conn.detaching == DETACH_DONE

    cdef void finish(self) noexcept:
        if self.asked:
            self.conn.detaching = 0
        Flushing.finish(self)
