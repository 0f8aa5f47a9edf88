"""A WebSocket's protocol over any stream, whose bytes Trio's side receives and sends.

The decoder is the reactor's (reactor/websocket.pxd), with a ring and a pool of its own. All of
it belongs to Trio's thread, and is called under the GIL. So there is no lock, and what is due
to be sent is taken by whoever sends on the stream (_websocket/stream_wire.py).
"""
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ..base.atomics cimport wk_u32_load
from ..base.mask cimport wk_mask
from ..base.memory cimport FOR_PINGS, memory_free, memory_zeroed
from ..reactor.framing cimport MESSAGES, FramingSpec
from ..reactor.pool cimport Pool, block_data, pool_free, pool_new
from ..reactor.ring cimport Ring, ring_clear, ring_copy, ring_discard, ring_len
from ..reactor.websocket cimport (
    BINARY, CLOSE_DUE, CLOSED_BY_PEER, COMPRESSED, MAX_ANSWER, MAX_HEADER, PING_DUE, PONG,
    RECORD_HEADER, TEXT, CloseCode, Decoder, Due, Ping, Record, decoder_answer,
    decoder_answered, decoder_discard, decoder_fail, decoder_feed, decoder_say_goodbye,
    put_header,
)
from .text cimport text_of
from .websocket_send cimport _next_key

cdef enum:
    PIECE = 1 << 30             # bytes that are decoded at once

cdef FramingSpec _SPEC
_SPEC.kind = MESSAGES


@cython.final
cdef class StreamDecoder:
    """What a peer has sent, and what it is to be sent.

    Args:
      client: whether the role is a client's.
      max_message: bytes.
      max_fragments: of a message.
      may_compress: whether compression was agreed on.
    """
    cdef Pool *pool
    cdef Ring ring
    cdef Decoder ws
    cdef uint64_t pings_sent
    cdef bint begun_here        # our close frame was the first
    cdef int close_code         # with that code
    cdef str close_text

    def __cinit__(self, bint client, uint32_t max_message, uint32_t max_fragments,
                  bint may_compress):
        self.ws.scan.spec = &_SPEC
        self.ws.client = client
        self.ws.max_message = max_message
        self.ws.max_fragments = max_fragments
        self.ws.may_compress = may_compress
        self.pool = pool_new(0)
        if self.pool == NULL:
            raise MemoryError

    def __dealloc__(self):
        while self.ws.pings != NULL:
            self.remove_ping(&self.ws.pings)
        if self.pool != NULL:
            ring_clear(&self.ring, self.pool)
            pool_free(self.pool)

    # --- what has come -------------------------------------------------------

    def feed(self, data):
        """Decode bytes that were received. False if there was no memory for all of them: then
        the stream has a hole, and nothing behind it is to be fed."""
        cdef Py_buffer view
        cdef Py_ssize_t at = 0
        cdef bint news = False
        cdef bint no_memory = False
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        while at < view.len and not no_memory:
            at += decoder_feed(&self.ws, &self.ring, self.pool, <unsigned char *>view.buf + at,
                               <uint32_t>min(view.len - at, <Py_ssize_t>PIECE), &news, &no_memory)
        PyBuffer_Release(&view)
        return not no_memory

    def take(self):
        """The first message: a `str` or `bytes`; if it is compressed, a pair of whether it is
        text, and the bytes. None if none is whole."""
        cdef Record record
        cdef object message
        if self.ws.whole == 0:
            return None
        ring_copy(&self.ring, &record, RECORD_HEADER, 0)
        if record.kind == TEXT and not record.compressed:
            message = self.text(record.size)
        else:
            message = self.bytes_of(record.size)
            if record.compressed:
                message = record.kind == TEXT, message
        ring_discard(&self.ring, self.pool, RECORD_HEADER + record.size)
        self.ws.whole -= 1
        self.ws.scan.counters.received += 1
        self.ws.scan.counters.received_bytes += record.size
        return message

    cdef object text(self, uint32_t n):
        cdef uint32_t capacity = self.ring.block.capacity
        cdef uint32_t at = (self.ring.head + RECORD_HEADER) & (capacity - 1)
        if at + n <= capacity:
            return text_of(<char *>block_data(self.ring.block) + at, n)
        return self.bytes_of(n).decode()

    cdef bytes bytes_of(self, uint32_t n):
        data = PyBytes_FromStringAndSize(NULL, n)
        ring_copy(&self.ring, PyBytes_AS_STRING(data), n, RECORD_HEADER)
        return data

    def count_batch(self):
        """Messages were delivered."""
        self.ws.scan.counters.receive_batches += 1

    @property
    def buffered(self):
        """Bytes of messages that were not taken."""
        return ring_len(&self.ring)

    # --- the end -------------------------------------------------------------

    @property
    def is_over(self):
        """Whether the peer has closed the connection, or broken the protocol."""
        return self.ws.over != 0

    @property
    def was_closed_by_peer(self):
        """Whether it has ended by a close frame of the peer's."""
        return self.ws.over == CLOSED_BY_PEER

    @property
    def said_goodbye(self):
        """Whether our close frame was sent, or is due. Nothing may be sent behind it."""
        return wk_u32_load(&self.ws.goodbye) != 0

    def discard(self):
        """Drop all messages, and those that are still to come."""
        decoder_discard(&self.ws, &self.ring, self.pool)

    def refuse(self, CloseCode code, bytes reason not None):
        """End the connection with that code, for what was found in a message."""
        if not self.ws.over:
            decoder_fail(&self.ws, &self.ring, self.pool, code, PyBytes_AS_STRING(reason))
            self.discard()

    def close_state(self):
        """The code, the reason, and whose they are, of the first close frame; or (None, "",
        None)."""
        if self.begun_here:
            return self.close_code, self.close_text, "local"
        if not self.ws.over:
            return None, "", None
        text = PyUnicode_DecodeUTF8(<char *>self.ws.reason, self.ws.reason_size, NULL)
        return self.ws.close_code, text, "peer" if self.ws.over == CLOSED_BY_PEER else "local"

    def say_goodbye(self, int code, bytes reason not None):
        """Have our close frame sent, if none was. `code` 1005 is an empty frame."""
        if self.ws.over or not decoder_say_goodbye(&self.ws, code, PyBytes_AS_STRING(reason),
                                                   len(reason)):
            return
        self.begun_here = True
        self.close_code = code
        self.close_text = reason.decode()

    # --- pings ---------------------------------------------------------------

    def add_ping(self, bytes payload):
        """Have a ping sent; its number. None for a payload of its own."""
        cdef Ping **last = &self.ws.pings
        cdef Ping *ping
        if payload is None:
            payload = b"trio-wknet %d" % (self.pings_sent + 1)
        while last[0] != NULL:
            if (last[0].size == len(payload)
                    and memcmp(last[0].payload, PyBytes_AS_STRING(payload), len(payload)) == 0):
                raise ValueError(
                    f"payload {payload!r} is that of a ping that is not answered yet")
            last = &last[0].next
        ping = <Ping *>memory_zeroed(FOR_PINGS, 1, sizeof(Ping))
        if ping == NULL:
            raise MemoryError
        self.pings_sent += 1
        ping.number = self.pings_sent
        ping.size = <uint8_t>len(payload)
        memcpy(ping.payload, PyBytes_AS_STRING(payload), ping.size)
        last[0] = ping
        self.ws.scan.answer_due |= PING_DUE
        return ping.number

    def is_answered(self, uint64_t number):
        """Whether the peer has answered that ping, or a later one."""
        return self.ws.confirmed >= number

    def forget_ping(self, uint64_t number):
        """Nobody waits for it any more."""
        cdef Ping **at = &self.ws.pings
        while at[0] != NULL and at[0].number != number:
            at = &at[0].next
        if at[0] != NULL:
            self.remove_ping(at)

    cdef void remove_ping(self, Ping **at) noexcept:
        cdef Ping *ping = at[0]
        at[0] = ping.next
        memory_free(FOR_PINGS, ping)

    # --- what is sent --------------------------------------------------------

    @property
    def is_due(self):
        """Whether something is to be sent that is no message."""
        return self.ws.scan.answer_due != 0

    def answers(self):
        """The frames that are due, which then are due no more."""
        cdef unsigned char frame[MAX_ANSWER]
        cdef const unsigned char *key = NULL
        cdef Due what = CLOSE_DUE
        cdef uint64_t number = 0
        cdef uint32_t n
        frames = []
        while True:
            if self.ws.client:
                key = _next_key()
            n = decoder_answer(&self.ws, frame, key, &what, &number)
            if n == 0:
                return b"".join(frames)
            frames.append(PyBytes_FromStringAndSize(<char *>frame, n))
            decoder_answered(&self.ws, what, number)

    def message(self, bint is_text, payload, bint compressed):
        """A frame that is a whole message."""
        return self.frame((TEXT if is_text else BINARY) | (COMPRESSED if compressed else 0),
                          payload)

    def pong(self, bytes payload not None):
        """A pong that nobody has asked for."""
        return self.frame(PONG, payload)

    cdef bytes frame(self, uint8_t opcode, payload):
        cdef unsigned char header[MAX_HEADER]
        cdef const unsigned char *key = _next_key() if self.ws.client else NULL
        cdef Py_buffer view
        cdef uint32_t n
        cdef char *out
        PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE)
        try:
            n = put_header(header, opcode, view.len, key)
            data = PyBytes_FromStringAndSize(NULL, n + view.len)
            out = PyBytes_AS_STRING(data)
            memcpy(out, header, n)
            if key == NULL:
                memcpy(out + n, view.buf, view.len)
            else:
                wk_mask(<unsigned char *>out + n, <unsigned char *>view.buf, view.len, key, 0)
        finally:
            PyBuffer_Release(&view)
        return data

    def count_sent(self, uint64_t messages, uint64_t size):
        """Messages were sent, by one call."""
        self.ws.scan.counters.sent += messages
        self.ws.scan.counters.sent_bytes += size
        self.ws.scan.counters.send_batches += 1

    # --- facts ---------------------------------------------------------------

    def counters(self):
        """In the order of `WebSocketStatistics`."""
        return (
            self.ws.scan.counters.received,
            self.ws.scan.counters.received_bytes,
            self.ws.scan.counters.receive_batches,
            self.ws.scan.counters.sent,
            self.ws.scan.counters.sent_bytes,
            self.ws.scan.counters.send_batches,
            self.ws.whole,
            self.ws.pings_answered,
        )
