"""The receiving half: from the inbound ring to the application, as bytes come.
receive_sized.pyx adds the forms that know how much they want.

Every receive is the same operation with another idea of when there is enough:
`attempt` takes bytes or says None, having told the reactor (`wanted`) how many
bytes to wake it for. That is said under the lock under which the reactor adds
bytes, so the wake cannot be lost.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, uint32_t, uint64_t

from trio_wknet._native.conn cimport RESUME, Slot
from trio_wknet._native.linux cimport ENOMEM, pthread_mutex_lock, pthread_mutex_unlock
from trio_wknet._native.operation cimport Operation
from trio_wknet._native.ring cimport ring_clear, ring_copy, ring_discard, ring_len
from trio_wknet._native.stream cimport broken

import trio


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

    cdef bint discard(self, uint32_t n) noexcept:
        """Forget `n` bytes that were copied out, under the lock. True if a paused
        reactor is to be told to read again."""
        cdef Slot *slot = self.slot
        slot.taken += n
        ring_discard(&slot.inbound, self.core.hub.pool, n)
        # In event mode somebody may take bytes between callbacks. What the wish
        # counts from, the bytes that are there, is fewer then.
        if slot.wanted:
            slot.wanted -= n
        if not slot.paused or not has_room(slot):
            return False
        slot.paused = False
        return True

    cdef void took(self, uint32_t n) noexcept:
        """Forget `n` bytes that were copied out, and let a paused reactor go on."""
        cdef bint resume
        pthread_mutex_lock(&self.slot.lock)
        resume = self.discard(n)
        pthread_mutex_unlock(&self.slot.lock)
        if resume:
            self.core.post(self.slot, RESUME)

    cdef void end_at_hole(self) noexcept:
        """Bytes that were taken could not be delivered, for lack of memory. So nothing
        behind them is; the reactor, which looks at the error under this lock, adds
        nothing more."""
        cdef Slot *slot = self.slot
        if slot == NULL:
            return
        pthread_mutex_lock(&slot.lock)
        if slot.error == 0:
            slot.error = ENOMEM
        ring_clear(&slot.inbound, self.core.hub.pool)
        pthread_mutex_unlock(&slot.lock)

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
                data = PyBytes_FromStringAndSize(NULL, n)
                ring_copy(&slot.inbound, PyBytes_AS_STRING(data), n, 0)
                resume = self.discard(n)
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

    def receive_nowait(self, max_bytes=None):
        """Return what is there, like `receive_some`, without waiting. Not a
        checkpoint.

        Raises as `receive_some` does, and:
          trio.WouldBlock: nothing is there, and more may come.
        """
        cdef Py_ssize_t most = positive("max_bytes", max_bytes, MOST_BYTES)
        self.ensure_usable()
        self.ensure_no_receiver()
        data = self.take_some(most, False)
        if data is None:
            raise trio.WouldBlock
        return data

    cdef int ensure_no_receiver(self) except -1:
        if self.reader is not None:
            raise trio.BusyResourceError("another task is receiving from this connection")
        if self.detaching:
            raise trio.BusyResourceError("another task is detaching this connection")
        return 0

    def _take_unread(self):
        """Everything that is there, whatever became of the connection."""
        cdef uint32_t n
        if self.slot == NULL:
            raise trio.ClosedResourceError("this connection was already closed")
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


cdef Py_ssize_t positive(str name, value, Py_ssize_t default) except -1:
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

    cdef void lost(self) noexcept:
        self.conn.end_at_hole()

    cdef object start(self):
        self.validate()
        self.conn.ensure_usable()
        self.conn.ensure_no_receiver()
        self.conn.ensure_not_served()
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
        self.most = positive("max_bytes", self.argument, MOST_BYTES)

    cdef bint must_wait(self):
        return self.conn.nothing_yet()

    cdef object attempt(self):
        return self.conn.take_some(self.most, True)
