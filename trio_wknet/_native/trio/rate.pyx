"""The rates of a connection. reactor/bucket.pxd has the rules."""
from libc.stdint cimport uint64_t

from ..base.atomics cimport wk_ptr_store, wk_u64_load_relaxed, wk_u64_store
from ..base.linux cimport pthread_mutex_lock, pthread_mutex_unlock
from ..reactor.bucket cimport Rate, rate_of
from ..reactor.rate cimport rate_new
from ..reactor.slot cimport RATE, Slot

import math

from trio_wknet._rates import Rates

cdef uint64_t HIGHEST = <uint64_t>1 << 62       # bytes a second: no bound in effect


cdef uint64_t bytes_a_second(str name, value) except? 1:
    """A rate as a bucket holds it; 0 for None."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of bytes a second, not {value!r}")
    if not 1 <= value < math.inf:
        raise ValueError(
            f"{name} must be at least 1 byte a second and finite, not {value!r}; None means no "
            "bound"
        )
    return min(int(value), HIGHEST)


cdef Rate *_make_rate(Slot *slot) except NULL:
    """The Rate of a connection, which has one from here on. It is visible to the reactor, whole,
    once it holds the lock."""
    cdef Rate *rate = rate_of(slot)
    if rate == NULL:
        rate = rate_new()
        if rate == NULL:
            raise MemoryError
        pthread_mutex_lock(&slot.lock)
        wk_ptr_store(&slot.scarce.rate, rate)
        slot.mark.rated = True
        pthread_mutex_unlock(&slot.lock)
    return rate


cdef class Rated(FileHalf):
    """The layer of a `Conn` that bounds its rates."""

    def rate(self, *, read=..., write=...):
        """Bound how many bytes a second the connection receives and sends. Not a checkpoint::

            conn.rate(write=1_000_000)      # a download of 1 MB a second
            conn.rate(read=None)            # an upload as fast as it comes

        A rate takes effect at once, also for a task that waits. What counts is the bytes on the
        socket: those of TLS, the heads of frames, the answers to pings, what a `relay` carries.
        After a second or more without bytes in that direction, as at first, a second's worth may
        move at once. Otherwise what the rate allows moves in pieces of about 50 ms' worth.
        No task and no Python code runs for that: the reactor's timing wheel does it.

        Where reading has used up its rate, bytes stay in the kernel, and the peer is slowed down
        by its flow control. Where sending has, `send_all` and all that waits for the kernel waits
        for the rate in the same way; `send_nowait` keeps what it may not send yet in the
        outbound buffer, up to ``limits.outbound``, and so do broadcasts of a `Group`. A peer is
        not idle, nor too slow for ``Admission.min_rate``, while this end's rate holds it up.

        Once the connection is closed it has no rate: what is unsent then is sent as fast as the
        peer takes it.

        Args:
          read: bytes a second to receive, 1 or more, a fraction of a byte is left out; None: no
              bound. By default it is left as it is, which at first is None.
          write: bytes a second to send, likewise.

        Returns:
          The `Rates` that are in effect from here on.

        Raises:
          trio.ClosedResourceError: if the connection is closed.
          TypeError, ValueError: if a rate is not a number, or less than 1, or not finite; the
              message names it.
          MemoryError: if there is no memory for the connection's first rate.
          RuntimeError: if called from another thread.
        """
        cdef uint64_t reading = 0 if read is ... else bytes_a_second("read", read)
        cdef uint64_t writing = 0 if write is ... else bytes_a_second("write", write)
        cdef Rate *rate
        self.ensure_usable()
        if self.slot == NULL:
            raise self.closed_error()
        if reading or writing or rate_of(self.slot) != NULL:
            rate = _make_rate(self.slot)
            if read is not ...:
                wk_u64_store(&rate.read.rate, reading)
            if write is not ...:
                wk_u64_store(&rate.write.rate, writing)
            self.core.post(self.slot, RATE)
        return self.rates()

    cdef object rates(self):
        cdef Rate *rate = rate_of(self.slot)
        if rate == NULL:
            return Rates(None, None)
        return Rates(
            wk_u64_load_relaxed(&rate.read.rate) or None,
            wk_u64_load_relaxed(&rate.write.rate) or None,
        )
