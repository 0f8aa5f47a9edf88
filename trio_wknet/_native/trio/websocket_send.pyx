"""Sending a WebSocket's messages: header and payload by one call to the kernel, many messages
by one.

A message is one frame. Small payloads are copied behind their headers, and a client's all
are, since what it sends is masked; a server's large ones are sent from where they are. A
message is sent whole or not at all: the rest of one that was begun is left to the reactor,
ahead of all that is queued.

Nothing follows our close frame, which the reactor may queue at any time, for the answer to
the peer's. So `goodbye` is looked at while the sending side is held: if it is not set then,
such a frame will be queued behind what is sent here (reactor/websocket.pxd).

A compressed message refers to those before it on the wire, at the distance that they have
there. So an operation compresses when it holds the sending side, and its place is certain.
What is queued while one waits or sends goes behind it, or before: it refers to nothing before
it, and then neither does what the operation compresses. And if a message that was compressed
is not sent, the next one refers to nothing before it.
"""
cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from ..base.atomics cimport wk_u32_load
from ..base.linux cimport getrandom, iovec
from ..base.mask cimport wk_mask
from ..base.memory cimport FOR_SPANS, memory_free, memory_take
from ..reactor.sender cimport SHUT, sender_acquire, sender_state
from ..reactor.slot cimport Slot
from ..reactor.websocket cimport (
    BINARY, COMPRESSED, MAX_ANSWER, MAX_HEADER, PONG, TEXT, put_header,
)
from .operation cimport DONE
from .send cimport SendHalf, Sending, SendingData
from .send_vector cimport SendWhole, as_tuple

import os

import trio

from trio_wknet._errors import ConnectionClosed

cdef enum:
    COPY_UP_TO = 2048       # bytes of a server's payload
    SMALL = 192             # bytes on the wire of a message that needs no memory of its own
    KEY_BYTES = 4096        # random bytes that are taken at once


# --- masks ---------------------------------------------------------------------------------

# A mask must not be foreseeable (RFC 6455, 5.3): the kernel's randomness, used once. Under the
# GIL.
cdef unsigned char _keys[KEY_BYTES]
cdef uint32_t _keys_left = 0


cdef const unsigned char *_next_key() except NULL:
    global _keys_left
    if _keys_left == 0:
        if getrandom(_keys, KEY_BYTES, 0) != KEY_BYTES:     # it may be interrupted
            fresh = os.urandom(KEY_BYTES)
            memcpy(_keys, PyBytes_AS_STRING(fresh), KEY_BYTES)
        _keys_left = KEY_BYTES
    _keys_left -= 4
    return _keys + _keys_left


def _forget_keys():
    """In a forked child, whose parent has them, too."""
    global _keys_left
    _keys_left = 0


os.register_at_fork(after_in_child=_forget_keys)


# --- an operation --------------------------------------------------------------------------


@cython.final
cdef class SendMessages(SendWhole):
    cdef WebSocketSend channel
    cdef tuple messages         # kept while their bytes are used
    cdef bint checked           # that no close frame is ahead; by who holds the sending side
    cdef list packed            # what was compressed, likewise
    cdef bint alone             # it refers to nothing before it
    cdef uint32_t compressed    # the channel's, when this began, or last compressed
    # Of a single message: no memory of their own.
    cdef size_t end
    cdef iovec few[2]
    cdef unsigned char small[SMALL]

    cdef str name_of(self, Py_ssize_t which):
        return "message" if self.single else f"messages[{which}]"

    cdef object validate(self):
        self.channel.ensure_may_send()
        if self.channel.deflater is None:
            self.encode(COPY_UP_TO)
        else:
            self.check()

    cdef int check(self) except -1:
        """Refuse what cannot be sent. It is encoded later, once its place is certain."""
        cdef iovec payload
        cdef Py_ssize_t i
        self.compressed = self.channel.compressed
        if self.single:
            self.look_at(self.argument, 0, &payload)
            self.left = 1
        else:
            self.take_messages()
            self.reserve(2 * len(self.messages) + 1)
            for i in range(len(self.messages)):
                self.look_at(self.messages[i], i, &payload)
            self.left = 1 if self.messages else 0
        self.let_go_of_data()
        return 0

    cdef int encode_in_place(self) except -1:
        """By who holds the sending side."""
        self.left = 0
        self.alone = self.compressed != self.channel.compressed
        self.encode(COPY_UP_TO)
        return 0

    cdef int encode(self, size_t copy_up_to) except -1:
        if self.channel.ws.client:
            copy_up_to = <size_t>-1
        if self.single:
            return self.encode_one(self.argument, copy_up_to)
        return self.encode_many(copy_up_to)

    cdef uint8_t look_at(self, message, Py_ssize_t which, iovec *payload) except 0:
        """Its bytes, which are kept, and the opcode."""
        cdef Py_ssize_t n = 0
        if PyBytes_CheckExact(message):
            payload.iov_base = PyBytes_AS_STRING(message)
            payload.iov_len = PyBytes_GET_SIZE(message)
            return BINARY
        if isinstance(message, str):
            try:
                payload.iov_base = <void *>PyUnicode_AsUTF8AndSize(message, &n)
            except UnicodeEncodeError as failure:
                raise ValueError(
                    f"{self.name_of(which)} cannot be sent as text: {failure}") from None
            payload.iov_len = n
            return TEXT
        if self.views == NULL:
            SendWhole.reserve(self, 1)
            memory_free(FOR_SPANS, self.spans)
            self.spans = self.few
        try:
            self.hold(message, which)
        except TypeError:
            raise TypeError(
                f"{self.name_of(which)} must be a str, or contiguous and bytes-like, "
                f"not {type(message).__name__}"
            ) from None
        payload.iov_base = self.views[self.held - 1].buf
        payload.iov_len = self.views[self.held - 1].len
        return BINARY

    cdef uint8_t pack(self, uint8_t opcode, iovec *payload) except 0:
        """Compress a payload, if that was agreed on and it is not too small; the opcode."""
        cdef Py_ssize_t n = payload.iov_len
        deflater = self.channel.deflater
        if deflater is None or n < deflater.threshold:
            return opcode
        view = PyMemoryView_FromMemory(<char *>payload.iov_base, n, PyBUF_READ)
        data = deflater.compress_alone(view) if self.alone else deflater.compress(view)
        if self.packed is None:
            self.packed = []
        self.packed.append(data)
        if not self.alone:
            self.channel.compressed += 1
            self.compressed = self.channel.compressed
        payload.iov_base = PyBytes_AS_STRING(data)
        payload.iov_len = PyBytes_GET_SIZE(data)
        return opcode | COMPRESSED

    cdef void unpack(self) noexcept:
        """What was compressed is not sent, or not all of it: what comes must not refer to it."""
        if self.packed and not self.alone and self.compressed == self.channel.compressed:
            self.channel.deflater.restart()

    cdef unsigned char *put(self, unsigned char *out, uint8_t opcode, const iovec *payload,
                            bint copy) except NULL:
        """Write a header, and, with `copy`, the payload behind it; where it ends."""
        cdef const unsigned char *key = NULL
        cdef size_t n = payload.iov_len
        if self.channel.ws.client:
            key = _next_key()
        out += put_header(out, opcode, n, key)
        if not copy:
            return out
        if key != NULL:
            wk_mask(out, <const unsigned char *>payload.iov_base, n, key, 0)
        else:
            memcpy(out, payload.iov_base, n)
        return out + n

    cdef int encode_one(self, message, size_t copy_up_to) except -1:
        cdef iovec payload
        cdef unsigned char *out = self.small
        cdef uint8_t opcode
        cdef bint copy
        cdef size_t room
        self.spans = self.few
        self.ends = &self.end
        opcode = self.pack(self.look_at(message, 0, &payload), &payload)
        copy = payload.iov_len <= copy_up_to
        room = MAX_HEADER + (payload.iov_len if copy else 0)
        if room > SMALL:
            self.scratch = out = <unsigned char *>memory_take(FOR_SPANS, room)
            if out == NULL:
                raise MemoryError
        self.add(out, self.put(out, opcode, &payload, copy) - out)
        if not copy:
            self.add(payload.iov_base, payload.iov_len)
        self.end = self.total = self.left
        return 0

    cdef int take_messages(self) except -1:
        if isinstance(self.argument, (str, bytes, bytearray, memoryview)):
            raise TypeError(
                f"messages must be an iterable of messages, not {type(self.argument).__name__}"
            )
        self.messages = as_tuple(self.argument, "messages", "messages")
        return 0

    cdef int encode_many(self, size_t copy_up_to) except -1:
        """Check all messages, then write what is not sent from where it is."""
        cdef Py_ssize_t count, i
        cdef size_t room = 1, n
        cdef iovec *payloads
        cdef uint8_t *opcodes
        cdef unsigned char *out
        cdef unsigned char *run
        cdef bint copy
        if self.messages is None:
            self.take_messages()
            self.reserve(2 * len(self.messages) + 1)
        count = len(self.messages)
        self.ends = <size_t *>memory_take(FOR_SPANS, (count + 1) * sizeof(size_t))
        payloads = <iovec *>memory_take(FOR_SPANS, (count + 1) * sizeof(iovec))
        opcodes = <uint8_t *>memory_take(FOR_SPANS, count + 1)
        try:
            if self.ends == NULL or payloads == NULL or opcodes == NULL:
                raise MemoryError
            for i in range(count):
                opcodes[i] = self.pack(self.look_at(self.messages[i], i, &payloads[i]), &payloads[i])
                n = payloads[i].iov_len
                room += MAX_HEADER + (n if n <= copy_up_to else 0)
            self.scratch = out = run = <unsigned char *>memory_take(FOR_SPANS, room)
            if out == NULL:
                raise MemoryError
            for i in range(count):
                copy = payloads[i].iov_len <= copy_up_to
                out = self.put(out, opcodes[i], &payloads[i], copy)
                if not copy:
                    self.add(run, out - run)
                    self.add(payloads[i].iov_base, payloads[i].iov_len)
                    run = out
                self.ends[i] = self.left + (out - run)
            self.add(run, out - run)
            self.total = self.left
        finally:
            memory_free(FOR_SPANS, payloads)
            memory_free(FOR_SPANS, opcodes)
        return 0

    cdef Py_ssize_t count_of(self):
        return 1 if self.single else len(self.messages)

    cdef bint attempt(self) except -1:
        self.conn.ensure_usable()       # since it began there may have been a fork
        try:
            if not self.checked:
                self.channel.ensure_may_send()
                if self.left and not self.acquire():
                    return False
                if self.channel.said_goodbye():
                    raise self.channel.why_closed(True)
                self.checked = True
                if self.left and self.channel.deflater is not None:
                    self.encode_in_place()
            if self.left and not SendingData.attempt(self):
                return False
        except ConnectionClosed:
            raise
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.channel.why_closed(True)
        self.sent = True        # of no messages, too
        self.count_first(self.count_of())
        return True

    cdef void count_first(self, Py_ssize_t n) noexcept:
        self.channel.count_sent(n, self.ends[n - 1] if n else 0)

    cdef void finish(self) noexcept:
        if not self.sent:
            self.unpack()
        SendWhole.finish(self)

    def __dealloc__(self):
        # The bases free what is memory of its own.
        if self.ends == &self.end:
            self.ends = NULL
        if self.spans == self.few:
            self.spans = NULL


# --- the channel's methods -----------------------------------------------------------------


cdef class WebSocketSend(WebSocketReceive):

    cdef bint said_goodbye(self) noexcept:
        return wk_u32_load(&self.ws.goodbye) != 0

    cdef int ensure_may_send(self) except -1:
        cdef Slot *slot = self.conn.slot
        if (self.closing or not self.is_linked() or self.said_goodbye() or slot.send_error
                or sender_state(slot) & SHUT):
            raise self.why_closed(True)
        return 0

    cdef object sending(self, messages, bint single):
        cdef SendMessages operation = SendMessages.__new__(SendMessages)
        operation.conn = self.conn
        operation.channel = self
        operation.single = single
        operation.argument = messages
        return operation

    cdef void count_sent(self, Py_ssize_t n, size_t size) noexcept:
        self.ws.scan.counters.sent += n
        self.ws.scan.counters.sent_bytes += size
        self.ws.scan.counters.send_batches += 1

    cdef int send_now(self, messages, bint single) except -1:
        cdef SendMessages operation = self.sending(messages, single)
        operation.state = DONE      # nobody awaits it
        self.conn.ensure_usable()
        self.ensure_may_send()
        if self.deflater is not None and self.conn.sender is not None:
            self.deflater.restart()
        try:
            operation.encode(<size_t>-1)
            if self.conn.sender is not None:
                (<Sending>self.conn.sender).make_way()
            if operation.left:
                self.put(<const char *>operation.spans[0].iov_base, operation.left)
        except BaseException:
            operation.unpack()
            raise
        operation.let_go_of_data()
        operation.count_first(operation.count_of())
        return 0

    cdef int put(self, const char *data, Py_ssize_t n) except -1:
        """As `SendHalf._send_or_queue`, with the look for our close frame where it counts."""
        cdef SendHalf conn = self.conn
        cdef Slot *slot = conn.slot
        if n > slot.limits.outbound:
            raise ValueError(
                f"message is {n} bytes with its header, more than limits.outbound "
                f"({slot.limits.outbound}) can hold"
            )
        try:
            conn.may_send()
            conn.core.settle(slot)
            conn.ensure_unbroken()
            while not sender_acquire(slot):
                if conn.queue_behind(data, <uint32_t>n):
                    return 0
            if self.said_goodbye():
                conn.release()
                raise self.why_closed(True)
            if conn.is_corking(slot, n):
                return conn.cork_message(data, <uint32_t>n)
            return conn.send_at_once(data, n)
        except ConnectionClosed:
            raise
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.why_closed(True)

    def send(self, message):
        """Send a message, and return once the kernel owns every byte. A checkpoint.

        Whole or not at all: if it is cancelled before any of it was sent, nothing is; once it
        has begun, the reactor sends the rest.

        Args:
          message: a `str`, which is sent as text, or a contiguous bytes-like object, which is
              sent as binary. It must not change meanwhile.

        Raises:
          ConnectionClosed: if a close frame was sent or received, the connection is closed,
              before or during the call, or it broke.
          trio.BusyResourceError: if another task is sending.
          TypeError: if ``message`` is neither.
          ValueError: if it is a `str` that has no form in UTF-8: one with surrogates.
          RuntimeError: if called from another thread.
        """
        return self.sending(message, True)

    def send_many(self, messages):
        """Send many messages by one call to the kernel, or a few, and return once it owns every
        byte. A checkpoint.

        If it is cancelled, the messages up to the one that was begun are sent, and no others.

        Args:
          messages: an iterable of messages, each as `send` takes it. If one of them cannot be
              sent none is.

        Raises:
          TypeError, ValueError: if one of them cannot be sent; the message says which.
          ConnectionClosed, trio.BusyResourceError, RuntimeError: as `send` does.
        """
        return self.sending(messages, False)

    def send_nowait(self, message):
        """Send a message without waiting, as `Conn.send_nowait` does: what the kernel does not
        take at once is copied, and sent by the reactor. Not a checkpoint.

        Args:
          message: as `send` takes it, of at most ``limits.outbound`` bytes with its header. It
              may be changed once this has returned.

        Raises:
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          ConnectionClosed: as `send` does.
          TypeError, ValueError: if ``message`` cannot be sent, or is longer than that.
          RuntimeError: if called from another thread.
        """
        self.send_now(message, True)

    def send_many_nowait(self, messages):
        """Send many messages like `send_nowait`: all of them, or, if this raises, none. Not a
        checkpoint.

        Args:
          messages: an iterable of messages, with their headers at most ``limits.outbound``
              bytes.

        Raises:
          trio.WouldBlock: if more than ``limits.outbound`` bytes would be unsent. Nothing was
              sent.
          ConnectionClosed: as `send` does.
          TypeError, ValueError: if one of them cannot be sent, and the message says which; or
              if they are longer than that.
          RuntimeError: if called from another thread.
        """
        self.send_now(messages, False)

    def _send_pong(self, bytes payload not None):
        """Send a pong that nobody has asked for. Not a checkpoint."""
        cdef unsigned char frame[MAX_ANSWER]
        cdef const unsigned char *key = NULL
        cdef uint32_t n
        self.conn.ensure_usable()
        self.ensure_may_send()
        if self.ws.client:
            key = _next_key()
        n = put_header(frame, PONG, len(payload), key)
        if key != NULL:
            wk_mask(frame + n, <unsigned char *>PyBytes_AS_STRING(payload), len(payload), key, 0)
        else:
            memcpy(frame + n, PyBytes_AS_STRING(payload), len(payload))
        if self.conn.sender is not None:
            (<Sending>self.conn.sender).make_way()
        self.put(<const char *>frame, n + len(payload))
