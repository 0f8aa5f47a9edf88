"""Unread bytes as they lie in the ring: shown without a copy, and discarded.

A view pins the bytes that it shows (lease.pxd), so no bytes of this connection are taken
while it lives. Nothing else waits for it: the reactor adds bytes to the ring until
`limits.inbound` are there, and then TCP holds the peer back, as if no task received. Closing
does not wait for views.
"""
from libc.stdint cimport int32_t, uint32_t

from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.pool cimport Block, block_data, pool_drop, pool_take
from ..reactor.ring cimport (
    MAX_RING_BYTES, ring_contiguous, ring_exchange, ring_len, ring_wraps,
)
from ..reactor.slot cimport Slot
from .lease cimport Lease, lease_pin, new_lease, pinned
from .receive cimport positive
from .stream cimport broken

import trio

cdef enum:
    MOVE_UP_TO = 1 << 20        # bytes that are moved in one go, under the lock


cdef class Views(ReceiveHalf):
    """The layer of a `Conn` that shows unread bytes in place."""

    def peek(self, max_bytes=None):
        """Show the oldest unread bytes without consuming them. Not a checkpoint.

        It is a view of the receive buffer itself. While it lives (until its
        ``release()``, or it is garbage) it pins the bytes: every receive of this
        connection, `discard` and `detach` raise `BufferError`. More bytes are added
        meanwhile, up to ``limits.inbound``; the view does not change. It stays valid
        after the connection and its engine are closed.

        Bytes that wrap around the end of the buffer are moved first, so that the view is
        one piece.

        Args:
          max_bytes: the most bytes to show, 1 or more; by default all that are there.

        Returns:
          A read-only `memoryview`; empty if nothing is there. `receive_nowait` tells
          whether more may come.

        Raises:
          trio.ClosedResourceError: if the connection is closed.
          trio.BrokenResourceError: if the connection broke, and every byte that came
              before has been consumed. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          MemoryError: if bytes had to be moved, and there is no memory for that.
          TypeError, ValueError: if ``max_bytes`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef Py_ssize_t most = positive("max_bytes", max_bytes, MAX_RING_BYTES)
        cdef Lease lease
        self.ensure_usable()
        self.ensure_may_look()
        self.ensure_unframed()
        # Made before the lock is taken: that may collect garbage.
        lease = new_lease(self, &self.pins)
        while not self.pin(lease, most):
            self.straighten()
        return memoryview(lease) if lease.block != NULL else memoryview(b"")

    def discard(self, n):
        """Consume the oldest ``n`` unread bytes unseen. Not a checkpoint.

        Args:
          n: the number of bytes, from 0 to all that are there.

        Raises:
          BufferError: if a view from `peek` is alive, and ``n`` is not 0.
          trio.ClosedResourceError: if the connection is closed.
          trio.BusyResourceError: if another task is receiving.
          TypeError: if ``n`` is not an integer.
          ValueError: if ``n`` is negative, or exceeds what is there.
          RuntimeError: if called from another thread.
        """
        cdef uint32_t available
        cdef Py_ssize_t count = count_of(n)
        self.ensure_usable()
        self.ensure_may_look()
        self.ensure_unframed()
        if self.slot == NULL:
            raise self.closed_error()
        available = self.unread()
        if count > <Py_ssize_t>available:
            raise ValueError(f"n must be at most the {available} bytes there are, not {n}")
        if count > 0:
            if self.pins:
                raise pinned(count)
            self.took(<uint32_t>count)

    cdef bint pin(self, Lease lease, Py_ssize_t most) except -1:
        """Let a lease show up to `most` bytes. False if `straighten` must be called first."""
        cdef Slot *slot = self.slot
        cdef uint32_t n
        cdef int32_t error
        cdef unsigned char *data = NULL
        cdef bint much
        if slot == NULL:
            raise self.closed_error()
        pthread_mutex_lock(&slot.lock)
        n = ring_len(&slot.inbound)
        error = slot.error
        much = n > MOVE_UP_TO
        n = <uint32_t>min(<Py_ssize_t>n, most)
        much = much and ring_wraps(&slot.inbound, n)
        if n > 0 and not much:
            data = ring_contiguous(&slot.inbound, self.core.hub.pool, n)
            if data != NULL:
                lease_pin(lease, slot.inbound.block, data, n)
        pthread_mutex_unlock(&slot.lock)
        if n == 0 and error != 0:
            raise broken(error)
        if n > 0 and data == NULL and not much:
            raise MemoryError
        return not much

    cdef int straighten(self) except -1:
        """Move a large ring to the start of another block, piece by piece, so that its reactor
        does not wait for the whole copy. Only this side takes bytes out, so those that were
        copied are still the first ones. If the reactor has moved them meanwhile, they are at
        the start of a larger block, and need not be moved."""
        cdef Slot *slot = self.slot
        cdef uint32_t n, capacity
        cdef Block *block
        pthread_mutex_lock(&slot.lock)
        n = ring_len(&slot.inbound)
        capacity = slot.inbound.block.capacity
        pthread_mutex_unlock(&slot.lock)
        block = pool_take(self.core.hub.pool, capacity)
        if block == NULL:
            raise MemoryError
        self.copy_out(<char *>block_data(block), n)
        pthread_mutex_lock(&slot.lock)
        if slot.inbound.block.capacity == capacity:
            block = ring_exchange(&slot.inbound, block, n)
        pthread_mutex_unlock(&slot.lock)
        pool_drop(block, self.core.hub.pool)
        return 0


cdef Py_ssize_t count_of(n) except -1:
    cdef Py_ssize_t count
    try:
        count = n
    except TypeError:
        raise TypeError(f"n must be an integer, not {n!r}") from None
    except OverflowError:
        count = MAX_RING_BYTES + 1 if n > 0 else -1
    if count < 0:
        raise ValueError(f"n must be at least 0, not {n}")
    return count
