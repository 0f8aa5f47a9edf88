"""The other receives of a TLS stream: without waiting, and those that know how much they want.

Facts. OpenSSL gives bytes out once, so what was decrypted, and is not wanted yet, must be kept.

Decision. It is in `unread`, which exists only meanwhile. Every receive takes it first. These
receives are loops over `receive_some`'s own operation: what that returns is added to `unread`
before anything is awaited again. So a receive that is cancelled has lost nothing, and so no other
task's receive can come in between.
"""
cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE

from ..reactor.ring cimport MAX_RING_BYTES
from .receive cimport SOME_BYTES, positive
from .receive_sized cimport as_delimiter, exact_count
from .send cimport SendHalf
from .tls cimport WIRE_PIECE
from .tls_frames cimport StreamFrames

from weakref import ref

import trio
from trio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from trio_wknet._errors import DelimiterNotFound, IncompleteRead

cdef enum:
    INBOUND = 65536     # bytes before a delimiter, where no connection has a limit


cdef class Wanted:
    cdef bytes take(self, TLSReceive stream):
        raise NotImplementedError

    cdef object incomplete(self, Py_ssize_t there):
        raise NotImplementedError


@cython.final
cdef class Exactly(Wanted):
    cdef bytes take(self, TLSReceive stream):
        if stream.unread is None or len(stream.unread) < self.count:
            return None
        return stream.take_unread(self.count)

    cdef object incomplete(self, Py_ssize_t there):
        return IncompleteRead(self.count, there)


@cython.final
cdef class Until(Wanted):
    cdef bytes take(self, TLSReceive stream):
        cdef Py_ssize_t length = PyBytes_GET_SIZE(self.delimiter)
        cdef Py_ssize_t at, cannot_begin
        if stream.unread is None:
            return None
        if stream.searched_for != self.delimiter:
            stream.searched_for = self.delimiter
            stream.searched = 0
        at = stream.unread.find(self.delimiter, stream.searched)
        if 0 <= at <= self.most:
            data = stream.take_unread(at + length)
            return data[:at]
        cannot_begin = len(stream.unread) - length + 1
        if cannot_begin > self.most:
            raise DelimiterNotFound(self.delimiter, self.most)
        stream.searched = max(stream.searched, cannot_begin)
        return None

    cdef object incomplete(self, Py_ssize_t there):
        return IncompleteRead(None, there)


cdef class TLSReceive(TLSBase):
    """The layer of a TLS stream that has the other receives."""

    cdef Exactly exactly(self, n):
        cdef Exactly wanted = Exactly.__new__(Exactly)
        wanted.count = exact_count(n)
        return wanted

    cdef Until until(self, delimiter, max_bytes):
        cdef Until wanted = Until.__new__(Until)
        cdef Py_ssize_t mark = INBOUND
        if self.conn is not None:
            mark = 1 if self.conn.slot == NULL else self.conn.slot.limits.inbound
        wanted.delimiter = as_delimiter(delimiter)
        wanted.most = min(positive("max_bytes", max_bytes, mark),
                          MAX_RING_BYTES - PyBytes_GET_SIZE(wanted.delimiter))
        return wanted

    # --- waiting -----------------------------------------------------------------

    async def _receive_wanted(self, Wanted wanted):
        if self.conn is not None:
            self.conn.ensure_usable()
        self.ensure_receiving(False)
        await checkpoint_if_cancelled()
        data = wanted.take(self)
        if data is not None:
            await cancel_shielded_checkpoint()
            return data
        while data is None:
            more = await self.receive_more(None, False)
            if not more:
                raise wanted.incomplete(0 if self.unread is None else len(self.unread))
            self.add_unread(more)
            data = wanted.take(self)
        return data

    async def receive_exactly(self, n):
        """Wait until ``n`` bytes are there, and return them, like `Conn.receive_exactly`. A
        checkpoint.

        Performs the handshake, if nobody has. Cancellation is atomic once the handshake is
        done: no data is consumed.

        Args:
          n: the number of bytes, from 1 to 2**30.

        Returns:
          Exactly ``n`` bytes.

        Raises:
          IncompleteRead: if the peer finished sending before. The bytes that came stay, for
              `receive_some`.
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed, before there were
              enough bytes. Those that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if ``n`` is invalid.
          RuntimeError: if called from another thread.
        """
        return await self._receive_wanted(self.exactly(n))

    async def receive_until(self, delimiter, max_bytes=None):
        """Wait for a delimiter, and return the bytes before it, like `Conn.receive_until`. A
        checkpoint.

        The delimiter itself is consumed too, and not returned. Performs the handshake, if
        nobody has. Cancellation is atomic once the handshake is done: no data is consumed.

        Args:
          delimiter: from 1 to 65536 bytes.
          max_bytes: the most bytes that may precede it, 1 or more; by default
              ``limits.inbound`` of the connection, over another transport 65536.

        Returns:
          The bytes before the delimiter; ``b""`` if it comes first.

        Raises:
          DelimiterNotFound: if more than ``max_bytes`` bytes came without it. They stay, for
              `receive_some`.
          IncompleteRead: if the peer finished sending before it. The bytes that came stay,
              for `receive_some`.
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed, before the
              delimiter came. The bytes that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if called from another thread.
        """
        return await self._receive_wanted(self.until(delimiter, max_bytes))

    async def receive_into(self, buffer):
        """Wait for bytes, and write those that are there into a buffer, like
        `Conn.receive_into`. A checkpoint.

        Performs the handshake, if nobody has. Cancellation is atomic once the handshake is
        done: no data is consumed, and nothing is written.

        Args:
          buffer: a writable, contiguous bytes-like object of at least 1 byte.

        Returns:
          The number of bytes; 0 when the peer has said goodbye.

        Raises:
          trio.ClosedResourceError: if the stream is closed, before or during the call.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`.
          trio.BusyResourceError: if another task is receiving.
          TypeError: if ``buffer`` is not writable, contiguous and bytes-like.
          ValueError: if ``buffer`` is empty.
          RuntimeError: if called from another thread.
        """
        with writable(buffer) as view:
            data = await self.receive_some(view.nbytes)
            view[:len(data)] = data
        return len(data)

    # --- for a channel of frames ---------------------------------------------------

    def _ensure_thread(self):
        if self.conn is not None:
            self.conn.ensure_usable()

    def _ensure_receiving(self):
        """Refuse to receive frames where that is another's turn, or not possible any more."""
        self._ensure_thread()
        self.ensure_receiving(True)

    def _begin_frames(self, StreamFrames frames not None, channel):
        """Have a channel receive. It goes on where one that was thrown away has stopped."""
        self._ensure_thread()
        if self.framed and self.channel() is None:
            self._end_frames()
        self.ensure_receiving(False)
        if self.unread is not None:
            frames.feed(bytes(self.unread))
            self.unread = None
        self.frames = frames
        self.channel = ref(channel)
        self.framed = True

    def _end_frames(self):
        """Bytes are bytes again, those of an unfinished frame included."""
        self._ensure_thread()
        if self.receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this TLS stream")
        rest = self.frames.take_rest()
        self.frames = self.channel = None
        self.framed = False
        if rest:
            self.add_unread(rest)

    async def _feed_frames(self):
        """Receive. False at the end."""
        data = await self.receive_more(None, True)
        self.feed_frames(data)
        return bool(data)

    def _feed_frames_nowait(self):
        """The same without waiting. None if nothing is there."""
        self.ensure_handshaken("receive_nowait")
        data = self.read_now(SOME_BYTES)
        if data is None:
            return None
        self.feed_frames(data)
        return bool(data)

    cdef int feed_frames(self, bytes data) except -1:
        try:
            self.frames.feed(data)
        except BaseException:
            self.broke()        # they are lost
            raise
        return 0

    # --- without waiting -----------------------------------------------------------

    cdef int ensure_nowait(self, str call) except -1:
        if self.conn is not None:
            self.conn.ensure_usable()
        self.ensure_receiving(False)
        return self.ensure_handshaken(call)

    cdef object read_now(self, Py_ssize_t most):
        """Decrypted bytes of what has come; b"" at the end; None if there are none."""
        self.check_status()
        while True:
            data = self.read_some(most)
            self.answer_now()
            if data is not None:
                return data
            # Of another transport it is not known what has come; and another task's receive,
            # as for a key update, goes first.
            if self.conn is None or self.receive_turn.taken:
                return None
            self.conn.ensure_no_receiver()
            wire = self.conn.take_some(WIRE_PIECE, False)
            if wire is None:
                return None
            self.feed(wire)

    cdef int answer_now(self) except -1:
        """Send what a read has left to be sent, as for a key update. Over another transport, or
        while another task sends, it goes along with what is sent next."""
        if self.conn is None or not self.has_to_send() or not self.send_turn.take():
            return 0
        try:
            SendHalf.send_nowait(self.conn, self.take_outgoing())
        except (trio.BrokenResourceError, trio.WouldBlock, ValueError):
            self.broke()        # the peer could decrypt nothing that follows
        finally:
            self.send_turn.give()
        return 0

    cdef bytes take_now(self, Wanted wanted, str call):
        self.ensure_nowait(call)
        data = wanted.take(self)
        while data is None:
            more = self.read_now(SOME_BYTES)
            if more is None:
                raise trio.WouldBlock
            if not more:
                raise wanted.incomplete(0 if self.unread is None else len(self.unread))
            self.add_unread(more)
            data = wanted.take(self)
        return data

    def receive_nowait(self, max_bytes=None):
        """Return the bytes that are there, like `receive_some`, without waiting. Not a
        checkpoint.

        Over another transport than a `Conn`, these are at most those of records that came along
        with bytes that were received.

        Args:
          max_bytes: the most bytes to return, 1 or more; by default 131072.

        Returns:
          The bytes; ``b""`` when the peer has said goodbye.

        Raises:
          trio.WouldBlock: if nothing is there, and more may come.
          trio.NeedHandshakeError: if the handshake is not done.
          trio.ClosedResourceError: if the stream is closed.
          trio.BrokenResourceError: if the connection broke, or TLS failed. Its cause is the
              `OSError`.
          trio.BusyResourceError: if a task is receiving.
          TypeError, ValueError: if ``max_bytes`` is invalid.
          RuntimeError: if called from another thread.
        """
        cdef Py_ssize_t most = positive("max_bytes", max_bytes, SOME_BYTES)
        self.ensure_nowait("receive_nowait")
        if self.unread is not None:
            return self.take_unread(most)
        data = self.read_now(most)
        if data is None:
            raise trio.WouldBlock
        return data

    def receive_exactly_nowait(self, n):
        """Return the first ``n`` bytes if they are there, like `receive_exactly`, without
        waiting. Not a checkpoint. While fewer are there, nothing is consumed.

        Args:
          n: the number of bytes, from 1 to 2**30.

        Returns:
          Exactly ``n`` bytes.

        Raises:
          trio.WouldBlock: if fewer bytes are there, and more may come.
          IncompleteRead: if the peer finished sending before. The bytes that came stay.
          trio.NeedHandshakeError: if the handshake is not done.
          trio.ClosedResourceError: if the stream is closed.
          trio.BrokenResourceError: if the connection broke, or TLS failed, before there were
              enough bytes. Those that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if a task is receiving.
          TypeError, ValueError: if ``n`` is invalid.
          RuntimeError: if called from another thread.
        """
        return self.take_now(self.exactly(n), "receive_exactly_nowait")

    def receive_until_nowait(self, delimiter, max_bytes=None):
        """Return the bytes before a delimiter if it is there, like `receive_until`, without
        waiting. Not a checkpoint. While it is not there, nothing is consumed.

        Args:
          delimiter: from 1 to 65536 bytes.
          max_bytes: the most bytes that may precede it, 1 or more; by default
              ``limits.inbound`` of the connection, over another transport 65536.

        Returns:
          The bytes before the delimiter, which is consumed too; ``b""`` if it comes first.

        Raises:
          trio.WouldBlock: if the delimiter is not there, and may come.
          DelimiterNotFound: if more than ``max_bytes`` bytes came without it. They stay.
          IncompleteRead: if the peer finished sending before it. The bytes that came stay.
          trio.NeedHandshakeError: if the handshake is not done.
          trio.ClosedResourceError: if the stream is closed.
          trio.BrokenResourceError: if the connection broke, or TLS failed, before the
              delimiter came. The bytes that came stay. Its cause is the `OSError`.
          trio.BusyResourceError: if a task is receiving.
          TypeError, ValueError: if an argument is invalid.
          RuntimeError: if called from another thread.
        """
        return self.take_now(self.until(delimiter, max_bytes), "receive_until_nowait")


cdef object writable(buffer):
    try:
        view = memoryview(buffer).cast("B")
    except TypeError:
        view = None
    if view is None or view.readonly:
        raise TypeError(f"buffer must be writable, contiguous and bytes-like, not {buffer!r}")
    if view.nbytes == 0:
        raise ValueError("buffer must hold at least 1 byte")
    return view
