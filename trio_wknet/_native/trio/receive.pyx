"""The receiving half: from the inbound ring to the application, as bytes come.
receive_sized.pyx adds the forms that know how much they want.

While reading is paused this side receives from the socket itself (`fill`).

Every receive is the same operation with another rule for when there is enough:
`attempt` takes bytes, or returns None after telling the reactor (`rcvlowat`) at how many
bytes to wake it. It does so under the lock under which the reactor adds
bytes, so the wake cannot be lost.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdint cimport int32_t, uint32_t

from ..base.atomics cimport wk_u64_bump, wk_u64_load_relaxed, wk_u64_store_relaxed
from ..base.linux cimport (
    EAGAIN, EINTR, ENOMEM, MSG_DONTWAIT, POLLIN, errno, poll, pollfd, pthread_mutex_lock,
    pthread_mutex_unlock, recv,
)
from ..reactor.framing cimport frame_moved
from ..reactor.hub cimport RECEIVE_BUFFER
from ..reactor.pool cimport Block, pool_drop
from ..reactor.ring cimport (
    MAX_RING_BYTES, ring_clear, ring_copy, ring_discard, ring_len, ring_pin_large,
)
from ..reactor.slot cimport ASKED, QUIET, RESUME, RUNNING, Slot
from ..reactor.websocket cimport decoder_of
from .operation cimport Operation
from .stream cimport broken

import trio

cdef extern from *:
    """
    /* Exchange an object that nobody else has seen for its first `n` bytes. They were taken
       from the connection already, so this must not fail: the memory behind them is kept if
       it is little, or if there is none to copy them to. */
    static inline PyObject *wk_cut(PyObject *data, Py_ssize_t n)
    {
        Py_ssize_t size = PyBytes_GET_SIZE(data);
        PyObject *copy;
        if (n <= size / 2) {
            copy = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data), n);
            if (copy != NULL) {
                Py_DECREF(data);
                return copy;
            }
            PyErr_Clear();
        }
        if (n < size) {
            Py_SET_SIZE(data, n);
            PyBytes_AS_STRING(data)[n] = 0;
        }
        return data;
    }
    """
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t n) except NULL
    object cut "wk_cut"(PyObject *data, Py_ssize_t n)


cdef class ReceiveHalf(Stream):
    """The layer of a `Conn` that takes bytes out of the inbound ring: receive_some,
    receive_nowait, and what the receives of receive_sized.pyx are made of."""

    cdef int look(self, uint32_t enough, uint32_t *available,
                  bint open_ended=False, bint wait=True) except -1:
        """See what the ring holds. If that is less than `enough`, more may come, and `wait` is
        set, arrange for a wake at `enough` bytes, and for the reactor to read on if it paused
        below that. `open_ended`: more than `enough` may be needed in the end."""
        cdef Slot *slot = self.slot
        cdef bint over, resume = False
        cdef int32_t error
        if slot == NULL:
            raise self.closed_error()
        pthread_mutex_lock(&slot.lock)
        available[0] = ring_len(&slot.inbound)
        error = slot.error
        over = slot.ended or error != 0
        if available[0] < enough and not over and wait:
            slot.rcvlowat = enough
            slot.open_ended = open_ended
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

    cdef void consume(self, uint32_t n) noexcept:
        """Forget `n` bytes that were copied out, under the lock."""
        cdef Slot *slot = self.slot
        slot.taken += n
        ring_discard(&slot.inbound, self.core.hub.pool, n)
        # What the reactor was asked for, by event mode between callbacks, or by a receive that
        # found too little before this one took less. From here on the next byte is news.
        if slot.rcvlowat:
            slot.rcvlowat = ring_len(&slot.inbound) + 1
            if slot.phase == ASKED:
                slot.phase = RUNNING

    cdef bint resumes(self) noexcept:
        """Whether a paused reactor is to be told to read again, under the lock."""
        cdef Slot *slot = self.slot
        if not slot.paused or not has_room(slot):
            return False
        slot.paused = False
        return True

    cdef void took(self, uint32_t n) noexcept:
        """Forget `n` bytes that were copied out, and let a paused reactor go on."""
        cdef bint resume
        cdef Block *block
        pthread_mutex_lock(&self.slot.lock)
        block = ring_pin_large(&self.slot.inbound)
        self.consume(n)
        resume = self.resumes()
        pthread_mutex_unlock(&self.slot.lock)
        if block != NULL:
            pool_drop(block, self.core.hub.pool)
        if resume:
            self.core.post(self.slot, RESUME)

    cdef void end_at_hole(self) noexcept:
        """Bytes that were taken could not be delivered, for lack of memory. So nothing behind
        them is delivered either. The reactor reads the error under this lock, and adds nothing
        more."""
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
        self.copy_out(PyBytes_AS_STRING(data), n)
        self.took(n + skip)
        return data

    cdef void copy_out(self, char *out, uint32_t n, uint32_t start=0) noexcept:
        """Copy `n` bytes from `start` on, which are there. They are copied a piece at a time, so
        that the reactor is not kept from its other connections while a large ring is copied.
        Only this side takes bytes out, so they stay where they are, counted from the first one,
        though the ring may move to a larger block meanwhile."""
        cdef Slot *slot = self.slot
        cdef uint32_t done = 0
        cdef uint32_t piece
        while done < n:
            piece = min(n - done, <uint32_t>RECEIVE_BUFFER)
            pthread_mutex_lock(&slot.lock)
            ring_copy(&slot.inbound, out + done, piece, start + done)
            pthread_mutex_unlock(&slot.lock)
            done += piece

    cdef object take_some(self, Py_ssize_t most, bint wait):
        """Up to `most` bytes, b"" at the end, or None if there is nothing: then
        a wake is arranged if `wait`. The fast path of all receiving, hence one
        visit to the lock. Creating a small bytes object runs no Python code and no
        garbage collector, so it is allowed under the lock."""
        cdef Slot *slot = self.slot
        cdef uint32_t n
        cdef int32_t error
        cdef bint much = False
        if slot == NULL:
            raise self.closed_error()
        pthread_mutex_lock(&slot.lock)
        try:
            n = ring_len(&slot.inbound)
            error = slot.error if n == 0 else 0
            if n == 0 and error == 0 and slot.ended:
                return b""
            if n > most:
                n = <uint32_t>most
            much = (slot.paused or n > AT_ONCE) and error == 0
            if not much and error == 0:
                if n == 0:
                    if wait:
                        slot.rcvlowat = 1
                    return None
                data = PyBytes_FromStringAndSize(NULL, n)
                ring_copy(&slot.inbound, PyBytes_AS_STRING(data), n, 0)
                self.consume(n)
        finally:
            pthread_mutex_unlock(&slot.lock)
        if error != 0:
            raise broken(error)
        if much:
            return self.take_much(most, wait)
        return data

    cdef object take_much(self, Py_ssize_t most, bint wait):
        """The same where reading is paused, or much is there."""
        cdef uint32_t more
        cdef uint32_t n = self.at_hand(most, &more)
        cdef uint32_t filled
        cdef int found
        cdef PyObject *data
        more = min(more, max(n, <uint32_t>SOME_BYTES) - n)
        data = new_bytes(NULL, n + more)
        filled = self.fill(PyBytes_AS_STRING(<object>data), n, more,
                           wait or self.slot.phase != QUIET)
        taken = cut(data, filled)
        if filled > 0:
            return taken
        # The reactor was asked to read on, and may have found bytes or the end by now. Or it has
        # paused again, near the budget, as it has seen nobody wait: `look` asks it once more.
        found = self.look(1, &n, False, wait)
        if found == ENOUGH:
            return self.take_some(most, wait)
        return b"" if found == OVER else None

    cdef uint32_t at_hand(self, Py_ssize_t most, uint32_t *more) noexcept:
        """How many of `most` bytes are there, and how many more to take from the socket
        itself, see `fill`."""
        cdef Slot *slot = self.slot
        cdef uint32_t wanted = <uint32_t>min(most, <Py_ssize_t>MAX_RING_BYTES)
        cdef uint32_t n
        pthread_mutex_lock(&slot.lock)
        n = min(ring_len(&slot.inbound), wanted)
        more[0] = wanted - n if slot.paused else 0
        pthread_mutex_unlock(&slot.lock)
        return n

    cdef uint32_t fill(self, char *out, uint32_t n, uint32_t more, bint stay) noexcept:
        """Take the first `n` bytes, which are there. If reading is paused, and the ring has no
        more, take up to `more` from the socket itself. Returns how many that is together.

        While reading is paused the reactor does not receive, so this side may: what it gets need
        not go through the ring, and the reactor need not be notified of each piece. This ends
        with a receive that finds less than it asks for, since only the reactor waits for bytes.
        With `stay` it goes on until then, because the next receive comes through here. Without,
        nobody would take what is left to read, so the reactor is asked to."""
        cdef Slot *slot = self.slot
        cdef ssize_t received = 0
        cdef bint resume = False
        cdef Block *block
        self.copy_out(out, n)
        if more > 0:
            received = self.receive_now(out + n, more)
        pthread_mutex_lock(&slot.lock)
        block = ring_pin_large(&slot.inbound)
        if n > 0:
            self.consume(n)
        if slot.by_kind.scan != NULL:
            frame_moved(slot.by_kind.scan, n + <uint32_t>received)
        if n + received <= RECEIVE_BUFFER and received < <ssize_t>more:
            stay = False
        if not stay or slot.rcvlowat or ring_len(&slot.inbound):
            resume = self.resumes()
        pthread_mutex_unlock(&slot.lock)
        if block != NULL:
            pool_drop(block, self.core.hub.pool)
        if resume:
            self.core.post(slot, RESUME)
        return n + <uint32_t>received

    cdef ssize_t receive_now(self, char *out, uint32_t n) noexcept:
        """Receive up to `n` bytes from the socket; reading is paused. 0 if there are none.
        The reactor finds the end, or an error. But a socket reports an error only
        once, to the first call, so an error here is kept in `pending_error`. Where reading has a
        rate, only the reactor reads (bucket.pxd)."""
        cdef Slot *slot = self.slot
        cdef ssize_t received
        cdef int32_t error
        if slot.mark.rated:
            return 0
        with nogil:
            received = recv(slot.fd, out, n, MSG_DONTWAIT)
            error = errno if received < 0 else 0
        if received > 0:
            wk_u64_bump(&slot.received, received)
            wk_u64_bump(&slot.receive_calls, 1)
            wk_u64_store_relaxed(&slot.noticed, self.core.now())
            wk_u64_store_relaxed(&slot.last_received, wk_u64_load_relaxed(&slot.noticed))
            return received
        if error != 0 and error != EAGAIN and error != EINTR:
            pthread_mutex_lock(&slot.lock)
            if slot.pending_error == 0:
                slot.pending_error = error
            pthread_mutex_unlock(&slot.lock)
        return 0

    cdef bint nothing_yet(self) noexcept:
        """Whether the connection is alive, and no bytes are known to be there;
        then a wake is arranged."""
        cdef Slot *slot = self.slot
        cdef bint nothing
        if slot == NULL:
            return False
        pthread_mutex_lock(&slot.lock)
        nothing = (ring_len(&slot.inbound) == 0 and not slot.ended and slot.error == 0
                   and not slot.paused)
        if nothing:
            slot.rcvlowat = 1
        pthread_mutex_unlock(&slot.lock)
        return nothing

    def receive_some(self, max_bytes=None):
        """Wait for bytes, and return those that are there. A checkpoint.

        Cancellation is atomic: no data is consumed.

        Args:
          max_bytes: the most bytes to return, 1 or more; by default 131072.

        Returns:
          The bytes; ``b""`` when the peer has finished sending.

        Raises:
          trio.ClosedResourceError: if the connection is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, and every byte that came
              before has been received. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if ``max_bytes`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef ReceiveSome operation = ReceiveSome.__new__(ReceiveSome)
        operation.conn = self
        operation.argument = max_bytes
        return operation

    def receive_nowait(self, max_bytes=None):
        """Return the bytes that are there, like `receive_some`, without waiting. Not a
        checkpoint.

        Args:
          max_bytes: the most bytes to return, 1 or more. By default everything up to
              ``limits.inbound``, or 131072 bytes if more arrived.

        Returns:
          The bytes; ``b""`` when the peer has finished sending.

        Raises:
          trio.WouldBlock: if nothing is there, and more may come.
          trio.ClosedResourceError: if the connection is closed.
          trio.BrokenResourceError: if the connection broke, and every byte that came
              before has been received. Its cause is the `OSError`.
          trio.BusyResourceError: if a task is receiving.
          TypeError, ValueError: if ``max_bytes`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef Py_ssize_t most = positive("max_bytes", max_bytes, MAX_RING_BYTES)
        self.ensure_usable()
        self.ensure_no_receiver()
        self.ensure_unframed()
        data = self.take_some(most, False)
        if data is None:
            raise trio.WouldBlock
        return data

    cdef int ensure_no_receiver(self) except -1:
        """Refuse to take bytes that a task waits for, or a view shows."""
        self.ensure_may_look()
        return self.ensure_unpinned()

    cdef int ensure_may_look(self) except -1:
        """Refuse to show bytes that another task is about to take."""
        self.ensure_no_reader()
        if self.detaching:
            raise trio.BusyResourceError("another task is detaching this connection")
        return 0

    cdef int ensure_unframed(self) except -1:
        if self.slot != NULL and decoder_of(self.slot) != NULL:
            raise trio.BusyResourceError(
                "this connection's messages are received by its WebSocket"
            )
        if self.slot != NULL and self.slot.by_kind.scan != NULL:
            raise trio.BusyResourceError(
                "this connection's frames are received by the channel that framed() gave; "
                "its unframe() gives the connection back"
            )
        return 0

    def _take_unread(self):
        """Everything that is there, even if the connection broke."""
        if self.slot == NULL:
            raise self.closed_error()
        return self.take(self.unread(), 0)

    cdef uint32_t unread(self) noexcept:
        cdef uint32_t n
        pthread_mutex_lock(&self.slot.lock)
        n = ring_len(&self.slot.inbound)
        pthread_mutex_unlock(&self.slot.lock)
        return n

    def _is_readable(self):
        """Whether a receive would not wait."""
        cdef bint readable, paused
        cdef pollfd one
        self.ensure_thread()
        if self.slot == NULL:
            return True
        pthread_mutex_lock(&self.slot.lock)
        readable = (ring_len(&self.slot.inbound) > 0 or self.slot.ended
                    or self.slot.error != 0)
        paused = self.slot.paused
        pthread_mutex_unlock(&self.slot.lock)
        if readable or not paused:
            return readable
        # See `fill`: what there is to receive is in the socket.
        one.fd = self.slot.fd
        one.events = POLLIN
        return poll(&one, 1, 0) != 0


cdef Py_ssize_t positive(str name, value, Py_ssize_t default) except -1:
    """A count of bytes from 1 to MAX_RING_BYTES, or the default for None."""
    cdef Py_ssize_t n
    if value is None:
        return default
    try:
        n = value
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None
    except OverflowError:
        n = MAX_RING_BYTES if value > 0 else 0
    if n < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
    return min(n, <Py_ssize_t>MAX_RING_BYTES)


cdef class Receive(Operation):
    """A receive. Subclasses define when there is enough."""

    cdef object validate(self):
        pass

    cdef int ensure_turn(self) except -1:
        self.conn.ensure_no_receiver()
        return self.conn.ensure_unframed()

    cdef bint must_wait(self):
        """True if nothing can be there yet; then a wake is arranged."""
        return False

    cdef object attempt(self):
        raise NotImplementedError

    cdef void lost(self) noexcept:
        self.conn.end_at_hole()

    cdef object start(self):
        self.validate()
        self.conn.ensure_usable()
        self.ensure_turn()
        self.conn.ensure_not_served()
        if self.must_wait():
            # Trio delivers a pending cancellation to a task that parks, so `enter`, which
            # checks the cancel status, is not needed.
            return self.conn.park_reader(self)
        trap = self.enter()
        if trap is not None:
            return trap
        data = self.attempt()
        if data is None:
            return self.conn.park_reader(self)
        return self.complete(data)

    cdef object proceed(self):
        # A task that ran between the wake and this step may wait by now, and must not be
        # replaced by this one; or it may have a view of what is there.
        if self.conn.reader is not None or self.conn.pins:
            self.conn.ensure_no_receiver()
        data = self.attempt()
        if data is None:
            return self.conn.park_reader(self)
        self.result = data
        return None


@cython.final
cdef class ReceiveSome(Receive):
    cdef Py_ssize_t most

    cdef object validate(self):
        self.most = positive("max_bytes", self.argument, SOME_BYTES)

    cdef bint must_wait(self):
        return self.conn.nothing_yet()

    cdef object attempt(self):
        return self.conn.take_some(self.most, True)
