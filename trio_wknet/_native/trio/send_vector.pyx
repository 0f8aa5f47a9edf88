"""Sending many pieces by one call to the kernel, without joining them first."""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint32_t
from libc.string cimport memset

from ..base.atomics cimport wk_u64_bump, wk_u64_store_relaxed
from ..base.linux cimport (
    EAGAIN, EFAULT, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, errno, iovec, msghdr, sendmsg,
)
from ..base.memory cimport FOR_SPANS, memory_free, memory_take
from ..reactor.bucket cimport spans_cut
from ..reactor.sender cimport sender_failed
from ..reactor.slot cimport Slot
from .send cimport HOLD_GIL_UP_TO, SendingData, unreadable

cdef enum:
    MAX_SPANS = 1024        # IOV_MAX


cdef class VectorHalf(SendHalf):

    def send_vectored(self, buffers):
        """Send many buffers, one after the other, as `send_all` would send them joined. They
        are not copied, and go to the kernel in one call, or one for each 1024 of them. A
        checkpoint.

        If it is cancelled, or the connection breaks, a part may have been sent, as with
        `send_all`.

        Args:
          buffers: an iterable of contiguous bytes-like objects, any number of them, which
              may be empty. They must not change until this returns.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call,
              or `send_eof` was called.
          trio.BrokenResourceError: if the connection broke. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``buffers`` is not iterable, or one of them is not bytes-like, or not
              contiguous; the message says which.
          OSError: with ``errno.EFAULT``, if one of them cannot be read, as with `send_all`.
        """
        cdef SendVectored operation = SendVectored.__new__(SendVectored)
        operation.conn = self
        operation.argument = buffers
        return operation


cdef tuple as_tuple(things, str name, str kind):
    try:
        return tuple(things)
    except TypeError:
        raise TypeError(
            f"{name} must be an iterable of {kind}, not {type(things).__name__}"
        ) from None


cdef class SendSpans(SendingData):

    cdef int reserve(self, Py_ssize_t count) except -1:
        """Make room for `count` spans, and for a view behind each."""
        self.spans = <iovec *>memory_take(FOR_SPANS, max(count, 1) * sizeof(iovec))
        self.views = <Py_buffer *>memory_take(FOR_SPANS, max(count, 1) * sizeof(Py_buffer))
        if self.spans == NULL or self.views == NULL:
            raise MemoryError
        return 0

    cdef void add(self, const void *data, size_t n) noexcept:
        if n == 0:
            return
        self.spans[self.count].iov_base = <void *>data
        self.spans[self.count].iov_len = n
        self.count += 1
        self.left += n

    cdef int hold(self, data, Py_ssize_t which) except -1:
        """Keep an object's bytes where they are, until they are sent."""
        try:
            PyObject_GetBuffer(data, &self.views[self.held], PyBUF_SIMPLE)
        except (TypeError, BufferError):
            raise TypeError(
                f"{self.name_of(which)} must be contiguous and bytes-like, "
                f"not {type(data).__name__}"
            ) from None
        self.held += 1
        return 0

    cdef str name_of(self, Py_ssize_t which):
        return f"buffers[{which}]"

    cdef int push(self) except -1:
        cdef Slot *slot = self.conn.slot
        cdef msghdr message
        cdef ssize_t sent
        cdef int error
        cdef size_t n = self.left
        cdef size_t whole = 0
        cdef bint armed = False
        memset(&message, 0, sizeof(message))
        while self.left:
            message.msg_iov = self.spans + self.at
            message.msg_iovlen = min(self.count - self.at, <Py_ssize_t>MAX_SPANS)
            if slot.mark.rated:
                n = self.conn.allowed(self.left)
                if n == 0:
                    self.conn.wait_for_rate()
                    break
                message.msg_iovlen = spans_cut(
                    message.msg_iov, <int>message.msg_iovlen, n, &whole
                )
            if n > HOLD_GIL_UP_TO:
                with nogil:
                    sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                    error = errno
            else:
                sent = sendmsg(slot.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
                error = errno
            if slot.mark.rated:
                message.msg_iov[message.msg_iovlen - 1].iov_len = whole
                self.conn.spent(max(sent, 0))
            if sent >= 0:
                self.advance(sent)
                wk_u64_bump(&slot.sent, sent)
                wk_u64_bump(&slot.send_calls, 1)
                wk_u64_store_relaxed(&slot.last_sent, self.conn.core.now())
            elif error == EAGAIN:
                if armed:
                    break
                self.conn.arm()
                armed = True
            elif error == EFAULT and not (self.begun and isinstance(self, SendWhole)):
                raise unreadable()      # a message that was begun could not be finished
            elif error != EINTR:
                sender_failed(slot, self.conn.core.hub.pool, error)
                self.conn.ensure_unbroken()
        return 0

    cdef void advance(self, size_t n) noexcept:
        self.begun = self.begun or n > 0
        self.left -= n
        while n and n >= self.spans[self.at].iov_len:
            n -= self.spans[self.at].iov_len
            self.at += 1
        if n:
            self.spans[self.at].iov_base = <char *>self.spans[self.at].iov_base + n
            self.spans[self.at].iov_len -= n

    cdef void let_go_of_data(self) noexcept:
        while self.held:
            self.held -= 1
            PyBuffer_Release(&self.views[self.held])

    def __dealloc__(self):
        SendSpans.let_go_of_data(self)      # of one that was not awaited, and has failed
        memory_free(FOR_SPANS, self.spans)
        memory_free(FOR_SPANS, self.views)


cdef class SendWhole(SendSpans):

    cdef void count_first(self, Py_ssize_t n) noexcept:
        """The first `n` messages are accepted for sending."""
        pass

    cdef bint tears(self) noexcept:
        self.leave_begun()
        return False

    cdef void leave_begun(self) noexcept:
        """Leave the rest of the message that was begun to the reactor; what comes behind
        it is not sent."""
        cdef size_t sent = self.total - self.left
        cdef size_t rest, kept = 0
        cdef Py_ssize_t i = 0, last = self.at
        if not self.begun or not self.left or not self.holding:
            return
        while self.ends[i] < sent:
            i += 1
        rest = self.ends[i] - sent
        self.count_first(i + 1)
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
        memory_free(FOR_SPANS, self.scratch)
        memory_free(FOR_SPANS, self.ends)


@cython.final
cdef class SendVectored(SendSpans):

    cdef object validate(self):
        cdef Py_ssize_t i
        cdef tuple buffers = as_tuple(self.argument, "buffers", "bytes-like objects")
        self.reserve(len(buffers))
        for i in range(len(buffers)):
            self.hold(buffers[i], i)
            self.add(self.views[i].buf, self.views[i].len)
        self.argument = None
