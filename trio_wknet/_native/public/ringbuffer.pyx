"""RingBuffer: the byte ring by itself, for Python.

It has a pool of its own, owned by whichever thread holds the GIL. The GIL is never released
while the ring or the pool is touched: foreign code (a buffer's exporter, `__index__`) runs
before or after that, never in between. So no lock is needed.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t

from ..reactor.pool cimport Pool, pool_free, pool_new
from ..reactor.ring cimport (
    MAX_RING_BYTES, Ring, ring_clear, ring_contiguous, ring_copy, ring_discard, ring_find,
    ring_len, ring_write,
)
from ..trio.lease cimport Lease, lease_pin, new_lease, pinned


cdef extern from "Python.h":
    # With NULL it cuts off what does not fit.
    Py_ssize_t PyNumber_AsSsize_t(object number, void *overflow) except? -1


cdef enum:
    # The memory that an empty ring keeps for its next bytes.
    KEEP_BYTES = 65536


cdef class RingBuffer:
    """A first-in, first-out buffer of bytes: ``RingBuffer(capacity)``.

    It grows in powers of two up to ``capacity``, and keeps at most
    64 KiB of memory once it is empty. ``len()`` is the number of unread bytes.

    Each call is atomic under the GIL. A sequence of calls (`peek`, then
    `discard`) is not: only one thread at a time should take bytes out.

    Args:
      capacity: the most bytes that it may hold, from 1 to 2**30.

    Raises:
      TypeError, ValueError: if ``capacity`` is not an integer, or out of range.
      MemoryError: if there is no memory for it.
    """
    cdef Ring ring
    cdef uint32_t pins          # leases of its bytes
    cdef Pool *pool
    cdef Py_ssize_t most

    def __cinit__(self, capacity):
        self.most = _number("capacity", capacity)
        if not 1 <= self.most <= MAX_RING_BYTES:
            raise ValueError(f"capacity must be from 1 to {MAX_RING_BYTES}, not {capacity!r}")
        self.pool = pool_new(KEEP_BYTES)
        if self.pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.pool != NULL:
            ring_clear(&self.ring, self.pool)
            pool_free(self.pool)

    @property
    def capacity(self):
        """The most bytes that it may hold."""
        return self.most

    def __len__(self):
        return ring_len(&self.ring)

    def __repr__(self):
        return f"<trio_wknet.RingBuffer {ring_len(&self.ring)} of {self.most} bytes>"

    def write(self, data):
        """Append as many bytes as fit. Views from `peek` do not prevent that.

        Args:
          data: any contiguous bytes-like object.

        Returns:
          The number of bytes appended, from 0 to all.

        Raises:
          TypeError: if ``data`` is not bytes-like, or not contiguous.
          MemoryError: if there is no memory to grow. Nothing is appended.
        """
        cdef Py_buffer view
        cdef uint32_t n
        cdef bint stored
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except (TypeError, BufferError):
            raise TypeError(
                f"data must be contiguous and bytes-like, not {type(data).__name__}"
            ) from None
        n = <uint32_t>min(view.len, self.most - <Py_ssize_t>ring_len(&self.ring))
        stored = ring_write(&self.ring, self.pool, view.buf, n)
        PyBuffer_Release(&view)
        if not stored:
            raise MemoryError
        return n

    def read(self, max_bytes=None):
        """Remove and return the oldest bytes.

        Args:
          max_bytes: the most bytes to take; by default all.

        Returns:
          The bytes; ``b""`` if there are none.

        Raises:
          BufferError: if a view from `peek` is alive, and there are bytes to take.
          TypeError, ValueError: if ``max_bytes`` is not an integer, or negative.
        """
        cdef uint32_t n = self.at_most(max_bytes)
        self.require_unpinned(n)
        data = PyBytes_FromStringAndSize(NULL, n)
        ring_copy(&self.ring, PyBytes_AS_STRING(data), n, 0)
        ring_discard(&self.ring, self.pool, n)
        return data

    def peek(self, max_bytes=None):
        """View the oldest bytes without a copy.

        While the view is alive (until its ``release()``, or until it is collected) it pins
        its bytes: `read` and `discard` of 1 byte or more raise `BufferError`;
        `write` still works, and does not change what the view shows. The view stays
        valid after the RingBuffer is gone. If the bytes wrap around the end of
        the memory, they are first copied to a new block.

        Args:
          max_bytes: the most bytes to view; by default all.

        Returns:
          A read-only `memoryview` of the buffer itself.

        Raises:
          TypeError, ValueError: if ``max_bytes`` is not an integer, or negative.
          MemoryError: if there is no memory for a new block.
        """
        # Made first: that may run a finalizer, which may do anything to the ring.
        cdef Lease lease = new_lease(self, &self.pins)
        cdef uint32_t n = self.at_most(max_bytes)
        cdef unsigned char *data
        if n == 0:
            return memoryview(b"")
        data = ring_contiguous(&self.ring, self.pool, n)
        if data == NULL:
            raise MemoryError
        lease_pin(lease, self.ring.block, data, n)
        return memoryview(lease)

    def discard(self, n):
        """Drop the oldest bytes.

        Args:
          n: the number of bytes.

        Raises:
          BufferError: if a view from `peek` is alive, and ``n`` is not 0.
          ValueError: if ``n`` is negative, or more than there are.
          TypeError: if ``n`` is not an integer.
        """
        cdef Py_ssize_t count = _count("n", n)
        if count > <Py_ssize_t>ring_len(&self.ring):
            raise ValueError(
                f"n must be at most the {ring_len(&self.ring)} bytes there are, not {count}"
            )
        self.require_unpinned(<uint32_t>count)
        ring_discard(&self.ring, self.pool, <uint32_t>count)

    def find(self, delimiter, start=0):
        """Search for bytes.

        Args:
          delimiter: what to search for, 1 byte or more.
          start: where to begin, counted from the oldest byte; by default 0.

        Returns:
          The offset of the first match, counted from the oldest byte; -1 if there is none.

        Raises:
          TypeError: if ``delimiter`` is not bytes-like, or ``start`` is not an integer.
          ValueError: if ``delimiter`` is empty, or ``start`` is negative.
        """
        cdef bytes needle = _needle(delimiter)
        cdef Py_ssize_t offset = _count("start", start)
        if len(needle) > self.most or offset > self.most:
            return -1
        return ring_find(&self.ring, <const unsigned char *>PyBytes_AS_STRING(needle),
                         <uint32_t>len(needle), <uint32_t>offset)

    cdef uint32_t at_most(self, max_bytes) except? 0xFFFFFFFF:
        cdef Py_ssize_t most
        if max_bytes is None:
            return ring_len(&self.ring)
        most = _count("max_bytes", max_bytes)
        return <uint32_t>min(most, <Py_ssize_t>ring_len(&self.ring))

    cdef int require_unpinned(self, uint32_t n) except -1:
        if n > 0 and self.pins > 0:
            raise pinned(n)
        return 0


cdef Py_ssize_t _number(str name, value) except? -1:
    """An integer, clamped to the range of Py_ssize_t."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    try:
        return PyNumber_AsSsize_t(value, NULL)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {value!r}") from None


cdef Py_ssize_t _count(str name, value) except -1:
    cdef Py_ssize_t number = _number(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, not {value!r}")
    return number


cdef bytes _needle(delimiter):
    if not isinstance(delimiter, (bytes, bytearray, memoryview)):
        raise TypeError(f"delimiter must be bytes-like, not {delimiter!r}")
    needle = bytes(delimiter)
    if not needle:
        raise ValueError("delimiter must hold at least 1 byte, not b''")
    return needle
